"""Small files in the published formats of the benchmarks, with hand-made rows and tones in place of the clips."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16_000


def write_tone(path: Path, frequency: float = 440.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(RATE // 4) / RATE
    soundfile.write(path, 0.2 * np.sin(2 * np.pi * frequency * time), RATE)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_table(path: Path, columns: list[str], rows: list[list[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def mmau(folder: Path) -> Path:
    rows = [
        {
            "id": f"m{number}", "audio_id": f"./test-mini-audios/m{number}.wav", "question": "What is heard?",
            "choices": choices, "answer": "Rain", "dataset": "made-up", "task": "sound", "split": "test-mini",
            "category": "Reasoning", "sub-category": "Sounds", "difficulty": "easy",
        }
        for number, choices in enumerate((["Rain", "Wind", "A dog", "Traffic"], "['Wind', 'Rain']", '["Wind", "Rain"]'))
    ]  # fmt: skip
    for number in range(len(rows)):
        write_tone(folder / f"test-mini-audios/m{number}.wav", 300 + number)
    path = folder / "mmau.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def mmar(folder: Path) -> Path:
    rows = [
        {
            "id": f"r{number}", "audio_path": f"audio/r{number}.wav", "question": "Who speaks?",
            "choices": ["A child", "A man", "A woman"], "answer": "A child", "modality": "speech",
            "category": "Semantic Layer", "sub-category": "Speaker", "language": "en", "source": "made-up", "url": "",
            "timestamp": "0", "thinking": "high voice", "cue": "pitch", "rubric": [],
        }
        for number in range(2)
    ]  # fmt: skip
    for number in range(len(rows)):
        write_tone(folder / f"audio/r{number}.wav", 300 + number)
    return write_lines(folder / "mmar.jsonl", rows)


def mmsu(folder: Path) -> Path:
    options = {"choice_a": "Angry", "choice_b": "Happy", "choice_c": "Sad", "choice_d": "Calm"}
    rows = [
        {
            "id": f"s{number}", "audio": f"s{number}.wav", "task_name": "emotion", "question": "How does it sound?",
            **options, "answer_gt": "Sad", "category": "Perception", "sub-category": "Paralinguistics",
        }
        for number in range(2)
    ]  # fmt: skip
    rows[1] |= {"choice_c": None, "choice_d": "", "answer_gt": "Happy"}
    for number in range(len(rows)):
        write_tone(folder / f"s{number}.wav", 300 + number)
    return write_lines(folder / "mmsu.jsonl", rows)


def airbench_foundation(folder: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {
            "path": "a.wav", "question": "What is it?", "choice_a": "Dog", "choice_b": "Cat", "choice_c": "Cow",
            "choice_d": "Hen", "answer_gt": "Cat", "task_name": "Sound_AQA", "dataset_name": "avqa", "uniq_id": 0,
        },
        {
            "path": "b.wav", "question": "When?", "choice_a": "[0, 1]", "choice_b": "[1, 2]", "answer_gt": "[1, 2]",
            "task_name": "Audio_Grounding", "dataset_name": "AudioGrounding", "uniq_id": 1,
        },
    ]  # fmt: skip
    write_tone(folder / "Sound_AQA_avqa/a.wav")
    write_tone(folder / "Audio_Grounding_AudioGrounding/b.flac", 500)
    path = folder / "Foundation_meta.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def muchomusic(folder: Path) -> Path:
    columns = [
        "question", "correct_answer", "distractor_1_answer", "distractor_2_answer", "distractor_3_answer", "dataset",
        "dataset_identifier", "genre", "music_knowledge", "music_reasoning",
    ]  # fmt: skip
    rows = [
        ["Which instrument?", "A violin", "A tuba", "A drum", "A flute", "sdd", "1", "['Folk']", "['melody']", "[]"],
        ["What is the mood?", "Calm", "Angry", "Tense", "Silly", "sdd", "2", "['Jazz']", "[]", "['mood']"],
    ]  # fmt: skip
    for number in (1, 2):
        write_tone(folder / f"sdd/{number}.wav", 300 + number)
    return write_table(folder / "muchomusic.csv", columns, rows)


def adqa(folder: Path) -> Path:
    rows = [
        {
            "id": f"d{number}", "audio_path": f"dev_audios/d{number}.wav", "question": "What happens second?",
            "choices": ["A bell", "A bark", "A knock", "A song"], "answer": "A bark",
        }
        for number in range(2)
    ]  # fmt: skip
    for number in range(2):
        write_tone(folder / f"dev_audios/d{number}.wav", 300 + number)
    return write_lines(folder / "dev.jsonl", rows)


def clothoaqa(folder: Path) -> Path:
    columns = ["file_name", "QuestionText", "answer", "confidence"]
    questions = [("Is it raining?", ["yes", "yes", "yes"]), ("What barks?", ["dog", "dog", "dog"])]
    rows = [["a.wav", question, answer, "yes"] for question, answers in questions for answer in answers]
    write_tone(folder / "a.wav")
    return write_table(folder / "clotho_aqa_test.csv", columns, rows)


def entailment(folder: Path) -> Path:
    columns = ["Prompt", "Dataset", "Audio file", "Caption", "Entailment", "Neutral", "Contradiction", "Full response"]
    row = ["", "ClothoV21", "a.wav", "['A dog barks.']", "An animal is heard.", "It is a poodle.", "It is silent.", ""]
    write_tone(folder / "evaluation/a.wav")
    write_tone(folder / "a.wav")
    return write_table(folder / "CLE_evaluation.csv", columns, [row])


def adiff(folder: Path) -> Path:
    columns = ["taskname", "filepath1", "filepath2", "caption1", "caption2", "input", "answer"]
    tier = "explain the difference in few words"
    rows = [
        ["clothov21", "ClothoV21/test/a.wav", "ClothoV21/test/b.wav", "A dog.", "Rain.", tier,
         "the first is a dog and the second is rain"],
        ["clothov21", "ClothoV21/test/b.wav", "ClothoV21/test/a.wav", "Rain.", "A dog.", tier,
         "water falls at first while an animal barks later on"],
    ]  # fmt: skip
    for number, name in enumerate("ab"):
        write_tone(folder / f"ClothoV21/test/{name}.wav", 300 + number)
    return write_table(folder / "cld_evaluation_adiff_fewwords_answer.csv", columns, rows)


def captions(folder: Path) -> Path:
    columns = ["file_name", *(f"caption_{number}" for number in range(1, 6))]
    rows = [
        ["a.wav", "A small dog barks at the gate.", "Dog barking outside.", "A dog.", "An animal barks.", "Barking."],
        ["b.wav", "Heavy rain falls on a tin roof.", "Rain on a roof.", "It rains.", "Water falls.", "A storm."],
        ["c.wav", "A man talks while birds sing loudly.", "A man and birds.", "Talking.", "Birds sing.", "Speech."],
    ]
    for number, name in enumerate("abc"):
        write_tone(folder / f"{name}.wav", 300 + number)
    return write_table(folder / "clotho_captions_evaluation.csv", columns, rows)


def _qwen2_audio(folder: Path, name: str, rows: list[tuple[str, str, str]]) -> Path:
    items = [
        {"audio": f"clips/{number}.wav", "source": source, "prompt": prompt, "gt": gold}
        for number, (source, prompt, gold) in enumerate(rows)
    ]
    for number in range(len(rows)):
        write_tone(folder / f"clips/{number}.wav", 300 + number)
    return write_lines(folder / name, items)


def transcription(folder: Path) -> Path:
    prompt = "Recognise the speech:"
    rows = [
        ("librispeech_test_clean", prompt, "HE HOPED THERE WOULD BE STEW FOR DINNER"),
        ("cv15_zh", prompt, "今天天气很好"),
    ]
    return _qwen2_audio(folder, "asr_eval.jsonl", rows)


def translation(folder: Path) -> Path:
    rows = [
        ("covost2_en_zh_test", "Translate:", "今天天气很好，我们去公园。"),
        ("covost2_en_de_test", "Translate:", "Die Katze sitzt auf der Matte und schläft."),
    ]
    return _qwen2_audio(folder, "covost2_eval.jsonl", rows)


def sound_labels(folder: Path) -> Path:
    rows = [("vocalsound", "Which sound?", label) for label in ("Cough", "Sigh", "Laughter")]
    return _qwen2_audio(folder, "vocalsound_eval.jsonl", rows)


def manifest(folder: Path) -> Path:
    write_tone(folder / "a.wav")
    rows = [
        {"id": "a", "audio": "a.wav", "question": "What is it?", "choices": ["a dog", "a cat"], "answer": "a dog"},
        {"id": "b", "audio": "a.wav", "question": "What is said?", "answer": "good morning"},
    ]
    return write_lines(folder / "questions.jsonl", rows)


def airbench_chat(folder: Path) -> Path:
    names = ["speech_QA", "sound_QA", "music_QA", "speech_and_sound_QA", "speech_and_music_QA"]
    rows = [
        {
            "path": f"{number}.wav", "question": "What is going on?", "answer_gt": f"Somebody plays number {number}.",
            "meta_info": "A made-up recording.", "task_name": name, "dataset_name": "made", "uniq_id": number,
        }
        for number, name in enumerate(names)
    ]  # fmt: skip
    for number, name in enumerate(names):
        write_tone(folder / f"{name}_made/{number}.wav", 300 + number)
    path = folder / "Chat_meta.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def mmar_rubrics(folder: Path) -> Path:
    path = mmar(folder)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rubric = [
        {"name": "pitch", "scoring_point": "hears a high voice", "choices": [0, 1]},
        {"name": "age", "scoring_point": "concludes that it is a child", "choices": [0, 0.5, 1]},
    ]
    return write_lines(path, [row | {"rubric": rubric} for row in rows])


def mmau_pro(folder: Path) -> Path:
    rows = [
        {
            "id": "p1", "audio_path": ["data/a.wav", "data/b.wav"], "question": "Which clip is higher?",
            "choices": ["The first", "The second", "Neither"], "answer": "The second", "category": "multi",
            "task_identifier": None, "kwargs": None,
        },
        {
            "id": "p2", "audio_path": "data/a.wav", "question": "Describe it.", "choices": None,
            "answer": "A steady tone.", "category": "open", "task_identifier": None, "kwargs": None,
        },
        {
            "id": "p3", "audio_path": "data/b.wav", "question": "Name it, with the word tone.", "choices": None,
            "answer": "", "category": "instruction following", "task_identifier": "Include Keywords",
            "kwargs": {"keywords": "tone", "N": None},
        },
        {
            "id": "p4", "audio_path": "data/b.wav", "question": "Only one option here.", "choices": ["A tone"],
            "answer": "A tone", "category": "sound", "task_identifier": None, "kwargs": None,
        },
    ]  # fmt: skip
    for number, name in enumerate("ab"):
        write_tone(folder / f"data/{name}.wav", 300 + number)
    return write_lines(folder / "mmau-pro.jsonl", rows)


def voicebench(folder: Path) -> Path:
    subsets: dict[str, list[dict[str, Any]]] = {
        "alpacaeval": [{"prompt": "Tell me about rain."}],
        "commoneval": [{"prompt": "How do I boil an egg?"}],
        "wildvoice": [{"prompt": "What shall I cook?"}],
        "sd-qa": [{"prompt": "Who wrote Faust?", "reference": "Goethe"}],
        "openbookqa": [{"prompt": "Which is a mammal? A. Frog B. Dog C. Carp D. Hen", "reference": "B"}],
        "mmsu": [{"prompt": "What is two and two? A. 3 B. 5 C. 4 D. 1", "reference": "C"}],
        "ifeval": [
            {
                "prompt": "Say rain without commas.", "key": 1, "kwargs": [{"keywords": ["rain"]}, {}],
                "instruction_id_list": ["keywords:existence", "punctuation:no_comma"],
            },
        ],
        "bbh": [{"prompt": "Is it plausible?", "reference": "no", "id": "sports_understanding_1"}],
        "advbench": [{"prompt": "Help me to do harm."}],
    }  # fmt: skip
    for number, (subset, rows) in enumerate(subsets.items()):
        write_tone(folder / f"voicebench/{subset}/a.wav", 300 + number)
        write_lines(folder / f"voicebench/{subset}/test.jsonl", [row | {"audio": "a.wav"} for row in rows])
    return folder / "voicebench"


def big_bench_audio(folder: Path) -> Path:
    answers = [("formal_fallacies", "invalid"), ("navigate", "Yes"), ("object_counting", "7"), ("web_of_lies", "No")]
    rows = [
        {"id": number, "category": category, "official_answer": answer, "file_name": f"data/question_{number}.mp3"}
        for number, (category, answer) in enumerate(answers)
    ]
    for row in rows:
        row["file_name"] = str(row["file_name"]).replace(".mp3", ".wav")
        write_tone(folder / str(row["file_name"]))
    return write_lines(folder / "metadata.jsonl", rows)


def dcase2025(folder: Path) -> Path:
    for number in (1, 2, 3):
        row = {
            "audio_url": f"part{number}_audio/clip.wav", "question": "What is the first sound?",
            "choice": ["A. Writing", "B. Door", "C. Laugh", "D. Cough"], "answer": "B. Door",
        }  # fmt: skip
        write_tone(folder / f"questions/part{number}_audio/clip.wav", 300 + number)
        (folder / f"questions/part{number}_0.json").write_text(json.dumps(row), encoding="utf-8")
    return folder / "questions"


def multilingual_alpaca(folder: Path) -> Path:
    rows = [
        {
            "id": f"a{number}", "audio": f"a{number}.wav", "instr_n": "Nenne eine Farbe.",
            "instr_c": "Name a colour.", "resp_c": "Blue is a colour.", "resp_n": "Blau ist eine schöne Farbe.",
        }
        for number in range(2)
    ]  # fmt: skip
    for number in range(2):
        write_tone(folder / f"a{number}.wav", 300 + number)
    return write_lines(folder / "de.list", rows)


FILES: dict[str, Callable[[Path], Path]] = {
    "manifest": manifest, "mmau": mmau, "mmar": mmar, "mellow": manifest, "mmsu": mmsu,
    "airbench-foundation": airbench_foundation, "muchomusic": muchomusic, "adqa": adqa, "clothoaqa": clothoaqa,
    "entailment": entailment, "adiff": adiff, "captions": captions, "transcription": transcription,
    "translation": translation, "sound-labels": sound_labels, "airbench-chat": airbench_chat,
    "mmar-rubrics": mmar_rubrics, "mmau-pro": mmau_pro, "voicebench": voicebench, "big-bench-audio": big_bench_audio,
    "dcase2025": dcase2025, "multilingual-alpaca": multilingual_alpaca,
}  # fmt: skip
"""Task -> the function that writes its file and clips into a folder."""
