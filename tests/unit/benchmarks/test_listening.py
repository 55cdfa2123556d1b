"""The page to listen to: shares and kinds by hand, a page from hand-made answers, and the page that is committed."""

import json
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))
import docs_clips
from listening import failures, licences, page, selection, shown_words
from listening.items import Item, read_items

from earwise.data.manifest_path import STARTER
from earwise.types import Audio, Example, Text, Turn

ROOT = Path(__file__).parents[3]
CLIPS = STARTER / "clips"
SPLITS = {
    Path(row["path"]).name: row["split"] for row in map(json.loads, (STARTER / "labels.jsonl").read_text().splitlines())
}


def item(
    name: str, task: str, answer: str, written: str, choices: tuple[str, ...] = (), *, field: str = "", **row: Any
) -> Item:
    """An item about an imagined clip; the answer can be read if it is one of the options."""
    meta = {"field": field, "events": row.pop("events", ()), "label": row.pop("label", "")}
    example = Example(
        name, (Turn("user", (Audio(f"{name}.ogg"), Text("What?"))),), (answer,), choices, task=task,
        meta=meta,
    )  # fmt: skip
    readable = written if written in choices or not choices else None
    score = {"official": float(written == answer), "lenient": float(written == answer)}
    answered = {"id": name, "output": written, "answer": readable, "status": "ok", "scores": score, "choices": choices}
    return Item(example, answered | row, answered | {"output": "", "answer": None})


def test_shares_are_proportional_and_within_their_bounds() -> None:
    assert selection.apportion(5, [6, 3, 1], [0, 0, 0], [6, 3, 1]) == [3, 2, 0]
    assert selection.apportion(4, [5, 5], [0, 3], [5, 5]) == [1, 3]
    assert selection.apportion(9, [1, 1], [0, 0], [2, 3]) == [2, 3], "as close as the bounds allow"
    assert selection.apportion(2, [0, 0], [0, 0], [1, 4]) == [1, 1]


def test_right_and_wrong_are_drawn_in_their_proportion_from_different_clips() -> None:
    items = [
        item(f"{field}-{place}", "recognition", "a", "a" if place % 4 else "b", ("a", "b"), field=field)
        for field in ("sound", "instrument") for place in range(20)
    ]  # fmt: skip
    drawn = selection.draw([*items, items[0]], 12, seed=3)
    assert [each.skill for each in drawn] == ["Sounds"] * 6 + ["Instruments"] * 6
    assert sum(each.is_right for each in drawn) == 9, "30 of 41 are right"
    assert len({each.example.id for each in drawn}) == 12
    assert drawn == selection.draw([*items, items[0]], 12, seed=3) != selection.draw([*items, items[0]], 12, seed=4)


YES_NO, EVENTS = ("yes", "no"), [{"clip": "clips/a.ogg", "label": "dog"}]
WRONG = {
    "nothing": item("a", "recognition", "dog", "", ("dog", "cat"), field="sound"),
    "unreadable": item("a", "recognition", "dog", "a dig", ("dog", "cat"), field="sound"),
    "label": item("a", "varied", "spoken words", "Speech.", ("spoken words", "x"), field="kind", label="speech"),
    "form": item("a", "recognition", "dog", "x", ("dog",), scores={"official": 0.0, "lenient": 1.0}),
    "yes": item("a", "presence", "no", "yes", YES_NO, field="presence"),
    "no": item("a", "yes_no", "yes", "no", YES_NO, field="sound"),
    "turned": item("a", "before", "yes", "no", YES_NO, field="before"),
    "absent": item("a", "nth", "cat", "cow", ("cat", "cow"), field="nth", events=EVENTS),
    "few": item("a", "count", "three", "two", ("two", "three"), field="count"),
    "many": item("a", "count", "3", "four", ("3", "four"), field="count"),
    "weaker": item("a", "louder", "dog", "cat", ("dog", "cat"), field="quieter"),
    "pair": item("a", "same", "yes", "no", YES_NO, field="language"),
    "language": item("a", "varied", "allemand", "English", ("allemand", "English"), field="language"),
    "open": item("a", "open", "dog", "cat", field="sound"),
    "invented": item("a", "open", "a cart", "a card", field="words"),
    "other": item("a", "recognition", "x", "y", ("x", "y"), field="smell"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_kinds_of_failure(kind: str) -> None:
    assert failures.failure_kind(WRONG[kind]) == kind


def test_a_kind_is_told_with_its_most_frequent_confusion() -> None:
    twice = [item(name, "varied", "dog", "cat", ("dog", "cat"), field="sound") for name in "ab"]
    once = item("c", "varied", "dog", "cow", ("dog", "cow"), field="sound")
    assert failures.in_words("sound", [*twice, once], {}) == (
        "**One sound for another** (3): an option that names another sound. "
        "Most often (right → written): dog → cat (2)."
    )
    example = replace(once.example, meta={"label": "dog barking"})
    labelled = [replace(once, example=example), replace(once, example=replace(example, turns=twice[0].example.turns))]
    line = failures.in_words("sound", labelled, {"c.ogg": "Sound: Dog … , cow", "a.ogg": "Sound: hotdog"})
    assert line.endswith("In 1 of 2 the label is among the words shown: heard, but not read.")


def test_what_a_model_writes_is_no_markup() -> None:
    twice = [item(name, "open", "dog", "[a](b) <i>\n`*c_d*`", field="sound") for name in "ab"]
    assert "dog → \\[a\\](b) &lt;i> \\`\\*c\\_d\\*\\` (2)" in failures.in_words("open", twice, {})


def test_licences_of_mixtures() -> None:
    assert licences.mixture_licence(["MIT", "CC0-1.0"]) == "MIT"
    assert licences.mixture_licence(["GPL-2.0-or-later", "GPL-2.0-only", "MIT"]) == "GPL-2.0-only"
    assert licences.mixture_licence(["CC-BY-SA-3.0", "GPL-2.0-only"]) is None
    assert licences.mixture_rights(["circafrique_v4_djembe2_tone.ogg", "fx_nothing.ogg"]) is None
    owl = licences.mixture_rights(["owl_0.ogg", "accordion_2.ogg"])
    assert owl and owl.licence == "MIT" and owl.holders[0] == "Joseph Sardin (BigSoundBank)"


def test_words_are_read_back_from_embeddings() -> None:
    vocabulary = torch.eye(3, 4)
    audio = torch.stack([vocabulary[2] * 7, vocabulary[0] + vocabulary[1], torch.ones(4), vocabulary[0]])
    assert shown_words.nearest_words(audio, vocabulary) == [2, None, None, 0]
    assert shown_words.tidy("… Sound: rooster…… dog …") == "Sound: rooster … dog"
    assert shown_words.tidy("Type: music Sound: …… Language: … Audio:") == "Type: music"
    assert shown_words.tidy("… Sound: … Language: … Audio:") == ""


def run_folder(folder: Path) -> Path:
    """An evaluation of three questions, written by hand: a right answer, a wrong one, a wrong one about a scene."""
    (folder / "direct" / "silence").mkdir(parents=True)
    (folder / "scene.ogg").write_bytes((CLIPS / "cat_0.ogg").read_bytes())
    events = [{"clip": f"clips/{name}.ogg", "label": name[:3], "at_s": 0.1} for name in ("cat_0", "cow_0")]
    questions = [
        ("owl", CLIPS / "owl_0.ogg", "recognition", ["owl", "cat"], "owl", "owl", {"field": "sound", "label": "owl"}),
        ("cow", CLIPS / "cow_0.ogg", "open", [], "cow", "a <b>dog</b>", {"field": "sound", "label": "cow"}),
        ("scene", "scene.ogg", "count", ["one", "two"], "two", "one", {"field": "count", "events": events}),
    ]
    manifest, rows = [], []
    for name, path, task, choices, answer, written, fields in questions:
        content = [{"type": "audio", "audio": str(path)}, {"type": "text", "text": f"What about the {name}?"}]
        manifest.append(
            {"id": name, "messages": [{"role": "user", "content": content}], "choices": choices, "answer": answer,
             "task": task, "source": "hand", "split": "val", **fields}
        )  # fmt: skip
        scores = {"official": float(written == answer), "lenient": float(written == answer)}
        rows.append(
            {"id": name, "output": written, "answer": written, "status": "ok", "reasoning": None, "scores": scores,
             "choices": choices, "model": "embedded", "revision": "abc", "style": "plain"}
        )  # fmt: skip
    silent = [row | {"output": "cat", "answer": "cat", "scores": {"official": 0.0, "lenient": 0.0}} for row in rows]
    for path, lines in (("questions", manifest), ("direct/samples", rows), ("direct/silence/samples", silent)):
        (folder / f"{path}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_page_from_hand_made_answers(tmp_path: Path) -> None:
    run, docs = run_folder(tmp_path / "run"), tmp_path / "docs"
    items = read_items(run / "questions.jsonl", run / "direct")
    reasoned = {"cow": items[1].row | {"reasoning": "I hear a moo.", "answer": "cow", "style": "think"}}
    drawn, shown = selection.draw(items, 50, 0), {"cow_0.ogg": "Sound: cow, dog"}
    (docs / "audio" / "scenes").mkdir(parents=True)
    (docs / "audio" / "scenes" / "old.ogg").touch()
    page.write(items, drawn, docs, reasoned=reasoned, shown=shown, options=" --reasoning think")
    text = (docs / "results" / "listening.md").read_text()
    assert "n = 3 questions about 3\nrecordings and scenes: **33.3 % right (95 % interval 6.1 to 79.2)**" in text
    assert "| Sounds | 1 | 100.0 (20.7 to 100.0) | 0.0 | 1 of 1 |" in text and "over all 2 wrong answers" in text
    assert "Listen: [2](#clip-2)." in text and '<div class="clip wrong" id="clip-2">' in text
    assert "a &lt;b&gt;dog&lt;/b&gt;" in text and "<b>dog" not in text, "what a model writes is no element"
    assert "In 1 of 1 the label is among the words shown" in text and "<p>Sound: cow, dog</p>" in text
    assert "<p>I hear a moo.</p>" in text and "in the style `think`: 0 of 1" in text
    assert "cat at 0.1 s" in text and "CC0-1.0" in text
    assert docs_clips.played_clips(text) == ["cow_0.ogg", "owl_0.ogg"]
    assert sorted(path.name for path in (docs / "audio" / "scenes").iterdir()) == ["REUSE.toml", "scene.ogg"]
    page.write(items, drawn, docs, reasoned=reasoned, shown=shown, options=" --reasoning think")
    assert (docs / "results" / "listening.md").read_text() == text


def test_the_committed_page_plays_validation_clips_whose_licences_are_stated() -> None:
    text = (ROOT / "docs" / "results" / "listening.md").read_text(encoding="utf-8")
    played = docs_clips.played_clips(text)
    assert played and {SPLITS[name] for name in played} == {"val"}
    scenes = set(re.findall(r'src="\.\./\.\./audio/scenes/([^"]+)"', text))
    assert {path.name for path in (ROOT / "docs" / page.SCENES).glob("*.ogg")} == scenes
    tables = tomllib.loads((ROOT / "docs" / page.SCENES / "REUSE.toml").read_text(encoding="utf-8"))["annotations"]
    assert {table["path"] for table in tables} == scenes
    known = {path.stem for path in (ROOT / "LICENSES").iterdir()}
    assert {table["SPDX-License-Identifier"] for table in tables} <= known
    numbers = re.findall(r'<div class="clip (right|wrong)" id="clip-(\d+)">', text)
    assert [int(number) for _, number in numbers] == list(range(1, 51))
    (right, drawn) = re.search(r"\| all \| .* \| (\d+) of (\d+) \|", text).groups()  # type: ignore[union-attr]
    assert (sum(verdict == "right" for verdict, _ in numbers), len(numbers)) == (int(right), int(drawn))
