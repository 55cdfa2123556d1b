"""Public data sets are converted to Examples: a few rows of each in its published format; damaged rows are listed."""

import json
from pathlib import Path

import pytest

from earwise.data import manifest, sources
from earwise.data.readers import json_list
from earwise.data.sources import clothoaqa, example_builder, row_readers
from earwise.errors import ConfigError, DataError
from earwise.prompts import hierarchical_tags


def read(source, path, split=None, audio_root=None):
    """Examples and the lines about skipped rows; every example must be writable to a manifest and readable again."""
    lines = []
    examples = list(sources.load(source, path, lines.append, split=split, audio_root=audio_root))
    for example in examples:
        assert manifest.from_row(json.loads(json.dumps(manifest.to_row(example))), root=example.root) == example
        assert example.source and example.licence and example.turns[-1].role == "user"
    assert len({example.id for example in examples}) == len(examples)
    return examples, lines


def write_file(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def clip_paths(example):
    """Audio paths relative to the audio folder."""
    return [path.relative_to(example.root).as_posix() for path in example.audio_paths]


def test_every_source_in_the_table_can_be_imported():
    for name in sources.SOURCES:
        assert callable(sources.loader(name)), name
    with pytest.raises(ConfigError, match="source 'musicbnch' is none of"):
        sources.loader("musicbnch")


def test_audiocaps_joins_the_captions_of_a_clip(tmp_path):
    path = write_file(
        tmp_path,
        "test.csv",
        "audiocap_id,youtube_id,start_time,caption\n"
        '1,7fmOlUlwoNg,20,"Rattling, and sharp vibrations"\n2,6BJ455B1aAs,0,A rocket flies by\n'
        "3,7fmOlUlwoNg,20,A machine rattles\n4,GOD8Bt5LfDE,100,\n5,short\n",
    )
    write_file(tmp_path, "Y6BJ455B1aAs.wav", "")
    examples, lines = read("audiocaps", path)
    assert [example.answer for example in examples] == [
        ("Rattling, and sharp vibrations", "A machine rattles"),
        ("A rocket flies by",),
    ]
    assert clip_paths(examples[0]) == [
        "AudioCapsLarger/test/Y7fmOlUlwoNg.wav"
    ]  # does not exist: ReasonAQA's name is used
    assert clip_paths(examples[1]) == ["Y6BJ455B1aAs.wav"]
    assert {example.split for example in examples} == {"test"} and examples[0].group == "youtube:7fmOlUlwoNg"
    assert lines == [
        f"{path}:row 5: caption is '' where a text is expected",
        f"{path}:row 6: 2 fields where the header has 4",
    ]


def test_clotho_finds_names_with_entities(tmp_path):
    header = "file_name," + ",".join(f"caption_{n}" for n in range(1, 6))
    path = write_file(
        tmp_path,
        "clotho_captions_validation.csv",
        f'{header}\nGrillons-d&#39;Italie.wav,a one,a two,a three,a four,"a, five"\nb.wav,b1,b2, ,b4,b5\n'
        "Grillons-d&#39;Italie.wav,a one,a two,a three,a four,five\n",
    )
    write_file(tmp_path, "validation/Grillons-d'Italie.wav", "")
    examples, lines = read("clotho", path)
    assert len(examples) == 1 and examples[0].split == "val"
    assert examples[0].answer == ("a one", "a two", "a three", "a four", "a, five")
    assert clip_paths(examples[0]) == ["validation/Grillons-d'Italie.wav"]
    assert [line.partition(": ")[2] for line in lines] == [
        "caption_3 is ' ' where a text is expected",
        "file_name 'Grillons-d&#39;Italie.wav' is already in row 2",
    ]


CLOTHOAQA = """file_name,QuestionText,answer,confidence
a.wav,Is it raining?,yes,yes
a.wav,Is it raining?,Yes,maybe
a.wav,Is it raining?,no,no
a.wav,Is it loud?,no,yes
a.wav,Is it loud?,no,yes
a.wav,Is it loud?,no,yes
a.wav,What is falling?,rain,yes
a.wav,What is falling?,water,yes
a.wav,What is falling?,drops,yes
a.wav,Is it night?,yes,yes
a.wav,Is it night?,no,yes
"""


def test_clothoaqa_majority_marks_conflicts(tmp_path):
    path = write_file(tmp_path, "clotho_aqa_train.csv", CLOTHOAQA)
    examples, lines = read("clothoaqa", path)
    by_question = {
        example.question: (example.answer, example.choices, example.meta["conflict"]) for example in examples
    }
    assert by_question == {
        "Is it raining?": (("yes",), ("yes", "no"), True),
        "Is it loud?": (("no",), ("yes", "no"), False),
        "What is falling?": (("rain", "water", "drops"), (), True),
    }
    assert examples[0].meta["votes"] == {"yes": 2, "no": 1}
    assert len(lines) == 1 and "'Is it night?': answers yes, no: no majority" in lines[0]


def test_clothoaqa_all_and_unanimous_votes(tmp_path):
    path = write_file(tmp_path, "clotho_aqa_train.csv", CLOTHOAQA)
    all_votes = list(clothoaqa.load(path, tmp_path, "train", print, votes="all", one_word=False))
    assert [example.answer[0] for example in all_votes] == ["yes", "yes", "no", "no", "no", "no", "yes", "no"]
    assert len({example.id for example in all_votes}) == 8
    unanimous = list(clothoaqa.load(path, tmp_path, "train", print, votes="unanimous"))
    assert [example.question for example in unanimous] == ["Is it loud?"]


def test_clothoaqa_reads_bytes_that_are_not_utf8(tmp_path):
    path = write_file(tmp_path, "t.csv", b"file_name,QuestionText,answer\na.wav,Is it the dog\x92s bark?,yes\n")
    examples, lines = read("clothoaqa", path)
    assert examples[0].question == "Is it the dog’s bark?" and not lines


ENTAILMENT = "Prompt,Dataset,Audio file,Caption,Entailment,Neutral,Contradiction,Full response\n"


def test_entailment_of_both_sets(tmp_path):
    path = write_file(
        tmp_path,
        "clotho_entailment_evaluation.csv",
        ENTAILMENT + ",ClothoV2,a b.wav,\"['One.', 'Two.']\",It must.,It may.,It cannot.,\n"
        ",Audiocaps,Y7fmOlUlwoNg,Rattling,Noise.,A car.,A library.,\n,Other,x,c,e,n,k,\n",
    )
    examples, lines = read("entailment", path)
    assert [(example.meta["subset"], example.meta["relation"], example.answer[0]) for example in examples[:3]] == [
        ("CLE", "entailment", "it is definitely true"),
        ("CLE", "contradiction", "it is definitely false"),
        ("CLE", "neutral", "it is plausible"),
    ]
    assert "It cannot" in examples[1].question and len(examples) == 6
    assert clip_paths(examples[3]) == ["AudioCapsLarger/test/Y7fmOlUlwoNg.wav"] and examples[3].meta["subset"] == "ACE"
    assert len(lines) == 1 and lines[0].startswith(f"{path}:row 4: Dataset 'other'")


def test_adiff_has_two_clips_and_a_tier(tmp_path):
    path = write_file(
        tmp_path,
        "acd_val_adiff_sentence_answer.csv",
        "taskname,filepath1,filepath2,caption1,caption2,input,answer\n"
        "audiocaps,AudioCapsLarger/val/Ya.wav,AudioCapsLarger/val/Yb.wav,Ducks,Goats,"
        "explain the difference in a sentence,They differ.\n"
        "audiocaps,AudioCapsLarger/val/Ya.wav,,Ducks,Goats,explain the difference in a sentence,They differ.\n",
    )
    examples, lines = read("adiff", path)
    assert clip_paths(examples[0]) == ["AudioCapsLarger/val/Ya.wav", "AudioCapsLarger/val/Yb.wav"]
    assert examples[0].meta["tier"] == 2 and examples[0].meta["subset"] == "ACD" and examples[0].split == "val"
    assert lines == [f"{path}:row 3: filepath2 is '' where a text is expected"]


def avqa_row(**fields):
    row = {"id": 183, "video_name": "-HG3Omg_89c_000030", "video_id": 341, "question_text": "What is in the video?"}
    row |= {"multi_choice": ["motorboat", "yacht", "sail", "car"], "answer": 1}
    return row | {"question_relation": "View", "question_type": "Happening"} | fields


def test_avqa_in_the_formats_of_its_authors_and_of_r1_aqa(tmp_path):
    rows = [
        avqa_row(),
        avqa_row(id=1, multi_choice=["dog", "dog", "cat", ""], answer=2),
        avqa_row(id=2, answer=4),
        avqa_row(id=3, answer=True),
        avqa_row(id=4, multi_choice="dog"),
    ]
    path = write_file(tmp_path, "train_qa.json", json.dumps(rows, indent=1))
    write_file(tmp_path, "-HG3Omg_89c_30.wav", "")
    examples, lines = read("avqa", path)
    assert examples[0].question == "What is in the audio?" and examples[0].answer == ("yacht",)
    assert examples[0].choices == ("motorboat", "yacht", "sail", "car")
    assert clip_paths(examples[0]) == ["-HG3Omg_89c_30.wav"] and examples[0].group == "youtube:-HG3Omg_89c"
    assert examples[1].choices == ("dog", "cat") and examples[1].answer == ("cat",)
    assert examples[1].meta["dropped"] == 2
    assert [line.split(": ")[1][:15] for line in lines] == ["answer is 4, no", "answer is True,", "multi_choice is"]
    json_lines = write_file(
        tmp_path, "avqa.jsonl", json.dumps(avqa_row(audio_path="wavs/x.wav", video_name="none_000001")) + "\n"
    )
    assert clip_paths(read("avqa", json_lines)[0][0]) == ["wavs/x.wav"]


def test_musicbench_asks_for_key_tempo_and_metre(tmp_path):
    row = {"location": "data/-0SdAVK79lg.wav", "main_caption": "Calm piano.", "alt_caption": "Piano, slow."}
    complete = row | {"bpm": 71.6, "key": ["C#", "minor"], "keyprob": [0.8]}
    complete |= {"beats": [[0.5, 1.2, 1.9, 2.7], [1.0, 2.0, 3.0, 1.0]], "chords": ["C#m"], "chords_time": [0.4]}
    again = row | {"location": "data_aug2/-0SdAVK79lg_1.wav", "bpm": 5}
    unsure = row | {"location": "data/other.wav", "key": ["C", "major"], "keyprob": [0.1]}
    path = write_file(
        tmp_path, "MusicBench_train.json", "\n".join(map(json.dumps, [complete, again, unsure, complete])) + "\n{bad\n"
    )
    examples, lines = read("musicbench", path)
    fields = [(example.meta.get("field"), example.answer) for example in examples]
    assert fields == [
        (None, ("Calm piano.", "Piano, slow.")),
        ("key", ("C# minor",)),
        ("tempo", ("72 BPM",)),
        ("metre", ("3",)),
        (None, ("Calm piano.", "Piano, slow.")),
    ]
    assert examples[0].group == "youtube:-0SdAVK79lg" and examples[0].category == "music"
    assert [line.split(": ", 1)[1][:20] for line in lines] == [
        "bpm is 5.0, outside ",
        "location 'data/-0SdA",
        "not JSON (Expecting ",
    ]


def test_meld_reads_windows_quotes(tmp_path):
    path = write_file(
        tmp_path,
        "dev_sent_emo.csv",
        b"Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
        b'1,"Oh my God, he\x92s lost it.",Phoebe,sadness,negative,0,1,4,7,"00:20:57,256","00:21:00,049"\n'
        b"2,What?,Monica,suprise,negative,0,2,4,7,a,b\n",
    )
    write_file(tmp_path, "dev_splits_complete/dia0_utt1.wav", "")
    examples, lines = read("meld", path)
    assert [(example.meta["field"], example.answer[0]) for example in examples] == [
        ("emotion", "sadness"),
        ("sentiment", "negative"),
        ("words", "Oh my God, he’s lost it."),
    ]
    assert examples[0].split == "val" and examples[0].group == "meld:val:0" and len(examples[0].choices) == 7
    assert clip_paths(examples[0]) == ["dev_splits_complete/dia0_utt1.wav"]
    assert len(lines) == 1 and "Emotion 'suprise'" in lines[0]


AUDIOSET = """# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=20383, num_segs=20383, num_unique_labels=527, num_positive_labels=52882
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"
--BfvyPmVMo, 20.000, 30.000, "/m/nothing"
--U7joUcTCo, zero, 10.000, "/m/068hy"
"""


def test_audioset_needs_its_table_of_classes(tmp_path):
    path = write_file(tmp_path, "eval_segments.csv", AUDIOSET)
    with pytest.raises(DataError, match=r"class_labels_indices\.csv: is missing"):
        read("audioset", path)
    write_file(tmp_path, "class_labels_indices.csv", "index,mid,display_name\n0,/m/068hy,Pets\n1,/m/07q6cd_,Squeak\n")
    examples, lines = read("audioset", path)
    assert len(examples) == 1 and examples[0].answer == ("Pets, Squeak",) and examples[0].split == "test"
    assert examples[0].meta["labels"] == ["Pets", "Squeak"] and examples[0].group == "youtube:--4gqARaEJE"
    assert [line.split(": ")[1][:26] for line in lines] == ["class '/m/nothing' is none", "start_seconds is 'zero' wh"]


def test_wavcaps_and_vocalsound_read_the_list_in_an_object(tmp_path):
    captions = {"num_captions_per_audio": 1, "data": [{"id": "7", "caption": "A bell."}, {"id": "8", "caption": ""}]}
    examples, lines = read("wavcaps", write_file(tmp_path, "FreeSound/fsd_final.json", json.dumps(captions)))
    assert examples[0].answer == ("A bell.",) and clip_paths(examples[0]) == ["FreeSound/7.flac"] and len(lines) == 1
    sounds = {"data": [{"wav": "/data/x/f0003_0_throatclearing.wav", "labels": "/m/0"}, {"wav": "a.wav", "labels": ""}]}
    examples, lines = read("vocalsound", write_file(tmp_path, "te.json", json.dumps(sounds, indent=1)))
    assert examples[0].answer == ("throat clearing",) and examples[0].split == "test" and len(lines) == 1
    assert examples[0].group == "vocalsound:f0003" and clip_paths(examples[0]) == [
        "audio_16k/f0003_0_throatclearing.wav"
    ]


def test_speech_data_sets(tmp_path):
    write_file(
        tmp_path,
        "LibriSpeech/dev-clean/84/121123/84-121123.trans.txt",
        "84-121123-0000 GO DO YOU HEAR\n84-121123-0001\n",
    )
    examples, lines = read("librispeech", tmp_path / "LibriSpeech")
    assert examples[0].answer == ("go do you hear",) and examples[0].split == "val" and len(lines) == 1
    assert clip_paths(examples[0]) == ["dev-clean/84/121123/84-121123-0000.flac"]
    assert examples[0].group == "librispeech:84"
    assert hierarchical_tags(examples[0]) == "<|startoftranscript|><|en|><|transcribe|><|en|>"

    header = "client_id\tpath\tsentence\tup_votes\tlocale\n"
    path = write_file(tmp_path, "ja/train.tsv", header + 'c1\ta.mp3\t"犬だ\t2\tja\nc1\tb.mp3\t\t2\tja\n')
    examples, lines = read("common-voice", path)
    assert examples[0].language == "ja" and clip_paths(examples[0]) == ["clips/a.mp3"] and len(lines) == 1
    assert hierarchical_tags(examples[0]) == "<|startoftranscript|><|ja|><|transcribe|><|ja|>"

    header = "path\tsentence\ttranslation\tclient_id\n"
    path = write_file(tmp_path, "covost_v2.de_en.dev.tsv", header + "a.mp3\tGuten Tag.\tGood day.\tc1\n")
    example = read("covost2", path)[0][0]
    assert example.answer == ("Good day.",) and "English" in example.question
    assert (example.language, example.split) == ("de", "val")
    assert hierarchical_tags(example).startswith("<|startoftranscript|><|de|><|translate|>")
    with pytest.raises(DataError, match="does not say which languages"):
        read("covost2", write_file(tmp_path, "train.tsv", header))


def test_a_file_of_another_data_set_is_an_error(tmp_path):
    path = write_file(tmp_path, "x.csv", "a,b\n1,2\n")
    with pytest.raises(DataError, match=r"x\.csv: column 'file_name' is missing, found a, b"):
        read("clotho", path)
    with pytest.raises(DataError, match="field 'id' is missing"):
        read("avqa", write_file(tmp_path, "x.json", '[{"a": 1}]'))
    with pytest.raises(DataError, match="no such file"):
        read("avqa", tmp_path / "none.json")


def test_a_json_list_is_read_past_damaged_items(tmp_path, monkeypatch):
    monkeypatch.setattr(row_readers, "CHUNK_CHARS", 16)
    monkeypatch.setattr(json_list, "CHUNK_CHARS", 16)  # items extend over several chunks
    monkeypatch.setattr(json_list, "MAX_ITEM_CHARS", 64)
    text = '[{"id": 1, "t": "a ] } , {"},\n {"id": 2, "t": "b" oops}, {"id": 3, "t": "ü"}, 7, {"id": 4, "t": "'
    path = write_file(tmp_path, "x.json", text.encode() + b'\xff"}, {"id": 5, "t": "e"}, {"id": 6')
    lines = []
    rows = list(row_readers.json_rows(path, ("id",), lines.append))
    assert [row["id"] for _, row in rows] == [1, 3, 5]
    assert rows[0][1]["t"] == "a ] } , {" and rows[1][0] == f"{path}:item 3"
    assert [line.removeprefix(f"{path}:") for line in lines] == [
        "item 2: not JSON (Expecting ',' delimiter)",
        "item 4: a JSON int where an object is expected",
        "item 5: is not UTF-8 text; save the file as UTF-8",
        "item 7: not JSON (Expecting ',' delimiter)",
    ]


def test_splits_are_derived_from_names():
    names = ["audiocaps_train.csv", "clotho_captions_development.csv", "dev_sent_emo.csv", "val_qa.json"]
    names += ["eval_segments.csv", "MusicBench_test_B.json", "unbalanced_train_segments.csv", "notes.csv"]
    splits = [example_builder.split_from_name(Path(name)) for name in names]
    assert splits == ["train", "train", "val", "val", "test", "test", "train", "train"]


def conversation(sound, *messages, roles=("human", "gpt")):
    turns = [{"from": roles[number % 2], "value": text} for number, text in enumerate(messages)]
    return {"id": "x", "sound": sound, "duration": 10.0, "conversations": turns}


def test_audioskills_conversations_become_examples(tmp_path):
    rows = [
        conversation(
            "Y6BJ455B1aAs.wav",
            "<sound>\nHow many dogs bark? Choose the correct option from the following options:\n(A) one\n"
            "(B) two (or so)",
            "(B) two (or so)",
        ),
        conversation("b.wav", "Is it raining?", "Yes."),
        conversation(
            ["a.wav", "b.wav"],
            "<sound-1> What is this?",
            "A bell.\nIt rings.",
            "And <sound-2> after <sound-1>?",
            "Rain.",
        ),
        conversation("a.wav", "<sound>\nWhich? (A) one (B) two", "(A) two"),
        conversation("a.wav", "<sound-2> what?", "no"),
        conversation("a.wav", "What?", "a", "What else?"),
        conversation("a.wav", "What?", "a", roles=("gpt", "human")),
        conversation("", "What?", "a"),
    ]
    path = write_file(tmp_path, "AudioSet.json", json.dumps(rows))
    write_file(tmp_path, "AudioSet/Y6BJ455B1aAs.wav", "")
    examples, lines = read("audioskills", path)
    assert [example.task for example in examples] == ["multiple_choice", "yes_no", "open", "open"]
    counting = examples[0]
    assert (counting.question, counting.choices, counting.answer) == (
        "How many dogs bark?", ("one", "two (or so)"), ("two (or so)",),
    )  # fmt: skip
    assert clip_paths(counting) == ["AudioSet/Y6BJ455B1aAs.wav"] and counting.group == "youtube:6BJ455B1aAs"
    assert examples[1].answer == ("yes",) and clip_paths(examples[1]) == ["b.wav"]
    last = examples[3]
    assert examples[2].answer == ("A bell.\nIt rings.",) and clip_paths(examples[2]) == ["a.wav"]
    assert [turn.role for turn in last.turns] == ["user", "assistant", "user"]
    assert clip_paths(last) == ["a.wav", "b.wav"] and last.question == "And\nafter sound 1?"
    assert [line.rpartition("item ")[2] for line in lines] == [
        "4: answer '(A) two' is not one of the options by letter and text",
        "5: <sound-2> where there are 1 sounds",
        "6: conversations is no list of alternating questions and answers",
        "7: turn 1 is not from human",
        "8: sound is '' where a file or a list of files is expected",
    ]


def test_audiomcq_keeps_chains_and_the_audio_contribution(tmp_path):
    row = {
        "source_dataset": "AudioCaps", "id": 7, "question_type": "temporal", "audio_path": "AudioCaps/Y6BJ455B1aAs.wav",
        "question": "What comes first?", "choices": ["a dog", "a car"], "answer": "a car",
        "audio-contribution": "strong", "gemini_cot": "<think>An engine, then barking.</think><answer>a car</answer>",
    }  # fmt: skip
    invalid = [row | {"answer": "a cat"}, row | {"choices": ["a car", "a car"]}, row | {"choices": "a car"}]
    music = row | {"question_type": "music", "gemini_cot": None, "source_dataset": "Clotho", "audio_path": "bell.wav"}
    path = write_file(tmp_path, "data.jsonl", "".join(json.dumps(item) + "\n" for item in [row, music, *invalid]))
    examples, lines = read("audiomcq", path)
    first, second = examples
    assert first.reasoning == "An engine, then barking." and first.meta["audio-contribution"] == "strong"
    assert (first.answer, first.choices, first.category, first.group) == (
        ("a car",), ("a dog", "a car"), "sound", "youtube:6BJ455B1aAs",
    )  # fmt: skip
    assert (second.reasoning, second.category, second.group) == (None, "music", "clotho:bell.wav")
    assert [line.rpartition("row ")[2][:1] for line in lines] == ["3", "4", "5"]


def test_paqa_chains_get_the_tags_of_the_style_structured(tmp_path):
    """Rows as HyPeR released them: options in the instruction, upper-case tags, the answer by its letter."""
    chain = "<THINK>\n<PLANNING>\nListen.\n</PLANNING>\n<CAPTION>\nTwo voices.\n</CAPTION>\n</THINK>\n"
    row = {
        "instruction": "<audio>What did the third person find? (a) a key (b) a map. (c) nothing (d) a book",
        "output": chain + "<RESPONSE>\nThere was nothing. The answer is C.\n</RESPONSE>\n```\n",
        "audios": ["/data/multiSpeaker/audio/multispeaker_choice_2.wav"], "id": 2,
    }  # fmt: skip
    final = row | {"output": chain + "<RESPONSE>The answer is C.</RESPONSE><FINAL_ANSWER>(b)</FINAL_ANSWER>", "id": 3}
    invalid = [row | {"instruction": "What?"}, row | {"output": chain}, row | {"audios": []}]
    path = write_file(tmp_path, "sft.jsonl", "".join(json.dumps(item) + "\n" for item in [row, final, *invalid]))
    write_file(tmp_path, "multispeaker_choice_2.wav", "")
    (first, second), lines = read("paqa", path)
    assert (first.question, first.choices, first.answer) == (
        "What did the third person find?", ("a key", "a map", "nothing", "a book"), ("nothing",),
    )  # fmt: skip
    assert first.reasoning == "<planning>\nListen.\n</planning>\n<caption>\nTwo voices.\n</caption>"
    assert clip_paths(first) == ["multispeaker_choice_2.wav"] and first.group == "paqa:multispeaker_choice_2"
    assert second.answer == ("a map",), "a corrected answer counts"
    assert [line.rpartition("row ")[2][:1] for line in lines] == ["3", "4", "5"]


def test_voice_assistant_turns_are_sound_alone(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    import published_files

    published_files.voice_assistant(tmp_path / "VA")
    examples, lines = read("voice-assistant", tmp_path / "VA" / "train-00000-of-00325.parquet", audio_root=tmp_path)
    assert not lines and len(examples) == 30 and {example.task for example in examples} == {"voice-chat"}
    first = examples[0]
    assert first.question == "" and first.answer == ("The number 0.",) and first.meta["question_text"] == "What is 0?"
    assert (
        clip_paths(first)[0].startswith("voice-assistant-clips/") and first.audio_paths[0].read_bytes()[:4] == b"RIFF"
    )
    folder, _ = read("voice-assistant", tmp_path / "VA")
    assert [example.answer for example in folder] == [example.answer for example in examples]


def test_voice_assistant_refuses_other_tables_and_skips_silent_rows(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist([{"text": "a"}]), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="column 'question_audio' is missing, found text"):
        read("voice-assistant", tmp_path / "other.parquet")
    rows = [
        {"question_audio": {"bytes": b"RIFF", "path": "a.wav"}, "answer": ""},
        {"question_audio": None, "answer": "b"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "bad.parquet")
    examples, lines = read("voice-assistant", tmp_path / "bad.parquet")
    assert not examples and "answer is ''" in lines[0] and "no sound" in lines[1]


def test_reasonaqa_names_the_data_set_of_its_clips(tmp_path):
    """Arms of the recipe `mellow` choose rows by it."""
    import published_files

    published_files.reasonaqa(tmp_path)
    examples, lines = read("reasonaqa", tmp_path / "ReasonAQA" / "train.json", audio_root=tmp_path / "audio")
    assert not lines
    assert [example.source for example in examples] == ["ReasonAQA (Clotho)"] * 4 + ["ReasonAQA (AudioCaps)"] * 3
