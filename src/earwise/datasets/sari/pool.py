"""The pool of SARI's corpus: clips and given items -> captions -> questions, each with the caption it can be known by.

First half of `build/sari.py`, which tries the pool on a policy and writes chains. Every step has a log of its own and
does only what is missing; what fails is counted and listed, never dropped in silence.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from earwise.datasets.difficulty import AttemptSettings
from earwise.datasets.labels import clip_questions as labels
from earwise.datasets.labels.collection import LabelRow
from earwise.datasets.sari import captions, chains, multiple_choice
from earwise.datasets.sari.captions import Caption
from earwise.datasets.teachers import request_runner
from earwise.datasets.teachers.keyed_log import UNSHARDED, Shard, in_shard
from earwise.datasets.teachers.teacher import TeacherRequest, Teacher
from earwise.engine.base import Engine
from earwise.engine.remote.openai_http import RequestLimits
from earwise.errors import ConfigError, DataError
from earwise.types import Audio, Example


@dataclass(frozen=True, slots=True)
class Settings:
    """What the corpus shall be."""

    seed: int = 0
    n_sft: int = 2000
    n_rl: int = 30000
    chains: tuple[str, ...] = chains.CHAINS
    questions_per_clip: int = 1
    n_choices: int = 4
    attempts: AttemptSettings = field(default_factory=AttemptSettings)
    keep_unsolved: bool = False
    """Keep items that no attempt answered."""
    split: str | None = "train"
    """Only clips and items of this split; None: all."""

    def __post_init__(self) -> None:
        chains.check(self.chains)
        if not self.chains:
            raise ConfigError(f"no kind of chain is named; choose out of {', '.join(chains.CHAINS)}")
        if min(self.n_sft, self.n_rl) < 0 or self.questions_per_clip < 1 or self.n_choices < 2:
            raise ConfigError(
                f"sizes {self.n_sft} and {self.n_rl} must be 0 or more, questions per clip {self.questions_per_clip} "
                f"1 or more, options {self.n_choices} 2 or more"
            )


@dataclass(frozen=True, slots=True)
class Helpers:
    """Who does the work."""

    teacher: Teacher
    captioner: Engine | None = None
    """Describes clips without a caption."""
    policy: Engine | None = None
    """Tries every item; None: pass rates are not measured and nothing is dropped."""
    limits: RequestLimits = field(default_factory=RequestLimits)
    batch: int = 16
    retry_failed: bool = False
    """Ask the teacher again what failed in an earlier run."""
    note: Callable[[str], None] = lambda line: None


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip, what its row says, and its caption where it is known."""

    path: str
    root: Path
    about: Mapping[str, Any]
    said: Sequence[Sequence[str]]
    """Facts that a template can make a caption of."""

    @property
    def file(self) -> Path:
        return self.root / self.path


class Count:
    """Counts of a step and what went wrong in it."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, Any]] = {}
        self.failed: list[dict[str, str]] = []

    def add(self, step: str, summary: request_runner.RunSummary) -> None:
        """Add the counts of one run of a teacher."""
        self.steps[step] = _sum(self.steps.get(step, {}), summary.as_dict())

    def fail(self, step: str, identifier: str, status: str, error: str) -> None:
        """Note one thing that did not come about."""
        self.failed.append({"step": step, "id": identifier, "status": status, "error": error})

    def failures(self) -> dict[str, dict[str, int]]:
        """How many things failed, by step and kind."""
        found: dict[str, Counter[str]] = {}
        for one in self.failed:
            found.setdefault(one["step"], Counter())[one["status"]] += 1
        return {step: dict(kinds) for step, kinds in found.items()}


def inputs(
    rows: Sequence[LabelRow], root: Path, items: Sequence[Example], settings: Settings, shard: Shard
) -> tuple[list[Clip], list[tuple[Example, Clip]], dict[str, int]]:
    """Clips to ask about, items with their clips, and how many items cannot be used and why."""

    def ours(path: str) -> bool:
        return shard == UNSHARDED or in_shard(hashlib.sha256(path.encode()).hexdigest(), shard)

    asked = [
        Clip(row["path"], root, row, captions.facts_of(row))
        for row in rows
        if settings.split in (None, row["split"]) and ours(row["path"])
    ]
    by_file = {clip.file.absolute(): clip for clip in asked}
    usable: list[tuple[Example, Clip]] = []
    left_out = Counter[str]()
    for item in items:
        if settings.split not in (None, item.split):
            left_out["other split"] += 1
        elif not item.choices or not item.answer:
            left_out["no choices or no answer"] += 1
        elif len(item.audio_paths) != 1:
            left_out["not one clip"] += 1
        elif ours(next(part.path for turn in item.turns for part in turn.parts if isinstance(part, Audio))):
            said = [[str(item.meta["field"]), str(item.meta["label"])]] if {"field", "label"} <= set(item.meta) else []
            clip = by_file.get(item.audio_paths[0].absolute())
            usable.append((item, clip or Clip(item.audio_paths[0].as_posix(), Path(), item.meta, said)))
    return asked, usable, dict(left_out)


def caption_clips(
    asked: Sequence[Clip],
    usable: Sequence[tuple[Example, Clip]],
    folder: Path,
    helpers: Helpers,
    count: Count,
    shard: Shard,
) -> dict[Path, Caption]:
    """A caption for every clip that can have one."""
    clips = {clip.file: clip for clip in (*asked, *(clip for _, clip in usable))}
    known: dict[Path, Caption] = {}
    bare: list[Clip] = []
    for file, clip in clips.items():
        if (text := captions.given(clip.about)) is not None:
            known[file] = Caption(text, captions.GIVEN)
        else:
            bare.append(clip)
    if not bare:
        return known
    if helpers.captioner is not None:
        told = progress(helpers, "captions")
        files = [clip.file for clip in bare]
        made = captions.by_engine(helpers.captioner, files, folder, batch=helpers.batch, writer=shard, on_progress=told)
        for file, (caption, error) in zip(files, made, strict=True):
            if caption is not None:
                known[file] = caption
            else:
                count.fail("caption", file.as_posix(), "empty" if error == "empty" else "error", error)
    elif helpers.teacher.is_template:
        requests = [captions.template_request(clip.file.as_posix(), clip.said) for clip in bare if clip.said]
        count.add(
            "caption",
            request_runner.ask_teacher(requests, helpers.teacher, folder, log_shard=shard, retry_failed=helpers.retry_failed),
        )
        for request, row in request_runner.read_answers(requests, helpers.teacher, folder):
            if row is not None and row["status"] == "ok":
                known[Path(request.id)] = Caption(row["value"], row["teacher"])
        for clip in bare:
            if not clip.said:
                count.fail("caption", clip.file.as_posix(), "unknown", "the labels say nothing that can be heard")
    else:
        raise ConfigError(
            f"{len(bare)} clips have no caption (first: {bare[0].path}), and {helpers.teacher.name} has no ears; add a "
            "field caption to the rows, or name an audio model with --captioner"
        )
    return known


def with_captions(usable: Sequence[tuple[Example, Clip]], known: Mapping[Path, Caption]) -> list[Example]:
    """The given items with their captions; without one an item can be practised on, but not be reasoned about."""
    made = []
    for item, clip in usable:
        caption = known.get(clip.file)
        about = {"caption": caption.text, "caption_by": caption.by} if caption else {}
        made.append(replace(item, reasoning=None, meta={**item.meta, **about}))
    return made


def ask_questions(
    asked: Sequence[Clip],
    known: Mapping[Path, Caption],
    requests: Sequence[TeacherRequest],
    folder: Path,
    helpers: Helpers,
    settings: Settings,
    count: Count,
    shard: Shard,
) -> list[Example]:
    """The answers to `question_requests` as examples, each with its caption and who wrote what."""
    if not requests:
        return []
    clips = {clip.file.as_posix(): clip for clip in asked}
    count.add("question", run_teacher(requests, folder, helpers, "questions", shard))
    made = []
    for request, row in request_runner.read_answers(requests, helpers.teacher, folder):
        if row is None or row["status"] != "ok":
            count.fail("question", request.id, *why(row))
            continue
        clip = clips[request.id]
        caption = known[clip.file]
        about = {"caption": caption.text, "caption_by": caption.by, "question_by": row["teacher"]}
        for value in row["value"]["questions"]:
            shuffle = not helpers.teacher.is_template  # questions drawn from labels have balanced places already
            one = multiple_choice.example(value, clip.path, clip.root, clip.about, seed=settings.seed, shuffle=shuffle)
            made.append(replace(one, meta=about))
    return made


def drawn_questions(rows: Sequence[LabelRow], settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Questions that labels allow, by path, balanced over all clips: what the template teacher hands out."""
    try:
        drawn = labels.build(
            rows,
            root=Path(),
            seed=settings.seed,
            tasks=("recognition",),
            n_choices=settings.n_choices,
            split=settings.split,
        )
    except DataError:  # too few classes to ask about any
        return {}
    found: dict[str, list[dict[str, Any]]] = {}
    for one in drawn:
        question = {"question": one.question, "choices": list(one.choices), "answer": one.answer[0]}
        found.setdefault(one.audio_paths[0].as_posix(), []).append(question)
    most = settings.questions_per_clip
    return {
        path: random.Random(f"{settings.seed}:{path}").sample(questions, min(most, len(questions)))
        for path, questions in found.items()
    }


def question_requests(
    asked: Sequence[Clip],
    known: Mapping[Path, Caption],
    drawn: Mapping[str, Sequence[Mapping[str, Any]]] | None,
    settings: Settings,
) -> Iterator[TeacherRequest]:
    for clip in asked:
        caption = known.get(clip.file)
        if caption is None or (drawn is not None and Path(clip.path).as_posix() not in drawn):
            continue
        yield multiple_choice.question_request(
            clip.file.as_posix(),
            clip.path,
            caption.text,
            count=settings.questions_per_clip,
            n_choices=settings.n_choices if drawn is None else None,
            drawn=() if drawn is None else drawn[Path(clip.path).as_posix()],
        )


def run_teacher(
    requests: Sequence[TeacherRequest], folder: Path, helpers: Helpers, what: str, shard: Shard
) -> request_runner.RunSummary:
    told = progress(helpers, what)
    summary = request_runner.ask_teacher(
        requests,
        helpers.teacher,
        folder,
        limits=helpers.limits,
        log_shard=shard,
        retry_failed=helpers.retry_failed,
        on_progress=lambda so_far: told(so_far.already + so_far.asked, len(requests)),
    )
    helpers.note(f"{what}: {summary.describe()}")
    return summary


def progress(helpers: Helpers, what: str) -> Callable[[int, int], None]:
    """A note at every tenth of the way."""
    shown = 0

    def tell(done: int, total: int) -> None:
        nonlocal shown
        if total and 10 * done // total > shown:
            shown = 10 * done // total
            helpers.note(f"{what}: {done} of {total}")

    return tell


def distinct(pool: Iterable[Example]) -> tuple[list[Example], int]:
    """The pool without items whose id came before, and how many those were."""
    seen: dict[str, Example] = {}
    total = 0
    for example in pool:
        total += 1
        seen.setdefault(example.id, example)
    return list(seen.values()), total - len(seen)


def why(row: Mapping[str, Any] | None) -> tuple[str, str]:
    return ("unreachable", "not asked") if row is None else (str(row["status"]), str(row["error"]))


def _sum(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Counts added up, dictionaries of counts by their keys."""
    total: dict[str, Any] = dict(one)
    for name, value in other.items():
        if isinstance(value, Mapping):
            total[name] = dict(Counter(total.get(name, {})) + Counter(value))
        elif value is not None:
            total[name] = (total.get(name) or 0) + value
        else:
            total.setdefault(name, None)
    return total
