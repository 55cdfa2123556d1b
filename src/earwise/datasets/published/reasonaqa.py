"""ReasonAQA: from captions of clips to captioning, entailment, differences, multiple choice and detailed questions.

Between caption Examples (`data/sources/{audiocaps,clotho}.py`, or any manifest with captions) and the manifest. What a
language model wrote in the paper is asked of a teacher (`build/reasonaqa_tasks.py`). `PUBLISHED` is the paper's table;
`count` and `compare` hold what was built or read against it.

Source: Mellow (arXiv:2503.08540), dataset table of its repository. As published: three tiers for one pair a caption,
about five multiple-choice and five detailed questions a caption, three hypotheses a clip of Clotho and a caption of
AudioCaps, those of AudioCaps in the test split alone. Deviations: (1) pairs are drawn by seed (the paper's rule is not
known); (2) the place of the right option is balanced by seed; (3) captions stay as they are, where the released loader
lowers them and begins with "The audio 1 is"; (4) hypotheses have three options, since the published fourth, "I cannot
determine", is never right: whoever knows that is above chance without ears.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from earwise.data.sources import example_builder
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import CAPTION
from earwise.data.sources.row_readers import OnSkip
from earwise.datasets.labels import distractors
from earwise.datasets.published import reasonaqa_tasks as teaching
from earwise.datasets.published.reasonaqa_tasks import Captioned, Task
from earwise.errors import ConfigError, DataError
from earwise.types import Audio, Example

TAUGHT = ("entailment", "difference", "multiple_choice", "detail")
KINDS = ("caption", *TAUGHT)
Missing = Literal["skip", "keep", "error"]
SPLITS = ("train", "val", "test")
N_OTHERS = 3  # wrong options of a question
N_UNTRUE = 2  # captions of other clips that three hypotheses need

PUBLISHED: Mapping[str, tuple[int, int, int]] = {
    "Clotho caption": (19_195, 5_225, 5_225),
    "AudioCaps caption": (48_660, 494, 4_785),
    "ClothoAQA": (14_088, 4_128, 5_676),
    "CLE": (11_511, 3_132, 3_135),
    "ACE": (0, 0, 14_355),
    "CLD": (57_585, 15_675, 15_675),
    "ACD": (145_980, 7_368, 14_040),
    "Clotho-MCQ": (95_551, 26_054, 26_031),
    "Clotho-Detail": (94_838, 25_785, 25_851),
    "AudioCaps-MCQ": (241_531, 12_236, 23_672),
    "AudioCaps-Detail": (239_132, 12_110, 23_355),
}
"""Rows of each part in train, val and test (papers: Mellow, section 4); 1,242,078 in all."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One cell of the table."""

    subset: str
    split: str
    found: int
    published: int | None
    """None: the paper has no such part."""

    @property
    def same(self) -> bool:
        """Whether the counts agree."""
        return self.found == self.published


def captioned(examples: Iterable[Example]) -> list[Captioned]:
    """The captioned clips among the examples; the rest of the builder needs them all at once (pairs, wrong options).

    Raises:
        DataError: if a caption example has no caption, or not one clip.
    """
    items = []
    for example in examples:
        clips = [part.path for turn in example.turns for part in turn.parts if isinstance(part, Audio)]
        if len(clips) != 1 or not example.answer:
            raise DataError(
                f"example {example.id!r}: {len(clips)} clips and {len(example.answer)} captions; "
                "one clip and at least one caption are needed"
            )
        origin = SourceInfo(example.source, example.licence, example.root, example.split)
        items.append(Captioned(example.id, clips[0], example.answer, example.source, example.group, origin))
    return items


def each_caption(items: Iterable[Captioned]) -> list[Captioned]:
    """One item a caption instead of one a clip."""
    return [
        replace(item, id=f"{item.id}-{number}", captions=(caption,))
        for item in items
        for number, caption in enumerate(item.captions, 1)
    ]


def caption_examples(items: Iterable[Captioned]) -> Iterator[Example]:
    """One captioning row a caption, as in the paper's table."""
    for item in each_caption(items):
        yield example_builder.build_example(
            item.origin,
            f"{item.id}-caption",
            [item.clip],
            example_builder.pick_by_hash(CAPTION, item.id),
            item.captions,
            task="caption",
            category="sound",
            group=item.group,
            meta={"subset": f"{item.family} caption"},
        )


def tasks(
    items: Sequence[Captioned],
    *,
    kinds: Sequence[str] = TAUGHT,
    seed: int = 0,
    per_caption: int = teaching.PER_CAPTION,
    template: bool = True,
) -> Iterator[Task]:
    """What to ask a teacher about the clips: the same tasks in the same order whenever it is called.

    Args:
        items: From `captioned`, of any number of data sets and splits; pairs and wrong options never mix these.
        kinds: Out of `TAUGHT`.
        seed: Decides pairs and the captions from which the template teacher takes wrong options.
        per_caption: Multiple-choice and detailed questions to ask for.
        template: The template teacher is asked, which needs wrong options to hand out: captions of other clips, each
            as often wrong as it is right. Clips for which balance leaves none are passed over.
    Raises:
        ConfigError: for an unknown kind.
        DataError: under `template`, if a data set has too few different clips in a split to take wrong options from.
    """
    if unknown := [kind for kind in kinds if kind not in TAUGHT]:
        raise ConfigError(f"kind {unknown[0]!r} is none of {', '.join(KINDS)}")
    cells = defaultdict[tuple[str, str], list[Captioned]](list)
    for item in items:
        cells[item.family, item.origin.split].append(item)
    for (family, split), clips in cells.items():
        captions = each_caption(clips)
        if "entailment" in kinds and not (family == "AudioCaps" and split != "test"):
            judged = captions if family == "AudioCaps" else clips
            for item, others in _with_others(judged, N_UNTRUE, f"{seed}:entailment:{family}:{split}", template):
                yield teaching.entailment(item, others)
        if "difference" in kinds:
            for first, second in pairs(captions, seed):
                yield teaching.difference(first, second)
        if "multiple_choice" in kinds:
            for item, others in _with_others(captions, N_OTHERS, f"{seed}:choice:{family}:{split}", template):
                yield teaching.multiple_choice(item, others, per_caption)
        if "detail" in kinds:
            for item in captions:
                yield teaching.detail(item, per_caption)


def pairs(captions: Sequence[Captioned], seed: int) -> Iterator[tuple[Captioned, Captioned]]:
    """Each caption first in one pair, with the next caption of another clip in an order drawn by seed.

    Raises:
        DataError: if there is only one clip.
    """
    order = list(range(len(captions)))
    random.Random(f"{seed}:pairs").shuffle(order)
    partner = {}
    for place, index in enumerate(order):
        ahead = (order[(place + step) % len(order)] for step in range(1, len(order)))
        other = next((each for each in ahead if captions[each].clip != captions[index].clip), None)
        if other is None:
            raise DataError(f"{captions[index].clip}: is the only clip of its split; a difference needs two")
        partner[index] = other
    for index, caption in enumerate(captions):
        yield caption, captions[partner[index]]


def balanced(examples: Iterable[Example], seed: int) -> Iterator[Example]:
    """Reorder the choices so that every place holds the right one equally often, in every part by itself.

    Streams: the places are dealt from a shuffled deck, one deck a part and number of choices, so that counts differ by
    at most one at any moment. The other choices are shuffled too.
    """
    decks: dict[tuple[str, str, int], list[int]] = {}
    rngs: dict[tuple[str, str, int], random.Random] = {}
    for example in examples:
        if not example.choices or len(example.answer) != 1:
            yield example
            continue
        part = (example.task, str(example.meta.get("subset", "")), len(example.choices))
        rng = rngs.setdefault(part, random.Random(f"{seed}:{part}"))
        deck = decks.setdefault(part, [])
        if not deck:
            deck.extend(range(len(example.choices)))
            rng.shuffle(deck)
        listed = [choice for choice in example.choices if choice != example.answer[0]]
        rng.shuffle(listed)
        listed.insert(deck.pop(), example.answer[0])
        yield replace(example, choices=tuple(listed))


def present(examples: Iterable[Example], missing: Missing, bad: OnSkip) -> Iterator[Example]:
    """Only examples whose audio is there (`skip`), all of them (`keep`), or an error at the first gap (`error`).

    Raises:
        DataError: under `error`, naming example and file.
    """
    known: dict[str, bool] = {}
    for example in examples:
        if missing == "keep":
            yield example
            continue
        absent = None
        for path in map(str, example.audio_paths):
            if path not in known:
                if len(known) > 1 << 16:  # clips come in runs: a small memory serves most questions
                    known.clear()
                known[path] = example.root.joinpath(path).is_file()
            if not known[path]:
                absent = path
        if absent is None:
            yield example
        elif missing == "error":
            raise DataError(f"example {example.id!r}: audio {absent} is missing; give --audio-root, or --missing skip")
        else:
            bad(f"{example.id}: audio {absent} is missing")


def count(examples: Iterable[Example]) -> Counter[tuple[str, str]]:
    """Rows of every part (`meta.subset`, or the source) and split."""
    return Counter((str(example.meta.get("subset") or example.source), example.split) for example in examples)


def compare(counts: Mapping[tuple[str, str], int]) -> list[Compared]:
    """Every cell of the table, then what the table does not have."""
    cells = [
        Compared(subset, split, counts.get((subset, split), 0), published[number])
        for subset, published in PUBLISHED.items()
        for number, split in enumerate(SPLITS)
    ]
    strange = sorted(key for key, number in counts.items() if number and key[0] not in PUBLISHED)
    return cells + [Compared(subset, split, counts[subset, split], None) for subset, split in strange]


def _with_others(
    items: Sequence[Captioned], count: int, seed: str, template: bool
) -> Iterator[tuple[Captioned, Sequence[str]]]:
    """Each item with captions of `count` other clips, so drawn that every caption is `count` times another's for each
    time that it is an item's own; all items without any where no template needs them."""
    if not template:
        yield from ((item, ()) for item in items)
        return
    clips: dict[str, set[str]] = defaultdict(set)
    for item in items:
        clips[item.clip].update(map(teaching.plain, item.captions))
    kin: dict[str, set[str]] = defaultdict(set)  # what is true of a clip of which this is
    for said in clips.values():
        for one in said:
            kin[one] |= said
    own = {clip: set[str]().union(*(kin[one] for one in said)) for clip, said in clips.items()}
    answers = [teaching.plain(item.captions[0]) for item in items]
    words = {answer: item.captions[0] for answer, item in zip(answers, items, strict=True)}
    drawn = distractors.balanced_distractors(
        answers,
        count + 1,
        random.Random(seed),
        confusable={one: said - {one} for one, said in kin.items()},
        also_true=[own[item.clip] - {answer} for item, answer in zip(items, answers, strict=True)],
    )
    chosen = {index: names for index, names in drawn.items() if len(names) == count}
    if not chosen:
        raise DataError(
            f"{items[0].clip}: its split has too few other clips to take {count} wrong options from; add clips"
        )
    for index, item in enumerate(items):
        if index in chosen:
            yield item, [words[name] for name in chosen[index]]
