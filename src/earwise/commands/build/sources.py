"""`earwise build source`, `build avqa`, `build reasonaqa`: public data sets, as published, into manifests.

Each command is added to the group in `commands/build.py`. Rows that cannot be used never stop a build: they stand, one
line each, in `OUT.skipped.txt` beside the manifest, and are counted.
"""

from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.build.check import check_built, check_option
from earwise.commands.loading import json_option, note, print_json
from earwise.commands.teacher import TeacherOptions, open_teacher, teacher_limits, teacher_options
from earwise.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from earwise.datasets.reasonaqa.builder import ReasonAQAResult
    from earwise.types import Example

FILE = click.Path(path_type=Path)
SHOWN = 3  # lines about bad rows on stderr; the others stand in the file
out_option = click.option("--out", "-o", required=True, type=FILE, help="Manifest to write (JSON lines).")
audio_option = click.option(
    "--audio-root", type=FILE, help="Folder that audio paths start from; the data file's own folder by default."
)
missing_option = click.option(
    "--missing",
    type=click.Choice(["skip", "keep", "error"]),
    default="skip",
    show_default=True,
    help="What to do with rows whose audio is not there.",
)
split_option = click.option(
    "--split", type=click.Choice(["train", "val", "test"]), help="The split; told by the file's name if not given."
)
seed_option = click.option("--seed", default=0, show_default=True, help="Decides options and their order.")


@click.command("source", short_help="A public data set into a manifest.")
@click.argument("name")
@click.argument("path", type=FILE)
@out_option
@audio_option
@split_option
@missing_option
@click.option("--choices", type=click.IntRange(2), help="Give open questions so many options, drawn without bias.")
@click.option("--votes", type=click.Choice(["majority", "all", "unanimous"]), help="clothoaqa: three annotators.")
@seed_option
@check_option
@json_option
def source(
    name: str,
    path: Path,
    out: Path,
    audio_root: Path | None,
    split: str | None,
    missing: str,
    choices: int | None,
    votes: str | None,
    seed: int,
    run_checks: bool,
    as_json: bool,
) -> None:
    """Turn PATH, a file of the data set NAME as its authors publish it, into a manifest.

    NAME is one of audiocaps, clotho, clothoaqa, entailment, adiff, reasonaqa, avqa, musicbench, meld, audioset,
    wavcaps, audioskills, audiomcq, vocalsound, librispeech, common-voice,
    covost2, multilingual-alpaca-speech, or your own module:function.

    \b
    earwise build source clothoaqa clotho_aqa_train.csv --votes majority --out clothoaqa.jsonl
    earwise build source musicbench MusicBench_train.json --choices 4 --out musicbench.jsonl
    """
    from earwise.datasets.published.add_choices import add_choices
    from earwise.datasets.published.missing_audio import filter_missing_audio

    if votes and name != "clothoaqa":
        raise ConfigError(f"--votes {votes} is for clothoaqa; {name} has one answer a question")
    with _skipped(out) as bad:
        rows = filter_missing_audio(_read(name, path, audio_root, split, bad, votes), missing, bad)  # type: ignore[arg-type]  # click checked it
        left_out = 0
        if choices:
            rows, left_out = add_choices(rows, choices, seed)  # type: ignore[assignment]
        _finish(out, rows, bad, as_json, {"left_out_for_balance": left_out} if choices else {})
    if run_checks:
        check_built([out], read_audio=missing != "keep")


@click.command("avqa", short_help="AVQA's questions for models that only hear.")
@click.argument("path", type=FILE)
@out_option
@audio_option
@split_option
@missing_option
@click.option(
    "--drop",
    multiple=True,
    type=click.Choice(["visual", "colour"]),
    help="Leave out questions about the picture alone, or about colours; may stand twice. R1-AQA drops none.",
)
@check_option
@json_option
def avqa(
    path: Path,
    out: Path,
    audio_root: Path | None,
    split: str | None,
    missing: str,
    drop: tuple[str, ...],
    run_checks: bool,
    as_json: bool,
) -> None:
    """Turn PATH, AVQA's train_qa.json or R1-AQA's JSON lines, into a manifest; "video" becomes "audio" in questions.

    \b
    earwise build avqa train_qa.json --audio-root wav/ --out avqa/train.jsonl
    earwise build avqa train_qa.json --audio-root wav/ --drop visual --drop colour --out avqa/hear.jsonl
    """
    from earwise.datasets.published.avqa_filters import filter_questions
    from earwise.datasets.published.missing_audio import filter_missing_audio

    dropped = Counter[str]()
    with _skipped(out) as bad:
        rows = filter_questions(_read("avqa", path, audio_root, split, bad, None), drop, dropped)
        _finish(out, filter_missing_audio(rows, missing, bad), bad, as_json, {"dropped": dropped})  # type: ignore[arg-type]
    if run_checks:
        check_built([out], read_audio=missing != "keep")


@click.command("reasonaqa", short_help="Captions into captioning, entailment, difference and questions.")
@click.argument("files", nargs=-1, required=True, metavar="SOURCE=PATH...")
@out_option
@audio_option
@missing_option
@click.option(
    "--kinds",
    default="caption",
    show_default=True,
    help="What to make of captions, by commas: caption, entailment, difference, multiple_choice, detail, or all.",
)
@click.option("--per-caption", default=5, show_default=True, help="Questions to ask for, of either sort.")
@click.option("--log", "log_folder", type=FILE, help="Folder of the teacher's answers; beside the manifest by default.")
@click.option(
    "--shard", metavar="I/N", help="Ask only this part of the questions; then once without, for the manifest."
)
@click.option("--dry-run", is_flag=True, help="Only say how many requests and tokens it would take.")
@seed_option
@teacher_options
@check_option
@json_option
def reasonaqa(
    files: tuple[str, ...],
    out: Path,
    audio_root: Path | None,
    missing: str,
    kinds: str,
    per_caption: int,
    log_folder: Path | None,
    shard: str | None,
    dry_run: bool,
    seed: int,
    run_checks: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Build ReasonAQA from published files, and compare the counts of its parts with the paper's table.

    SOURCE is audiocaps or clotho (captions, of which --kinds is made), or clothoaqa, entailment, adiff or reasonaqa
    (taken as they are). Splits are told by the files' names. Killed and started again, it asks no question twice. On
    many machines: the same command with --shard 1/8 ... 8/8, then once without on the folder with all their logs.

    \b
    earwise build reasonaqa clotho=clotho_captions_development.csv clothoaqa=clotho_aqa_train.csv --out train.jsonl
    earwise build reasonaqa reasonaqa=train.json --audio-root audio/ --out train.jsonl
    earwise build reasonaqa audiocaps=train.csv --kinds all --teacher http://host:8000/v1 --teacher-model M -o t.jsonl
    """
    from earwise.datasets.reasonaqa import builder
    from earwise.datasets.reasonaqa.task_list import KINDS
    from earwise.datasets.reasonaqa.template_replies import TEMPLATE_REPLIES
    from earwise.datasets.teachers.keyed_log import UNSHARDED, parse_shard

    options = builder.ReasonAQAOptions(
        kinds=KINDS if kinds == "all" else tuple(kind.strip() for kind in kinds.split(",") if kind.strip()),
        per_caption=per_caption,
        seed=seed,
        audio_root=audio_root,
        on_missing=missing,  # type: ignore[arg-type]  # click checked it
    )
    teacher_values = TeacherOptions(**asked)
    run = builder.TeacherRun(
        open_teacher(teacher_values, TEMPLATE_REPLIES),
        log_folder or out.with_name(f"{out.stem}.answers"),
        teacher_limits(teacher_values),
        parse_shard(shard),
        teacher_values.retry_failed,
    )
    named_files = [_named(file) for file in files]
    with _skipped(out) as bad:
        if dry_run:
            _say_estimate(builder.plan_reasonaqa(named_files, run, options, on_skip=bad, notify=note), as_json)
            return
        built = builder.build_reasonaqa(named_files, out, run, options, on_skip=bad, notify=note)
        if run.shard != UNSHARDED:
            assert built.teacher_summary is not None
            line = f"{run.folder}: shard {shard} done; no manifest until the run without --shard"
            values = {"shard": shard, "log": str(run.folder)} | built.teacher_summary.as_dict()
            print_json(values) if as_json else click.echo(line)
            return
        extra = {} if built.teacher_summary is None else {"teacher": run.teacher.name}
        _print_built(out, built, bad, as_json, extra)
    if run_checks:
        check_built([out], read_audio=missing != "keep")


def _named(file: str) -> tuple[str, Path]:
    name, equals, path = file.partition("=")
    if not equals or not path:
        raise ConfigError(f"{file!r} is not SOURCE=PATH; write for example clotho=clotho_captions_development.csv")
    return name, Path(path)


def _read(
    name: str, path: Path, audio_root: Path | None, split: str | None, bad: "_Skipped", votes: str | None
) -> "Iterator[Example]":
    from earwise.data import sources

    if name == "clothoaqa" and votes:
        from earwise.data.sources import clothoaqa, example_builder

        if not path.exists():
            raise DataError(f"{path}: no such file; name the file that {name} publishes")
        root = audio_root or path.parent
        one_word = votes != "all"  # ReasonAQA keeps all annotators, of the yes/no questions only
        return clothoaqa.load(
            path, root, split or example_builder.split_from_name(path), bad, votes=votes, one_word=one_word
        )  # type: ignore[arg-type]
    return sources.load(name, path, bad, audio_root=audio_root, split=split)


class _Skipped:
    """Writes a line for every row that cannot be used, and counts them."""

    def __init__(self, path: Path) -> None:
        self.path, self.count, self.first = path, 0, ""
        self._handle: Any = None

    def __call__(self, line: str) -> None:
        """Take one line."""
        self.count += 1
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle, self.first = self.path.open("w", encoding="utf-8"), line
        self._handle.write(line + "\n")
        if self.count <= SHOWN:
            note(f"left out: {line}")

    def close(self) -> None:
        """Say where the rest stands."""
        if self._handle is not None:
            self._handle.close()
        if self.count > SHOWN:
            note(f"left out {self.count} rows in all, listed in {self.path}")


@contextmanager
def _skipped(out: Path) -> "Iterator[_Skipped]":
    bad = _Skipped(out.with_name(f"{out.name}.skipped.txt"))
    bad.path.unlink(missing_ok=True)
    try:
        yield bad
    finally:
        bad.close()


def _finish(out: Path, examples: "Iterable[Example]", bad: _Skipped, as_json: bool, extra: dict[str, Any]) -> None:
    """Write the manifest and say what is in it.

    Raises:
        DataError: if nothing came out.
    """
    from earwise.data import manifest
    from earwise.datasets.reasonaqa.builder import ReasonAQAResult

    built = ReasonAQAResult()

    def rows() -> "Iterator[Example]":
        for example in examples:
            built.count(example)
            yield example
        if not built.tasks:
            reason = f"{bad.count} were left out (first: {bad.first})" if bad.count else "the files hold none"
            raise DataError(f"{out}: no row came out, {reason}; give --audio-root for the clips, or --missing keep")

    built.num_rows = manifest.write(out, rows())
    _print_built(out, built, bad, as_json, extra, with_table=False)


def _print_built(
    out: Path, built: "ReasonAQAResult", bad: _Skipped, as_json: bool, extra: dict[str, Any], with_table: bool = True
) -> None:
    """Print what a manifest holds; `with_table` adds the comparison with ReasonAQA's published counts."""
    table = built.comparison if with_table else []
    if as_json:
        cells = [{"subset": c.subset, "split": c.split, "found": c.num_built, "published": c.published} for c in table]
        shown = {
            "out": str(out), "rows": built.num_rows, "skipped": bad.count, "tasks": dict(built.tasks),
            "licences": dict(built.licences),
        }  # fmt: skip
        print_json(shown | extra | ({"table": cells} if table else {}))
        return
    listed = ", ".join(f"{number} {task}" for task, number in sorted(built.tasks.items()))
    click.echo(f"{out}: {built.num_rows} rows ({listed}); {bad.count} left out")
    for name, value in extra.items():
        click.echo(f"  {name.replace('_', ' ')}: {dict(value) if isinstance(value, Counter) else value}")
    for licence, number in built.licences.items():
        click.echo(f"  licence of {number} rows: {licence}")
    for cell in table:
        if cell.num_built:
            published = "not in the paper" if cell.published is None else f"published {cell.published}"
            click.echo(f"  {cell.subset}, {cell.split}: {cell.num_built} ({published}{', equal' if cell.same else ''})")


def _say_estimate(estimate: Any, as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict

        print_json(asdict(estimate))
        return
    click.echo(
        f"{estimate.requests} requests to ask, {estimate.already} answered already; about {estimate.input_tokens} "
        f"tokens in and {estimate.output_tokens} out"
    )
