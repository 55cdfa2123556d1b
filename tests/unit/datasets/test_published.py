"""Published data sets: ReasonAQA's file is read, missing audio and unsuitable questions are left out, choices added."""

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from earwise.cli import run
from earwise.data import manifest, sources
from earwise.data.sources import reasonaqa as published
from earwise.datasets.published import add_choices, avqa_filters
from earwise.datasets.published.missing_audio import filter_missing_audio
from earwise.datasets.reasonaqa.counts import count_subsets
from earwise.errors import ConfigError, DataError
from earwise.types import Audio, Example, Text, Turn


def question(number, choices=("a", "b", "c", "d"), answer="a", **fields):
    turn = Turn("user", (Audio("a.wav"), Text("What?")))
    return Example(f"q{number}", (turn,), (answer,), choices, source="S", licence="L", **fields)


ITEM = {
    "taskname": "audiocaps",
    "filepath1": "AudioCapsLarger/test/Y6BJ455B1aAs.wav",
    "filepath2": "",
    "caption1": "A rocket flies by",
    "caption2": "",
    "input": "what is heard? a) a dog b) a rocket (large) c) rain d) a car",
    "answer": "b) a rocket (large)",
    "subtype": "AudioCaps-MCQ.json",
}
TWO = {"filepath2": "AudioCapsLarger/test/YZsf2YvJfCKw.wav", "caption2": "Water trickling"}
CLOTHO = {"taskname": "clothov21", "filepath1": "ClothoV21/evaluation/a b.wav"}
HYPOTHESIS = (
    'what of "a dog"? a) It is definitely true b) It is definitely false c) It is plausible d) I cannot determine'
)


def read_published(tmp_path, *changes):
    path = tmp_path / "test.json"
    path.write_text(json.dumps([ITEM | change for change in changes], indent=2))
    lines = []
    return list(sources.load("reasonaqa", path, lines.append)), lines


def test_reasonaqa_file_is_read(tmp_path):
    examples, lines = read_published(
        tmp_path,
        {},
        TWO | {"input": "explain the difference in few words", "answer": "One Booms.", "subtype": "ACD-1.json"},
        CLOTHO | {"input": HYPOTHESIS, "answer": "c) it is plausible", "subtype": "CLE.json"},
        CLOTHO | {"input": "is it loud? answer yes or no", "answer": "Yes", "subtype": "ClothoAQA.json"},
        {"input": "caption first audio", "answer": "", "subtype": "AudioCaps.json"},
        CLOTHO | {"input": "what do you feel?", "answer": "Fear.", "subtype": "Clotho-Detail.json"},
        {"input": "what now?", "answer": "That.", "subtype": "News.json"},
    )
    assert not lines
    assert count_subsets(examples) == dict.fromkeys(
        (
            (subset, "test")
            for subset in ("AudioCaps-MCQ", "ACD", "CLE", "ClothoAQA", "AudioCaps caption", "Clotho-Detail")
        ),
        1,
    ) | {("unknown: News.json", "test"): 1}
    mcq, difference, entailment, binary, caption, detail, _ = examples
    assert mcq.question == "what is heard?" and mcq.choices == ("a dog", "a rocket (large)", "rain", "a car")
    assert mcq.answer == ("a rocket (large)",) and mcq.group == "youtube:6BJ455B1aAs"
    assert len(difference.audio_paths) == 2 and difference.answer == ("One Booms.",)
    assert difference.meta["tier"] == 1 and "few words" in difference.meta["input"]
    assert entailment.task == "entailment" and entailment.answer == ("It is plausible",)
    assert binary.choices == ("yes", "no") and binary.answer == ("yes",) and binary.group == "clotho:a b.wav"
    assert caption.answer == ("A rocket flies by",) and caption.task == "caption"
    assert detail.task == "detail" and not detail.choices
    for example in examples:
        assert manifest.from_row(manifest.to_row(example), root=example.root) == example


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"answer": "a) a rocket (large)"}, "is not one of the options by letter and text"),
        ({"answer": "e) a bus"}, "is not one of the options by letter and text"),
        ({"input": "what? a) rain b) rain c) car", "answer": "a) rain"}, "occurs twice"),
        ({"answer": ""}, "answer is '' where a text is expected"),
        ({"filepath1": None}, "filepath1 is None"),
    ],
)
def test_contradictory_items_are_reported(tmp_path, change, complaint):
    examples, lines = read_published(tmp_path, {}, change)
    assert len(examples) == 1 and len(lines) == 1
    assert lines[0].startswith(f"{tmp_path / 'test.json'}:item 2: ") and complaint in lines[0]


def test_options_are_recognised_in_order_only():
    assert published.split_options("is b) here? a) one b) two") == ("is b) here?", ("one", "two"))
    assert published.split_options("no options (a) here") == ("no options (a) here", ())


def test_a_relative_audio_folder_is_found(tmp_path, monkeypatch):
    """As on the command line: `--audio-root wav`, or a data file named by a relative path in a folder."""
    (tmp_path / "wav").mkdir()
    (tmp_path / "wav" / "a.wav").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    row = Example("q", (Turn("user", (Audio("a.wav"), Text("?"))),), ("x",), root=Path("wav"))
    assert list(filter_missing_audio([row], "error", pytest.fail)) == [row]


def test_filter_missing_audio_skips_keeps_or_raises(tmp_path):
    (tmp_path / "a.wav").touch()
    rows = [question(1, root=tmp_path), question(2, root=tmp_path / "none")]
    lines = []
    assert [row.id for row in filter_missing_audio(rows, "skip", lines.append)] == ["q1"]
    assert lines == [f"q2: audio {tmp_path / 'none/a.wav'} is missing"]
    assert len(list(filter_missing_audio(rows, "keep", pytest.fail))) == 2
    with pytest.raises(DataError, match="--missing skip"):
        list(filter_missing_audio(rows, "error", pytest.fail))


def test_avqa_filters_count_the_questions_they_drop():
    def avqa_question(text, relation):
        turn = Turn("user", (Audio("a.wav"), Text(text)))
        return Example(text, (turn,), meta={"question_relation": relation})

    rows = [
        avqa_question("Where?", "View"),
        avqa_question("What color is it?", "View"),
        avqa_question("Which colour?", "Both"),
        avqa_question("Who?", "Sound"),
    ]
    num_dropped = Counter()
    assert [row.id for row in avqa_filters.filter_questions(rows, ["visual", "colour"], num_dropped)] == ["Who?"]
    assert num_dropped == {"visual": 2, "colour": 1}
    assert len(list(avqa_filters.filter_questions(rows, [], num_dropped))) == 4
    with pytest.raises(ConfigError, match="filter 'color' is none of visual, colour"):
        list(avqa_filters.filter_questions(rows, ["color"], num_dropped))


def test_added_choices_are_answers_to_the_same_question():
    tempos = range(60, 200, 7)
    rows = [
        question(number, (), f"{tempos[number % 20]} BPM", meta={"field": "tempo"}, task="open")
        for number in range(160)
    ]
    rows.append(question(160, (), "Calm.", task="caption"))
    out, num_left_out = add_choices.add_choices(rows, 4, seed=2)
    assert out[-1].choices == () and len(out) + num_left_out == 161 and len(out) > 120
    for example in out[:-1]:
        speeds = [int(option.split()[0]) for option in example.choices]
        assert len(speeds) == 4 and example.answer[0] in example.choices
        assert all(low * 1.1 <= high for low, high in itertools.pairwise(sorted(speeds)))
        assert not any(abs(high / low - 2) < 0.07 for low in speeds for high in speeds)
    # without audio: choosing the most frequent answer among the options must not help
    counts = Counter(example.answer[0] for example in out[:-1])
    right = sum(max(example.choices, key=lambda name: counts[name]) == example.answer[0] for example in out[:-1])
    assert right / (len(out) - 1) < 0.4
    assert add_choices.confusable_names("key", {"A minor", "C major", "C minor"})["A minor"] == {"C major"}


def run_build(capsys, *arguments):
    code = run(["build", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_builders_run_the_checks_unless_disabled(tmp_path, capsys):
    rows = [{"id": n, "video_name": f"abcdefghij{n}_000030", "question_text": "What?", "multi_choice": ["a", "b"],
             "answer": 0, "question_relation": "Both"} for n in range(30)]  # fmt: skip
    (tmp_path / "train_qa.json").write_text(json.dumps(rows))
    out = tmp_path / "avqa.jsonl"
    arguments = ["avqa", tmp_path / "train_qa.json", "--out", out, "--missing", "keep", "--json"]
    code, out_text, _ = run_build(capsys, *arguments, "--no-check")
    assert code == 0 and json.loads(out_text)["rows"] == 30 and not (tmp_path / "avqa.checks.html").exists()
    code, out_text, err = run_build(capsys, *arguments)
    assert code == 0 and json.loads(out_text)["rows"] == 30, "the result stays one JSON object"
    assert (tmp_path / "avqa.checks.html").is_file() and "the position baseline is right 1.000" in err
    assert "broken" not in err, "sounds that need not be there are not looked for"


def test_command_avqa_counts_dropped_questions(tmp_path, capsys):
    rows = [
        {"id": number, "video_name": f"abcdefghij{number}_000030", "question_text": text, "multi_choice": ["a", "b"]}
        | {"answer": 0, "question_relation": relation}
        for number, (text, relation) in enumerate([("In the video?", "Both"), ("Where?", "View"), ("Color?", "Both")])
    ]
    (tmp_path / "train_qa.json").write_text(json.dumps(rows))
    out = tmp_path / "avqa.jsonl"
    arguments = ["avqa", tmp_path / "train_qa.json", "--out", out, "--missing", "keep", "--json"]
    code, out_text, _ = run_build(capsys, *arguments, "--drop", "visual", "--drop", "colour")
    assert code == 0 and json.loads(out_text)["dropped"] == {"visual": 1, "colour": 1}
    assert [row.question for row in manifest.read(out, check_files=False)] == ["In the audio?"]
    code, out_text, _ = run_build(capsys, *arguments)
    assert code == 0 and json.loads(out_text)["rows"] == 3


def test_commands_reject_unknown_sources(tmp_path, capsys):
    code, _, err = run_build(capsys, "source", "nothing", tmp_path, "--out", tmp_path / "o.jsonl")
    assert code == 2 and "source 'nothing' is none of" in err
    code, _, err = run_build(capsys, "reasonaqa", "clotho.csv", "--out", tmp_path / "o.jsonl")
    assert code == 2 and "is not SOURCE=PATH" in err
