"""The models that score answers, of `earwise evaluate --judge` and `--embeddings`, put behind a task."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from earwise.commands.loading import note, open_engine
from earwise.commands.paths import UserPath
from earwise.errors import ConfigError

if TYPE_CHECKING:
    from earwise.apps.task_runs import TaskChoice
    from earwise.evaluation.judge.panel import JudgePanel
    from earwise.evaluation.task import Task


judge_option = click.option(
    "--judge",
    "judges",
    multiple=True,
    metavar="MODEL",
    help="A model that scores the answers, for tasks that need one: a server (URL#NAME) or any name that --model "
    "takes. Twice: the mean of both, and how far they agree.",
)
estimate_option = click.option(
    "--judge-estimate", is_flag=True, help="Only print how many requests and tokens the judge would take."
)


def judge_options(command: "Callable[..., None]") -> "Callable[..., None]":
    """The options `--judge`, `--embeddings`, `--rubric` and `--judge-estimate`."""
    options = (
        judge_option,
        click.option(
            "--embeddings",
            metavar="MODEL",
            help="A model of text embeddings, for mmau-pro's official reading: a server (URL#NAME) or a folder of "
            "weights.",
        ),
        click.option(
            "--rubric",
            type=UserPath(),
            metavar="FILE",
            help="Score by a rubric of your own: a YAML file with name, scale and prompt.",
        ),
        estimate_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def panel_of(task: "Task", names: Sequence[str], rubric: Path | None, *, estimate: bool = False) -> "JudgePanel | None":
    """The judges of a run; None if none is named.

    Args:
        task: The task.
        names: What `--judge` names.
        rubric: A rubric of the user's, in place of the task's own judging.
        estimate: Whether their cost is asked for.
    Raises:
        ConfigError: if the task needs no judge and there is no rubric, or a judge or the rubric is wrong.
        EngineError: if a judge's server does not answer.
    """
    from earwise.evaluation.judge.models import open_judge
    from earwise.evaluation.judge.panel import JudgePanel
    from earwise.evaluation.judge.rubric import read_rubric

    if not names:
        if rubric is not None:
            raise ConfigError(f"--rubric {rubric}: needs a judge; add --judge MODEL")
        if estimate:
            raise ConfigError("--judge-estimate: there is no judge; add --judge MODEL")
        if task.judging is not None and task.judging.alone:
            note(f"{task.name} is scored by a judge: answers are kept, and get their scores with --judge MODEL")
        return None
    judging = task.judging if rubric is None else read_rubric(rubric)
    if judging is None:
        raise ConfigError(f"--judge: task {task.name!r} needs no judge; give a rubric of your own with --rubric FILE")
    judges = tuple(open_judge(name, open_engine, note) for name in names)
    return JudgePanel(judging, judges, on_cost=lambda cost: note(cost.describe()))


def with_embeddings(choices: "list[TaskChoice]", name: str | None) -> "list[TaskChoice]":
    """The tasks that can be scored by embeddings behind the model of `--embeddings`, the others as they are.

    Raises:
        ConfigError: if none of them can, or there is no such model.
    """
    from earwise.engine.embeddings.embedders import open_embedder

    if name is None:
        return choices
    if all(choice.task.with_embeddings is None for choice in choices):
        raise ConfigError(
            f"--embeddings {name}: task {choices[0].task.name!r} has no score by embeddings; leave it out"
        )
    embedder = open_embedder(name, note)
    return [
        replace(choice, task=choice.task.with_embeddings(choice.task, embedder))
        if choice.task.with_embeddings
        else choice
        for choice in choices
    ]
