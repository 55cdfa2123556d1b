"""Draws the items of the page to listen to, right and wrong answers in the proportion of the whole evaluation."""

from collections import Counter
from collections.abc import Sequence

from listening.items import Item
from listening.questions import SKILLS, draw_key


def draw(items: Sequence[Item], number: int, seed: int) -> list[Item]:
    """Draw items at random, without looking at them.

    Every skill gets its share of the page, and right answers get theirs, over all and in every skill, as far as whole
    numbers allow. Among the items that a share is drawn from, those are preferred whose recordings are not on the page
    yet, then tasks and fields that are not.

    Args:
        items: All items of the evaluation.
        number: Number of items to draw.
        seed: Seed of the draw.
    Returns:
        The drawn items, skill by skill, in the order of the draw's random numbers.
    """
    number = min(number, len(items))
    skills = [skill for skill in SKILLS if any(item.skill == skill for item in items)]
    total = [sum(item.skill == skill for item in items) for skill in skills]
    right = [sum(item.skill == skill and item.is_right for item in items) for skill in skills]
    slots = apportion(number, total, [0] * len(skills), total)
    least = [max(0, slot - (n - n_right)) for slot, n, n_right in zip(slots, total, right, strict=True)]
    most = [min(slot, n_right) for slot, n_right in zip(slots, right, strict=True)]
    right_slots = apportion(round(number * sum(right) / len(items)), right, least, most)
    uses = Counter[str]()
    drawn: list[Item] = []
    for skill, slot, right_slot in zip(skills, slots, right_slots, strict=True):
        for is_right, wanted in ((True, right_slot), (False, slot - right_slot)):
            stratum = [item for item in items if item.skill == skill and item.is_right == is_right]
            drawn += _fresh_first(stratum, wanted, uses, seed)
    order = {skill: place for place, skill in enumerate(skills)}
    return sorted(drawn, key=lambda item: (order[item.skill], draw_key(seed, item.example.id)))


def apportion(total: int, weights: Sequence[int], least: Sequence[int], most: Sequence[int]) -> list[int]:
    """Divide a number in proportion to weights by largest remainders, within bounds.

    Args:
        total: The number to divide; it is met as closely as the bounds allow.
        weights: Weight of each share.
        least: Lower bound of each share.
        most: Upper bound of each share.
    """
    quotas = [total * weight / max(1, sum(weights)) for weight in weights]
    shares = [min(max(int(quota), low), high) for quota, low, high in zip(quotas, least, most, strict=True)]
    while sum(shares) != total:
        step = 1 if sum(shares) < total else -1
        open_places = [
            place for place in range(len(shares)) if least[place] <= shares[place] + step <= most[place]
        ]  # fmt: skip
        if not open_places:
            break
        shares[max(open_places, key=lambda place: step * (quotas[place] - shares[place]))] += step
    return shares


def _fresh_first(stratum: Sequence[Item], wanted: int, uses: Counter[str], seed: int) -> list[Item]:
    """Draw `wanted` items; `uses` counts recordings, and tasks with their fields, that are on the page."""
    remaining = sorted(stratum, key=lambda item: draw_key(seed, item.example.id))
    drawn = []
    for _ in range(wanted):
        item = min(remaining, key=lambda item: (max(uses[clip] for clip in _clips(item)), uses[_subject(item)]))
        remaining.remove(item)
        uses.update([*_clips(item), _subject(item)])
        drawn.append(item)
    return drawn


def _clips(item: Item) -> list[str]:
    return [path.name for path in item.example.audio_paths]


def _subject(item: Item) -> str:
    return f"{item.example.task} {item.example.meta.get('field')}"
