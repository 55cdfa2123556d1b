"""Which linear layers of a model get LoRA: the settings of a recipe, in PEFT's words, resolved to full module names.

PEFT matches names over a whole model. Here they are matched within the part that a recipe trains with LoRA (encoder or
decoder), only linear layers can match, and a name that matches nothing is an error: PEFT passes over it, so that a
model whose projections have other names would be trained in part without a word. Called by `training/trainable.py`
before PEFT adds its layers, and by `models/memory` to count them. Experts of a mixture are no linear layers in
transformers 5 (all of them are one tensor), so they never get LoRA.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from earwise.config.stages import ALL_LINEAR
from earwise.errors import ConfigError

Targets = str | tuple[str, ...]
"""`all-linear`, a regular expression for whole module names, or the last parts of module names."""


@dataclass(frozen=True, slots=True)
class LoraPart:
    """A part of a model that LoRA is added to.

    Attributes:
        name: `encoder` or `decoder`.
        prefixes: Beginnings of the names of its modules.
        excluded: Last parts of the names of layers that `all-linear` leaves out, as the family declares them.
    """

    name: str
    prefixes: tuple[str, ...]
    excluded: tuple[str, ...]


def linear_layers(module: nn.Module, prefixes: tuple[str, ...]) -> dict[str, nn.Linear]:
    """Name -> layer of all linear layers whose names have one of the beginnings."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and f"{name}.".startswith(prefixes)
    }


def all_linear(module: nn.Module, part: LoraPart) -> list[str]:
    """Names of the layers that `all-linear` stands for in one part: not those that the family excludes, and no head
    that shares its weights with the embeddings, whatever it is called."""
    tables = _embedding_tables(module)
    return [
        name
        for name, layer in linear_layers(module, part.prefixes).items()
        if not matches_end(name, part.excluded) and id(layer.weight) not in tables
    ]


def resolve_targets(
    module: nn.Module, parts: Iterable[LoraPart], targets: Targets, exclude: tuple[str, ...], model_name: str
) -> list[str]:
    """Full names of the layers that get LoRA, in the order of the model.

    Args:
        module: The whole model, before LoRA is added.
        parts: The parts that are trained with LoRA; each must have at least one layer.
        targets: `target_modules` of the recipe.
        exclude: `exclude_modules` of the recipe: last parts of the names of layers that are left out.
        model_name: Name of the model, for messages.
    Raises:
        ConfigError: if a target matches no linear layer, a part has no layer at all, or a target is an output head
            that shares its weights with the embeddings.
    """
    chosen: list[str] = []
    candidates: dict[str, nn.Linear] = {}
    for part in parts:
        layers = linear_layers(module, part.prefixes)
        candidates |= layers
        names = all_linear(module, part) if targets == ALL_LINEAR else _named(layers, targets)
        names = [name for name in names if not matches_end(name, exclude)]
        if not names:
            raise ConfigError(
                f"lora.target_modules {_text(targets)} match no layer of the {part.name} of {model_name}; "
                f"its linear layers are {_last_parts(layers)}; all-linear takes all of them"
            )
        chosen += names
    if not isinstance(targets, str):
        _check_each_matches(targets, candidates, model_name)
    _check_excluded(exclude, candidates, model_name)
    _check_untied(module, {name: candidates[name] for name in chosen}, model_name)
    return chosen


def check_patterns(patterns: Mapping[str, object], names: Collection[str], key: str, model_name: str) -> None:
    """Refuse a pattern of `rank_pattern` or `alpha_pattern` that matches none of the adapted layers.

    As in PEFT, a pattern is a regular expression for the end of a module name, from a dot on.
    """
    for pattern in patterns:
        if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
            raise ConfigError(
                f"lora.{key} {pattern!r} matches no layer of {model_name} that gets LoRA; these are "
                f"{_last_parts(names)}"
            )


def matches_end(name: str, ends: Iterable[str]) -> bool:
    """Whether a module name is one of `ends`, or ends with one of them after a dot."""
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _named(layers: Mapping[str, nn.Linear], targets: Targets) -> list[str]:
    """Names of the layers that a regular expression or a list of last parts chooses, as in PEFT."""
    if isinstance(targets, str):
        try:
            return [name for name in layers if re.fullmatch(targets, name)]
        except re.error as error:
            raise ConfigError(
                f"lora.target_modules {targets!r} is no regular expression ({error}); write all-linear, or a list of "
                "names"
            ) from error
    return [name for name in layers if matches_end(name, targets)]


def _check_each_matches(targets: Iterable[str], layers: Mapping[str, nn.Linear], model_name: str) -> None:
    for target in targets:
        if not any(matches_end(name, (target,)) for name in layers):
            raise ConfigError(
                f"lora.target_modules {target!r} matches no linear layer of {model_name}; its linear layers are "
                f"{_last_parts(layers)}; all-linear takes all of them"
            )


def _check_excluded(exclude: Iterable[str], layers: Mapping[str, nn.Linear], model_name: str) -> None:
    for end in exclude:
        if not any(matches_end(name, (end,)) for name in layers):
            raise ConfigError(
                f"lora.exclude_modules {end!r} matches no linear layer of {model_name}; its linear layers are "
                f"{_last_parts(layers)}"
            )


def _check_untied(module: nn.Module, chosen: Mapping[str, nn.Linear], model_name: str) -> None:
    """Refuse LoRA on a head whose weight is the embedding table: merged, it would change the embeddings too."""
    tables = _embedding_tables(module)
    for name, layer in chosen.items():
        if id(layer.weight) in tables:
            raise ConfigError(
                f"lora.target_modules: {name} of {model_name} shares its weights with the embeddings; leave it out"
            )


def _embedding_tables(module: nn.Module) -> set[int]:
    """Identities of the weights of all embedding tables."""
    return {id(table.weight) for table in module.modules() if isinstance(table, nn.Embedding)}


def _last_parts(names: Iterable[str]) -> str:
    """The distinct last parts of module names; a bare number keeps the part before it."""
    distinct = dict.fromkeys(re.sub(r"^.*?([^.]+(\.\d+)*)$", r"\1", name) for name in names)
    return ", ".join(distinct)


def _text(targets: Targets) -> str:
    return repr(targets) if isinstance(targets, str) else str(list(targets))
