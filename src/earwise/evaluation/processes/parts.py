"""Which process answers which items: parts of an evaluation, divided so that a clip is heard in one process only.

Pure. Every process computes the same division from the same items, so that processes need not talk to each other; they
share a folder alone (`row_log.py`).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from earwise.errors import ConfigError
from earwise.evaluation.items import EvalItem


@dataclass(frozen=True, slots=True)
class Part:
    """One of several processes that share an evaluation."""

    index: int = 0
    """Number of the process, from 0."""
    count: int = 1
    """Number of processes."""

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"part {self.index + 1} of {self.count}: the first is 1, the last {self.count}")

    @property
    def is_whole(self) -> bool:
        """Whether there is one process only."""
        return self.count == 1

    @property
    def name(self) -> str:
        """Name of its folder: `2-of-4`."""
        return f"{self.index + 1}-of-{self.count}"


WHOLE = Part()
"""The only process of an evaluation."""


def parse_part(text: str) -> Part:
    """A part as it is written on the command line.

    >>> parse_part("2/4").name
    '2-of-4'

    Raises:
        ConfigError: if it is not two numbers with a slash between them.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise ConfigError(f"part {text!r}: write the number of this process and of all, for example 1/4")
    return Part(int(index) - 1, int(count))


def launched_part(environment: Mapping[str, str] = os.environ) -> Part:
    """The part of a process that `accelerate launch` or `torchrun` has started; the whole without a launcher.

    Args:
        environment: Variables of the process; launchers set `RANK` and `WORLD_SIZE`.
    Raises:
        ConfigError: if `accelerate launch` was to start several processes and started one, as it does without GPUs and
            without a configuration.
    """
    if "MASTER_PORT" in environment and "WORLD_SIZE" not in environment and "ACCELERATE_USE_CPU" in environment:
        raise ConfigError(
            "accelerate launch started one process only, although --num_processes asks for several; launch with "
            '--config_file "$(earwise recipe --path ddp)" --num_processes N, or with torchrun --nproc-per-node N'
        )
    rank, size = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    return Part(int(rank), int(size)) if rank.isdecimal() and size.isdecimal() else WHOLE


def grouped_by_clip(items: Sequence[EvalItem]) -> list[EvalItem]:
    """The items with those on the same clips one after the other, in the order in which the clips appear first.

    A clip is then decoded once, and an engine that caches encoder states encodes it once.
    """
    groups: dict[str, list[EvalItem]] = {}
    for item in items:
        groups.setdefault(_clips_key(item), []).append(item)
    return [item for members in groups.values() for item in members]


def share_of(items: Sequence[EvalItem], part: Part) -> list[EvalItem]:
    """The items that a process answers: of all items, grouped by clip, a run of about equal length.

    Args:
        items: All items of the evaluation.
        part: The process.
    """
    grouped = grouped_by_clip(items)
    starts: dict[str, int] = {}
    for number, item in enumerate(grouped):
        starts.setdefault(_clips_key(item), number)
    return [item for item in grouped if starts[_clips_key(item)] * part.count // len(grouped) == part.index]


def _clips_key(item: EvalItem) -> str:
    """What items on the same clips have in common; an item without a file stands for itself."""
    return "\n".join(map(str, item.clips)) or f"\n{item.example.id}"
