"""What the scores of every task were checked against, and how many items their published splits have.

Data for `docs/reference/scorers.md` (written by `scripts/scorer_reference.py`) and for `earwise tasks`. A test holds it
against the tasks: every score of every task stands here once, and every golden file that is named exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass

GOLDEN = "golden file"
"""Verdicts or values of the official program on many outputs, in `tests/golden/data`; ours are equal case for case."""
SOFTWARE = "other software"
"""A program that is not ours, run by hand or in a test beside ours."""
HAND = "by hand"
"""Values computed by hand in the tests only."""
NOTHING = "nothing"
"""Nothing that is not ours."""


@dataclass(frozen=True, slots=True)
class ScorerCheck:
    """Scores of tasks, and what they were checked against."""

    tasks: tuple[str, ...]
    scores: tuple[str, ...]
    kind: str
    """`GOLDEN`, `SOFTWARE`, `HAND` or `NOTHING`."""
    against: str
    """What it was, in words."""
    golden: tuple[str, ...] = ()
    """Golden files."""


_CHOICE = ("manifest", "mmau", "mmar", "adqa", "entailment", "dcase2025")
_COCO = ("adiff", "captions")
CHECKS = (
    ScorerCheck(
        (*_CHOICE, "mellow"), ("official",), GOLDEN, "the released matchers of MMAU and MMAR",
        ("benchmark-items/mmau_scorer.json", "benchmark-items/mmar_scorer.json"),
    ),
    ScorerCheck(
        (*_CHOICE, "mellow", "mmsu", "airbench-foundation", "muchomusic"), ("strict", "lenient"), HAND,
        "our own reading of answers; no program reads so",
    ),
    ScorerCheck(("mellow",), ("letter",), HAND, "Mellow's letters, but a missing letter is wrong"),
    ScorerCheck(("mellow",), ("mellow",), GOLDEN, "metrics of soham97/mellow", ("mellow_metrics.json",)),
    ScorerCheck(("mmsu",), ("official",), GOLDEN, "the program of dingdongwang/MMSU", ("mmsu_scorer.json",)),
    ScorerCheck(
        ("airbench-foundation",), ("official",), GOLDEN, "the program of OFA-Sys/AIR-Bench",
        ("airbench_foundation_scorer.json",),
    ),
    ScorerCheck(
        ("muchomusic",), ("official",), GOLDEN, "the program of mulab-mir/muchomusic", ("muchomusic_scorer.json",)
    ),
    ScorerCheck(("clothoaqa",), ("mellow",), GOLDEN, "metrics of soham97/mellow", ("mellow_metrics.json",)),
    ScorerCheck(("clothoaqa",), ("majority", "row", "lenient"), HAND, "votes of three annotators, counted by hand"),
    ScorerCheck(
        ("entailment",), ("macro_f1",), GOLDEN, "metrics of soham97/mellow", ("mellow_entailment.json",)
    ),
    ScorerCheck(
        _COCO, ("cider_d", "rouge_l", "bleu_4"), GOLDEN,
        "pycocoevalcap 1.2; also its whole pipeline with its Java tokenizer on 1,000 clips of Clotho and 975 of "
        "AudioCaps: no caption tokenised otherwise, largest difference of an item 2e-15",
        ("caption_metrics.json",),
    ),
    ScorerCheck(
        _COCO, ("meteor",), GOLDEN,
        "meteor-1.5.jar, of items and of corpora; on the same 1,975 clips the largest difference is 4e-16",
        ("meteor_statistics.json",),
    ),
    ScorerCheck(
        _COCO, ("spice", "spider"), NOTHING,
        "the official program is called, but it was never run here: its parser's models could not be had",
    ),
    ScorerCheck(
        ("transcription",), ("wer",), GOLDEN, "eval_audio/evaluate_asr.py of QwenLM/Qwen2-Audio",
        ("qwen2audio_wer.json",),
    ),
    ScorerCheck(
        ("transcription",), ("wer_whisper",), GOLDEN, "Whisper's normalisers and jiwer", ("asr_wer.json",)
    ),
    ScorerCheck(
        ("translation",), ("bleu",), GOLDEN, "sacrebleu, and eval_audio/evaluate_st.py of QwenLM/Qwen2-Audio",
        ("qwen2audio_bleu.json", "translation_bleu_chrf.json"),
    ),
    ScorerCheck(
        ("translation", "multilingual-alpaca"), ("chrf",), GOLDEN, "sacrebleu", ("translation_bleu_chrf.json",)
    ),
    ScorerCheck(("sound-labels",), ("official",), HAND, "equality of texts, as in evaluate_emotion.py"),
    ScorerCheck(("sound-labels",), ("lenient",), HAND, "our own reading of answers"),
    ScorerCheck(
        ("airbench-chat",), ("judge", "win", "reference"), GOLDEN,
        "readings and group means of score_chat.py's output; the judge's prompt is ours and no strong judge was run",
        ("airbench_chat_aggregation.json",),
    ),
    ScorerCheck(
        ("mmar-rubrics",), ("rubrics", "accuracy"), GOLDEN,
        "code/evaluation_rubrics.py of ddlBoJack/MMAR: readings and the middle three; the judge's prompt is ours and "
        "no strong judge was run",
        ("mmar_rubrics.json",),
    ),
    ScorerCheck(
        ("mmau-pro",), ("score",), GOLDEN,
        "rules of instructions and readings of judges in sonalkum/MMAUPro; options are read in our own way",
        ("mmaupro_scorer.json",),
    ),
    ScorerCheck(
        ("mmau-pro",), ("nearest", "official"), SOFTWARE,
        "the rule on equal vectors, with torch; never with NV-Embed-v2, whose weights could not be had",
    ),
    ScorerCheck(
        ("voicebench",), ("score",), GOLDEN,
        "letters, refusals, instructions and readings of judges in MatthewCYM/VoiceBench; yes and no of bbh by hand",
        ("voicebench_mcq.json", "voicebench_harm.json", "voicebench_ifeval.json", "voicebench_judge_reading.json"),
    ),
    ScorerCheck(
        ("voicebench",), ("sd-qa panda",), NOTHING,
        "the package qa-metrics is called, but its classifier is downloaded from elsewhere and was never run here",
    ),
    ScorerCheck(("big-bench-audio",), ("exact", "judge"), HAND, "equality of short answers; verdicts of a judge"),
    ScorerCheck(
        ("multilingual-alpaca",), ("judge",), NOTHING, "neither the prompt nor the scale of XS-CoT's score is published"
    ),
)  # fmt: skip
"""All checks, task by task."""

SPLITS: Mapping[str, Mapping[str, int]] = {
    "mmau": {"test-mini": 1000, "test": 9000},
    "mmar": {"test": 1000},
    "mmar-rubrics": {"test": 1000},
    "mmsu": {"train (the only one)": 5000},
    "muchomusic": {"test": 1187},
    "adqa": {"dev": 1607, "eval (answers hidden)": 3000},
    "mmau-pro": {"test": 5305},
    "big-bench-audio": {"test": 1000},
    "entailment": {"ACE test": 4875, "CLE evaluation": 1045},
    "adiff": {"CLD evaluation, each tier": 5225},
    "captions": {"AudioCaps test (clips)": 975, "Clotho evaluation (clips)": 1045},
    "voicebench": {
        "alpacaeval": 199, "alpacaeval_full": 636, "commoneval": 200, "wildvoice": 1000, "openbookqa": 455,
        "mmsu": 3074, "sd-qa": 553, "ifeval": 345, "bbh": 1000, "advbench": 520,
    },
    "transcription": {
        "LibriSpeech dev-clean": 2703, "LibriSpeech dev-other": 2864, "LibriSpeech test-clean": 2620,
        "LibriSpeech test-other": 2939, "FLEURS zh test": 945, "AISHELL-1 test": 7176,
        "AISHELL-2 test (each device)": 5000,
    },
    "translation": {
        "CoVoST 2 en-de": 15531, "en-zh": 15531, "de-en": 13511, "zh-en": 4898, "es-en": 13221, "fr-en": 14760,
        "it-en": 8951,
    },
    "sound-labels": {"VocalSound test": 3594, "MELD test": 2610},
}  # fmt: skip
"""Task -> items of its published splits, as their papers, repositories or pages state them; what is not known is left
out. AudioCaps and Clotho were counted in their files; numbers of transcription, translation and sound-labels are the
usual ones of these sets, which were not at hand."""


def checks_of(task: str) -> list[ScorerCheck]:
    """The checks of a task's scores."""
    return [check for check in CHECKS if task in check.tasks]
