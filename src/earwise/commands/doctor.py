"""`earwise doctor`: is the machine fit, does the model hear, does the batch leave answers alone."""

import click

from earwise.commands.loading import json_option, model_option, note, open_engine, result

MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@click.command("doctor", short_help="Check the machine and the model.")
@model_option
@json_option
def command(model: str, as_json: bool) -> None:
    """Check environment, base weights, and that MODEL hears, ignores the batch, honours the forest, draws alike, fits,
    and how fast it is; each with the figure found and its limit.

    \b
    earwise doctor
    earwise doctor --model runs/r1-aqa/final --json
    earwise doctor --model http://127.0.0.1:8000/v1#NAME

    Exit code 0 if nothing failed (warnings allowed), 1 otherwise.
    """
    from earwise.commands.loading import fetch_base
    from earwise.doctor import examine
    from earwise.doctor.check import as_rows
    from earwise.models.embedded import base_weights

    checks = examine(lambda: open_engine(model), base_weights.home(), lambda: fetch_base(model), say=note)
    failed = sum(check.verdict == "fail" for check in checks)
    if as_json:
        result({"ok": not failed, "checks": as_rows(checks)})
    else:
        for check in checks:
            click.echo(
                f"{MARKS[check.verdict]}  {check.name:17} {check.detail}"
                + (f"\n      -> {check.remedy}" if check.remedy else "")
            )
        click.echo("all well" if not failed else f"{failed} failed")
    raise click.exceptions.Exit(1 if failed else 0)
