"""The forms that results can be exported to, and the export of a run with its blind controls.

Part of `earwise.report`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from earwise.errors import ConfigError
from earwise.evaluation.controls import CONTROLS
from earwise.evaluation.results import METRICS, EvalRun, read_run
from earwise.report.exports import inspect_log, lmms_eval

Export = Callable[[EvalRun, str, Path], list[Path]]
"""`export(run, task, folder)`: writes the files of one run under the name of its task; returns their paths."""
FORMS: dict[str, Export] = {"inspect": inspect_log.export, "lmms-eval": lmms_eval.export}
"""Name of the form -> its writer."""


def export_run(path: Path, form: str, folder: Path) -> list[Path]:
    """Write a finished run, and each of its blind controls as a task of its own, in the form of another program.

    Args:
        path: Folder of the run.
        form: Key of `FORMS`.
        folder: Folder to write into; created where it is missing.
    Returns:
        The files.
    Raises:
        ConfigError: if there is no such form.
        DataError: if the run is not finished, or the disk refuses.
    """
    if form not in FORMS:
        raise ConfigError(f"form {form!r} is none of {', '.join(FORMS)}")
    run = read_run(path)
    task = task_name(run)
    files = FORMS[form](run, task, folder)
    for control in CONTROLS:
        if (path / control / METRICS).is_file():
            blind = read_run(path / control)
            files += FORMS[form](replace(blind, metrics={**blind.metrics, "task": run.metrics.get("task")}),
                                 f"{task}_{control}", folder)  # fmt: skip
    return files


def task_name(run: EvalRun) -> str:
    """Name of a run's task; runs of earlier versions did not write it down."""
    task = run.metrics.get("task")
    name = task["name"] if isinstance(task, dict) else task or "earwise"
    return "".join(character if character.isalnum() or character in "-." else "_" for character in str(name))
