"""The forms in which people have the benchmarks: Parquet of several publishers, folders and tables of speech sets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from earwise.errors import DataError
from earwise.evaluation.tasks import (
    airbench_chat,
    captions,
    clothoaqa,
    mmau,
    mmau_pro,
    muchomusic,
    sound_labels,
    transcription,
    translation,
    voicebench,
)
from earwise.evaluation.tasks.muchomusic import WORKED_EXAMPLE
from earwise.types import Example
from scripted_engine import write_clip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARWISE_HOME", str(tmp_path / "home"))


@pytest.fixture
def clip(tmp_path: Path) -> dict[str, Any]:
    """A clip as the `Audio` feature of `datasets` stores it."""
    path = write_clip(tmp_path / "stored.wav", "low tone", 1)
    return {"bytes": path.read_bytes(), "path": "stored.wav"}


def parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


LMMS = {
    "question_id": ["u1"], "question": ["Which?"], "choices": ['["Rain", "Wind"]'], "answer": ["Wind"],
    "dataset": ["made"], "task": ["sound"], "category": ["Reasoning"], "sub-category": ["Events"],
    "difficulty": ["easy"],
}  # fmt: skip
TWINKSTART = {
    "id": ["u1"], "question": ["Which?"], "choices": [["Rain", "Wind"]], "answer": ["Wind"], "task": ["sound"],
    "difficulty": ["easy"], "category": ["Reasoning"],
}  # fmt: skip
GAMMA_LAB = {
    "instruction": ["Which?"], "choices": [["Rain", "Wind"]], "answer": ["Wind"],
    "other_attributes": [{"id": "u1", "task": "sound", "category": "Reasoning", "difficulty": "easy"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "audio"),
    [(LMMS, "audio"), (TWINKSTART, "audio"), (GAMMA_LAB, "context")],
    ids=["lmms-lab", "TwinkStart", "gamma-lab"],
)
def test_mmau_in_three_forms_of_parquet(
    tmp_path: Path, clip: dict[str, Any], columns: dict[str, list[Any]], audio: str
) -> None:
    (example,) = mmau.load(parquet(tmp_path / "test_mini.parquet", columns | {audio: [clip]}))
    assert (example.id, example.question, example.choices) == ("u1", "Which?", ("Rain", "Wind"))
    assert (example.answer, example.task, example.difficulty) == (("Wind",), "sound", "easy")
    assert example.audio_paths[0].read_bytes() == clip["bytes"]


def test_hidden_answers_in_parquet(tmp_path: Path, clip: dict[str, Any]) -> None:
    columns = {name: values for name, values in LMMS.items() if name != "answer"} | {"audio": [clip]}
    assert mmau.load(parquet(tmp_path / "test.parquet", columns))[0].answer == ()
    masked = columns | {"answer": [None]}
    assert mmau.load(parquet(tmp_path / "masked.parquet", masked))[0].answer == ()


def test_mmau_pro_as_parquet(tmp_path: Path) -> None:
    for name in "ab":
        write_clip(tmp_path / f"audio/{name}.wav", "low tone", 1)
    columns = {
        "id": ["p1", "p2"], "audio_path": [["data/a.wav", "data/b.wav"], ["data/a.wav"]],
        "question": ["Which?", "With a title."], "choices": [["One", "Two"], None], "answer": ["Two", ""],
        "category": ["multi", "instruction following"], "task_identifier": [None, "Title"],
        "kwargs": [None, {"N": None, "keyword": None}],
    }  # fmt: skip
    first, second = mmau_pro.load(parquet(tmp_path / "test.parquet", columns), tmp_path / "audio")
    assert [path.name for path in first.audio_paths] == ["a.wav", "b.wav"] and first.choices == ("One", "Two")
    assert mmau_pro.prompt(first) == "Which?\n\nA. One\nB. Two"
    assert second.choices == () and mmau_pro.score(second, "<<Tones>>").values == {"score": 1.0}
    assert mmau_pro.score(second, "Tones").values == mmau_pro.score(second, "").values == {"score": 0.0}


def test_voicebench_as_parquet_of_a_subset_and_as_a_folder(tmp_path: Path, clip: dict[str, Any]) -> None:
    kwargs = [[{"num_words": 3, "relation": "at least", "keywords": None}]]
    columns = {
        "key": [1], "prompt": ["Speak."], "instruction_id_list": [["length_constraints:number_words"]],
        "kwargs": kwargs, "audio": [clip],
    }  # fmt: skip
    folder = tmp_path / "voicebench"
    path = parquet(folder / "ifeval/test-00000-of-00001.parquet", columns)
    (example,) = voicebench.load(path)
    assert example.question == "" and example.meta["prompt"] == "Speak."
    assert voicebench.score(example, "One two three.").values == {"score": 1.0}
    assert voicebench.score(example, "One two.").values == {"score": 0.0}
    region = {"prompt": ["Who?"], "reference": ["Goethe"], "audio": [clip]}
    for name in ("aus", "usa"):
        parquet(folder / f"sd-qa/{name}-00000-of-00001.parquet", region)
    examples = voicebench.load(folder)
    assert [example.task for example in examples] == ["ifeval", "sd-qa", "sd-qa"]
    assert len({example.id for example in examples}) == 3
    (tmp_path / "unnamed.jsonl").write_text('{"prompt": "x", "audio": "a.wav"}\n')
    with pytest.raises(DataError, match="says no subset; name the file"):
        voicebench.load(tmp_path / "unnamed.jsonl")
    (tmp_path / "mmsu.jsonl").write_text('{"prompt": "x", "audio": "a.wav"}\n')
    with pytest.raises(DataError, match="item 1 has no reference"):
        voicebench.load(tmp_path / "mmsu.jsonl")


def test_air_bench_chat_names_what_is_wrong(tmp_path: Path) -> None:
    row = {"question": "q", "answer_gt": "a", "meta_info": "m", "task_name": "poetry_QA", "dataset_name": "d"}
    (tmp_path / "Chat_meta.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match="task_name 'poetry_QA' is none of speech_QA"):
        airbench_chat.load(tmp_path / "Chat_meta.json")


@pytest.mark.parametrize(
    ("column", "name", "language"),
    [
        ("text", "librispeech/test_clean-0.parquet", "en"), ("sentence", "CommonVoice_15/yue.parquet", "yue"),
        ("sentence", "CommonVoice_15/zh-CN.parquet", "zh"), ("raw_transcription", "cmn_hans_cn/test.parquet", "zh"),
        ("text", "AISHELL-1/test.parquet", "zh"), ("sentence", "CommonVoice_15/fr.parquet", "fr"),
    ],
    ids=["librispeech", "cv-yue", "cv-zh", "fleurs", "aishell", "cv-fr"],
)  # fmt: skip
def test_transcripts_in_tables(tmp_path: Path, clip: dict[str, Any], column: str, name: str, language: str) -> None:
    path = parquet(tmp_path / name, {"audio": [clip, clip], column: ["one", "two"]})
    first, second = transcription.load(path)
    assert (first.answer, second.answer) == (("one",), ("two",)) and first.language == language
    assert first.question == transcription.QUESTION and first.id != second.id
    with pytest.raises(DataError, match="no column holds audio and a text"):
        transcription.load(parquet(tmp_path / "other.parquet", {"audio": [clip], "words": ["x"]}))


def common_voice(folder: Path) -> Path:
    write_clip(folder / "fr/clips/a.wav", "low tone", 1)
    path = folder / "fr/test.tsv"
    path.write_text("client_id\tpath\tsentence\tlocale\nc1\ta.mp3\tbonjour\tfr\n", encoding="utf-8")
    return path


def fleurs(folder: Path) -> Path:
    write_clip(folder / "fr_fr/audio/test/1.wav", "low tone", 1)
    path = folder / "fr_fr/test.tsv"
    path.write_text("7\t1.wav\tBonjour !\tbonjour\tb o n\t4000\tFEMALE\n", encoding="utf-8")
    return path


def aishell(folder: Path) -> Path:
    for part in ("train", "test"):
        write_clip(folder / f"data_aishell/wav/{part}/S1/{part}1.wav", "low tone", 1)
    transcripts = folder / "data_aishell/transcript/aishell_transcript_v0.8.txt"
    transcripts.parent.mkdir()
    transcripts.write_text("train1 不 是\ntest1 今天 天气\nlost 没有\n", encoding="utf-8")
    return folder / "data_aishell"


def common_voice_en(folder: Path) -> Path:
    """Common Voice 15's own heading."""
    write_clip(folder / "cv-corpus-15.0/en/clips/common_voice_en_1.mp3", "low tone", 1)
    path = folder / "cv-corpus-15.0/en/test.tsv"
    heading = ["client_id", "path", "sentence", "up_votes", "down_votes", "age", "gender", "accents", "variant"]
    heading += ["locale", "segment"]
    row = ["c1", "common_voice_en_1.mp3", "He sat down.", "2", "0", "", "", "", "", "en", ""]
    path.write_text("\t".join(heading) + "\n" + "\t".join(row) + "\n", encoding="utf-8")
    return path


def test_aishell_2_in_its_own_folders(tmp_path: Path) -> None:
    """A folder a device, the same ids in all of them, dev beside test."""
    root = tmp_path / "AISHELL-DEV-TEST-SET"
    for device in ("iOS", "Android", "Mic"):
        for part in ("dev", "test"):
            write_clip(root / device / part / f"wav/D1/{part}1.wav", "low tone", 1)
            (root / device / part / "trans.txt").write_text(f"{part}1\t今天 天气\n", encoding="utf-8")
    examples = transcription.load(root)
    assert [example.category for example in examples] == ["Android", "Mic", "iOS"]
    assert len({example.id for example in examples}) == 3 and {example.answer for example in examples} == {
        ("今天天气",)
    }
    for example in examples:
        assert f"/{example.category}/test/" in str(example.audio_paths[0])
    (one,) = transcription.load(root / "iOS" / "test")
    assert one.category == "iOS" and one.language == "zh"


def librispeech(folder: Path) -> Path:
    chapter = folder / "test-clean/1/2"
    write_clip(chapter / "1-2-0000.wav", "low tone", 1)
    (chapter / "1-2-0000.wav").rename(chapter / "1-2-0000.flac")
    (chapter / "1-2.trans.txt").write_text("1-2-0000 HELLO THERE\n")
    return folder / "test-clean"


@pytest.mark.parametrize(
    ("make", "answer", "language"),
    [
        (common_voice, "bonjour", "fr"), (fleurs, "Bonjour !", "fr"), (aishell, "今天天气", "zh"),
        (librispeech, "hello there", "en"), (common_voice_en, "He sat down.", "en"),
    ],
    ids=["common-voice", "fleurs", "aishell", "librispeech", "common-voice-en"],
)  # fmt: skip
def test_speech_sets_in_their_own_form(
    tmp_path: Path, make: Callable[[Path], Path], answer: str, language: str
) -> None:
    (example,) = transcription.load(make(tmp_path))
    assert (example.answer, example.language) == ((answer,), language) and example.audio_paths[0].is_file()
    assert transcription.score(example, answer).values["wer"] == 0


@pytest.mark.parametrize("target", ["de", "zh-CN"])
def test_translations_in_a_table_and_in_the_tsv_of_covost(tmp_path: Path, clip: dict[str, Any], target: str) -> None:
    code = target.partition("-")[0]
    (example,) = translation.load(parquet(tmp_path / f"en_{code}/test.parquet", {"audio": [clip], "text": ["so"]}))
    assert (example.answer, example.language, example.source) == (("so",), code, f"en_{code}")
    write_clip(tmp_path / "clips/a.wav", "low tone", 1)
    path = tmp_path / f"covost_v2.en_{target}.test.tsv"
    path.write_text("path\tsentence\ttranslation\tclient_id\na.mp3\tyes\tja\tc\n", encoding="utf-8")
    (other,) = translation.load(path)
    assert (other.answer, other.language) == (("ja",), code) and other.question == example.question
    assert f"into {translation.NAMES[code]} and only output" in other.question
    with pytest.raises(DataError, match="says no direction"):
        translation.load(parquet(tmp_path / "covost/test.parquet", {"audio": [clip], "text": ["so"]}))


def test_labels_in_tables(tmp_path: Path, clip: dict[str, Any]) -> None:
    columns = {"audio": [clip, clip], "label": ["Cough", "Sigh"]}
    first, _ = sound_labels.load(parquet(tmp_path / "vocalsound/test.parquet", columns))
    assert first.choices == ("Cough", "Sigh") and sound_labels.score(first, "Cough").values["official"] == 1
    (emotion,) = sound_labels.load(parquet(tmp_path / "MELD/test.parquet", {"audio": [clip], "Emotion": ["joy"]}))
    assert len(emotion.choices) == 7 and "one of [surprise" in emotion.question


def test_captions_of_one_clip_are_its_references(tmp_path: Path, clip: dict[str, Any]) -> None:
    columns = {"audio": [clip, clip], "caption": ["A dog barks.", "Barking."]}
    (example,) = captions.load(parquet(tmp_path / "audiocaps/test.parquet", columns))
    assert example.answer == ("A dog barks.", "Barking.") and example.question == captions.QUESTION


def test_votes_on_a_question_in_a_table(tmp_path: Path, clip: dict[str, Any]) -> None:
    questions = ["Is it loud?"] * 3 + ["What barks?"]
    columns = {"audio": [clip] * 4, "question": questions, "answer": ["yes", "no", "Yes", "dog"]}
    first, second = clothoaqa.load(parquet(tmp_path / "clothoaqa/test.parquet", columns))
    assert (first.answer, first.choices, second.answer, second.choices) == (("yes",), ("yes", "no"), ("dog",), ())
    assert clothoaqa.score(first, "yes").values["row"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("dataset", "identifier", "clip_name"),
    [
        ("sdd", "1234170.json", "sdd/audio/70/1234170.2min.mp3"),
        ("musiccaps", "abc_-1_3.json", "musiccaps/audio/[abc_-1]-[30-40].wav"),
        ("sdd", "5", "sdd/5.wav"),
    ],
    ids=["song-describer", "musiccaps", "plain"],
)
def test_muchomusic_finds_clips_and_asks_the_default_prompt(
    tmp_path: Path, dataset: str, identifier: str, clip_name: str
) -> None:
    clip = write_clip(tmp_path / "clip.wav", "low tone", 1)
    (tmp_path / clip_name).parent.mkdir(parents=True)
    clip.rename(tmp_path / clip_name)
    assert muchomusic.find_clip(dataset, identifier, tmp_path) == tmp_path / clip_name
    example = Example("x", (), choices=("A drum", "A flute"))
    text = muchomusic.prompt_with_example(example)
    assert text == f"{WORKED_EXAMPLE}\n Question: \n Options: (A) A drum (B) A flute \n The correct answer is: "


def test_a_letter_beyond_the_options_is_wrong() -> None:
    example = Example("x", (), answer=("A drum",), choices=("A drum", "A flute", "A horn"))
    assert muchomusic.score(example, "D").values["official"] == 0
    assert muchomusic.score(example, "A").values["official"] == 1
