"""All checks in order: is this machine fit, and can this model be trusted?

Beside training and evaluation, which do not use it: every check asks the engine through the interface that they use.
`machine.py` checks the environment, `local_model.py` a model in this process, `server.py` a model behind an address.
They look for faults that raise no error elsewhere: a model that ignores the audio, answers that depend on the other
prompts of a batch, branches of a token tree that differ from the same text alone, samples that depend on their
neighbours, clips that are encoded differently because they were trimmed, a model that does not fit into memory.
"""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from earwise.data.manifest_path import STARTER
from earwise.doctor import local_model, machine, server
from earwise.doctor.check import Check, Notify
from earwise.doctor.questions import example_clips
from earwise.engine.base import Engine
from earwise.engine.remote.client import RemoteEngine
from earwise.errors import EarwiseError


def examine(
    load: Callable[[], Engine], home: Path, base: Callable[[], Path | None], *, notify: Notify = lambda _: None
) -> list[Check]:
    """Run all checks; a failed one does not stop the others, unless the model cannot be loaded.

    Args:
        load: Returns the engine with the model in question.
        home: The cache folder.
        base: Returns the folder with the base weights (and fetches them if needed), or None for a model without any.
        notify: Receives progress lines.
    """
    checks = [machine.python(), *machine.libraries(), machine.threads(), machine.memory(), machine.disk(home)]
    try:
        notify("checking the base weights")
        folder = base()
        checks += [machine.base_weights(folder)] if folder is not None else []
        started = perf_counter()
        engine = load()
        seconds = perf_counter() - started
        checks.append(Check("model", "ok", f"{engine.name} ({engine.revision}) opened in {seconds:.1f} s"))
    except EarwiseError as error:
        remedy = "see the message; nothing else about the model was checked"
        return [*checks, Check("model", "fail", str(error), remedy)]
    if not any(STARTER.rglob("*.ogg")):
        detail = "no bundled clips were found; synthetic tones are used"
        checks.append(Check("clips", "warn", detail, "install the package again"))
    clips = example_clips(engine)
    for run_check in server.CHECKS if isinstance(engine, RemoteEngine) else local_model.CHECKS:
        name = run_check.__name__.replace("_", " ")
        notify(f"checking the model: {name}")
        try:
            check = run_check(engine, clips)
        except EarwiseError as error:
            check = Check(name, "fail", str(error), "see the message")
        checks += [check] if check is not None else []
    return checks
