"""What is known of each clip in words: captions that are given, that an audio model writes, or that labels amount to.

First step of `build/sari.py` (papers/sari.md, section 2: an audio model writes captions, sets that have some keep
them). Every caption says who it is from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earwise.answers import split_reasoning
from earwise.datasets.labels import clip_questions, question_templates
from earwise.datasets.labels.collection import LabelRow
from earwise.datasets.teachers.audio_queries import AudioQuery, QueryOptions, run_audio_queries
from earwise.datasets.teachers.keyed_log import UNSHARDED, Shard
from earwise.datasets.teachers.teacher import TeacherRequest
from earwise.engine.base import Engine, SamplingParams
from earwise.types import Audio, Completion, Text, Turn

KIND = "caption"
GIVEN = "given"
PROMPT = (
    "Describe everything that can be heard in this audio in two or three sentences: sounds and their order, music, "
    "speech and what is said, the speaker, the place."
)
MAX_NEW_TOKENS = 192
_SAID_LAST = ("kind",)  # "A recording of speech." only where nothing better is known


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption and who wrote it: `given`, a template, or the model's name."""

    text: str
    by: str


def given(row: Mapping[str, Any]) -> str | None:
    """The caption that a row holds: `caption`, or the first of `captions`.

    >>> given({"captions": ["Rain falls.", "It rains."]}), given({"caption": " "})
    ('Rain falls.', None)
    """
    listed = row.get("captions")
    text = row.get("caption") or (listed[0] if isinstance(listed, list) and listed else None)
    return " ".join(text.split()) or None if isinstance(text, str) else None


def facts_of(row: LabelRow) -> list[list[str]]:
    """Field and name of everything that labels say of a clip, the best first."""
    found = [[fact.field, fact.name] for fact in clip_questions.label_facts(row, tuple(clip_questions.FIELDS))]
    best = [fact for fact in found if fact[0] not in _SAID_LAST]
    return best or found


def template_caption(facts: Mapping[str, Any]) -> str:
    """Sentences that say the facts.

    >>> template_caption({"said": [["sound", "dog"], ["language", "German"]]})
    'A dog is barking. Someone is speaking German.'
    """
    return " ".join(question_templates.captions(field, name)[0] for field, name in facts["said"])


def template_request(name: str, facts: Sequence[Sequence[str]]) -> TeacherRequest:
    """Ask the template teacher for a caption; a language model is not asked, since it has no ears."""
    return TeacherRequest(name, KIND, ({"role": "user", "content": "Caption the clip."},), facts={"said": facts})


def by_engine(
    engine: Engine,
    paths: Sequence[Path],
    folder: Path,
    *,
    batch: int = 16,
    writer: Shard = UNSHARDED,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Caption | None, str]]:
    """Let an audio model describe clips; greedy, resumable.

    Returns:
        For each path its caption and "", or None and why there is none ("empty", or the error of the file).
    """

    def read(asked: AudioQuery, completions: list[Completion]) -> dict[str, Any]:
        text = " ".join(split_reasoning(completions[0].text)[1].split())
        return {"value": text} if text else {"status": "empty", "error": "empty"}

    asked = [
        AudioQuery(path.as_posix(), (Turn("user", (Audio(path.as_posix()), Text(PROMPT))),), (path,), {}) for path in paths
    ]
    sampling_params = SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
    rows = run_audio_queries(
        engine,
        asked,
        folder,
        read=read,
        sampling_params=sampling_params,
        options=QueryOptions(batch=batch, long_audio="truncate"),
        shard=writer,
        on_progress=on_progress,
    )
    return [
        (Caption(row["value"], engine.name), "") if row["status"] == "ok" else (None, str(row["error"])) for row in rows
    ]
