"""Is this machine, and this model, fit to be trusted? What `earwise doctor` prints.

Beside training and evaluation, and of no use to them: everything here asks the engine through the same door as they do.
`machine.py` looks at the environment, `model.py` at a model in this process, `server.py` at one behind an address: for
what goes wrong without an error elsewhere. A model that is deaf, answers that depend on what else is in the batch,
branches that differ from the same text alone, draws that depend on neighbours, sound that is heard otherwise because it
was trimmed, a model that does not fit.
"""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from earwise.data.manifest_path import STARTER
from earwise.doctor import machine, model, server
from earwise.doctor.check import Check, Say
from earwise.engine.base import Engine
from earwise.engine.remote.client import RemoteEngine
from earwise.errors import EarwiseError


def examine(
    load: Callable[[], Engine], home: Path, base: Callable[[], Path | None], *, say: Say = lambda _: None
) -> list[Check]:
    """All checks in order; a failed one does not stop the others, unless the model cannot be loaded.

    Args:
        load: Gives the engine with the model in question.
        home: The cache folder.
        base: Gives the folder with the base weights (fetches them if need be), or None for a model that has none.
        say: Progress.
    """
    rows = [machine.python(), *machine.libraries(), machine.threads(), machine.memory(), machine.disk(home)]
    try:
        say("looking at the base weights")
        folder = base()
        rows += [machine.base_weights(folder)] if folder is not None else []
        started = perf_counter()
        engine = load()
        rows.append(
            Check("model", "ok", f"{engine.name} ({engine.revision}) opened in {perf_counter() - started:.1f} s")
        )
    except EarwiseError as error:
        return [
            *rows,
            Check("model", "fail", str(error), "see the message; nothing else about the model was looked at"),
        ]
    clips = model.waves(engine)
    if not any(STARTER.rglob("*.ogg")):
        rows.append(Check("clips", "warn", "no bundled clips, synthetic tones are used", "install the package again"))
    for check in server.CHECKS if isinstance(engine, RemoteEngine) else model.CHECKS:
        say(f"asking the model: {check.__name__.replace('_', ' ')}")
        try:
            found = check(engine, clips)
        except EarwiseError as error:
            found = Check(check.__name__.replace("_", " "), "fail", str(error), "see the message")
        rows += [found] if found is not None else []
    return rows
