"""Helpers that several commands share: progress lines, JSON output, common options, and models opened by name.

Loading itself is in `engine/loading.py`; here it only gets a progress callback that prints to stderr.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from earwise.commands.paths import NAME_OR_PATH
from earwise.commands.terminal import printable, printable_json
from earwise.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from earwise.engine.local import LocalEngine
    from earwise.engine.remote.client import RemoteEngine
    from earwise.models.base import AudioLM

Function = TypeVar("Function", bound="Callable[..., Any]")

# The keys of prompts.INSTRUCTIONS, repeated here because that module imports numpy. A test compares the two.
STYLES = (
    "answer",
    "plain",
    "open",
    "think",
    "short-think",
    "adaptive",
    "tags",
    "structured",
    "perception",
    "spoken",
    "mellow",
    "xs-cot",
)

model_option = click.option(
    "--model",
    "-m",
    default="embedded",
    show_default=True,
    metavar="MODEL",
    type=NAME_OR_PATH,
    help="A family (see `earwise models`), a folder with a trained model, ORGANISATION/MODEL@REVISION on a hub, "
    "file.py:function, or a server: URL#NAME.",
)
# The values of audio.CHANNELS, repeated here because that module imports numpy. A test compares the two.
channel_option = click.option(
    "--channel", default="mean", show_default=True, type=click.Choice(["mean", "first"]),
    help="What several channels become: their mean (the loudest where they cancel each other), or the first.",
)  # fmt: skip
# The values of models.precision.compute.COMPUTE_CHOICES, repeated here because that module imports torch.
compute_option = click.option(
    "--compute", default="auto", show_default=True, type=click.Choice(["float32", "bfloat16", "int8", "auto"]),
    help="Precision of products with frozen weights on the CPU; auto measures once whether bfloat16 is faster on this "
    "machine; float32 is exact; int8 is fastest and smallest, and rounds most.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def max_new_tokens_option(default: int) -> "Callable[[Function], Function]":
    """The option `--max-new-tokens` with a command's own default."""
    return click.option(
        "--max-new-tokens", default=default, show_default=True, type=click.IntRange(1),
        help="Longest answer, in tokens.",
    )  # fmt: skip


temperature_option = click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="0: the most probable answer (greedy decoding); above 0: a sampled one.",
)
seed_option = click.option("--seed", default=0, show_default=True, help="Seed of sampling.")


def note(line: str) -> None:
    """Print a line about progress to stderr."""
    from earwise.progress import write_line

    write_line(printable(line))


def print_json(value: object) -> None:
    """Print a value as one line of JSON to stdout."""
    click.echo(printable_json(json.dumps(value, ensure_ascii=False)))


def open_model(name: str) -> "AudioLM":
    """Load a model into this process; see `engine.loading.load_model`."""
    from earwise.engine.loading import load_model

    return load_model(name, note)


def fetch_base(name: str) -> Path | None:
    """Fetch the base weights of a model where they are missing; see `engine.loading.fetch_base_weights`."""
    from earwise.engine.loading import fetch_base_weights

    return fetch_base_weights(name, note)


def open_engine(name: str, compute: str = "float32", *, keep_weights: bool = False) -> "LocalEngine | RemoteEngine":
    """Open a model in this process or on a server; see `engine.loading.open_engine`."""
    from earwise.engine import loading

    return loading.open_engine(name, note, compute=compute, keep_weights=keep_weights)


def find_manifest(name: str) -> Path:
    """Path of a manifest: `starter:train` and `starter:val` are bundled, any other name is a path."""
    from earwise.data.manifest_path import manifest_path

    return manifest_path(name, Path())


def field_values(conditions: "Sequence[str]", option: str) -> list[tuple[str, str]]:
    """Split conditions `field=value` that an option takes.

    Args:
        conditions: The option's values.
        option: Name of the option, for messages.
    Raises:
        ConfigError: if a condition has no equals sign or no field.
    """
    pairs = []
    for condition in conditions:
        field, equals, value = condition.partition("=")
        if not equals or not field.strip():
            raise ConfigError(f"{option} {condition!r} is not field=value; write for example {option} source=NAME")
        pairs.append((field.strip(), value.strip()))
    return pairs


def refuse_existing(path: Path) -> None:
    """Check that a folder which is about to be written does not exist, or is empty.

    Raises:
        ConfigError: if it holds files; the message names the folder.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ConfigError(f"{path}: already exists; choose another --out or delete it")
