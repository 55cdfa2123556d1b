"""Questions about two clips: answers follow from labels and measurements, and are balanced."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from earwise.datasets.checks.check_examples import check_examples
from earwise.datasets.labels import acoustics, collection, layouts, pair_questions
from earwise.datasets.labels.pair_questions import PairQuestionOptions
from earwise.errors import ConfigError, DataError

ROOT = Path("collection")
PLAIN = acoustics.ClipAcoustics(2.0, 1.9, -20.0, 0.5, 200.0, 100.0, 2.0, 1)


def voices(count=96):
    rows = []
    for number in range(count):
        speaker = number % 8
        rows.append(
            {
                "path": f"{number:03}.ogg", "labels": ["speech"], "category": "speech", "group": f"speaker{speaker}",
                "split": "val" if speaker < 2 else "train", "speaker": f"s{speaker}", "text": f"text {number % 5}",
                "emotion": ("angry", "happy", "sad")[number // 8 % 3], "language": ("en", "de")[number // 24 % 2],
                "source": ("A", "B")[number // 48], "licence": "CC0",
            }
        )  # fmt: skip
    return rows


def build(rows, measurements=None, excluded=None, **settings):
    return pair_questions.build_pair_questions(
        rows, ROOT, measurements or {}, PairQuestionOptions(**settings), excluded
    )


def rows_of(example, rows):
    rows_by_path = {row["path"]: row for row in rows}
    return [rows_by_path[path.name] for path in example.audio_paths]


def test_same_or_not_follows_from_the_labels():
    rows = voices()
    examples = build(rows, tasks=("same",))
    assert Counter(example.meta["field"] for example in examples).keys() == {"speaker", "language", "emotion"}
    for example in examples:
        first, second = rows_of(example, rows)
        field = example.meta["field"]
        assert (first[field] == second[field]) == (example.answer == ("yes",))
        assert first["path"] != second["path"] and first["split"] == second["split"] == example.split
        assert first["source"] == second["source"] and sorted(example.choices) == ["no", "yes"]
        assert example.meta["clip_groups"] == sorted({first["group"], second["group"]})


def test_clips_without_a_partner_are_counted():
    rows = voices(24)
    excluded = Counter()
    lonely = [row | {"path": "lonely.ogg", "source": "elsewhere"} for row in rows[23:24]]
    build(rows + lonely, tasks=("same",), fields=("speaker",), excluded=excluded)
    assert excluded == {"clips for same questions about speaker in train: no suitable partner of their source": 1}
    excluded = Counter()
    equal = {row["path"]: PLAIN for row in rows}
    assert build(rows, equal, tasks=("compare",), fields=("loudness",), excluded=excluded) == []
    assert excluded.total() == 24 and all("beyond doubt" in reason for reason in excluded)


def test_yes_and_no_are_equally_frequent():
    for field in ("speaker", "emotion"):
        examples = build(voices(), tasks=("same",), fields=(field,))
        answers = Counter(example.answer[0] for example in examples)
        assert abs(answers["yes"] - answers["no"]) <= 0 and answers.total() > 60
        assert check_examples(examples, read_audio=False)["bias"]["blind"]["low"] <= 0.5


def test_everything_follows_from_rows_and_seed():
    rows = voices()
    assert build(rows) == build(random.Random(0).sample(rows, len(rows))) != build(rows, seed=1)
    assert len({example.id for example in build(rows)}) == len(build(rows))


def measured(rows):
    rng = random.Random(0)
    return {
        row["path"]: replace(PLAIN, loudness_lufs=rng.uniform(-40, -10), pitch_hz=rng.uniform(80, 400)) for row in rows
    }


def test_comparisons_are_beyond_doubt_and_balanced():
    rows = voices()
    measurements = measured(rows)
    examples = build(rows, measurements, tasks=("compare",))
    assert {example.meta["field"] for example in examples} == {"loudness", "pitch"}  # all last as long, none is music
    for example in examples:
        first, second = (measurements[row["path"]] for row in rows_of(example, rows))
        difference = acoustics.compare(example.meta["field"], first, second)
        assert difference != 0
        is_less = any(word in example.question for word in ("quieter", "lower"))
        assert example.answer == (("the first" if (difference > 0) != is_less else "the second"),)
        assert len(example.meta["measured"]) == 2
    for field in ("loudness", "pitch"):
        questions = [example for example in examples if example.meta["field"] == field and example.split == "train"]
        answers = Counter(example.answer[0] for example in questions)
        places = Counter(example.choices.index(example.answer[0]) for example in questions)
        assert abs(answers["the first"] - answers["the second"]) <= 2 and abs(places[0] - places[1]) <= 4
    report = check_examples(examples, read_audio=False)
    assert not [line for line in report["problems"] if "bias" in line]


def test_no_question_below_the_margin():
    rows = voices()
    assert build(rows, {row["path"]: PLAIN for row in rows}, tasks=("compare",)) == []
    assert build(rows, {}, tasks=("compare",)) == []


def test_limit_and_bad_names():
    rows = voices()
    examples = build(rows, measured(rows), limit=6)
    counts = Counter((example.task, example.meta["field"], example.split) for example in examples)
    assert max(counts.values()) <= 6 and len(counts) >= 8
    with pytest.raises(ConfigError, match="riddles"):
        build(rows, tasks=("riddles",))
    with pytest.raises(ConfigError, match="colour"):
        build(rows, fields=("colour",))


def lay(folder, *files, **lists):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name, text in lists.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_esc50(tmp_path):
    text = (
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-100032-A-0.wav,1,0,dog,True,100032,A\n5-9032-A-0.wav,5,0,dog,True,9032,A\n"
    )
    lay(tmp_path, **{"meta__esc50.csv": text})
    rows, root = collection.load(tmp_path)
    assert root == tmp_path and [row["path"] for row in rows] == ["audio/1-100032-A-0.wav", "audio/5-9032-A-0.wav"]
    assert [(row["labels"], row["group"], row["split"]) for row in rows] == [
        (["dog"], "freesound:100032", "train"),
        (["dog"], "freesound:9032", "val"),
    ]
    (tmp_path / "meta" / "esc50.csv").write_text("filename,fold\n1-1-A-0.wav,1\n")
    with pytest.raises(DataError, match="column 'category' is missing"):
        collection.load(tmp_path)


def test_urbansound8k(tmp_path):
    text = (
        "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
        "100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark\n99812-1-2-0.wav,99812,59.5,63.5,2,10,1,car_horn\n"
    )
    lay(tmp_path, **{"metadata__UrbanSound8K.csv": text})
    first, second = collection.load(tmp_path)[0]
    assert (first["path"], first["split"], second["split"]) == ("audio/fold10/99812-1-2-0.wav", "val", "train")
    assert first["labels"] == ["car_horn"] and first["in_background"] and second["group"] == "freesound:100032"


def test_fsd50k(tmp_path):
    dev = 'fname,labels,mids,split\n64760,"Electric_guitar,Guitar,Music","/m/a,/m/b,/m/c",train\n16399,Bark,/m/d,val\n'
    info = '{"64760": {"license": "http://creativecommons.org/licenses/by/3.0/", "uploader": "someone"}}'
    lay(
        tmp_path,
        **{
            "FSD50K.ground_truth__dev.csv": dev,
            "FSD50K.ground_truth__eval.csv": 'fname,labels,mids\n37199,"Walk_and_footsteps,Human_sounds","/m/e,/m/f"\n',
            "FSD50K.metadata__dev_clips_info_FSD50K.json": info,
        },
    )
    rows = {Path(row["path"]).stem: row for row in collection.load(tmp_path)[0]}
    assert rows["64760"]["labels"] == ["electric_guitar", "guitar", "music"] and rows["64760"]["category"] == "music"
    assert rows["64760"]["uploader"] == "someone" and "by/3.0" in rows["64760"]["licence"]
    assert [rows[name]["split"] for name in ("64760", "16399", "37199")] == ["train", "val", "test"]
    assert rows["37199"]["path"] == "FSD50K.eval_audio/37199.wav" and rows["37199"]["labels"][0] == "walk and footsteps"


def test_vocalsound_and_ravdess(tmp_path):
    voice, speech = tmp_path / "v", tmp_path / "r"
    lay(
        voice, "audio_16k/f0003_0_cough.wav", "audio_16k/m0011_0_throatclearing.wav",
        **{"datafiles__te.json": '{"data": [{"wav": "/somewhere/f0003_0_cough.wav", "labels": "/m/01b_21"}]}'},
    )  # fmt: skip
    first, second = collection.load(voice)[0]
    assert (first["labels"], first["split"], first["group"]) == (["cough"], "test", "vocalsound:f0003")
    assert second["labels"] == ["throat_clearing"] and second["split"] in ("train", "val")
    lay(speech, "Actor_12/03-01-06-01-02-01-12.wav", "Actor_01/03-02-03-02-01-02-01.wav")
    (row,) = collection.load(speech)[0]
    assert (row["emotion"], row["gender"], row["speaker"]) == ("fearful", "female", "ravdess_12")
    assert row["text"] == "Dogs are sitting by the door." and row["intensity"] == "normal"
    assert layouts.read_published(tmp_path / "nothing") is None
