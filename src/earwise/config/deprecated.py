"""Recipe keys with new names: the one table of old and new, applied wherever settings are read. No torch.

Old keys work for one more release; each that is used prints one line to stderr. `config/recipe.py` applies the table to
a recipe's YAML (profiles, arms and variants included), to overrides of the command line and to the `recipe.json` of
runs that an earlier version started.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from earwise.errors import ConfigError

RENAMED_KEYS: dict[str, dict[str, str]] = {
    "model": {"decoder_start": "decoder_init"},
    "stages.*": {
        "checkpoint_activations": "gradient_checkpointing",
        "save_every": "save_steps",
        "keep_checkpoints": "save_total_limit",
        "log_samples_every": "log_completions_steps",
        "show_every": "log_completions_steps",
        "on_bad_loss": "on_nonfinite_loss",
        "max_bad_steps": "max_skipped_steps",
        "start": "connector_init",
        "sampler": "rollout_server",
        "sampler_refresh": "weight_sync",
        "on_sampler_error": "on_rollout_error",
        "sampler_wait_minutes": "rollout_retry_minutes",
        "pieces": "unit",
        "k": "stub_groups",
        "group": "words_per_group",
        "rate": "units_per_epoch",
        "every_steps": "steps_per_unit",
        "measure_every": "eval_steps",
    },
    "stages.*.optimizer": {
        "lr": "learning_rate",
        "encoder_lr": "encoder_learning_rate",
        "connector_lr": "connector_learning_rate",
        "schedule": "lr_scheduler_type",
        "grad_clip": "max_grad_norm",
    },
    "stages.*.trainable.lora": {"alpha": "lora_alpha", "targets": "target_modules"},
    "stages.*.data": {"by_size": "weight_by_size", "temperature": "mixture_temperature"},
    "stages.*.curriculum": {"explore": "exploration"},
    "stages.*.curriculum.band": {"of": "attempts"},
    "stages.*.judge": {"points": "max_score"},
    "stages.*.weight_sync": {"how": "method", "every": "steps"},
}
"""Place of a mapping (with the new names, `*` for any element of a list) -> old key -> new key."""

RENAMED_VALUES: dict[str, dict[str, str]] = {"stages.*.on_rollout_error": {"wait": "retry"}}
"""Place of a value (with the new names) -> old value -> new value."""

LAYERS = ("profiles", "arms", "variants")
"""Keys of a recipe whose entries hold settings that start again at the top of the recipe."""

_Place = tuple[str, ...]


def warn_on_stderr(line: str) -> None:
    """Print one warning to stderr."""
    sys.stderr.write(f"warning: {line}\n")


def with_new_names(
    settings: Mapping[Any, Any],
    source: str,
    warn: Callable[[str], None] = warn_on_stderr,
    *,
    keeps_stage_keys: bool = False,
) -> dict[Any, Any]:
    """Copy settings with every old key and value replaced by its new name.

    Args:
        settings: A whole recipe, or a mapping of dotted keys, as read from YAML or JSON.
        source: Path of the file, or `command line`, for messages.
        warn: Called once for each old key or value that is used.
        keeps_stage_keys: Whether keys of stages stay as they are: a stage outside the package may give such a name a
            meaning of its own.
    Returns:
        The settings under their new names; nothing is changed in place.
    Raises:
        ConfigError: if a mapping has an old key and its new one.
    """
    return _Renaming(source, warn, keeps_stage_keys).mapping(settings, ())


class _Renaming:
    """One pass over nested settings; remembers which old names it has warned about."""

    def __init__(self, source: str, warn: Callable[[str], None], keeps_stage_keys: bool) -> None:
        self._source, self._warn, self._keeps_stage_keys = source, warn, keeps_stage_keys
        self._warned: set[str] = set()

    def mapping(self, settings: Mapping[Any, Any], place: _Place) -> dict[Any, Any]:
        """Rename the keys of a mapping that stands at a place, and everything below."""
        renamed: dict[Any, Any] = {}
        for key, value in settings.items():
            if key == "log_samples_every" and "show_every" in settings:
                continue  # written side by side by earlier versions, where only `show_every` had an effect
            new_key, inner_place = self._key(key, place)
            if new_key in renamed or (new_key != key and new_key in settings):
                raise ConfigError(f"{self._source}: {key!r} is the old name of {new_key!r}, and both are set; keep one")
            renamed[new_key] = self._value(value, inner_place)
        return renamed

    def _value(self, value: Any, place: _Place) -> Any:
        if isinstance(value, Mapping):
            return self.mapping(value, place)
        if isinstance(value, list):
            element_place = (*place, "*") if place else place  # a profile or arm may be a list
            return [self._value(element, element_place) for element in value]
        new_value = self._names(RENAMED_VALUES, place).get(value) if isinstance(value, str) else None
        if new_value is None:
            return value
        self._tell(f"{place[-1]}: {value}", f"{place[-1]}: {new_value}")
        return new_value

    def _key(self, key: Any, place: _Place) -> tuple[Any, _Place]:
        """The new name of a key, which may be dotted, and the place of its value."""
        if not isinstance(key, str):
            return key, (*place, "*")
        new_parts = []
        for part in key.split("."):
            if place and place[-1] in LAYERS:
                new_parts.append(part)
                place = ()
                continue
            new_part = self._names(RENAMED_KEYS, place).get(part, part)
            if new_part != part:
                self._tell(".".join((*place, part)), new_part)
            new_parts.append(new_part)
            place = (*place, "*" if place in (("stages",), ("eval",)) else new_part)
        return ".".join(new_parts), place

    def _names(self, table: Mapping[str, dict[str, str]], place: _Place) -> dict[str, str]:
        """Old name -> new name at a place."""
        return {} if self._keeps_stage_keys and place[:2] == ("stages", "*") else table.get(".".join(place), {})

    def _tell(self, old: str, new: str) -> None:
        if old not in self._warned:
            self._warned.add(old)
            self._warn(f"{self._source}: {old} is now called {new}; the old name works for one more release")
