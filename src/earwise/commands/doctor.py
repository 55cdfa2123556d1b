"""`earwise doctor`: is the machine fit, does the model use the audio, is it independent of the batch?"""

import click

from earwise.commands.loading import json_option, model_option, note, open_engine, print_json
from earwise.commands.terminal import printable

MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@click.command("doctor", short_help="Check the machine and the model.")
@model_option
@json_option
def command(model: str, as_json: bool) -> None:
    """Check the environment and the base weights; check that MODEL uses the audio, is independent of the batch, scores
    branches of a token tree exactly, samples reproducibly and fits into memory; measure its speed. Every check shows
    what was measured and its limit.

    \b
    earwise doctor
    earwise doctor --model runs/r1-aqa/final --json
    earwise doctor --model http://127.0.0.1:8000/v1#NAME

    Exit code 0 if nothing failed (warnings allowed), 1 otherwise.
    """
    from earwise.doctor import examine
    from earwise.doctor.check import as_rows
    from earwise.engine.loading import fetch_base_weights
    from earwise.files import cache_dir

    checks = examine(lambda: open_engine(model), cache_dir(), lambda: fetch_base_weights(model, note), notify=note)
    num_failed = sum(check.verdict == "fail" for check in checks)
    if as_json:
        print_json({"ok": not num_failed, "checks": as_rows(checks)})
    else:
        for check in checks:
            click.echo(f"{MARKS[check.verdict]}  {check.name:17} {printable(check.detail)}")
            if check.remedy:
                click.echo(f"      -> {check.remedy}")
        click.echo("all well" if not num_failed else f"{num_failed} failed")
    raise click.exceptions.Exit(1 if num_failed else 0)
