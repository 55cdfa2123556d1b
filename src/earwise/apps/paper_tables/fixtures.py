"""Small files in the published formats of all sets of the papers, with hand-made rows on labelled clips.

They show that a whole table can be measured and printed; the rows are not the benchmarks', and the folder says so. The
bundled clips of the starter set are used unless a list of labelled clips is passed.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

from earwise.data import manifest
from earwise.data.manifest_path import STARTER
from earwise.errors import DataError

MARKER_TEXT = (
    "The files here hold hand-made rows in the formats of published benchmarks. They are not the benchmarks.\n"
)
DIFFERENCES = {"fewwords": "few words", "sentence": "a sentence", "detail": "detail"}


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """A recording of which something is known."""

    path: Path
    label: str
    """What is heard: a sound, an instrument, a language."""
    category: str
    """sound, music or speech."""
    text: str = ""
    """What is said; empty: it is not known."""


def starter_clips() -> list[LabelledClip]:
    """The clips of the starter set's held-out questions, each once, with the label of their first question."""
    clips: dict[Path, LabelledClip] = {}
    for row in manifest.read(STARTER / "val.jsonl"):
        if row.meta.get("field") != "kind" and row.task == "recognition":
            clips.setdefault(row.audio_paths[0], LabelledClip(row.audio_paths[0], row.answer[0], row.category))
    return list(clips.values())


def write_fixtures(folder: Path, clips: Sequence[LabelledClip] | None = None, *, rows: int = 6) -> Path:
    """Write all sets.

    Args:
        folder: New folder.
        clips: Labelled clips, of all three categories; None: those of the starter set.
        rows: Rows of each set and category.
    Returns:
        The folder.
    Raises:
        DataError: if a category has fewer than two labels.
    """
    writer = _Writer(folder, clips or starter_clips(), rows)
    for write in (_choice_sets, _transcripts, _translations, _labels, _mellow_sets, _chat_sets):
        write(writer)
    (folder / "FIXTURES.txt").write_text(MARKER_TEXT, encoding="utf-8")
    return folder


class _Writer:
    """Writes files into the folder of the fixtures; clips are linked beside them.

    Args:
        folder: The folder.
        clips: Labelled clips.
        rows: Rows of each set and category.
    """

    def __init__(self, folder: Path, clips: Sequence[LabelledClip], rows: int) -> None:
        self.folder = folder
        self.by_category = {
            category: _varied([clip for clip in clips if clip.category == category], rows)
            for category in ("sound", "music", "speech")
        }
        for category in ("sound", "music", "speech"):
            if len({clip.label for clip in self.by_category[category]}) < 2:
                raise DataError(f"fixtures need clips with two labels of the category {category}; add some")

    @property
    def clips(self) -> list[LabelledClip]:
        """All clips."""
        return [clip for category in ("sound", "music", "speech") for clip in self.by_category[category]]

    def options(self, clip: LabelledClip, count: int = 4) -> list[str]:
        """The label of a clip among others, sorted so that its place varies."""
        alike = {other.label for other in self.by_category[clip.category]} - {clip.label}
        others = [*sorted(alike), *sorted({other.label for other in self.clips} - alike - {clip.label})]
        return sorted([clip.label, *others[: count - 1]])

    def link(self, clip: LabelledClip, name: str) -> str:
        """Link a clip into the folder; returns the name."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.symlink_to(clip.path.resolve())
        return name

    def json_list(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Write a JSON list."""
        self._text(name, json.dumps(list(rows), ensure_ascii=False, indent=1))

    def json_lines(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Write one object a line."""
        self._text(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write a CSV file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])

    def _text(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _varied(clips: Sequence[LabelledClip], count: int) -> list[LabelledClip]:
    """`count` of the clips, with as many different labels as possible."""
    by_label: dict[str, list[LabelledClip]] = {}
    for clip in clips:
        by_label.setdefault(clip.label, []).append(clip)
    rounds = zip_longest(*by_label.values())
    return [clip for members in rounds for clip in members if clip is not None][:count]


def _mmau(writer: _Writer, prefix: str, *, hidden: bool = False) -> list[dict[str, Any]]:
    """Rows of an edition of MMAU, whose ids begin with `prefix`; with `hidden` those of its test split, which has no
    answers."""
    return [
        {
            "id": f"{prefix}-{number}", "audio_id": "./" + writer.link(clip, f"mmau/audio/{number}.ogg")[5:],
            "question": "Which of these is heard?", "choices": writer.options(clip),
            **({} if hidden else {"answer": clip.label}), "dataset": "hand-made", "task": clip.category,
            "split": "test" if hidden else "test-mini", "category": "Information Extraction",
            "sub-category": "Sources", "difficulty": ("easy", "medium", "hard")[number % 3],
        }
        for number, clip in enumerate(writer.clips)
    ]  # fmt: skip


def _choice_sets(writer: _Writer) -> None:
    """MMAU in both editions and the hidden test split, MMAR, MMSU, AIR-Bench foundation, MMAU-Pro."""
    writer.json_list("mmau/mmau-test-mini.json", _mmau(writer, "new"))
    writer.json_list("mmau/mmau-test-mini.old.json", _mmau(writer, "old"))
    writer.json_list("mmau/mmau-test.json", _mmau(writer, "test", hidden=True))
    rubric = [{"name": "names what is heard", "choices": [0, 1]}, {"name": "says why", "choices": [0, 0.5, 1]}]
    mmar = [
        {
            "id": f"mmar-{number}", "audio_path": "./" + writer.link(clip, f"mmar/audio/{number}.ogg")[5:],
            "question": "Which of these is heard?", "choices": writer.options(clip), "answer": clip.label,
            "modality": clip.category, "category": "Perception Layer", "sub-category": "Sources", "language": "en",
            "source": "hand-made", "url": "", "timestamp": "", "rubric": rubric,
        }
        for number, clip in enumerate(writer.clips)
    ]  # fmt: skip
    writer.json_list("mmar/MMAR-meta.json", mmar)
    lettered = [
        dict(zip(("choice_a", "choice_b", "choice_c", "choice_d"), writer.options(clip), strict=False))
        | {"question": "Which of these is heard?", "answer_gt": clip.label}
        for clip in writer.clips
    ]
    mmsu = [
        {"id": f"mmsu-{number}", "audio": writer.link(clip, f"mmsu/{number}.ogg")[5:], "task_name": "sources",
         "category": "Perception", "sub-category": "paralinguistics", **lettered[number]}
        for number, clip in enumerate(writer.clips)
    ]  # fmt: skip
    writer.json_lines("mmsu/mmsu.jsonl", mmsu)
    airbench = []
    for number, clip in enumerate(writer.clips):
        writer.link(clip, f"airbench/Sound_AQA_made/{number}.ogg")
        airbench.append(
            {
                "path": f"{number}.ogg",
                "task_name": "Sound_AQA",
                "dataset_name": "made",
                "uniq_id": number,
                **lettered[number],
            }
        )
    writer.json_list("airbench/Foundation_meta.json", airbench)
    pro: list[dict[str, Any]] = [
        {"id": f"pro-{number}", "audio_path": writer.link(clip, f"mmau-pro/data/{number}.ogg")[9:],
         "question": "Which of these is heard?", "choices": writer.options(clip), "answer": clip.label,
         "category": clip.category, "task_identifier": None, "kwargs": None}
        for number, clip in enumerate(writer.clips)
    ]  # fmt: skip
    pro += [
        {**pro[number], "id": f"pro-open-{number}", "question": "What is heard?", "choices": None, "category": "open"}
        for number in range(2)
    ]
    writer.json_lines("mmau-pro/mmau-pro.jsonl", pro)


def _qwen2_audio(writer: _Writer, name: str, rows: Iterable[tuple[LabelledClip, str, str, str]]) -> None:
    """An evaluation file of Qwen2-Audio: clip, source, prompt, gold."""
    items = []
    for number, (clip, source, prompt, gold) in enumerate(rows):
        audio = writer.link(clip, f"qwen2-audio/{Path(name).stem}/{number}.ogg").removeprefix("qwen2-audio/")
        items.append({"audio": audio, "source": source, "prompt": prompt, "gt": gold})
    writer.json_lines(f"qwen2-audio/{name}", items)


def _transcripts(writer: _Writer) -> None:
    """LibriSpeech, Common Voice 15, FLEURS, AISHELL-2; what is said stands in for a transcript where it is known."""
    speech = writer.by_category["speech"]
    splits = ("dev_clean", "dev_other", "test_clean", "test_other")
    files = {
        "librispeech_eval.jsonl": [f"librispeech_{split}" for split in splits],
        **{f"cv15_asr_{code}_eval.jsonl": [f"cv15_{code}"] for code in ("en", "zh", "yue", "fr")},
        "fleurs_asr_zh_eval.jsonl": ["fleurs_zh"],
        "aishell2_eval.jsonl": [f"aishell2_{device}" for device in ("mic", "ios", "android")],
    }  # fmt: skip
    prompt = "Detect the language and recognize the speech:"
    for name, sources in files.items():
        rows = [(clip, source, prompt, clip.text or f"a word of {clip.label}") for source in sources for clip in speech]
        _qwen2_audio(writer, name, rows)


def _translations(writer: _Writer) -> None:
    """Seven directions of CoVoST 2."""
    directions = ("en_de", "de_en", "en_zh", "zh_en", "es_en", "fr_en", "it_en")
    rows = [
        (
            clip,
            f"covost2_{direction}_test",
            "Translate the speech:",
            clip.text or f"somebody says a word of {clip.label}",
        )
        for direction in directions
        for clip in writer.by_category["speech"]
    ]
    _qwen2_audio(writer, "covost2_eval.jsonl", rows)


def _labels(writer: _Writer) -> None:
    """MELD and VocalSound."""
    speech, sounds = writer.by_category["speech"], writer.by_category["sound"]
    _qwen2_audio(writer, "meld_eval.jsonl", [(clip, "meld", "Which language is it?", clip.label) for clip in speech])
    _qwen2_audio(
        writer, "vocalsound_eval.jsonl", [(clip, "vocalsound", "Which sound is it?", clip.label) for clip in sounds]
    )


def _mellow_sets(writer: _Writer) -> None:
    """ClothoAQA, entailment, differences and captions."""
    clips = writer.clips
    questions = []
    for number, clip in enumerate(clips):
        name = writer.link(clip, f"clothoaqa/{number}.ogg").removeprefix("clothoaqa/")
        wrong = next(label for label in writer.options(clip) if label != clip.label)
        label, answer = (clip.label, "yes") if number % 2 else (wrong, "no")
        questions += [[name, f"Is this {label}?", answer, "yes"]] * 3
    writer.table("clothoaqa/clotho_aqa_test.csv", ["file_name", "QuestionText", "answer", "confidence"], questions)
    _entailment(writer)
    _differences(writer)
    _captions(writer)


def _entailment(writer: _Writer) -> None:
    """CLE and ACE."""
    columns = ["Prompt", "Dataset", "Audio file", "Caption", "Entailment", "Neutral", "Contradiction", "Full response"]
    for name, data_set in (("CLE_evaluation", "ClothoV21"), ("ACE_test", "AudioCaps")):
        rows = []
        for number, clip in enumerate(writer.clips):
            writer.link(clip, f"entailment/evaluation/{number}.wav")
            writer.link(clip, f"entailment/AudioCapsLarger/test/Y{number}.wav")
            texts = (f"This is {clip.label}.", "It was recorded in the morning.", "Nothing at all is heard.")
            name_in_set = f"{number}.wav" if data_set == "ClothoV21" else str(number)
            rows.append(["", data_set, name_in_set, f"['{texts[0]}']", *texts, ""])
        writer.table(f"entailment/{name}.csv", columns, rows)


def _differences(writer: _Writer) -> None:
    """CLD-1 to CLD-3 and ACD-1 to ACD-3: each clip and the one after it."""
    columns = ["taskname", "filepath1", "filepath2", "caption1", "caption2", "input", "answer"]
    for set_name, data_set in (("cld_evaluation", "ClothoV21/test"), ("acd_test", "AudioCaps/test")):
        names = [
            writer.link(clip, f"adiff/{data_set}/{number}.ogg").removeprefix("adiff/")
            for number, clip in enumerate(writer.clips)
        ]
        for tier, words in DIFFERENCES.items():
            rows = []
            for (first_name, first), (second_name, second) in pairwise(zip(names, writer.clips, strict=True)):
                answer = f"the first is {first.label} and the second is {second.label}"
                asked = f"explain the difference in {words}"
                captions = (f"{first.label}.", f"{second.label}.")
                rows.append([data_set.split("/")[0].lower(), first_name, second_name, *captions, asked, answer])
            writer.table(f"adiff/{set_name}_adiff_{tier}_answer.csv", columns, rows)


def _captions(writer: _Writer) -> None:
    """Clotho and AudioCaps, five captions a clip."""
    forms = ("This is {}.", "One hears {}.", "{} is heard.", "The recording holds {}.", "A recording of {}.")
    clotho: list[list[str]] = []
    audiocaps: list[list[str]] = []
    for number, clip in enumerate(writer.clips):
        captions = [form.format(clip.label) for form in forms]
        writer.link(clip, f"captions/{number}.ogg")
        clotho.append([f"{number}.ogg", *captions])
        youtube_id = f"fixture{number:04}"
        writer.link(clip, f"captions/AudioCapsLarger/test/Y{youtube_id}.wav")
        audiocaps += [[str(5 * number + k), youtube_id, "30", caption] for k, caption in enumerate(captions)]
    columns = ["file_name", *(f"caption_{number}" for number in range(1, 6))]
    writer.table("captions/clotho_captions_evaluation.csv", columns, clotho)
    columns = ["audiocap_id", "youtube_id", "start_time", "caption"]
    writer.table("captions/audiocaps_test.csv", columns, audiocaps)


def _chat_sets(writer: _Writer) -> None:
    """AIR-Bench chat and Multilingual-Alpaca-Speech, whose measures need a judge."""
    kinds = {
        "speech": "speech",
        "sound": "sound",
        "music": "music",
        "speech_and_sound": "sound",
        "speech_and_music": "music",
    }
    rows: list[dict[str, Any]] = []
    for kind, category in kinds.items():
        for number, clip in enumerate(writer.by_category[category][:2]):
            writer.link(clip, f"airbench/{kind}_QA_made/{number}.ogg")
            rows.append(
                {
                    "path": f"{number}.ogg", "question": "What is going on?", "answer_gt": f"One hears {clip.label}.",
                    "meta_info": f"A recording of {clip.label}.", "task_name": f"{kind}_QA", "dataset_name": "made",
                    "uniq_id": len(rows),
                }
            )  # fmt: skip
    writer.json_list("airbench/Chat_meta.json", rows)
    texts = {
        "ja": ("色を一つ言ってください。", "青はきれいな色です。"),
        "de": ("Nenne eine Farbe.", "Blau ist eine schöne Farbe."),
        "fr": ("Nomme une couleur.", "Le bleu est une belle couleur."),
    }
    for code, (instruction, answer) in texts.items():
        items = [
            {
                "id": f"{code}-{number}", "audio": writer.link(clip, f"multilingual-alpaca/{code}/{number}.ogg")[20:],
                "instr_n": instruction, "instr_c": "Name a colour.", "resp_c": "Blue is a colour.", "resp_n": answer,
            }
            for number, clip in enumerate(writer.by_category["speech"])
        ]  # fmt: skip
        writer.json_lines(f"multilingual-alpaca/{code}.list", items)
