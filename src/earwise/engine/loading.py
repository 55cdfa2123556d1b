"""Opens a model by name: in this process as a `LocalEngine`, or behind a server as a `RemoteEngine`.

Called by `earwise.load` and by every command that takes `--model`. A name is a family of `models/registry.py`, a folder
with a trained or released model, a model of a hub (`ORGANISATION/MODEL@REVISION`), `module:function`, or a server's
address (`http://host:port/v1#NAME`).
"""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from earwise.errors import ModelError
from earwise.files import cache_dir

if TYPE_CHECKING:
    from earwise.engine.local import LocalEngine
    from earwise.engine.remote.client import RemoteEngine
    from earwise.models.base import AudioLM

Notify = Callable[[str], None]


def open_engine(
    name: str, notify: Notify = lambda _: None, *, compute: str = "float32", keep_weights: bool = False
) -> "LocalEngine | RemoteEngine":
    """Load a model, or connect to the server that serves it.

    Args:
        name: Name of the model, see above.
        notify: Called with lines about progress (weights that are being fetched, the log of a server's replies).
        compute: Precision of products with frozen weights on the CPU: `float32`, `bfloat16`, `int8`, or `auto`, which
            measures whether bfloat16 is faster here (`models.precision.compute`).
        keep_weights: Whether the weights stay as they are read beside those that `compute` packs, for a server whose
            weights are updated while it runs.
    Returns:
        The engine; its `name` tells two checkpoints of one family apart, and names the commit of a hub's model.
    Raises:
        ModelError: if there is no such model, its weights cannot be loaded, or it cannot compute as asked.
        EngineError: if the server does not answer, or does not use the audio it is sent.
    """
    from earwise.engine.remote import address

    if address.is_remote(name):
        from earwise.engine.remote.probe import open_remote_engine

        if compute in ("bfloat16", "int8"):
            raise ModelError(f"{name}: a server chooses its own precision; leave compute out")

        log = cache_dir() / "remote" / f"{address.slug(name)}.jsonl"
        remote_engine = open_remote_engine(name, log=log, notify=notify)
        notify(f"every prompt and answer is kept in {log}")
        return remote_engine
    notify(f"loading {name}")
    answers_in = None if keep_weights else compute
    # Objects that imports create stay for good, so collecting garbage meanwhile is wasted time: cold starts measured in
    # turn took 10.5, 8.8 and 7.4 s with collection, and 7.4, 8.0 and 6.6 s without.
    gc.disable()
    try:
        if name == "embedded":
            from earwise.models.embedded import preload

            preload.start_loading(answers_in)
        from earwise.engine.local import LocalEngine
        from earwise.models import detect

        published = detect.fetch_published(name)
        model = load_model(str(published.folder) if published else name, notify, answers_in=answers_in)
        if compute != "float32":
            from earwise.models.precision.compute import FLOAT32, set_compute

            plan = set_compute(model, compute, for_answers=not keep_weights)
            if plan != FLOAT32:
                notify(f"products with frozen weights: {plan}")
        engine = LocalEngine(model)
        gc.freeze()
    finally:
        gc.enable()
    if published is not None:
        engine.name = published.name
    elif Path(name).is_dir():
        engine.name = detect.display_name(engine.name, detect.find_checkpoint(Path(name))[1])
    return engine


def load_model(name: str, notify: Notify = lambda _: None, *, answers_in: str | None = None) -> "AudioLM":
    """Load the weights of a model into this process; base weights that are missing are fetched first.

    Args:
        name: Name of the model; not the address of a server.
        notify: Called with lines about progress.
        answers_in: See `models.base.load`; None keeps all weights.
    Raises:
        ModelError: if there is no such model, or its weights cannot be loaded.
    """
    from earwise.engine.remote import address
    from earwise.models import base

    if address.is_remote(name):
        raise ModelError(f"{name}: the weights of a model on a server are not here; name a folder or a family")
    fetch_base_weights(name, notify)
    return base.load(name, answers_in=answers_in)


def fetch_base_weights(name: str, notify: Notify = lambda _: None) -> Path | None:
    """Fetch the pretrained weights that a model is built on, unless they are in the cache.

    Args:
        name: Name of the model.
        notify: Called with lines about progress.
    Returns:
        The folder of the weights; None for a model that brings all of its weights itself.
    """
    from earwise.models.embedded import base_weights

    if not uses_base_weights(name):
        return None
    if not (cache_dir() / base_weights.BASE / "complete").exists():
        notify(f"first run: fetching the base weights (about 230 MB, once) into {cache_dir()}")
    folder = base_weights.base_folder(notify)
    if _shows_words(name):
        base_weights.recogniser_folder(notify)  # there already, unless an earlier version fetched the base weights
    return folder


def _shows_words(name: str) -> bool:
    """Whether the embedded model of that name reads what Whisper's decoder writes."""
    from earwise.models import detect
    from earwise.models.embedded import model, preload

    folder = detect.find_checkpoint(Path(name))[1] if Path(name).is_dir() else preload.ASSETS
    return model.read_connector_spec(folder).words is not None


def uses_base_weights(name: str) -> bool:
    """Whether a model is built on the base weights that `fetch_base_weights` fetches."""
    from earwise.models import detect

    return detect.family_of(name).split("-")[0] == "embedded"
