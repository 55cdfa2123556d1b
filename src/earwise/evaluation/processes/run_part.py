"""The part of an evaluation that one of several processes answers; the last one to finish writes the results.

Processes do not wait for each other: each answers its share of the real items, then of every blind control, and then
looks whether all rows are there. Only the process that finds them so merges and writes metrics.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from earwise.engine.base import Engine
from earwise.engine.clip_reader import ClipReader
from earwise.errors import ConfigError
from earwise.evaluation.controls import Control
from earwise.evaluation.options import EvalOptions
from earwise.evaluation.processes.parts import Part
from earwise.evaluation.processes.row_log import MOMENT_S, PARTS, all_rows, open_log
from earwise.evaluation.run import (
    BLIND,
    EvalPlan,
    OnProgress,
    ask,
    conclude,
    evaluate_with_controls,
    left_out,
    plan,
    with_blind_controls,
)
from earwise.evaluation.task import Task
from earwise.evaluation.task_table import load_task
from earwise.files import lock_folder
from earwise.types import Example


def evaluate_part(
    engine: Engine,
    examples: Sequence[Example],
    out: Path,
    options: EvalOptions | None = None,
    *,
    part: Part,
    task: Task | None = None,
    blind: Sequence[Control] = BLIND,
    on_progress: OnProgress | None = None,
) -> dict[str, Any] | None:
    """`run.evaluate_with_controls` by one of several processes, which all call this with the same arguments.

    Args:
        engine: The engine of this process.
        examples: All items, of all processes.
        out: Folder that all processes share.
        options: Wording, sampling and batches; None takes the defaults.
        part: This process. The only one of an evaluation does everything.
        task: The task; None: the task `manifest`.
        blind: The controls to run.
        on_progress: Called at the start of each run and after every batch.
    Returns:
        As `evaluate_with_controls` in the process that finds all parts finished; None in all others.
    Raises:
        EarwiseError: see `run.evaluate`.
    """
    options, task = options or EvalOptions(), task or load_task("manifest")
    if part.is_whole:
        return evaluate_with_controls(engine, examples, out, options, task=task, blind=blind, on_progress=on_progress)
    reader = ClipReader.for_engine(engine, options.long_audio, options.channel)
    plans: dict[Control | None, EvalPlan] = {}
    reasons: dict[Control, str] = {}
    for control in (None, *blind):
        folder = out if control is None else out / control
        try:
            plans[control] = plan(engine, examples, options, task, control)
        except ConfigError as error:
            if control is None:
                raise
            reasons[control] = left_out(control, folder, error)
            continue
        with open_log(folder, plans[control].settings, plans[control].contents, part) as log:
            ask(plans[control], folder, log, part, clip_reader=reader, on_progress=on_progress)
    with ExitStack() as locks:
        # The folders of the controls too: a process that begins again may be merging what it finds there.
        for control in plans:
            locks.enter_context(lock_folder(out if control is None else out / control, wait_s=MOMENT_S))
        if not (out / PARTS / part.name).exists():
            return None  # another process has found all rows, and merged them, since this one began
        rows = {control: all_rows(out if control is None else out / control) for control in plans}
        if any(len(rows[control]) < len(run_plan.items) for control, run_plan in plans.items()):
            return None
        metrics = {
            control: conclude(run_plan, out if control is None else out / control, rows[control])
            for control, run_plan in plans.items()
        }
        return with_blind_controls(out, metrics[None], blind, reasons, task, options.seed)
