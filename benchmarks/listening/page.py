"""Writes the page to listen to, and the audio of the scenes on it, from an evaluation and the items drawn from it."""

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earwise.evaluation.metrics.stats import chance_level, wilson
from earwise.files import write_text
from listening.cards import card
from listening.failures import KINDS, failure_kind, in_words
from listening.items import Item
from listening.licences import mixture_rights
from listening.questions import SKILLS, scene_clips
from listening.sounds import look, middle

PAGE, SCENES = Path("results") / "listening.md", Path("audio") / "scenes"
"""Where the page and its scenes stand in the documentation."""
INTRODUCTION = """\
# Clips to listen to

<!-- Written by benchmarks/listening_page.py; run it again instead of editing this page. -->

{number} validation clips: play them, see what the default model was asked and what it answered, right or wrong. None
of these recordings was trained on. Players need a browser that plays Ogg Vorbis.

Model `{model}`, revision `{revision}`, prompt style `{style}`, greedy decoding, n = {n} questions about {recordings}
recordings and scenes: **{accuracy} right (95 % interval {interval})**; under silence (the blind control)
{silent}; choosing at random would give {chance} of the {with_options} questions that have options.
The recordings are the validation clips of the bundled starter set, alone or composed to scenes.{reasoned}

| skill | n | right, % (95 %) | under silence, % | on this page: right of |
|---|---|---|---|---|
{rows}

How the clips were drawn: at random by a seed, {right_drawn} right and {wrong_drawn} wrong answers, which is the
proportion of the whole evaluation, and each skill in its own proportion as far as whole numbers allow. Nobody picked
them, and no failure was taken out. *Official score*: the text of the right option, word for word; where a model writes
something else, it is wrong.
"""
FAILURES = """
## What goes wrong

How this was described: no person listened. The kinds below are assigned by rules from the question, the label of the
recording (its source's, not ours) and what the model wrote, over all {n_wrong} wrong answers of the evaluation, not
only those on this page. What a clip looks like (length, loudness, pitch, where its energy lies) is measured by the
package; lines about spectrograms were written by a language model that saw their pictures and heard nothing.
{classifier}
Whether a clip is hard for a person too, these descriptions cannot say: please listen.

{kinds}
{looks}
"""
SHOWN = """\
The connector of this model shows the decoder, in words, what its classifiers make of a clip: those words are printed
below the answers, so that what was not heard can be told from what was heard and read wrongly."""
NOT_SHOWN = """\
The connector of this model shows no words, so it cannot be told here whether a wrong answer was misheard or misread."""
CLIPS = """
## The clips

Each box says what was played and asked; the right option is marked with ✓, the chosen one with a frame. *Silence* is
what the model answers to the same question when it hears nothing: the same answer there means that it may not have
listened.
"""
SOURCES = """
## Where the clips come from

The recordings are those of the bundled starter set, unchanged; sources and licences are listed in
`src/earwise/assets/starter/ATTRIBUTION.md`, authors of each file in `REUSE.toml`. Scenes are composed of these
recordings by `earwise build labels`; only recordings whose licences allow the mixture are combined, and authors and
licence of each scene stand in `docs/audio/scenes/REUSE.toml`.

Make the page again, for another model, with one command (minutes on an idle machine; a stopped run continues):

```console
$ python benchmarks/listening_page.py --out runs/listening --model {model} --style {style}{options}
```
"""


def write(
    items: Sequence[Item],
    drawn: Sequence[Item],
    docs: Path,
    *,
    reasoned: Mapping[str, Mapping[str, Any]],
    shown: Mapping[str, str],
    options: str = "",
) -> None:
    """Write the page, and the scenes on it with their licences; scenes that are no longer on it are deleted.

    Args:
        items: All items of the evaluation.
        drawn: The items on the page.
        docs: Folder of the documentation.
        reasoned: Id -> row of the same question asked in a style that reasons; empty if it was not asked so.
        shown: File name of a clip -> words that the connector shows the decoder about it; empty if it shows none.
        options: What the command of the page has besides model and style.
    """
    parts = [_introduction(items, drawn, reasoned), _failures(items, drawn, shown), CLIPS]
    for skill in SKILLS:
        cards = [
            card(number, item, reasoned.get(item.example.id), shown)
            for number, item in enumerate(drawn, 1)
            if item.skill == skill
        ]
        if cards:
            parts.append("\n\n".join([f"\n### {skill}", *cards]) + "\n")
    first = items[0].row
    parts.append(SOURCES.format(model=first["model"], style=first["style"], options=options))
    _write_scenes(drawn, docs / SCENES)
    write_text(docs / PAGE, "".join(parts))


def percent(share: float) -> str:
    """A share as a percentage with one digit."""
    return f"{100 * share:.1f}"


def scores(items: Sequence[Item]) -> tuple[int, str, str]:
    """Number of right answers; share and interval in per cent; share under silence in per cent."""
    right = sum(item.is_right for item in items)
    low, high = wilson(right, len(items))
    silent = sum(bool(item.silent["scores"]["official"]) for item in items) / len(items)
    return right, f"{percent(right / len(items))} ({percent(low)} to {percent(high)})", percent(silent)


def _introduction(items: Sequence[Item], drawn: Sequence[Item], reasoned: Mapping[str, Mapping[str, Any]]) -> str:
    """Model, whole evaluation by skill, and how the clips were drawn."""
    rows = []
    for skill in ("all", *SKILLS):
        members = [item for item in items if skill in ("all", item.skill)]
        shown = [item for item in drawn if skill in ("all", item.skill)]
        if members:
            _, share, silent = scores(members)
            shown_right = f"{sum(item.is_right for item in shown)} of {len(shown)}"
            rows.append(f"| {skill} | {len(members)} | {share} | {silent} | {shown_right} |")
    first, right = items[0].row, sum(item.is_right for item in items)
    low, high = wilson(right, len(items))
    counts = [len(item.example.choices) for item in items if item.example.choices]
    return INTRODUCTION.format(
        number=len(drawn),
        model=first["model"],
        revision=first["revision"],
        style=first["style"],
        n=len(items),
        recordings=len({path.name for item in items for path in item.example.audio_paths}),
        accuracy=f"{percent(right / len(items))} %",
        interval=f"{percent(low)} to {percent(high)}",
        silent=f"{scores(items)[2]} %",
        chance=f"{percent(chance_level(counts))} %",
        with_options=len(counts),
        reasoned=_reasoned_line(drawn, reasoned),
        rows="\n".join(rows),
        right_drawn=sum(item.is_right for item in drawn),
        wrong_drawn=sum(not item.is_right for item in drawn),
    )


def _reasoned_line(drawn: Sequence[Item], reasoned: Mapping[str, Mapping[str, Any]]) -> str:
    """How the clips of the page fare when the model is asked to reason first; empty if it was not."""
    rows = [(item, reasoned[item.example.id]) for item in drawn if item.example.id in reasoned]
    if not rows:
        return ""
    right = sum(bool(row["scores"].get("lenient", row["scores"]["official"])) for _, row in rows)
    written = sum(bool(row.get("reasoning")) for _, row in rows)
    return (
        f"\n\nThe clips of this page were asked once more in the style `{rows[0][1]['style']}`: {right} of {len(rows)} "
        f"are right then (answer read from its tag), {sum(item.is_right for item, _ in rows)} without reasoning; "
        f"{written} completions hold reasoning, folded below each answer."
    )


def _failures(items: Sequence[Item], drawn: Sequence[Item], shown: Mapping[str, str]) -> str:
    """A line for each kind of wrong answer, the most frequent first, with links to the clips of the page."""
    kinds: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if not item.is_right:
            kinds[failure_kind(item)].append(item)
    places = {item.example.id: number for number, item in enumerate(drawn, 1)}
    lines = []
    for kind in sorted(kinds, key=lambda kind: (-len(kinds[kind]), list(KINDS).index(kind))):
        numbers = sorted(places[item.example.id] for item in kinds[kind] if item.example.id in places)
        links = ", ".join(f"[{number}](#clip-{number})" for number in numbers)
        lines.append(f"- {in_words(kind, kinds[kind], shown)}" + (f" Listen: {links}." if links else ""))
    n_wrong = sum(map(len, kinds.values()))
    return FAILURES.format(
        n_wrong=n_wrong,
        classifier=SHOWN if shown else NOT_SHOWN,
        kinds="\n".join(lines) or "No answer is wrong.",
        looks=_looks(items),
    )


def _looks(items: Sequence[Item]) -> str:
    """What the recordings behind right and wrong answers measure, for questions about a single recording."""
    single = [item for item in items if len(item.example.audio_paths) == 1 and not scene_clips(item.example)]
    rows = []
    for name, is_right in (("right", True), ("wrong", False)):
        looks = [look(item.example.audio_paths[0]) for item in single if item.is_right == is_right]
        if looks:
            sounding_s, loudness, low = middle(looks)
            rows.append(f"| {name} | {len(looks)} | {sounding_s:.2f} | {loudness:.0f} | {percent(low)} |")
    return (
        "\nMedians of the single recordings behind right and wrong answers:\n\n"
        "| answer | n | sound, s | loudness, LUFS | energy below 300 Hz, % |\n|---|---|---|---|---|\n" + "\n".join(rows)
    )


def _write_scenes(drawn: Sequence[Item], folder: Path) -> None:
    """Copy the scenes of the page and write their licences; delete those that are no longer on it."""
    scenes = {item.example.audio_paths[0].name: item for item in drawn if scene_clips(item.example)}
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.ogg"):
        if path.name not in scenes:
            path.unlink()
    tables = ["# Who holds the rights in which scene: those in the recordings that it is composed of.\nversion = 1\n"]
    for name, item in sorted(scenes.items()):
        source = item.example.audio_paths[0]
        if source.resolve() != (folder / name).resolve():
            shutil.copyfile(source, folder / name)
        rights = mixture_rights(scene_clips(item.example))
        assert rights, name
        holders = ", ".join(f'"{holder}"' for holder in (*rights.holders, "2026 The earwise authors"))
        tables.append(
            f'[[annotations]]\npath = "{name}"\nSPDX-FileCopyrightText = [{holders}]\n'
            f'SPDX-License-Identifier = "{rights.licence}"\n'
        )
    write_text(folder / "REUSE.toml", "\n".join(tables))
