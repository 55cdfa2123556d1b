"""Small files in the published formats of the data sets that the papers' pages name, with a clip for every row.

Made by hand from the descriptions in `earwise.data.sources`; every clip is a tone of its own. One folder per download,
as the commands of `docs/papers` name them.
"""

import csv
import io
import json
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000


def write_downloads(root: Path) -> None:
    """All downloads under `root`."""
    avqa(root / "AVQA")
    audioset(root / "AudioSet")
    meld(root / "MELD")
    musicbench(root / "MusicBench")
    mmau(root / "MMAU")
    librispeech(root / "LibriSpeech")
    common_voice(root)
    captions(root)
    vocalsound(root / "VocalSound")
    questions(root)
    multilingual_alpaca(root / "Multilingual-Alpaca-Speech")
    voice_assistant(root / "VoiceAssistant-400K")
    reasonaqa(root)
    paqa(root / "PAQA")
    audiomcq(root / "AudioMCQ")
    for number in range(6):
        clip(root / "recordings" / f"{number}.wav", 2.0 + 0.3 * number)


def paqa(folder: Path) -> None:
    """HyPeR's rows (JOY-SWang/HyPeR): instruction with options, output with upper-case tags, one clip."""
    rows = []
    for number in range(4):
        clip(folder / "audio" / f"multispeaker_choice_{number}.wav", 0.8)
        letter, options = "abcd"[number], ("a dream", "a car alarm", "an animal", "thunder")
        listed = " ".join(f"({name}) {option}" for name, option in zip("abcd", options, strict=True))
        chain = "".join(f"<{name}>\nHeard in part {number}.\n</{name}>\n" for name in
                        ("PLANNING", "CAPTION", "REASONING", "SUMMARY"))  # fmt: skip
        output = f"<THINK>\n{chain}</THINK>\n<RESPONSE>\nIt was {options[number]}. The answer is {letter.upper()}.\n"
        rows.append(
            {"instruction": f"<audio>What does speaker {number} think the noise was? {listed}",
             "output": f"{output}</RESPONSE>\n", "audios": [f"/data/audio/multispeaker_choice_{number}.wav"],
             "id": number}
        )  # fmt: skip
    text(folder / "multispeaker_choice_part1_sft.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def audiomcq(folder: Path) -> None:
    """AudioMCQ's rows, which say how much the sound contributes."""
    rows = []
    for number in range(6):
        clip(folder / "audio" / f"{number}.wav")
        rows.append(
            {"source_dataset": "AudioCaps", "id": number, "question_type": "sound", "audio_path": f"audio/{number}.wav",
             "question": f"What comes in part {number}?", "choices": ["a dog", "a car", "rain", "a bell"],
             "answer": ("a dog", "a car", "rain")[number % 3], "audio-contribution": ("weak", "strong")[number % 2]}
        )  # fmt: skip
    text(folder / "data.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def clip(path: Path, seconds: float = 0.6) -> Path:
    """Write a tone whose pitch and rhythm follow from the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list(path.name.encode()) + list(path.parent.name.encode()))
    times = np.arange(round(seconds * RATE)) / RATE
    hertz, beats = random.uniform(150, 3000), random.uniform(1, 9)
    wave = 0.3 * np.sin(2 * np.pi * hertz * times) * (0.6 + 0.4 * np.sin(2 * np.pi * beats * times))
    soundfile.write(path, wave.astype(np.float32), RATE)
    return path


def text(path: Path, content: str) -> None:
    """Write a text file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def table(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> None:
    """Write a CSV or TSV file."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    text(path, out.getvalue())


def avqa(folder: Path) -> None:
    """`{train,val}_qa.json`, one question in four about the picture alone, and `wav/`."""
    for start, split in ((0, "train"), (100, "val")):
        rows = []
        for number in range(start, start + 8):
            name = f"avqa{number:07d}_000030"
            clip(folder / "wav" / f"{name}.wav")
            rows.append({
                "id": number, "video_name": name, "video_id": number, "answer": number % 4,
                "question_text": "What colour is the car in the video?" if number % 8 == 5 else "What is in the video?",
                "multi_choice": ["a dog", "a car", "rain", "a horn"], "question_type": "Which",
                "question_relation": "View" if number % 4 == 3 else "Sound",
            })  # fmt: skip
        text(folder / f"{split}_qa.json", json.dumps(rows))


def audioset(folder: Path) -> None:
    """`unbalanced_train_segments.csv`, the table of classes, and the clips of a folder of that name."""
    names = {"/m/0bt9lr": "Dog", "/m/0k4j": "Car", "/m/06mb1": "Rain", "/m/07pbtc8": "Walk, footsteps"}
    classes = [{"index": str(n), "mid": mid, "display_name": name} for n, (mid, name) in enumerate(names.items())]
    table(folder / "class_labels_indices.csv", classes)
    lines = ["# Segments csv created Sun Mar  5 10:54:31 2017", "# YTID, start_seconds, end_seconds, positive_labels"]
    for number in range(8):
        clip(folder / "unbalanced_train_segments" / f"Yaudioset{number:03d}.wav")
        lines.append(f'audioset{number:03d}, 30.000, 40.000, "{list(names)[number % 4]}"')
    text(folder / "unbalanced_train_segments.csv", "\n".join(lines) + "\n")


def meld(folder: Path) -> None:
    """`train_sent_emo.csv` and `train_splits/`."""
    rows = []
    for number, (emotion, sentiment) in enumerate([("joy", "positive"), ("anger", "negative")] * 2):
        clip(folder / "train_splits" / f"dia{number}_utt0.wav")
        rows.append({
            "Sr No.": str(number), "Utterance": f"That is number {number}.", "Speaker": "Ross", "Emotion": emotion,
            "Sentiment": sentiment, "Dialogue_ID": str(number), "Utterance_ID": "0",
        })  # fmt: skip
    table(folder / "train_sent_emo.csv", rows)


def musicbench(folder: Path) -> None:
    """`MusicBench_train.json`, JSON lines, and `datashare/data/`."""
    lines = []
    for number in range(8):
        name = f"data/music{number:06d}_s.wav"
        clip(folder / "datashare" / name)
        lines.append(json.dumps({
            "location": name, "main_caption": f"A calm piano piece, number {number}.", "alt_caption": "", "dataset": "",
            "keyprob": [0.9], "key": [["C", "A", "D", "E"][number % 4], "minor" if number % 2 else "major"],
            "bpm": 60.0 + 11 * number, "beats": [[0.5, 1.0, 1.5], [1.0, 2.0, [3.0, 4.0][number % 2]]], "chords": [],
            "chords_time": [],
        }))  # fmt: skip
    text(folder / "MusicBench_train.json", "\n".join(lines) + "\n")


def mmau(folder: Path) -> None:
    """`mmau-test-mini.json` with two items, and their clips."""
    items = []
    for number, choices in enumerate([["Man", "Woman", "Child", "Robot"], ["Rain", "Wind", "Fire", "Sea"]]):
        name = f"test-mini-audios/0000000{number}-282c-4bc8-a753-68f8f6c35652.wav"
        clip(folder / name)
        items.append({
            "id": Path(name).stem, "audio_id": f"./{name}", "question": "What is it?", "choices": choices,
            "answer": choices[number], "dataset": "AudioSet", "task": ["speech", "sound"][number],
            "split": "test-mini", "category": "Reasoning", "sub-category": "Source", "difficulty": "medium",
        })  # fmt: skip
    text(folder / "mmau-test-mini.json", json.dumps(items))


def librispeech(folder: Path) -> None:
    """Two utterances in `train-clean-100`, one in `test-clean`."""
    for part, speaker, numbers in (("train-clean-100", "103-1240", (0, 1)), ("test-clean", "1089-134686", (2,))):
        chapter = folder / part / speaker.replace("-", "/")
        text(chapter / f"{speaker}.trans.txt", "".join(f"{speaker}-{n:04d} GO ON {'ON ' * n}\n" for n in numbers))
        for number in numbers:
            clip(chapter / f"{speaker}-{number:04d}.flac")


def common_voice(root: Path) -> None:
    """Common Voice in four languages, and CoVoST 2 from English to German on its clips."""
    for language in ("en", "ja", "de", "fr"):
        rows = []
        for number in range(3):
            name = f"common_voice_{language}_{number}.mp3"
            clip(root / "CommonVoice" / language / "clips" / name.replace(".mp3", ".wav"))
            rows.append({"client_id": f"{language}{number}", "path": name, "sentence": f"Satz {number}"})
            rows[-1] |= {"up_votes": "2", "down_votes": "0", "locale": language}
        table(root / "CommonVoice" / language / "train.tsv", rows, "\t")
    rows = [
        {
            "path": f"common_voice_en_{n}.mp3",
            "sentence": f"Satz {n}",
            "translation": f"Das ist {n}",
            "client_id": f"en{n}",
        }
        for n in range(2)
    ]
    table(root / "CoVoST2" / "covost_v2.en_de.train.tsv", rows, "\t")


def captions(root: Path) -> None:
    """AudioCaps, Clotho and the FreeSound part of WavCaps."""
    rows = []
    for number in range(3):
        clip(root / "AudioCaps" / "train" / f"Yaudiocaps{number:02d}.wav")
        rows.append({"audiocap_id": str(number), "youtube_id": f"audiocaps{number:02d}", "start_time": "30"})
        rows[-1]["caption"] = f"A dog barks {number} times"
    table(root / "AudioCaps" / "train.csv", rows)
    clotho = []
    for number in range(2):
        clip(root / "Clotho" / "development" / f"rain {number}.wav")
        five = {f"caption_{n}": f"Rain falls, version {number} {n}" for n in range(1, 6)}
        clotho.append({"file_name": f"rain {number}.wav"} | five)
    table(root / "Clotho" / "clotho_captions_development.csv", clotho)
    data = []
    for number in range(2):
        clip(root / "WavCaps" / "FreeSound" / "FreeSound" / f"{90 + number}.flac")
        data.append({"id": str(90 + number), "caption": f"Wind blows {number}.", "duration": 0.6, "file_name": "x.mp3"})
    text(root / "WavCaps" / "FreeSound" / "fsd_final.json", json.dumps({"num_captions_per_audio": 1, "data": data}))


def vocalsound(folder: Path) -> None:
    """`datafiles/{tr,te}.json` and `audio_16k/`."""
    for number, part in enumerate(("tr", "te")):
        names = [f"f000{number}_0_laughter.wav", f"m000{number}_0_cough.wav"]
        data = [{"wav": str(Path("/data/vs") / clip(folder / "audio_16k" / n).name), "labels": "/m/01"} for n in names]
        text(folder / "datafiles" / f"{part}.json", json.dumps({"data": data}))


def questions(root: Path) -> None:
    """ClothoAQA (three annotators a question) and one part of AudioSkills-XL."""
    rows = []
    for number in range(2):
        clip(root / "ClothoAQA" / f"yard {number}.wav")
        for answer in ("yes", "yes", "no"):
            rows.append({"file_name": f"yard {number}.wav", "QuestionText": "Does a bird sing?", "answer": answer})
            rows[-1]["confidence"] = "yes"
    table(root / "ClothoAQA" / "clotho_aqa_train.csv", rows)
    items = []
    for number in range(3):
        clip(root / "AudioSkills" / f"Yskills{number:04d}.wav")
        question = "<sound>\nWhich sound is it? (A) a dog. (B) a car."
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "(A) a dog."}]
        items.append({"id": str(number), "sound": f"Yskills{number:04d}.wav", "conversations": turns})
    text(root / "AudioSkills" / "AudioSet.json", json.dumps(items))


def multilingual_alpaca(folder: Path) -> None:
    """`{ja,de,fr}.list` as JSON lines, with the four texts, and the clips of their archives."""
    for language in ("ja", "de", "fr"):
        lines = []
        for number in range(40):
            clip(folder / language / f"{number}.wav", 0.3)
            lines.append(json.dumps({
                "id": str(number), "audio": f"{language}/{number}.wav", "instr_n": f"Was ist {number}?",
                "instr_c": f"What is {number}?", "resp_c": "A number. It is small.", "resp_n": "Eine Zahl.",
            }))  # fmt: skip
        text(folder / f"{language}.list", "\n".join(lines) + "\n")


def voice_assistant(folder: Path) -> None:
    """One Parquet file of the published columns, with the sound inside."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for number in range(30):
        sound = clip(folder / "made" / f"{number}.wav", 0.3).read_bytes()
        rows.append({
            "split_name": "identity", "index": str(number), "round": "1", "question": f"What is {number}?",
            "question_audio": {"bytes": sound, "path": f"{number}.wav"}, "answer": f"The number {number}.",
            "answer_snac": "# 1 2 3",
        })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00325.parquet")


def reasonaqa(root: Path) -> None:
    """`ReasonAQA/{train,val,test}.json` with a row of every kind, and `audio/`."""
    for split, folder in (("train", "development"), ("val", "validation"), ("test", "evaluation")):
        first = clip(root / "audio" / "ClothoV21" / folder / f"{split} rain.wav").relative_to(root / "audio").as_posix()
        second = clip(root / "audio" / "AudioCapsLarger" / split / f"Yreason{split:_<5}.wav")
        second = second.relative_to(root / "audio").as_posix()
        rows = [
            ("clothov21", first, "", "caption first audio", "", "Clotho.json"),
            ("clothov21", first, "", "is it raining? answer yes or no only", "yes", "ClothoAQA.json"),
            ("clothov21", first, "", "It rains. a) it is definitely true b) it is definitely false c) it is plausible",
             "a) it is definitely true", "CLE.json"),
            ("clothov21", first, "", "What falls? a) Snow b) Rain c) Sand d) Leaves", "b) Rain", "Clotho-MCQ.json"),
            ("audiocaps", second, "", "What is it? a) a dog b) a car c) a bell", "b) a car", "AudioCaps-MCQ.json"),
            ("audiocaps", second, "", "Describe the dog.", "It is large.", "AudioCaps-Detail.json"),
            ("audiocaps", second, second, "explain the difference in few words",
             "Rain against a dog.", "ACD-1.json"),
        ]  # fmt: skip
        items = [
            {"taskname": name, "filepath1": one, "filepath2": two, "caption1": "Rain falls", "caption2": "A dog barks",
             "input": question, "answer": answer, "subtype": subtype}
            for name, one, two, question, answer, subtype in rows
        ]  # fmt: skip
        text(root / "ReasonAQA" / f"{split}.json", json.dumps(items))
