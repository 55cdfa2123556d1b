"""From rows to micro-batches: the steps that all stages share.

Rows are drawn from a mixture of manifests, grouped by the clips they share, and their clips are decoded
(`draw_clip_groups`). A stage turns each group into the token paths of one tree. Trees are divided among processes and
packed into micro-batches with the encoder states of their clips (`build_micro_batches`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import torch

from earwise.algorithms.curriculum import EasyToHard, pass_rate
from earwise.config.stages import StageConfig
from earwise.data.index import ManifestRows
from earwise.data.mixture import Mixture
from earwise.forest import TokenPath, assign_bins, build_tree, pack
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.training.clip_loader import ClipLoader
from earwise.training.distributed import parallel
from earwise.training.policy import MicroBatch
from earwise.training.profiler import Profiler
from earwise.types import AudioClip, Example, Waveform

T = TypeVar("T")
ClipGroup = tuple[Example, ...]
"""Rows that ask about the same clips."""


@dataclass(frozen=True, slots=True)
class DrawnGroup:
    """Rows that share their clips, drawn for a step.

    Attributes:
        rows: The rows.
        clips: Numbers of their clips among the clips of the step.
        num_samples: Length of each of these clips, in samples.
    """

    rows: ClipGroup
    clips: range
    num_samples: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DrawnClips:
    """What was drawn for a step.

    Attributes:
        groups: The groups of rows.
        waveforms: Clip number -> waveform.
        num_skipped: Number of groups that were left out because their audio cannot be read.
    """

    groups: list[DrawnGroup]
    waveforms: dict[int, Waveform]
    num_skipped: int


def group_by_clips(examples: Sequence[Example]) -> Sequence[ClipGroup]:
    """Group rows that ask about the same clips, in the order of their first row."""
    if isinstance(examples, ManifestRows):
        return examples.group_by_clips()
    groups: dict[tuple[AudioClip, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.clips, []).append(example)
    return [tuple(group) for group in groups.values()]


class SingleRows(Sequence[ClipGroup]):
    """Rows as groups of one row each, for a mixture that draws rows and not clips.

    Args:
        rows: The rows.
    """

    def __init__(self, rows: Sequence[Example]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, position: int) -> ClipGroup: ...
    @overload
    def __getitem__(self, position: slice) -> list[ClipGroup]: ...
    def __getitem__(self, position: int | slice) -> ClipGroup | list[ClipGroup]:
        if isinstance(position, slice):
            return [(row,) for row in self._rows[position]]
        return (self._rows[position],)


def build_mixture(
    config: StageConfig,
    sources: Sequence[tuple[Sequence[T], float]],
    seed: int,
    rows_of: Callable[[T], Sequence[Example]],
) -> Mixture[T]:
    """The endless stream of items that a stage trains on, in the proportions and order of the recipe.

    Args:
        config: Settings of the stage.
        sources: Items (rows, or groups of rows) and weight of each manifest.
        seed: Seed of the random order.
        rows_of: Rows of an item; their mean pass rate is the item's.
    Raises:
        DataError: if the order needs pass rates and a row has none.
    """

    def item_pass_rate(item: T) -> float:
        rates = [pass_rate(row) for row in rows_of(item)]
        return sum(rates) / len(rates)

    order = None
    if config.curriculum.order == "easy_to_hard":
        order = EasyToHard([[item_pass_rate(item) for item in items] for items, _ in sources], seed)
    return Mixture(
        sources,
        seed,
        order=order,
        weight_by_size=config.data.weight_by_size,
        temperature=config.data.mixture_temperature,
    )


def draw_clip_groups(
    groups: Iterator[ClipGroup],
    count: int,
    clip_loader: ClipLoader,
    profiler: Profiler,
    *,
    at_most: bool = False,
) -> DrawnClips:
    """Draw groups of rows and decode their clips, until `count` groups could be read.

    Args:
        groups: Stream of groups.
        count: Number of groups to draw.
        clip_loader: Decodes the clips.
        profiler: Counts the time as `decode`.
        at_most: Whether the stream may end before; False for an endless stream.
    """
    drawn: list[DrawnGroup] = []
    waveforms: dict[int, Waveform] = {}
    num_skipped = 0
    while len(drawn) < count:
        group = next(groups, None) if at_most else next(groups)
        if group is None:
            break
        with profiler.phase("decode"):
            loaded = clip_loader.load_rows(group)
        if loaded is None:
            num_skipped += 1
            continue
        clips = range(len(waveforms), len(waveforms) + len(loaded.waveforms))
        waveforms |= dict(zip(clips, loaded.waveforms, strict=True))
        drawn.append(DrawnGroup(loaded.rows, clips, tuple(len(waveform) for waveform in loaded.waveforms)))
    return DrawnClips(drawn, waveforms, num_skipped)


def draw_rows(rows: Iterator[ClipGroup], count: int, clip_loader: ClipLoader, profiler: Profiler) -> DrawnClips:
    """Draw rows, group those about the same clips, and decode the clips, until `count` rows could be read.

    Args:
        rows: Endless stream of rows, each as a group of its own (`SingleRows`).
        count: Number of rows to draw.
        clip_loader: Decodes the clips.
        profiler: Counts the time as `decode`.
    """
    groups: list[DrawnGroup] = []
    waveforms: dict[int, Waveform] = {}
    num_skipped, num_rows = 0, 0
    while num_rows < count:
        drawn_groups = group_by_clips([row for _ in range(count - num_rows) for row in next(rows)])
        drawn = draw_clip_groups(iter(drawn_groups), len(drawn_groups), clip_loader, profiler, at_most=True)
        first = len(waveforms)
        for group in drawn.groups:
            clips = range(group.clips.start + first, group.clips.stop + first)
            groups.append(DrawnGroup(group.rows, clips, group.num_samples))
            num_rows += len(group.rows)
        waveforms |= {first + clip: waveform for clip, waveform in drawn.waveforms.items()}
        num_skipped += drawn.num_skipped
    return DrawnClips(groups, waveforms, num_skipped)


def local_trees(trees: Sequence[list[TokenPath]]) -> list[list[TokenPath]]:
    """This process's share of the trees of a step, balanced by an estimate of their distinct tokens."""
    sizes = [max(len(path.ids) for path in paths) + sum(sum(path.trained) for path in paths) for paths in trees]
    return [trees[number] for number in parallel.assigned_items(sizes)]


def count_trained_tokens(trees: Sequence[Sequence[TokenPath]]) -> float:
    """Trained tokens of all paths of all trees: the denominator of a mean over a step."""
    return float(sum(sum(path.trained) for paths in trees for path in paths))


def sharing_metrics(
    micro_batches: Sequence[MicroBatch[Any]],
    trees: Sequence[Sequence[TokenPath]],
    waveforms: Mapping[int, Waveform],
    sample_rate: int,
) -> dict[str, float]:
    """Metrics of the data of a step.

    Args:
        micro_batches: Micro-batches of this process.
        trees: Trees of all processes.
        waveforms: Clip number -> waveform, of all processes.
        sample_rate: Samples per second of the waveforms.
    Returns:
        `distinct_share`: distinct tokens of the packed trees divided by the tokens of all paths; `audio_s`: seconds of
        audio.
    """
    num_distinct = parallel.all_sum({"tokens": sum(len(batch.forest) for batch in micro_batches)})["tokens"]
    num_path_tokens = sum(len(path.ids) for paths in trees for path in paths)
    audio_s = sum(len(waveform) for waveform in waveforms.values()) / sample_rate
    return {"distinct_share": num_distinct / num_path_tokens, "audio_s": audio_s}


def build_micro_batches(
    model: AudioLM,
    encoder_cache: EncoderCache | None,
    trees: Sequence[list[TokenPath]],
    waveforms: Mapping[int, Waveform],
    pack_tokens: int,
    *,
    merge: bool = True,
) -> list[MicroBatch[None]]:
    """Pack trees into micro-batches.

    Args:
        model: The model, which sets the device of the tensors.
        encoder_cache: Source of the encoder states; None while the encoder is trained.
        trees: Token paths of each tree.
        waveforms: Clip number -> waveform.
        pack_tokens: Largest number of distinct tokens in one forward pass; a larger tree gets a pass of its own.
        merge: Whether paths share their common beginning; False is for benchmarks and checks.
    """
    device = next(model.module.parameters()).device
    merged_trees = [build_tree(paths, merge=merge) for paths in trees]
    encoder_states = {}
    if encoder_cache is not None:
        clips = sorted({clip for tree in merged_trees for clip in tree.clips if clip >= 0})
        states = encoder_cache.encoder_states([waveforms[clip] for clip in clips])
        encoder_states = dict(zip(clips, states, strict=True))
    micro_batches = []
    for members in assign_bins([len(tree) for tree in merged_trees], pack_tokens):
        forest = pack([merged_trees[number] for number in members], device)
        forest_clips = set(forest.audio_clips)
        micro_batches.append(
            MicroBatch(
                paths=[trees[number] for number in members],
                forest=forest,
                encoder_states={clip: encoder_states[clip] for clip in forest_clips} if encoder_states else {},
                waveforms={clip: waveforms[clip] for clip in forest_clips},
                loss_inputs=None,
            )
        )
    return micro_batches


def branch_slice(values: Sequence[float], micro_batch: MicroBatch[Any], first_branch: int) -> torch.Tensor:
    """The values of a micro-batch's branches, as a tensor `(branches,)` on its device.

    Args:
        values: One value per branch of the step.
        micro_batch: One forward pass of the step.
        first_branch: Number, among all branches of the step, of the micro-batch's first branch.
    """
    num_branches = len(micro_batch.forest.branch_trees)
    return torch.tensor(list(values[first_branch : first_branch + num_branches]), device=micro_batch.forest.ids.device)
