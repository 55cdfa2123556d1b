"""Captions of clips: given with the clip, written by an audio model, or filled in from its labels.

First step of SARI's corpus (arXiv:2504.15900): in the paper an audio model writes the captions, and data sets that have
captions keep them. Captions from labels are ours, for trials without a model. Every caption carries the name of its
author.
"""

from collections.abc import Mapping, Sequence
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
from earwise.types import Audio, AudioClip, Completion, Text, Turn

KIND = "caption"
PROVIDED = "given"
"""Author of captions that came with the clips."""
PROMPT = (
    "Describe everything that can be heard in this audio in two or three sentences: sounds and their order, music, "
    "speech and what is said, the speaker, the place."
)
MAX_NEW_TOKENS = 192
LEAST_INFORMATIVE_FIELDS = ("kind",)
"""Label fields that are stated only if there is no other ("A recording of speech.")."""


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption of a clip."""

    text: str
    """The caption."""
    by: str
    """Its author: `PROVIDED`, the name of a template teacher, or the name of an audio model."""


def row_caption(row: Mapping[str, Any]) -> str | None:
    """The caption in a row: its field `caption`, or the first of `captions`; None if there is none.

    Example:
        >>> row_caption({"captions": ["Rain falls.", "It rains."]}), row_caption({"caption": " "})
        ('Rain falls.', None)
    """
    captions = row.get("captions")
    text = row.get("caption") or (captions[0] if isinstance(captions, list) and captions else None)
    return " ".join(text.split()) or None if isinstance(text, str) else None


def caption_facts(row: LabelRow) -> list[list[str]]:
    """What a clip's labels state, as pairs of field and name, the most informative ones only."""
    facts = [[fact.field, fact.name] for fact in clip_questions.label_facts(row, tuple(clip_questions.FIELDS))]
    informative_facts = [fact for fact in facts if fact[0] not in LEAST_INFORMATIVE_FIELDS]
    return informative_facts or facts


def template_caption(facts: Mapping[str, Any]) -> str:
    """Fill in a caption: one sentence for each pair of field and name in `facts["said"]`.

    Example:
        >>> template_caption({"said": [["sound", "dog"], ["language", "German"]]})
        'A dog is barking. Someone is speaking German.'
    """
    return " ".join(question_templates.captions(field, name)[0] for field, name in facts["said"])


def template_request(name: str, facts: Sequence[Sequence[str]]) -> TeacherRequest:
    """Request for a caption to the template teacher. A language model is never asked, since it gets no audio.

    Args:
        name: Name of the clip.
        facts: Facts from `caption_facts`.
    """
    return TeacherRequest(name, KIND, ({"role": "user", "content": "Caption the clip."},), facts={"said": facts})


def write_captions(
    engine: Engine,
    paths: Sequence[Path],
    folder: Path,
    *,
    batch: int = 16,
    shard: Shard = UNSHARDED,
) -> list[tuple[Caption | None, str]]:
    """Let an audio model describe clips, greedily. Captions that the log holds already are not written again.

    Args:
        engine: The audio model. Of a clip longer than it accepts it gets the beginning.
        paths: Files of the clips.
        folder: Folder of the log.
        batch: Clips handed to the engine at a time; changes nothing but speed.
        shard: Shard of this process, which names the log's file that is written.
    Returns:
        For each clip its caption and "", or None and the reason: "empty", or the error of the file.
    """

    def read(query: AudioQuery, completions: list[Completion]) -> dict[str, Any]:
        text = " ".join(split_reasoning(completions[0].text)[1].split())
        return {"value": text} if text else {"status": "empty", "error": "empty"}

    queries = [
        AudioQuery(path.as_posix(), (Turn("user", (Audio(path.as_posix()), Text(PROMPT))),), (AudioClip(path),), {})
        for path in paths
    ]
    rows = run_audio_queries(
        engine,
        queries,
        folder,
        read=read,
        sampling_params=SamplingParams(max_new_tokens=MAX_NEW_TOKENS),
        options=QueryOptions(batch=batch, long_audio="truncate", description="captions"),
        shard=shard,
    )
    return [
        (Caption(row["value"], engine.name), "") if row["status"] == "ok" else (None, str(row["error"])) for row in rows
    ]
