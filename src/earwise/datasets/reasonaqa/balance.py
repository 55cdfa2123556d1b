"""Balances the position of the right option in multiple-choice questions."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

from earwise.types import Example


def balance_positions(examples: Iterable[Example], seed: int) -> Iterator[Example]:
    """Reorder the choices so that the right one is in every position equally often, in every part by itself.

    Works on a stream: positions are dealt from a shuffled deck, one deck for each part and number of choices, so that
    at any moment the counts of two positions differ by at most one. The wrong choices are shuffled too.

    Args:
        examples: The examples; those without choices or with several answers pass through unchanged.
        seed: Seed of the shuffling.
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
        choices = [choice for choice in example.choices if choice != example.answer[0]]
        rng.shuffle(choices)
        choices.insert(deck.pop(), example.answer[0])
        yield replace(example, choices=tuple(choices))
