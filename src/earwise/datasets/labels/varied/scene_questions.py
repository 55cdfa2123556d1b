"""More questions about rendered scenes, in many wordings: presence, order, details, and the scene's own reworded.

A scene's plan (`meta.events`) says what is heard when, so questions beside its own have known answers: whether a sound
is in it, whether one comes before another, what is heard in which order (`varied.scene_details`). Yes and no are
equally frequent, and sounds that are absent are drawn as often as they are present elsewhere. Used by `earwise build
labels --tasks varied,order,...`. All functions are pure.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from earwise.datasets.labels import label_names
from earwise.datasets.labels.varied import wordings
from earwise.datasets.labels.varied.scene_details import Keep, SceneDetail, balance_numbers, scene_details
from earwise.types import Audio, Example, Text, Turn

Labels = Mapping[str, tuple[str, str]]
"""Display name -> field and label; see `varied.clip_questions.labels_by_name`."""
OPTION_VARIANTS = ("first", "last", "louder", "quieter")
"""Variants whose options are names of sounds."""
UNLISTED_SHARE = 0.5
"""Share of the training questions whose options are not listed."""
LIST_SHARE = 0.25
"""Share of the training scenes with two sounds that are also asked for the list of their sounds."""
PRESENCE_TRIES = 50
YES_NO = ("yes", "no")


def vary_scenes(examples: Iterable[Example], labels: Labels, *, seed: int) -> Iterator[Example]:
    """The questions of scenes in other words, and further questions about the same scenes.

    Args:
        examples: Questions about scenes (`render_scenes.write_scenes`).
        labels: Field and label of each name in them.
        seed: Seed of all choices.
    """
    scenes = list(examples)
    present: dict[str, list[str]] = {}
    for example in scenes:
        present.setdefault(example.split, []).extend(event["label"] for event in example.meta["events"])
    keep = {
        split: balance_numbers(example.meta["events"] for example in scenes if example.split == split)
        for split in present
    }
    for example in scenes:
        writer = _SceneWriter(example, labels, random.Random(f"{seed}:{example.id}"))
        yield writer.reworded()
        yield writer.presence(present[example.split])
        yield from writer.order()
        yield from writer.details(present[example.split], keep[example.split])


class _SceneWriter:
    """Writes the questions about one scene.

    Args:
        example: The scene's own question.
        labels: Field and label of each name.
        rng: Source of randomness.
    """

    def __init__(self, example: Example, labels: Labels, rng: random.Random) -> None:
        self._example, self._labels, self._rng = example, labels, rng
        self._names = [event["label"] for event in example.meta["events"]]
        self._trains = example.split == "train"

    def reworded(self) -> Example:
        """The scene's own question in other words, with reworded options where they are sounds."""
        example, variant = self._example, str(self._example.meta["field"])
        answer, choices = example.answer[0], list(example.choices)
        if variant in OPTION_VARIANTS:
            in_words = {choice: self._word(choice) for choice in choices}
            answer, choices = in_words[answer], [in_words[choice] for choice in choices]
        counted = self._word(self._counted()) if variant == "count" else ""
        number = label_names.NUMBERS[len(self._names)]
        question = self._question(variant, x=counted, n=number)
        if variant in OPTION_VARIANTS and self._unlisted():
            return self._with(question + f" {choices[0]} or {choices[1]}?", (), answer, example.task, variant)
        listed = () if variant == "count" and self._unlisted() else tuple(choices)
        return self._with(question, listed, answer, example.task, variant)

    def presence(self, present: Sequence[str]) -> Example:
        """Whether a sound is in the scene.

        Args:
            present: Names of all sounds in scenes of this split, each as often as it occurs.
        """
        is_true = self._rng.random() < 0.5
        name = self._rng.choice(self._names)
        if not is_true:
            names = set(self._names)
            excluded = names.union(*(label_names.CONFUSABLE.get(other, frozenset()) for other in names))
            absent = (self._rng.choice(present) for _ in range(PRESENCE_TRIES))
            name = next((other for other in absent if other not in excluded), name)
            is_true = name in names
        return self._yes_no("presence", is_true, x=self._word(name))

    def order(self) -> Iterator[Example]:
        """Questions about the order of two different sounds that do not overlap."""
        if self._example.task not in ("order", "louder") or len(set(self._names)) != 2:
            return
        first, last = self._names
        is_true = self._rng.random() < 0.5
        earlier, later = (first, last) if is_true else (last, first)
        yield self._yes_no("before", is_true, x=self._word(earlier), y=self._word(later))
        if self._trains and self._rng.random() < LIST_SHARE:
            yield self._with(self._question("list"), (), f"{first}, then {last}", "list", "list")

    def details(self, present: Sequence[str], keep: Keep) -> Iterator[Example]:
        """Questions about lengths, numbers and places.

        Args:
            present: Names of all sounds in scenes of this split, each as often as it occurs.
            keep: Shares of the questions for numbers that are asked.
        """
        for detail in scene_details(self._example.meta["events"], present, keep, self._rng):
            if detail.variant != "list":
                yield self._detail(detail)
            elif self._trains:  # a list is free text, which validation does not score
                yield self._with(self._question("list"), (), detail.answer, detail.task, "list")

    def _detail(self, detail: SceneDetail) -> Example:
        """A question about a detail in words."""
        in_words = {choice: self._word(choice) for choice in detail.choices}
        choices = tuple(in_words.values())
        # The longer of two sounds cannot be named without saying which two are meant.
        listed = choices if detail.task == "longer" or not self._unlisted() else ()
        question = self._question(detail.variant, place=detail.place)
        return self._with(question, listed, in_words[detail.answer], detail.task, detail.variant)

    def _counted(self) -> str:
        """The name that the scene's own question asks for."""
        text = next(part.text for part in self._example.turns[0].parts if isinstance(part, Text))
        inside = [name for name in set(self._names) if name in text]
        return max(inside or self._names, key=len)

    def _word(self, name: str) -> str:
        """A wording of a name."""
        if name not in self._labels:
            return name
        field, label = self._labels[name]
        return wordings.draw_label(field, label, name, self._example.split, self._rng)

    def _question(self, variant: str, **values: str) -> str:
        """A wording of a question about scenes."""
        text = wordings.draw_question(f"scene.{variant}", self._example.split, self._rng).format(**values)
        return text[:1].upper() + text[1:]

    def _unlisted(self) -> bool:
        """Whether the options of a question are left out of the list."""
        return self._trains and self._rng.random() < UNLISTED_SHARE

    def _yes_no(self, variant: str, is_true: bool, **values: str) -> Example:
        choices = YES_NO if self._rng.random() < 0.5 else YES_NO[::-1]
        listed = () if self._unlisted() else choices
        return self._with(self._question(variant, **values), listed, YES_NO[not is_true], variant, variant)

    def _with(self, question: str, choices: tuple[str, ...], answer: str, task: str, variant: str) -> Example:
        """The example with another question."""
        example = self._example
        clips = tuple(part for part in example.turns[0].parts if isinstance(part, Audio))
        meta: dict[str, Any] = {**example.meta, "field": variant}
        return replace(
            example,
            id=f"{example.id}-{variant}",
            turns=(Turn("user", (*clips, Text(question))),),
            answer=(answer,),
            choices=choices,
            task=task,
            meta=meta,
        )
