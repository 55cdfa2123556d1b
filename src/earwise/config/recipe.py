"""Recipes: one YAML file per paper, one schema (that of the stages is in `stages.py`). No torch.

`load_recipe` merges schema default < YAML < profile < arm < command line and checks the result; unknown keys are
refused with the nearest name. How profiles and arms are composed by name is in `variants.py`. The resolved recipe is
plain JSON and is all that a resumed run needs. Config ends at the door: stages unpack it and pass plain values on.
"""

import difflib
import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from earwise.config.control.hardware import HardwareConfig
from earwise.config.control.run_control import EvalConfig
from earwise.config.curriculum import BandConfig, CurriculumConfig
from earwise.config.deprecated import warn_on_stderr, with_new_names
from earwise.config.kinds.gkd import TeacherConfig
from earwise.config.optimizer import LrSchedulerConfig, OptimizerConfig
from earwise.config.overrides import lay_over
from earwise.config.recipe_files import find_recipe
from earwise.config.resolve import find_own_code_in
from earwise.config.servers import JudgeConfig, WeightSyncConfig
from earwise.config.stage_kinds import STAGE_CONFIGS, AnyStageConfig, own_kinds, settings_class
from earwise.config.stages import DataConfig, LoraConfig, Source, TrainableConfig
from earwise.config.strict import Strict, UserPath
from earwise.config.variants import change_definitions, compose, take_definitions
from earwise.errors import ConfigError
from earwise.files import lock_folder

RECORD = "recipe.json"
"""File in a run's folder with the resolved recipe, the folder that its manifests start from, and the one where the run
was begun."""


class ConnectorConfig(Strict):
    """An untrained connector for the embedded model."""

    kind: Literal["mix", "linear", "residual", "qformer"] = "mix"
    """`mix`: that of the shipped model; `linear`: one linear layer; `residual`: Mellow's projector; `qformer`: a
    Q-Former on windows, as in SALMONN."""
    layers: Literal["all", "last"] = "all"
    """Encoder layers that the connector reads: `all`, weighted by learned gates and concatenated, or the `last`."""
    token_ms: int = Field(320, ge=20, le=30_000, multiple_of=20)
    """Milliseconds of audio per audio token."""


class ModelConfig(Strict):
    """The model that a recipe starts from."""

    name: UserPath = "embedded"
    """Family (see `earwise models`), folder of a model, `ORGANISATION/MODEL@REVISION` on a hub, or
    `file.py:function`."""
    weights: UserPath | None = None
    """Folder of the checkpoint or adapter, or `ORGANISATION/MODEL@REVISION` on a hub, whose commit is recorded; None:
    the family's default."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the weights; None: the family's default. Weights that are trained beside frozen bfloat16 weights stay
    float32."""
    quantization: Literal["nf4"] | None = None
    """`nf4`: hold the linear layers of the decoder in 4 bits while LoRA is trained on them (needs the extra
    `quantize`); what is trained is an adapter of the unquantized model. None: all weights have the dtype."""
    compute: Literal["float32", "bfloat16", "auto"] = "auto"
    """Precision of products with frozen weights on the CPU, in sampling, evaluation and training; `auto` measures what
    is faster on the machine that runs the recipe, `float32` is exact. LoRA, connector, norms and losses stay float32.
    """
    trim: bool | None = None
    """Whether the encoder computes only the frames of the clip, or pads every clip to its window; None: the default of
    the family or checkpoint. The results are equal if the encoder masks the padding; otherwise train and evaluate with
    the same value."""
    connector: ConnectorConfig | None = None
    """For `embedded-blank`: the untrained connector, initialised with the recipe's seed; None: the shipped model's
    kind."""
    decoder_init: Literal["pretrained", "random"] = "pretrained"
    """For `embedded-blank`: `random` initialises the decoder with the recipe's seed, and it must be trained in full."""

    @model_validator(mode="after")
    def _check_untrained_parts(self) -> "ModelConfig":
        chosen = "connector" if self.connector else "decoder_init" if self.decoder_init == "random" else None
        if chosen and self.name != "embedded-blank" and ":" not in self.name:
            raise ValueError(f"{chosen} is for name: embedded-blank, {self.name} was trained with its own")
        return self


class Recipe(Strict):
    """A resolved recipe."""

    recipe: str
    """Name of the recipe."""
    model: ModelConfig = ModelConfig()
    """The model that training starts from."""
    hardware: HardwareConfig | None = None
    """GPUs that these settings are meant for; `earwise train --plan` computes the memory for them. None: this
    machine."""
    seed: int = 0
    """Seed of everything that is drawn: order of rows, sampling, initial weights."""
    stages: tuple[AnyStageConfig, ...] = Field(min_length=1)
    """Training stages, in order; each starts from the model that the one before has written."""
    eval: tuple[EvalConfig, ...] = ()
    """Evaluations before the first stage and after the last."""
    on_overlap: Literal["stop", "warn"] = "stop"
    """A row to train on that is also one to measure on (`eval`, `eval_dataset`, `held_out`): the same clips, by
    content, with the same question. `warn` trains nevertheless."""
    encoder_cache: UserPath | None = None
    """Folder that keeps the encoder states of clips, in float16, for this and later runs with the same frozen encoder;
    None: they are kept in memory alone."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers that get the logs besides `metrics.jsonl`: tensorboard, wandb, trackio, or a `file.py:function`."""

    def tracked_in(self, more: Sequence[str]) -> "Recipe":
        """The same recipe with more trackers."""
        return self.model_copy(update={"trackers": tuple(dict.fromkeys([*self.trackers, *more]))})


def load_recipe(
    name: str | Path, *, profile: str | None = None, arm: str | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """Read, merge and check a recipe.

    Args:
        name: Name of a packaged recipe (`r1-aqa`), or path of a YAML file.
        profile: Name under `profiles:`. Its settings are dotted keys (`stages.*.max_steps`) or nested mappings, or a
            list of such mappings and of names of other profiles and variants.
        arm: Name under `arms:`, to be compared with others; written as a profile, and laid over it.
        overrides: `dotted.key=value` from the command line.
    Raises:
        ConfigError: naming file, key, value and remedy.
    """
    path, _ = find_recipe(name)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a recipe") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a recipe is a mapping with `recipe:` and `stages:`, this is {type(raw).__name__}")
    keeps_names = bool(own_kinds(raw.get("stages")))
    raw = with_new_names(raw, str(path), keeps_stage_keys=keeps_names)
    definitions = take_definitions(raw, str(path))
    if profile is not None:
        parts = compose(definitions, "profiles", profile, str(path))
        lay_over(raw, change_definitions(definitions, parts, str(path)), str(path))
    if arm is not None:  # the arm as the profile has changed it
        lay_over(raw, compose(definitions, "arms", arm, str(path)), str(path))
    settings = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r} is not key=value; write for example stages.0.max_steps=10")
        settings.append(with_new_names({key: yaml.safe_load(value)}, "command line", keeps_stage_keys=keeps_names))
    before = deepcopy(raw)
    lay_over(raw, settings, "command line")
    return check_recipe(raw, "command line" if settings and _is_valid(before) else str(path))


def _is_valid(raw: dict[str, Any]) -> bool:
    """Whether a recipe is valid as it is, so that what is wrong after a change of it comes from the change."""
    try:
        Recipe.model_validate(raw)
    except (ValidationError, ConfigError):
        return False
    return True


def check_recipe(raw: dict[str, Any], source: str) -> Recipe:
    """Validate a merged recipe.

    Args:
        raw: The recipe as plain values. Old names of keys are accepted; one line on stderr lists them.
        source: Path of the recipe, for messages.
    Raises:
        ConfigError: naming the recipe, the key, the value and the remedy.
    """
    old_names: list[str] = []
    own = own_kinds(raw.get("stages"))
    raw = with_new_names(raw, source, old_names.append, keeps_stage_keys=bool(own))
    if old_names:
        changes = ", ".join(line.removeprefix(f"{source}: ").partition(";")[0] for line in old_names)
        warn_on_stderr(f"{source}: {changes}; old names work for one more release")
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(error, own)}") from error


def _first_problem(error: ValidationError, own: Sequence[str]) -> str:
    """The first problem that pydantic found, in one line, with the nearest name for an unknown key.

    Args:
        error: What pydantic found.
        own: The recipe's stages outside the package, whose keys are known too.
    """
    problems = error.errors(include_url=False)
    if any(problem["loc"][:1] == ("stages",) and len(problem["loc"]) > 1 for problem in problems):
        # pydantic drops a wrong stage, and then says also that the list is too short
        problems = [problem for problem in problems if problem["loc"] != ("stages",)]
    problem = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][-1])
        near = difflib.get_close_matches(name, _field_names(own), 1)
        return (
            f"unknown key {place!r}"
            + (f"; did you mean {near[0]!r}?" if near else "; see docs/reference/recipes.md for the keys")
            + more
        )
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"{place}.kind {_kind_problem(problem.get('ctx', {}).get('tag'))}{more}"
    if problem["type"] == "value_error":  # raised by a check of ours, whose message is complete
        return f"{place}: {problem['ctx']['error']}{more}"
    value = json.dumps(problem["input"], default=str)
    return f"{place}: {problem['msg']}, got {value[:80]}{more}"


def _kind_problem(kind: object) -> str:
    """What is wrong with the `kind` of a stage that is none of those in the package, and what to write instead."""
    kinds = ", ".join(STAGE_CONFIGS)
    if kind in (None, ""):
        return f"is missing; set it to one of {kinds}"
    near = difflib.get_close_matches(str(kind), STAGE_CONFIGS, 1)
    hint = f"did you mean {near[0]!r}?" if near else "name one of them or your own as file.py:name"
    return f"{kind!r} is none of {kinds}; {hint}"


def _field_names(own: Sequence[str]) -> list[str]:
    """Names of all keys of a recipe, to suggest the nearest; those of the recipe's own stages come first."""
    models: list[type[BaseModel]] = [
        *map(settings_class, own), Recipe, ModelConfig, ConnectorConfig, Source, DataConfig, LoraConfig,
        TrainableConfig, OptimizerConfig, LrSchedulerConfig, HardwareConfig, *STAGE_CONFIGS.values(), BandConfig,
        CurriculumConfig, JudgeConfig, WeightSyncConfig, TeacherConfig, EvalConfig,
    ]  # fmt: skip
    return [name for model in models for name in model.model_fields]


def recorded_recipe(folder: Path) -> tuple[Recipe, Path]:
    """The recipe of an earlier run, and the folder that its manifests start from. A user's own code that it names is
    then also found in the folder where the run was begun.

    Args:
        folder: Folder of the run.
    Raises:
        ConfigError: if the folder holds no run, or another process is about to start one in it.
    """
    record = folder / RECORD
    try:
        recorded = json.loads(record.read_text(encoding="utf-8"))
        find_own_code_in(Path(recorded.get("working_folder", Path.cwd())))
        return check_recipe(recorded["recipe"], str(record)), Path(recorded["base"])
    except FileNotFoundError as error:
        if folder.is_dir():
            with lock_folder(folder):  # raises if a run has just begun here and not yet written its record
                pass
        raise ConfigError(
            f"{folder}: no {RECORD} here; give the --out folder of an earlier `earwise train`, or, if it was "
            "interrupted before its first step, the command that it was begun with"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{record}: is no recipe of a run ({error}); start the run anew") from error
