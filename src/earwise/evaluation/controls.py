"""Blind controls: the same questions without their sound, so that a model that ignores the audio is recognised.

`evaluation.run` puts the waveforms of this file in place of the real ones: `silence` (zeros), `noise` (Gaussian white
noise, the control of Mellow, arXiv:2503.08540, figure 3) or `shuffled` (the clip of another item with another answer);
under `text-only` the prompt has no clip at all. What a model scores here it scores from the text alone; real
minus blind accuracy is the hearing gain.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from earwise.errors import ConfigError
from earwise.types import Example, Waveform

Control = Literal["silence", "noise", "shuffled", "text-only"]
CONTROLS: tuple[Control, ...] = get_args(Control)
NOISE_RMS = 0.1
"""RMS of the noise, -20 dBFS for every clip: the loudness of the original clip would be a hint."""


def check(control: str | None) -> None:
    """Refuse an unknown control.

    Raises:
        ConfigError: if `control` is neither None nor in `CONTROLS`.
    """
    if control is not None and control not in CONTROLS:
        raise ConfigError(f"control {control!r} is none of {', '.join(CONTROLS)}")


def seeded(*parts: object) -> int:
    """A 64-bit seed that depends on `parts` alone, not on the process or on other items.

    >>> seeded(0, "a") == seeded(0, "a") != seeded(0, "b")
    True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")


def blinded(waveform: Waveform, control: Control, seed: int) -> Waveform:
    """A waveform of the same length without information; a `shuffled` one is returned unchanged, because it is the clip
    of another item already."""
    if control == "silence":
        return np.zeros_like(waveform)
    if control == "noise":
        noise = np.random.default_rng(seed).standard_normal(waveform.shape) * NOISE_RMS
        return np.clip(noise, -1, 1).astype(np.float32)
    return waveform


def partners(examples: Sequence[Example], seed: int) -> list[int]:
    """For each item the index of the item whose clips it receives under `shuffled`.

    Args:
        examples: All items of the evaluation; their order and the seed decide the result, batches do not.
        seed: Seed of the shuffling.
    Returns:
        For every item the index of another item with other clips and another answer (its lender). Each item with audio
        lends its clips exactly once (a derangement) wherever the answers allow it; items whose answer is the only one,
        or is that of more than half of all items, share lenders. An item without audio keeps its own index.
    Raises:
        ConfigError: if all items with audio have the same answer or the same clips, so that no shuffling can blind
            them.
    """
    with_audio = [index for index, example in enumerate(examples) if example.audio_paths]
    answers = [frozenset(text.strip().lower() for text in example.answer) for example in examples]
    clips = [frozenset(example.clips) for example in examples]

    def fits(item: int, lender: int) -> bool:
        return not (clips[item] & clips[lender] or answers[item] & answers[lender])

    rng = random.Random(seed)
    lenders = with_audio.copy()
    rng.shuffle(lenders)
    for place, item in enumerate(with_audio):
        if fits(item, lenders[place]):
            continue
        for swap_place in rng.sample(range(len(with_audio)), len(with_audio)):
            if fits(item, lenders[swap_place]) and fits(with_audio[swap_place], lenders[place]):
                lenders[place], lenders[swap_place] = lenders[swap_place], lenders[place]
                break
    result = list(range(len(examples)))
    for item, lender in zip(with_audio, lenders, strict=True):
        result[item] = lender if fits(item, lender) else _any_lender(item, with_audio, fits, rng)
        if result[item] == item:
            raise ConfigError(
                f"no other clip with another answer for item {examples[item].id!r} ({', '.join(answers[item])}); "
                "shuffled audio needs at least two clips and two answers: use silence or more items"
            )
    return result


def _any_lender(item: int, with_audio: list[int], fits: Callable[[int, int], bool], rng: random.Random) -> int:
    """A lender that fits, drawn with replacement; the item itself if there is none."""
    candidates = [lender for lender in with_audio if fits(item, lender)]
    return rng.choice(candidates) if candidates else item
