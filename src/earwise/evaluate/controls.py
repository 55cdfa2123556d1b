"""Blind controls: the same questions without their sound, so that a model that does not hear is caught.

`evaluate.run` swaps what this file returns for the real clips: `silence` (zeros), `noise` (white), `shuffled` (the clip
of another item with another answer). What a model scores here it scores from the text alone; real minus blind is the
hearing gain.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from earwise.errors import ConfigError
from earwise.types import Example, Waveform

Control = Literal["silence", "noise", "shuffled"]
CONTROLS: tuple[Control, ...] = get_args(Control)
NOISE_RMS = 0.1  # -20 dBFS for every clip: the original's loudness would tell something about it


def check(control: str | None) -> None:
    """Refuse an unknown control.

    Raises:
        ConfigError: if `control` is not in `CONTROLS` and not None.
    """
    if control is not None and control not in CONTROLS:
        raise ConfigError(f"control {control!r} is none of {', '.join(CONTROLS)}")


def seeded(*parts: object) -> int:
    """A 64-bit seed that depends on the parts alone, not on the process or on other items.

    >>> seeded(0, "a") == seeded(0, "a") != seeded(0, "b")
    True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")


def blinded(wave: Waveform, control: Control, seed: int) -> Waveform:
    """A clip of the same length that says nothing; a `shuffled` one passes, being another item's sound already."""
    if control == "silence":
        return np.zeros_like(wave)
    if control == "noise":
        noise = np.random.default_rng(seed).standard_normal(wave.shape) * NOISE_RMS
        return np.clip(noise, -1, 1).astype(np.float32)
    return wave


def partners(examples: Sequence[Example], seed: int) -> list[int]:
    """Whose clips each item hears under `shuffled`.

    Args:
        examples: All items of the evaluation; their order and the seed decide the result, batches do not.
        seed: Seed of the draw.
    Returns:
        For every item the index of another item with other clips and another answer. Each item with audio lends its
        clips exactly once (a derangement) wherever the answers allow it; items whose answer is the only one, or more
        than half of all, share lenders; an item without audio keeps its own index.
    Raises:
        ConfigError: if all items with audio have the same answer or the same clips, so that no shuffling can blind
            them.
    """
    heard = [index for index, example in enumerate(examples) if example.audio_paths]
    answers = [frozenset(text.strip().lower() for text in example.answer) for example in examples]
    clips = [frozenset(example.audio_paths) for example in examples]

    def fits(item: int, lender: int) -> bool:
        return not (clips[item] & clips[lender] or answers[item] & answers[lender])

    rng = random.Random(seed)
    lent = heard.copy()
    rng.shuffle(lent)
    for place, item in enumerate(heard):
        if fits(item, lent[place]):
            continue
        for other in rng.sample(range(len(heard)), len(heard)):
            if fits(item, lent[other]) and fits(heard[other], lent[place]):
                lent[place], lent[other] = lent[other], lent[place]
                break
    result = list(range(len(examples)))
    for item, lender in zip(heard, lent, strict=True):
        result[item] = lender if fits(item, lender) else _any_lender(item, heard, fits, rng)
        if result[item] == item:
            raise ConfigError(
                f"no other clip with another answer for item {examples[item].id!r} ({', '.join(answers[item])}); "
                "shuffled audio needs at least two clips and two answers: use silence or more items"
            )
    return result


def _any_lender(item: int, heard: list[int], fits: Callable[[int, int], bool], rng: random.Random) -> int:
    """A lender that fits, drawn with replacement; the item itself when there is none."""
    found = [lender for lender in heard if fits(item, lender)]
    return rng.choice(found) if found else item
