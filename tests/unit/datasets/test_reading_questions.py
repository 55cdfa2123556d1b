"""WordNet's files are read as wndb(5WN) says, and options of questions about words leave one right answer."""

from collections import Counter
from pathlib import Path

import pytest

from earwise import cli
from earwise.data import manifest
from earwise.datasets.labels.varied import wordings
from earwise.datasets.reading.reading_questions import ReadingOptions, build_reading_questions, common_nouns
from earwise.datasets.reading.wordnet import Synset, ancestors, read_nouns
from earwise.errors import DataError
from earwise.types import Example, Text

# Hand-made lines in the format of WordNet's files: four animals, four tools, and what they are kinds of.
NOUNS = """\
  1 A licence of several lines, each of which begins with two spaces.
00000100 05 n 01 beast 0 000 | a living thing that moves
00000200 05 n 02 hound 0 barker 1 001 @ 00000100 n 0000 | a beast (or pet) that barks; "the hound barked"
00000300 05 n 01 owl 0 001 @ 00000100 n 0000 | a bird that calls at night
00000400 05 n 01 pony 0 001 @ 00000100 n 0000 | a small animal to ride on
00000450 05 n 01 Rex 0 001 @i 00000200 n 0000 | a dog in a story
00000500 06 n 01 tool 0 000 | a thing to work with
00000600 06 n 0a saw 0 hand_saw 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i a 001 @ 00000500 n 0000 | a blade with teeth
00000700 06 n 01 drill 0 001 @ 00000500 n 0000 | a bit that turns to make holes
00000800 06 n 01 file 1 001 @ 00000500 n 0000 | a rough bar that smooths
00000900 06 n 02 hammer 0 barker 0 001 @ 00000500 n 0000 | a head on a handle
00001000 06 n 01 unseen 0 001 @ 00000500 n 0000 | a thing that nobody counted
"""
COUNTS = """\
barker%1:05:01:: 1 9
beast%1:05:00:: 1 8
hound%1:05:00:: 1 2
owl%1:05:00:: 1 4
pony%1:05:00:: 1 3
rex%1:05:00:: 1 7
saw%1:06:00:: 1 5
i%1:06:10:: 1 11
saw%2:36:00:: 1 99
drill%1:06:00:: 1 4
file%1:06:01:: 1 2
file%1:06:00:: 1 70
hammer%1:06:00:: 1 6
tool%1:06:00:: 1 1
old%3:00:02:: 1 50
"""

MORE = ("bell", "broom", "bucket", "chair", "drum", "flute", "horn", "kettle", "ladder", "lamp", "spoon", "wheel")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data.noun").write_text(NOUNS)
    (tmp_path / "cntlist.rev").write_text(COUNTS)
    return tmp_path


def text(example: Example) -> str:
    return next(part.text for part in example.turns[0].parts if isinstance(part, Text))


def test_lines_are_read_as_the_format_says(folder: Path) -> None:
    nouns = read_nouns(folder)
    assert nouns["00000200"] == Synset("00000200", 5, ("hound", "barker"), "a beast that barks", ("00000100",), 9)
    saw = nouns["00000600"]
    assert saw.words == ("saw", "hand saw", *"bcdefghi") and saw.count == 11, "word count and ids are hexadecimal"
    assert nouns["00000800"].count == 2, "the other sense of the word is more frequent"
    assert ancestors(nouns["00000450"], nouns) == {"00000200", "00000100"}, "an instance is a kind of its class"
    assert nouns["00001000"].count == 0


def test_nouns_are_common_ones_with_something_to_ask(folder: Path) -> None:
    nouns = common_nouns(read_nouns(folder))
    assert [noun.words[0] for noun in nouns] == ["saw", "hound", "beast", "hammer", "owl", "drill", "pony", "file",
                                                 "tool"]  # fmt: skip


def test_one_option_is_right_and_no_split_sees_nouns_or_wordings_of_the_other(folder: Path) -> None:
    lines = (f"000020{n:02} 06 n 02 {word} 0 old_{word} 0 001 @ 00000500 n 0000 | like a {word}" for n, word in
             enumerate(MORE))  # fmt: skip
    (folder / "data.noun").write_text(NOUNS + "\n".join(lines))
    (folder / "cntlist.rev").write_text(COUNTS + "".join(f"{word}%1:06:00:: 1 3\n" for word in MORE))
    synsets = read_nouns(folder)
    examples = list(build_reading_questions(synsets, ReadingOptions(limit=400, val_share=0.45, seed=2)))
    assert examples == list(build_reading_questions(synsets, ReadingOptions(limit=400, val_share=0.45, seed=2)))
    meanings = {word: {offset for offset, s in synsets.items() if word in s.words} for s in synsets.values()
                for word in s.words}  # fmt: skip
    meanings |= {synset.definition: {synset.offset} for synset in synsets.values()}
    groups: dict[str, set[str]] = {"train": set(), "val": set()}
    questions: dict[str, set[str]] = {"train": set(), "val": set()}
    for example in examples:
        groups[example.split].add(example.group)
        shown, question = text(example).split("\n")
        assert example.text_only and not example.audio_parts
        if example.answer[0] in ("yes", "no"):
            continue
        questions[example.split].add(question)
        listed = shown.split(": ")[1].removesuffix(" Type").removesuffix(".").split(", ")
        named = [_offsets(option, meanings) for option in example.choices]
        right = _offsets(example.answer[0], meanings)
        assert example.answer[0] in example.choices and len(set(example.choices)) == len(example.choices) > 1
        # The first word that an option means is the one that the right option means.
        first = next(word for word in listed if any(meanings[word] & offsets for offsets in named))
        assert meanings[first] & right
        assert sum(bool(meanings[first] & offsets) for offsets in named) == 1
        for offset in right:
            for option, offsets in zip(example.choices, named, strict=True):
                assert option == example.answer[0] or not offsets & ancestors(synsets[offset], synsets)
    assert groups["train"] and groups["val"] and not groups["train"] & groups["val"]
    known = wordings.question_wordings()["reading"]
    assert questions["train"] <= set(known.train) and questions["val"] <= set(known.val)
    answers = Counter(example.answer[0] for example in examples if example.answer[0] in ("yes", "no"))
    assert min(answers.values()) > 0.3 * sum(answers.values())


def _offsets(option: str, meanings: dict[str, set[str]]) -> set[str]:
    """The synsets that an option can mean."""
    return meanings.get(option) or meanings[option.removeprefix("an ").removeprefix("a ")]


def test_the_command_writes_rows_without_sound_and_says_what_is_missing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "reading.jsonl"
    assert cli.run(["build", "reading", str(folder), "--out", str(out), "--limit", "40", "--val-share", "0"]) == 0
    rows = manifest.read(out)
    assert len(rows) > 20 and {row.split for row in rows} == {"train"}
    assert f"{out}: {len(rows)} questions about words" in capsys.readouterr().out

    (folder / "cntlist.rev").write_text("hound%1:05 1 9\n")
    with pytest.raises(DataError, match=r"cntlist\.rev:line 1: 'hound%1:05 1 9' is no count of WordNet"):
        read_nouns(folder)
    (folder / "cntlist.rev").write_text(COUNTS)
    (folder / "data.noun").write_text(NOUNS.replace("05 n 02 hound", "05 n 03 hound"))
    with pytest.raises(DataError, match=r"data\.noun:line 3: '00000200 05 n 03 hound"):
        read_nouns(folder)
    assert cli.run(["build", "reading", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "has no readable cntlist.rev; give the folder of WordNet's data files" in capsys.readouterr().err
