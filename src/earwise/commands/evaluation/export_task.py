"""`earwise export-task`: a task of earwise as a task of lmms-eval."""

from pathlib import Path

import click

from earwise.commands.loading import json_option, print_json
from earwise.commands.paths import FILE


@click.command("export-task", short_help="A task of `evaluate` as a task of lmms-eval.")
@click.argument("task", metavar="TASK")
@click.option("--data", required=True, type=FILE, help="The task's file.")
@click.option("--audio-root", type=FILE, help="Folder of the clips, if it is not the file's own.")
@click.option("--style", default="", metavar="STYLE", help="Wording of the question. [default: the task's]")
@click.option("--seed", default=0, show_default=True, help="Seed of the order of the options.")
@click.option("--out", "-o", required=True, type=FILE, help="Folder for lmms-eval's --include_path.")
@json_option
def command(task: str, data: Path, audio_root: Path | None, style: str, seed: int, out: Path, as_json: bool) -> None:
    """Write TASK for lmms-eval, with our prompts, order of options and scorer; it must run where earwise is installed.

    \b
    earwise export-task mmau --data mmau-test-mini.json --audio-root audios/ --out lmms/
    lmms_eval --include_path lmms/ --tasks earwise_mmau --model qwen2_audio ...
    """
    from earwise.evaluation.interop.lmms_tasks import write_task

    files = write_task(task, data, out, audio_root=audio_root, style=style, seed=seed)
    if as_json:
        print_json({"task": files[0].stem, "files": [str(file) for file in files]})
    else:
        for file in files:
            click.echo(str(file))
