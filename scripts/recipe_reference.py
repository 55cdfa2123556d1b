"""Writes the tables of `docs/reference/recipes.md` from the schema of recipes, so that they cannot go stale.

    python scripts/recipe_reference.py           rewrite the tables in the page
    python scripts/recipe_reference.py --check   exit with 1 if they differ from the schema

A table is between `<!-- table NAME -->` and `<!-- end -->`; the text around it is written by hand. Names and defaults
of the keys are those of the pydantic models in `earwise/config`, meanings are the docstrings below the fields, and old
names are those of `earwise/config/deprecated.py`.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from earwise.config import curriculum, deprecated, recipe, servers, stages
from earwise.config.control import hardware, run_control
from earwise.config.kinds import completions, compress, gkd

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "recipes.md"
TABLE = re.compile(r"<!-- table ([\w.]+) -->\n.*?<!-- end -->", re.DOTALL)

COMMON = stages.StageConfig
TABLES: dict[str, tuple[type[BaseModel], type[BaseModel] | None]] = {
    "recipe": (recipe.Recipe, None),
    "model": (recipe.ModelConfig, None),
    "model.connector": (recipe.ConnectorConfig, None),
    "hardware": (hardware.HardwareConfig, None),
    "eval": (run_control.EvalConfig, None),
    "stage": (COMMON, None),
    "data": (stages.DataConfig, None),
    "data.mixture": (stages.Source, None),
    "trainable": (stages.TrainableConfig, None),
    "trainable.lora": (stages.LoraConfig, None),
    "optimizer": (stages.OptimizerConfig, None),
    "curriculum": (curriculum.CurriculumConfig, None),
    "curriculum.band": (curriculum.BandConfig, None),
    "sft": (stages.SftConfig, COMMON),
    "grpo": (stages.GrpoConfig, COMMON),
    "grpo.judge": (servers.JudgeConfig, None),
    "grpo.weight_sync": (servers.WeightSyncConfig, None),
    "grpo.pause": (completions.PauseConfig, None),
    "grpo.confidence": (completions.ConfidenceConfig, None),
    "dpo": (stages.DpoConfig, COMMON),
    "compress": (compress.CompressConfig, COMMON),
    "gkd": (gkd.GkdConfig, COMMON),
    "gkd.teacher": (gkd.TeacherConfig, None),
}
"""Name of a table -> the model whose fields it lists, and the model whose fields are left out."""
STAGE_KINDS = "`sft`, `grpo`, `dpo`, `compress`, `gkd`, or a stage of your own as `file.py:name`"
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "multiple_of": "multiple of"}


def render(page: str) -> str:
    """The page with every table written anew."""
    return TABLE.sub(lambda match: f"<!-- table {match[1]} -->\n{table(match[1])}\n<!-- end -->", page)


def table(name: str) -> str:
    """The Markdown of one table: a key of `TABLES`, `renamed` (old and new keys) or `renamed_values`."""
    if name == "renamed":
        rows = [
            (f"`{place}`", f"`{old}`", f"`{new}`")
            for place, names in deprecated.RENAMED_KEYS.items()
            for old, new in names.items()
        ]
        return markdown(("in", "old key", "new key"), rows)
    if name == "renamed_values":
        values = [
            (f"`{key}`", f"`{old}`", f"`{new}`")
            for key, names in deprecated.RENAMED_VALUES.items()
            for old, new in names.items()
        ]
        return markdown(("key", "old value", "new value"), values)
    model, common = TABLES[name]
    left_out = set(common.model_fields) if common else set()
    meanings = docstrings(model)
    rows = []
    for key, field in model.model_fields.items():
        if key not in left_out or key in vars(model)["__annotations__"]:
            kind = STAGE_KINDS if key == "kind" and name == "stage" else values_of(field)
            rows.append((f"`{key}`", kind, default_of(field), meanings[key]))
    return markdown(("key", "values", "default", "meaning"), rows)


def markdown(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; vertical bars inside of cells are escaped."""
    lines = [header, tuple("---" for _ in header), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Meaning of every field of a model: the text below it in the source, in YAML's words.

    Raises:
        KeyError: if a field has no docstring.
    """
    meanings: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not (isinstance(cls, type) and issubclass(cls, BaseModel)) or not cls.__module__.startswith("earwise"):
            continue
        definition = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                meanings[field.target.id] = in_yaml_words(str(text.value.value))
    missing = [key for key in model.model_fields if key not in meanings and key != "kind"]
    if missing:
        raise KeyError(f"{model.__name__}: no docstring below {', '.join(missing)}")
    return meanings


def in_yaml_words(docstring: str) -> str:
    """A docstring on one line, with YAML's `null` for None and without references to tables of the code."""
    text = re.sub(r" \(a key of `[\w.]+`\)|, a key of `[\w.]+`", "", " ".join(docstring.split()))
    return re.sub(r"\bNone\b", "`null`", text)


def values_of(field: FieldInfo) -> str:
    """What a key may be set to."""
    alternatives = [part for part in alternatives_of(field.annotation) if part is not NoneType]
    names = list(dict.fromkeys(type_name(part) for part in alternatives))
    optional = ["`null`"] if len(alternatives) < len(alternatives_of(field.annotation)) else []
    limits = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in BOUNDS.items()
        if hasattr(bound, name)
    ]
    if any(getattr(bound, "min_length", 0) for bound in field.metadata):
        limits = ["that is not empty"]
    return " or ".join([" ".join([" or ".join(names), ", ".join(limits)]).strip(), *optional])


def alternatives_of(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def type_name(annotation: Any) -> str:
    """A type in plain words."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return type_name(get_args(annotation)[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (tuple, list):
        return "list"
    if origin in (dict, Mapping) or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "mapping"
    return {str: "text", int: "integer", float: "number", bool: "`true`, `false`"}[annotation]


def default_of(field: FieldInfo) -> str:
    """The default of a key, as YAML."""
    default = field.default_factory() if field.default_factory is not None else field.default  # type: ignore[call-arg]
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        return "its defaults"
    value = list(default) if isinstance(default, tuple) else default
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    text = text.removesuffix("...\n").strip()
    return f"`{text}`"


def main(arguments: list[str]) -> int:
    """Rewrite the page, or compare it with the schema; returns the exit code."""
    page = PAGE.read_text(encoding="utf-8")
    rendered = render(page)
    if "--check" in arguments:
        if rendered != page:
            sys.stderr.write(f"{PAGE}: differs from the schema; run python scripts/recipe_reference.py\n")
        return int(rendered != page)
    PAGE.write_text(rendered, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
