"""`earwise tasks`: what can be evaluated, and what a task's scorer gives to models whose answers are known."""

from pathlib import Path
from typing import Any

import click

from earwise.commands.loading import json_option, print_json
from earwise.commands.paths import FILE


@click.command("tasks", short_help="List the tasks of `evaluate`, or audit the scorer of one.")
@click.option("--audit", "audited", metavar="TASK", help="Score models whose answers are known on this task's --data.")
@click.option("--data", type=FILE, help="File of the audited task.")
@click.option("--audio-root", type=FILE, help="Folder of the clips, if it is not the file's own.")
@json_option
def command(audited: str | None, data: Path | None, audio_root: Path | None, as_json: bool) -> None:
    """List the tasks of `earwise evaluate`: headline score, prompt styles of their own, source and licence.

    \b
    earwise tasks
    earwise tasks --audit mmau --data mmau-test-mini.json

    An audit scores, without a model, the gold answers, empty answers, always the first option, and a sentence about
    something else.
    """
    if (audited is None) != (data is None):
        raise click.UsageError("--audit and --data belong together")
    rows = _listed() if audited is None or data is None else _audited(audited, data, audio_root)
    if as_json:
        print_json({"tasks" if audited is None else "audit": rows})
        return
    for row in rows:
        click.echo("\n".join(_lines(row)))


def _listed() -> list[dict[str, Any]]:
    """One row a task."""
    from earwise.evaluation.published.scorer_checks import SPLITS, checks_of
    from earwise.evaluation.task_table import TASKS, load_task

    tasks = [load_task(name) for name in TASKS]
    return [
        {
            "task": task.name,
            "headline": task.headline,
            "scores": dict(task.score_notes),
            "prompts": list(task.prompts),
            "default style": task.default_style,
            "judge": "" if task.judging is None else "needed" if task.judging.alone else "possible",
            "items": [f"{name} {count:,}" for name, count in SPLITS.get(task.name, {}).items()],
            "checked": [f"{' '.join(check.scores)} ({check.kind})" for check in checks_of(task.name)],
            "source": task.source,
            "licence": task.licence,
            "not tried with": task.unverified,
        }
        for task in tasks
    ]


def _audited(name: str, data: Path, audio_root: Path | None) -> list[dict[str, Any]]:
    """One row a model of the audit."""
    from earwise.apps.task_audit import audit
    from earwise.evaluation.task_table import load_task

    task = load_task(name)
    results = audit(task, task.load(data, audio_root))
    return [
        {
            "model": model,
            "n": result["n"],
            task.headline: result["headline"],
            "scores": {score: metric["accuracy"] for score, metric in result["metrics"].items()},
        }
        for model, result in results.items()
    ]


def _lines(row: dict[str, Any]) -> list[str]:
    """A row as a heading and one indented line a value."""
    (_, name), *values = row.items()
    lines = [str(name)]
    for key, value in values:
        if isinstance(value, dict):
            lines += [
                f"  {score}: {note:.4f}" if isinstance(note, float) else f"  {score}: {note}"
                for score, note in value.items()
            ]
        elif value:
            lines.append(f"  {key}: {', '.join(value) if isinstance(value, list) else value}")
    return lines
