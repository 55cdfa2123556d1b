"""What several commands share: notes on stderr, options, a loaded model, a decoded clip."""

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from earwise.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from earwise.engine.local import LocalEngine
    from earwise.engine.remote.client import RemoteEngine
    from earwise.models.base import AudioLM

STYLES = (
    "answer",
    "plain",
    "open",
    "think",
    "short-think",
    "adaptive",
    "tags",
    "structured",
    "spoken",
    "xs-cot",
)  # the keys of prompts.INSTRUCTIONS, whose import costs numpy's

model_option = click.option(
    "--model",
    "-m",
    default="embedded",
    show_default=True,
    metavar="MODEL",
    help="A family (see `earwise models`), a folder with a trained model, module:function, or a server: URL#NAME.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def note(line: str) -> None:
    """A line of progress, on stderr."""
    click.echo(line, err=True)


def result(value: object) -> None:
    """One JSON object on one line of stdout."""
    click.echo(json.dumps(value, ensure_ascii=False))


def open_model(name: str) -> "AudioLM":
    """Load a model; says so when base weights must be fetched first.

    Raises:
        ModelError: if there is no such model or its weights cannot be had.
    """
    from earwise.engine.remote import address
    from earwise.models import base

    if address.is_remote(name):
        raise ModelError(f"{name}: the weights of a model on a server are not here; name a folder or a family")
    fetch_base(name)
    return base.load(name)


def fetch_base(name: str) -> Path | None:
    """The folder with a model's base weights, fetched with a word about it on the first run; None if it has none."""
    from earwise.models.embedded import base_weights

    if not wants_base(name):
        return None
    if not (base_weights.home() / base_weights.BASE / "complete").exists():
        note(f"first run: fetching the base weights (about 230 MB, once) into {base_weights.home()}")
    return base_weights.base_folder(note)


def open_engine(name: str) -> "LocalEngine | RemoteEngine":
    """A model ready to answer, here (see `open_model`) or on a server; what a server is asked and says is logged."""
    from earwise.engine.remote import address

    if address.is_remote(name):
        from earwise.engine.remote.probe import connect
        from earwise.files import home

        log = home() / "remote" / f"{address.slug(name)}.jsonl"
        remote = connect(name, log=log, say=note)
        note(f"every prompt and answer is kept in {log}")
        return remote
    # What importing makes stays. Cold starts in turn: with collection 10.5, 8.8, 7.4 s, without 7.4, 8.0, 6.6 s.
    gc.disable()
    try:
        if name == "embedded":
            from earwise.models.embedded import preload

            preload.start()
        from earwise.engine.local import LocalEngine
        from earwise.models import detect

        engine = LocalEngine(open_model(name))
        gc.freeze()
    finally:
        gc.enable()
    if Path(name).is_dir():
        engine.name = detect.named(engine.name, detect.checkpoint(Path(name))[1])
    return engine


def wants_base(name: str) -> bool:
    """True if the model is built on the base weights that `fetch` brings."""
    from earwise.models import detect

    family = detect.checkpoint(Path(name))[0] if Path(name).is_dir() else name
    return family.split("-")[0] == "embedded"


def find_manifest(name: str) -> Path:
    """`starter:train` and `starter:val` are the bundled clips; anything else is a path."""
    from earwise.data.manifest_path import manifest_path

    return manifest_path(name, Path())


def field_values(conditions: "Sequence[str]", option: str) -> list[tuple[str, str]]:
    """What an option of conditions says, each `field=value`.

    Raises:
        ConfigError: if one has no equals sign or no field.
    """
    pairs = []
    for condition in conditions:
        field, equals, value = condition.partition("=")
        if not equals or not field.strip():
            raise ConfigError(f"{option} {condition!r} is not field=value; write for example {option} source=NAME")
        pairs.append((field.strip(), value.strip()))
    return pairs


def refuse_existing(path: Path) -> None:
    """Refuse a folder to be written that already holds something.

    Raises:
        ConfigError: naming the folder.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ConfigError(f"{path}: already exists; choose another --out or delete it")
