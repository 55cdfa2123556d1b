"""Questions and videos of benchmarks are found in training data by hashes of their texts."""

import json

from earwise import cli
from earwise.data import manifest
from earwise.data.manifest_path import STARTER
from earwise.datasets.checks import contamination
from earwise.datasets.checks.check_examples import check_examples
from earwise.types import Audio, Example, Text, Turn


def make_example(number, answer="a", choices=("a", "b", "c", "d"), *, question="What?", audio=None, **fields):
    turns = (Turn("user", (Audio(audio or f"{number}.wav"), Text(question))),)
    fields = {"licence": "CC0", "group": f"g{number}"} | fields
    return Example(f"q{number}", turns, (answer,), tuple(choices), **fields)


def test_questions_and_videos_of_a_benchmark_are_found_without_its_audio(tmp_path, capsys):
    """With the question file of the benchmark, or with a file of hashes, from which the questions cannot be read."""
    question = "Based on the given audio, identify the source of the speaking voice."
    mmau = [
        {"id": "3fe6", "audio_id": "./audios/3fe6.wav", "question": question, "choices": ["Man", "Woman", "A robot"]}
    ]
    mmar = {
        "id": "m1",
        "audio_path": "./audio/qx8hrhBZJ98_00-01-32_00-02-02.wav",
        "question": "Where?",
        "choices": ["a"],
    }
    (tmp_path / "mmau.json").write_text(json.dumps(mmau))
    (tmp_path / "mmar.jsonl").write_text(json.dumps(mmar) + "\n")
    benchmark = contamination.merge(contamination.read(tmp_path / name) for name in ("mmau.json", "mmar.jsonl"))
    assert len(benchmark) == 2
    rows = [
        make_example(
            1,
            "woman",
            ("a robot", "woman", "man"),
            question="based on the given audio: identify the source of the speaking voice",
        ),
        make_example(2, "woman", ("a robot", "woman", "child"), question=question),
        make_example(3, group="youtube:qx8hrhBZJ98"),
        make_example(4, question="Where?", choices=("a", "b")),
    ]
    report = check_examples(rows, read_audio=False, benchmark_hashes=benchmark)
    assert report["benchmark"] == [
        "q1 has the question and options of mmau.json 3fe6",
        "q3 is about the video of mmar.jsonl m1",
    ]
    assert report["problems"][0].endswith("; leave it out of training data")
    manifest.write(tmp_path / "train.jsonl", rows)
    contamination.write(tmp_path / "hashes.jsonl", benchmark)
    assert "speaking" not in (tmp_path / "hashes.jsonl").read_text()
    check = ["build", "check", str(tmp_path / "train.jsonl"), "--no-listen", "--json", "--against"]
    for name in ("hashes.jsonl", "mmau.json"):
        assert cli.run([*check, str(tmp_path / name)]) == 0
        assert json.loads(capsys.readouterr().out)["benchmark"][0] == report["benchmark"][0]
    assert cli.run([*check, str(tmp_path / "train.jsonl"), "--asked", str(tmp_path / "own_hashes.jsonl")]) == 0
    assert contamination.read(tmp_path / "own_hashes.jsonl").questions.keys() >= benchmark.questions.keys()
    (tmp_path / "mmau.json").write_text('[{"id": 1}]')
    assert cli.run([*check, str(tmp_path / "mmau.json")]) == 2 and "question is None" in capsys.readouterr().err


def test_manifests_of_yes_no_questions_are_read():
    """Their rows have a field `asked`, which in a file of hashes marks the kind of a hash."""
    examples = manifest.read(STARTER / "val.jsonl")
    assert any("asked" in example.meta for example in examples)
    hashes = contamination.read(STARTER / "val.jsonl")
    assert set(hashes.questions) == {
        value for row in examples if (value := contamination.question_hash(row.question, row.choices))
    }


def test_a_benchmark_video_is_found_as_the_second_clip_of_a_pair(tmp_path):
    (tmp_path / "mmar.json").write_text(
        json.dumps([{"id": "m1", "audio_path": "qx8hrhBZJ98_00-01-32_00-02-02.wav", "question": "Where?"}])
    )
    benchmark = contamination.read(tmp_path / "mmar.json")
    pair = make_example(
        1, group="youtube:AAAAAAAAAAA", meta={"clip_groups": ["youtube:AAAAAAAAAAA", "youtube:qx8hrhBZJ98"]}
    )
    report = check_examples([pair], read_audio=False, benchmark_hashes=benchmark)
    assert report["benchmark"] == ["q1 is about the video of mmar.json m1"]
    manifest.write(tmp_path / "pair.jsonl", [pair])
    assert set(contamination.read(tmp_path / "pair.jsonl").videos.values()) == {"pair.jsonl q1"}
