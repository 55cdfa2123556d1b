"""`earwise build xs-cot`: instructions into speech with cross-lingual chains of thought."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.build.check import check_built, check_option
from earwise.commands.loading import json_option, note, print_json
from earwise.commands.options import collect_options
from earwise.commands.paths import FILE
from earwise.errors import ConfigError

if TYPE_CHECKING:
    from earwise.datasets.teachers.teacher import Teacher
    from earwise.datasets.xs_cot.builder import XSCoTModels, XSCoTOptions, XSCoTResult
    from earwise.datasets.xs_cot.instructions import InstructionFiles
    from earwise.datasets.xs_cot.jobs import SpeechJob

SKIPPED_ROWS_SHOWN = 3


@dataclass(frozen=True)
class XSCoTCommand:
    """The options of `earwise build xs-cot`."""

    phrases: Path | None
    out: Path
    alpaca: bool
    languages: str
    voice_names: tuple[str, ...]
    recogniser: str
    max_error: float
    translations: Path | None
    teacher: str | None
    teacher_model: str
    api_key_variable: str
    limit: int | None
    shard: str | None
    val_share: float
    source: str | None
    licence: str | None
    retry_failed: bool
    dry_run: bool
    run_checks: bool
    as_json: bool

    def files(self) -> "InstructionFiles":
        """The files with instructions."""
        from earwise.datasets.xs_cot.instructions import BUNDLED, InstructionFiles

        return InstructionFiles(
            self.phrases or BUNDLED, self.alpaca, self.translations, self.limit, self.source, self.licence
        )

    def xs_cot_options(self) -> "XSCoTOptions":
        """Languages and thresholds."""
        from earwise.datasets.xs_cot.builder import XSCoTOptions

        languages = tuple(code.strip() for code in self.languages.split(",") if code.strip())
        return XSCoTOptions(languages, self.max_error, self.val_share)

    def models(self, languages: tuple[str, ...]) -> "XSCoTModels":
        """Voices, recogniser and translator."""
        from earwise.datasets.xs_cot.builder import XSCoTModels
        from earwise.datasets.xs_cot.speech_recognition import open_recogniser
        from earwise.datasets.xs_cot.text_to_speech import open_voices
        from earwise.engine.remote.openai_http import api_key_from_environment

        api_key = api_key_from_environment(self.api_key_variable)
        voices = open_voices(self.voice_names, languages, api_key)
        recogniser = open_recogniser(self.recogniser, api_key, note)
        return XSCoTModels(voices, recogniser, self._translator(api_key), self.retry_failed)

    def _translator(self, api_key: str | None) -> "Teacher | None":
        """The teacher that translates."""
        from earwise.datasets.teachers.teacher import RemoteTeacher

        if not self.teacher:
            return None
        if not self.teacher_model:
            raise ConfigError(f"--teacher {self.teacher} needs --teacher-model, the model's name on that server")
        return RemoteTeacher(self.teacher, self.teacher_model, api_key=api_key, temperature=0.0)


@click.command("xs-cot", short_help="Instructions into speech with four-part chains (ja, de, fr ...).")
@click.argument("phrases", type=FILE, required=False)
@click.option("--out", "-o", required=True, type=FILE, help="Folder for clips, log, manifest.jsonl, rejected.jsonl.")
@click.option("--alpaca", is_flag=True, help="PHRASES is an English Alpaca-like file: instruction, input, output.")
@click.option(
    "--languages", default="ja,de,fr", show_default=True, help="Language codes, separated by commas; not English."
)
@click.option(
    "--voice",
    "voice_names",
    multiple=True,
    default=["espeak"],
    show_default=True,
    metavar="[LANGUAGE=]VOICE",
    help="espeak[:VARIANT], kokoro[:VOICE] (ja), piper:MODEL.onnx, or http://HOST/v1?model=M&voice=V; may be repeated.",
)
@click.option(
    "--recogniser",
    default="whisper",
    show_default=True,
    help="Recogniser that checks the speech: whisper, or http://HOST/v1?model=M.",
)
@click.option(
    "--max-error",
    default=0.1,
    show_default=True,
    help="Largest word error rate (ja: character) of a kept clip.",
)
@click.option("--translations", type=FILE, help="JSON lines of id, language, instruction, response.")
@click.option("--teacher", help="Address of an OpenAI-compatible server that translates what is missing.")
@click.option("--teacher-model", default="", help="Name of the model on that server.")
@click.option(
    "--api-key-variable",
    default="EARWISE_API_KEY",
    show_default=True,
    help="Environment variable that holds the servers' key.",
)
@click.option("--limit", type=click.IntRange(1), help="Only this number of instructions, from the beginning.")
@click.option(
    "--shard", metavar="I/N", help="Speak only this part of the instructions; run once without it for the manifest."
)
@click.option("--val-share", default=0.1, show_default=True, help="Share of the instructions that get the split val.")
@click.option("--source", help="Source of the instructions, for the rows; needed with PHRASES.")
@click.option("--licence", help="Licence of the texts, for the rows; needed with PHRASES.")
@click.option("--retry-failed", is_flag=True, help="Send translations again that failed in an earlier run.")
@click.option("--dry-run", is_flag=True, help="Only print what would be spoken and requested.")
@check_option
@json_option
def xs_cot(**values: Any) -> None:
    """Speak the instructions in PHRASES (thirty bundled ones by default) and write them as XS-CoT rows.

    Instructions that cannot be spoken are left out. The others are translated where a translation is missing, spoken,
    and transcribed by a recogniser; clips whose transcript comes close enough are kept. A stopped build, started again,
    continues where it stopped.

    \b
    earwise build xs-cot --out xs-cot
    earwise build xs-cot --out xs-cot --voice espeak --voice ja=kokoro --max-error 0.2
    earwise build xs-cot alpaca.json --alpaca --teacher http://host:8000/v1 --teacher-model M --out xs-cot
    """
    from earwise.datasets.teachers.keyed_log import parse_shard
    from earwise.datasets.xs_cot.builder import build_xs_cot, plan_xs_cot
    from earwise.datasets.xs_cot.corpus import MANIFEST

    chosen = collect_options(XSCoTCommand, values)
    files, options, shard = chosen.files(), chosen.xs_cot_options(), parse_shard(chosen.shard)
    models = chosen.models(options.languages)
    on_skip = _SkippedRows()
    if chosen.dry_run:
        jobs = plan_xs_cot(files, chosen.out, models, options, shard=shard, on_skip=on_skip, notify=note)
        _print_plan(jobs, chosen.as_json)
        return
    result = build_xs_cot(files, chosen.out, models, options, shard=shard, on_skip=on_skip, notify=note)
    if result.report is None:
        click.echo(
            f"{chosen.out}: shard {chosen.shard} done ({result.summary.spoken} spoken); run it without --shard for the "
            "manifest"
        )
        return
    manifest = chosen.out / MANIFEST
    if chosen.run_checks and result.report["rows"]:
        check_built([manifest])
    if chosen.as_json:
        counts = {"out": str(manifest), "already": result.summary.already, "skipped_lines": on_skip.count}
        print_json(counts | result.report)
    else:
        _print_report(result, result.report, manifest)


def _print_plan(jobs: "list[SpeechJob]", as_json: bool) -> None:
    """Print what a build would speak."""
    rejected = Counter(job.rejection for job in jobs if job.rejection)
    if as_json:
        print_json({"jobs": len(jobs), "refused": dict(rejected)})
    else:
        click.echo(_reasons(f"{len(jobs)} clips; left out", rejected))


def _print_report(result: "XSCoTResult", report: dict[str, Any], manifest: Path) -> None:
    """Print what was built, a line for each language."""
    click.echo(
        f"{manifest}: {report['rows']} rows of {len(result.jobs)} ({result.summary.already} clips were spoken before)"
    )
    for code, counts in report["languages"].items():
        rate = "nothing transcribed" if counts["heard"] == 0 else (
            f"{counts['unit']} error rate {counts['error_rate_mean']:.3f} (median {counts['error_rate_median']:.3f}), "
            f"{counts['speak_s_mean']:.2f} s to speak and {counts['hear_s_mean']:.2f} s to check a clip"
        )  # fmt: skip
        click.echo(f"  {code}: {counts['passed']} of {counts['items']} pass; {rate}")
        if counts["reasons"]:
            click.echo(_reasons("    left out", Counter(counts["reasons"])))


def _reasons(prefix: str, reasons: Counter[str]) -> str:
    """A line that lists reasons by how frequent they are."""
    return prefix + ": " + (", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none")


class _SkippedRows:
    """Counts the rows that cannot be used, and prints the first few."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, line: str) -> None:
        """Count one row; `line` says what is wrong with it."""
        self.count += 1
        if self.count <= SKIPPED_ROWS_SHOWN:
            note(f"left out: {line}")
