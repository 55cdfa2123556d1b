"""`earwise build xs-cot`: instructions into spoken four-part chains. Added to the group in `commands/build.py`."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.build.check import check_built, check_option
from earwise.commands.loading import json_option, note, print_json
from earwise.config.resolve import require
from earwise.errors import ConfigError, DataError

if TYPE_CHECKING:
    from earwise.datasets.teachers.keyed_log import LogRow
    from earwise.datasets.xs_cot.builder import Job
    from earwise.datasets.xs_cot.instructions import Item
    from earwise.datasets.xs_cot.text_to_speech import Voice

FILE = click.Path(path_type=Path)
SHOWN = 3  # lines about bad rows on stderr


@click.command("xs-cot", short_help="Instructions into speech with four-part chains (ja, de, fr ...).")
@click.argument("phrases", type=FILE, required=False)
@click.option("--out", "-o", required=True, type=FILE, help="Folder for clips, log, manifest.jsonl, rejected.jsonl.")
@click.option("--alpaca", is_flag=True, help="PHRASES is an English Alpaca-like file: instruction, input, output.")
@click.option("--languages", default="ja,de,fr", show_default=True, help="Codes, parted by commas; not English.")
@click.option(
    "--voice",
    "named_voices",
    multiple=True,
    default=["espeak"],
    show_default=True,
    metavar="[LANGUAGE=]VOICE",
    help="espeak[:VARIANT], kokoro[:VOICE] (ja), piper:MODEL.onnx, or http://HOST/v1?model=M&voice=V; several times.",
)
@click.option(
    "--recogniser",
    default="whisper",
    show_default=True,
    help="Who checks the speech: whisper, or http://HOST/v1?model=M.",
)
@click.option(
    "--max-error", default=0.1, show_default=True, help="Largest word error rate (ja: character) that passes."
)
@click.option("--translations", type=FILE, help="JSON lines of id, language, instruction, response.")
@click.option("--teacher", help="URL of an OpenAI-compatible server that translates what is missing.")
@click.option("--teacher-model", default="", help="Name of the model on that server.")
@click.option("--api-key-variable", default="EARWISE_API_KEY", show_default=True, help="Where the servers' key stands.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many items.")
@click.option("--shard", help="i/n: only our part of the items; the run without --shard then writes the manifest.")
@click.option("--val-share", default=0.1, show_default=True, help="Share of the items that go into the split val.")
@click.option("--source", help="Of the instructions, for the rows; needed with PHRASES.")
@click.option("--licence", help="Of the texts, for the rows; needed with PHRASES.")
@click.option("--retry-failed", is_flag=True, help="Ask the teacher again what failed in an earlier run.")
@click.option("--dry-run", is_flag=True, help="Only say what would be spoken and what would be asked.")
@check_option
@json_option
def xs_cot(
    phrases: Path | None,
    out: Path,
    alpaca: bool,
    languages: str,
    named_voices: tuple[str, ...],
    recogniser: str,
    max_error: float,
    translations: Path | None,
    teacher: str | None,
    teacher_model: str,
    api_key_variable: str,
    limit: int | None,
    shard: str | None,
    val_share: float,
    source: str | None,
    licence: str | None,
    retry_failed: bool,
    dry_run: bool,
    run_checks: bool,
    as_json: bool,
) -> None:
    """Speak the instructions in PHRASES (thirty bundled ones by default) and write them as XS-CoT rows.

    Instructions that cannot be spoken are left out; the others are translated where they are not yet, spoken, written
    down again by a recogniser, and kept where that comes close enough. Killed and started again, it goes on.

    \b
    earwise build xs-cot --out xs-cot
    earwise build xs-cot --out xs-cot --voice espeak --voice ja=kokoro --max-error 0.2
    earwise build xs-cot alpaca.json --alpaca --teacher http://host:8000/v1 --teacher-model M --out xs-cot
    """
    from earwise.datasets.xs_cot import speech_recognition, instructions as texts, text_to_speech, builder  # fmt: skip # isort: skip
    from earwise.datasets.teachers import keyed_log  # fmt: skip # isort: skip
    from earwise.engine.remote import openai_http

    if not dry_run:
        require("jiwer", "eval", "error rates")
    codes = [code.strip() for code in languages.split(",") if code.strip()]
    part = keyed_log.parse_shard(shard)
    key = openai_http.api_key_from_environment(api_key_variable)
    voices: dict[str, Voice] = {
        code: text_to_speech.open_voice(name, key) for code, name in _voices(named_voices, codes).items()
    }
    bad = _Lines()
    path = phrases or texts.BUNDLED
    if phrases is None:
        source, licence = source or "earwise phrases", licence or "Apache-2.0"
    elif not dry_run and (source is None or licence is None):
        raise ConfigError(f"{phrases}: say whose texts these are, with --source and --licence; every row carries both")
    if alpaca and phrases is None:
        raise ConfigError("--alpaca needs PHRASES, an English instruction file")
    items: list[Item] = list((texts.read_alpaca if alpaca else texts.read)(path, bad))[:limit]
    if translations is not None:
        items = list(texts.joined(items, texts.read_translations(translations, bad)))
    if not items:
        raise DataError(f"{path}: holds no usable item ({bad.count} left out)")
    listener = speech_recognition.open_recogniser(recogniser, key, note)
    if teacher:
        builder.plan(items, codes, voices, listener)  # what cannot work is said before a teacher is asked
        items = _translate(items, codes, out, bad, dry_run, teacher, teacher_model, key, retry_failed)
    jobs = builder.plan(items, codes, voices, listener, shard=part)
    refused = Counter(job.refusal for job in jobs if job.refusal)
    note(f"{len(items)} items in {', '.join(codes)}: {len(jobs)} to speak, {refused.total()} of them left out")
    if dry_run:
        shown = {"jobs": len(jobs), "refused": dict(refused)}
        print_json(shown) if as_json else click.echo(_reasons(f"{len(jobs)} clips; left out", refused))
        return
    try:
        summary = builder.run(jobs, out, voices, listener, shard=part, on_progress=_progress(len(jobs)))
    finally:
        if shard is None:  # also after a failure: what is done is a manifest
            report = builder.write(
                jobs, out, max_error=max_error, val_share=val_share, source=source or "", licence=licence or ""
            )
    if shard is not None:
        click.echo(f"{out}: shard {shard} done ({summary.spoken} spoken); run it without --shard for the manifest")
        return
    if run_checks and report["rows"]:
        check_built([out / builder.MANIFEST])
    if as_json:
        print_json(
            {"out": str(out / builder.MANIFEST), "already": summary.already, "skipped_lines": bad.count} | report
        )
        return
    click.echo(f"{out / builder.MANIFEST}: {report['rows']} rows of {len(jobs)} ({summary.already} were there already)")
    for code, counts in report["languages"].items():
        rate = "nothing heard" if counts["heard"] == 0 else (
            f"{counts['unit']} error rate {counts['error_rate_mean']:.3f} (median {counts['error_rate_median']:.3f}), "
            f"{counts['speak_s_mean']:.2f} s to speak and {counts['hear_s_mean']:.2f} s to check a clip"
        )  # fmt: skip
        click.echo(f"  {code}: {counts['passed']} of {counts['items']} pass; {rate}")
        if counts["reasons"]:
            click.echo(_reasons("    not in", Counter(counts["reasons"])))


def _voices(named: tuple[str, ...], codes: list[str]) -> dict[str, str]:
    """Language -> voice; a voice without language speaks all that have none of their own."""
    own = dict(name.split("=", 1) for name in named if _has_code(name))
    general = [name for name in named if not _has_code(name)]
    if len(general) > 1:
        raise ConfigError(f"voices {', '.join(general)}: one for all languages, the others as LANGUAGE=VOICE")
    if unused := [code for code in own if code not in codes]:
        raise ConfigError(f"--voice {unused[0]}={own[unused[0]]}: {unused[0]!r} is not among --languages")
    chosen = {code: own.get(code) or (general or ["espeak"])[0] for code in codes}
    return chosen


def _has_code(name: str) -> bool:
    before, equals, _ = name.partition("=")
    return bool(equals) and before.isalpha() and len(before) <= 3


def _translate(
    items: "list[Item]",
    codes: list[str],
    out: Path,
    bad: "_Lines",
    dry_run: bool,
    url: str,
    model: str,
    key: str | None,
    retry_failed: bool,
) -> "list[Item]":
    """Items with what a teacher translated; in a dry run only says how much it would be."""
    from earwise.datasets.teachers import request_runner
    from earwise.datasets.teachers import teacher as teachers
    from earwise.datasets.xs_cot import instructions as texts
    from earwise.datasets.xs_cot import speakable_text

    if not model:
        raise ConfigError(f"--teacher {url} needs --teacher-model, the model's name on that server")
    who = teachers.RemoteTeacher(url, model, api_key=key, temperature=0.0)
    folder = out / "translations"
    wanted = [item for item in items if speakable_text.refusal(item.words[texts.CORE].instruction) is None]
    asked = (request for _, _, request in texts.requests(wanted, codes))
    if dry_run:
        estimate = request_runner.estimate_requests(asked, who, folder)
        note(f"{estimate.requests} translations to ask, about {estimate.input_tokens + estimate.output_tokens} tokens")
        return items
    note(request_runner.ask_teacher(asked, who, folder, retry_failed=retry_failed).describe())
    done = {item.id: item for item in texts.translated(wanted, codes, who, folder, bad)}
    return [done.get(item.id, item) for item in items]


def _progress(total: int) -> Any:
    """Notes every tenth clip, and every one that failed."""
    count = 0

    def show(job: "Job", row: "LogRow") -> None:
        nonlocal count
        count += 1
        if row["status"] != "ok":
            note(f"{job.id}: {row['step']} failed: {row['error']}")
        elif count % 10 == 0:
            note(f"{count} of {total} clips; {job.id}: error rate {row['error_rate']:.2f}")

    return show


def _reasons(head: str, reasons: Counter[str]) -> str:
    return head + ": " + (", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none")


class _Lines:
    """Counts lines about rows that cannot be used; shows the first few."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, line: str) -> None:
        """Take one line."""
        self.count += 1
        if self.count <= SHOWN:
            note(f"left out: {line}")
