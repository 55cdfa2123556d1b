"""The tasks that a teacher gets for a set of captioned clips: which pairs, which hypotheses, which wrong options.

Source: Mellow (arXiv:2503.08540), data set table of its repository. As published: three tiers of differences for one
pair per caption; about five multiple-choice and five open questions per caption; three hypotheses per clip of Clotho
and per caption of AudioCaps, those of AudioCaps in the test split alone. Ours: pairs are drawn by seed, since the rule
of the paper is not known.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

from earwise.datasets.labels import distractors
from earwise.datasets.reasonaqa.clips import CaptionedClip, one_per_caption
from earwise.datasets.reasonaqa.schemas import plain_words
from earwise.datasets.reasonaqa.tasks import (
    QUESTIONS_PER_CAPTION,
    TeacherTask,
    detail_task,
    difference_task,
    entailment_task,
    multiple_choice_task,
)
from earwise.errors import ConfigError, DataError

TEACHER_KINDS = ("entailment", "difference", "multiple_choice", "detail")
"""Parts of ReasonAQA that a teacher writes."""
KINDS = ("caption", *TEACHER_KINDS)
"""All parts that are made from captions."""
NUM_WRONG_OPTIONS = 3
"""Wrong options of a multiple-choice question."""
NUM_UNTRUE_CAPTIONS = 2
"""Captions of other clips that the three hypotheses of a template need."""


def list_tasks(
    items: Sequence[CaptionedClip],
    *,
    kinds: Sequence[str] = TEACHER_KINDS,
    seed: int = 0,
    per_caption: int = QUESTIONS_PER_CAPTION,
    for_template: bool = True,
) -> Iterator[TeacherTask]:
    """The tasks for a teacher. Equal arguments always give the same tasks in the same order.

    Args:
        items: Clips of any number of data sets and splits; pairs and wrong options never mix these.
        kinds: Parts to make, out of `TEACHER_KINDS`.
        seed: Seed of the pairs, and of the captions that a template teacher takes as wrong options.
        per_caption: Number of multiple-choice questions, and of open questions, for each caption.
        for_template: Whether a template teacher answers. It needs wrong options: captions of other clips, so drawn that
            each caption is a wrong option in proportion to how often it is the right one. Clips for which balance
            leaves none get no task.
    Raises:
        ConfigError: for an unknown kind.
        DataError: if a split of a data set has too few different clips for wrong options or for pairs.
    """
    if unknown := [kind for kind in kinds if kind not in TEACHER_KINDS]:
        raise ConfigError(f"kind {unknown[0]!r} is none of {', '.join(KINDS)}")
    cells = defaultdict[tuple[str, str], list[CaptionedClip]](list)
    for item in items:
        cells[item.family, item.info.split].append(item)
    for (family, split), clips in cells.items():
        captions = one_per_caption(clips)
        if "entailment" in kinds and not (family == "AudioCaps" and split != "test"):
            premises = captions if family == "AudioCaps" else clips
            draw_seed = f"{seed}:entailment:{family}:{split}"
            for item, others in _with_other_captions(premises, NUM_UNTRUE_CAPTIONS, draw_seed, for_template):
                yield entailment_task(item, others)
        if "difference" in kinds:
            for first, second in draw_pairs(captions, seed):
                yield difference_task(first, second)
        if "multiple_choice" in kinds:
            draw_seed = f"{seed}:choice:{family}:{split}"
            for item, others in _with_other_captions(captions, NUM_WRONG_OPTIONS, draw_seed, for_template):
                yield multiple_choice_task(item, others, per_caption)
        if "detail" in kinds:
            for item in captions:
                yield detail_task(item, per_caption)


def draw_pairs(captions: Sequence[CaptionedClip], seed: int) -> Iterator[tuple[CaptionedClip, CaptionedClip]]:
    """Pair each caption with the next caption of another clip, in a random order of all captions.

    Args:
        captions: One item per caption.
        seed: Seed of the random order.
    Raises:
        DataError: if all captions belong to a single clip.
    """
    order = list(range(len(captions)))
    random.Random(f"{seed}:pairs").shuffle(order)
    partners = {}
    for position, index in enumerate(order):
        following = (order[(position + step) % len(order)] for step in range(1, len(order)))
        partner = next((number for number in following if captions[number].clip != captions[index].clip), None)
        if partner is None:
            raise DataError(f"{captions[index].clip}: is the only clip of its split; a difference needs two")
        partners[index] = partner
    for index, caption in enumerate(captions):
        yield caption, captions[partners[index]]


def _with_other_captions(
    items: Sequence[CaptionedClip], count: int, seed: str, for_template: bool
) -> Iterator[tuple[CaptionedClip, Sequence[str]]]:
    """Each item with captions of `count` other clips.

    The captions are drawn so that every caption is another item's `count` times for each time that it is an item's own.
    Items for which that is impossible are left out. A language model needs no other captions: all items, with none.
    """
    if not for_template:
        yield from ((item, ()) for item in items)
        return
    captions_of_clip: dict[str, set[str]] = defaultdict(set)
    for item in items:
        captions_of_clip[item.clip].update(map(plain_words, item.captions))
    compatible: dict[str, set[str]] = defaultdict(set)  # caption -> captions of the clips that it describes
    for captions in captions_of_clip.values():
        for caption in captions:
            compatible[caption] |= captions
    true_of_clip = {
        clip: set[str]().union(*(compatible[caption] for caption in captions))
        for clip, captions in captions_of_clip.items()
    }
    answers = [plain_words(item.captions[0]) for item in items]
    original_text = {answer: item.captions[0] for answer, item in zip(answers, items, strict=True)}
    distractors_of_item = distractors.balanced_distractors(
        answers,
        count + 1,
        random.Random(seed),
        confusable={caption: captions - {caption} for caption, captions in compatible.items()},
        also_true=[true_of_clip[item.clip] - {answer} for item, answer in zip(items, answers, strict=True)],
    )
    chosen = {index: captions for index, captions in distractors_of_item.items() if len(captions) == count}
    if not chosen:
        raise DataError(
            f"{items[0].clip}: its split has too few other clips to take {count} wrong options from; add clips"
        )
    for index, item in enumerate(items):
        if index in chosen:
            yield item, [original_text[caption] for caption in chosen[index]]
