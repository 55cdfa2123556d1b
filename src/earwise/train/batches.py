"""What all stages share on the way from rows to micro batches: decode sounds, hear them once, plant and pack trees."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from earwise.algorithms.curriculum import EasyToHard, pass_rate
from earwise.audio import LongAudio, chunks, decode, num_samples, probe
from earwise.config.stages import Stage
from earwise.data.mixture import Mixture
from earwise.errors import AudioError
from earwise.forest import TokenPath, assign_bins, build_tree, pack
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.prompts import repeat_audio_parts
from earwise.train.distributed import parallel
from earwise.train.policy import Micro
from earwise.train.profiler import Clock
from earwise.types import Example, Waveform

T = TypeVar("T")
HOPELESS = 1000
"""So many rows in a row without a sound that can be read end a run that may skip them: it would never take a step."""


class Sounds:
    """Decodes an example's clips for one model; a bad file stops the run or is skipped and counted, as the recipe
    says."""

    def __init__(self, model: AudioLM, *, long_audio: LongAudio, on_bad_row: str) -> None:
        self._spec = model.spec
        self._long_audio = long_audio
        self._skip = on_bad_row == "skip"
        self._in_a_row = 0
        self.skipped: dict[Path, str] = {}
        self.long: set[Path] = set()
        """Clips that were longer than the model hears, and truncated or cut into pieces."""

    def fit(self, rows: tuple[Example, ...]) -> tuple[tuple[Example, ...], list[Waveform]] | None:
        """Rows that share their sounds, and these as waveforms in the order of the conversation. Where a long sound
        was cut into several, the rows have as many audio parts in its place. None as `load`."""
        pieces = self._pieces(rows[0])
        if pieces is None:
            return None
        counts = [len(some) for some in pieces]
        if max(counts, default=1) > 1:
            rows = tuple(replace(row, turns=repeat_audio_parts(row.turns, counts)) for row in rows)
        return rows, [piece for some in pieces for piece in some]

    def load(self, example: Example) -> list[Waveform] | None:
        """Waveforms in the order of the conversation; None if one cannot be read and rows may be skipped.

        Raises:
            AudioError: naming the row and the file.
        """
        fitted = self.fit((example,))
        return None if fitted is None else fitted[1]

    def _pieces(self, example: Example) -> list[list[Waveform]] | None:
        """What is heard of each clip: one waveform, under `chunk` perhaps several."""
        waveforms = []
        rate, longest = self._spec.sample_rate, self._spec.max_s
        for path in example.audio_paths:
            try:
                wave = decode(path, rate, long_audio=self._long_audio, max_s=longest)
                full = len(wave) >= num_samples(longest, rate)  # of a truncated clip only its header says more
                if full and path not in self.long and probe(path).duration_s > longest:
                    self.long.add(path)
                waveforms.append(chunks(wave, rate, longest) if self._long_audio == "chunk" else [wave])
            except AudioError as error:
                if not self._skip:
                    raise AudioError(f"example {example.id!r}: {error}") from error
                self.skipped[path] = str(error)
                self._in_a_row += 1
                if self._in_a_row >= HOPELESS:
                    raise AudioError(
                        f"{self._in_a_row} rows in a row cannot be read, the last is {example.id!r}: {error}; "
                        "see to the data (`earwise build scan` reads all of it), then --resume"
                    ) from error
                return None
        self._in_a_row = 0
        return waveforms


@dataclass(frozen=True, slots=True)
class Drawn:
    """Rows that share their sounds, and where these are among the step's."""

    rows: tuple[Example, ...]
    clips: range
    """Numbers of the clips in the step's waves."""
    samples: tuple[int, ...]
    """Length of each clip, in samples."""


def stream(
    stage: Stage, items: Sequence[tuple[Sequence[T], float]], seed: int, rows: Callable[[T], Sequence[Example]]
) -> Mixture[T]:
    """What a stage draws from, without end, mixed and ordered as its recipe says.

    Args:
        stage: Its settings.
        items: Of each manifest, with its weight.
        seed: Of the order.
        rows: Those of an item; its pass rate is their mean.
    Raises:
        DataError: if the order wants pass rates and a row has none.
    """

    def rate(item: T) -> float:
        some = rows(item)
        return sum(map(pass_rate, some)) / len(some)

    ordered = stage.curriculum.order == "easy_to_hard"
    order = EasyToHard([[rate(item) for item in some] for some, _ in items], seed) if ordered else None
    return Mixture(items, seed, order=order, by_size=stage.data.by_size, temperature=stage.data.temperature)


def draw(
    units: Iterator[tuple[Example, ...]], count: int, sounds: Sounds, clock: Clock
) -> tuple[list[Drawn], dict[int, Waveform], int]:
    """Take units whose sounds can be read, and decode these.

    Args:
        units: Endless; rows of a unit share their sounds.
        count: How many to take.
        sounds: Decodes.
        clock: Told of the time for it.
    Returns:
        The units, clip number -> waveform, and how many units were skipped.
    """
    drawn: list[Drawn] = []
    waveforms: dict[int, Waveform] = {}
    skipped = 0
    while len(drawn) < count:
        rows = next(units)
        with clock("decode"):
            fitted = sounds.fit(rows)
        if fitted is None:
            skipped += 1
            continue
        rows, clips = fitted
        numbers = range(len(waveforms), len(waveforms) + len(clips))
        waveforms |= dict(zip(numbers, clips, strict=True))
        drawn.append(Drawn(rows, numbers, tuple(len(clip) for clip in clips)))
    return drawn, waveforms, skipped


def work_shared(
    micros: Sequence[Micro], trees: Sequence[Sequence[TokenPath]], waveforms: Mapping[int, Waveform], sample_rate: int
) -> dict[str, float]:
    """For the log: distinct tokens of all processes by all tokens of the paths, and seconds of sound."""
    distinct = parallel.total({"tokens": sum(len(micro.forest) for micro in micros)})["tokens"]
    whole = sum(len(path.ids) for paths in trees for path in paths)
    return {"distinct_share": distinct / whole, "audio_s": sum(len(wave) for wave in waveforms.values()) / sample_rate}


def mine(trees: Sequence[list[TokenPath]]) -> list[list[TokenPath]]:
    """This process's share of a step's trees, balanced by about how many distinct tokens they have."""
    sizes = [max(len(path.ids) for path in paths) + sum(sum(path.trained) for path in paths) for paths in trees]
    return [trees[number] for number in parallel.share(sizes)]


def targets(trees: Sequence[Sequence[TokenPath]]) -> float:
    """Trained tokens of all branches of all trees: the denominator of a mean over a step."""
    return float(sum(sum(path.trained) for paths in trees for path in paths))


def assemble(
    model: AudioLM,
    encoder_cache: EncoderCache | None,
    trees: Sequence[list[TokenPath]],
    waveforms: Mapping[int, Waveform],
    pack_tokens: int,
    *,
    merge: bool = True,
) -> list[Micro]:
    """Pack trees into micro batches.

    Args:
        model: Says where tensors live.
        ears: Gives what was heard; None while the encoder is trained.
        trees: Paths of each tree.
        waveforms: Clip number -> waveform.
        pack_tokens: Distinct tokens of one forward pass.
        merge: False runs every path by itself (benchmarks and checks only).
    """
    device = next(model.module.parameters()).device
    planted = [build_tree(paths, merge=merge) for paths in trees]
    asked = sorted({clip for tree in planted for clip in tree.clips if clip >= 0})
    heard = dict(zip(asked, encoder_cache.encoder_states([waveforms[clip] for clip in asked]), strict=True)) if encoder_cache is not None else {}
    micros = []
    for members in assign_bins([len(tree) for tree in planted], pack_tokens):
        forest = pack([planted[i] for i in members], device)
        clips = set(forest.audio_clips)
        micros.append(
            Micro(
                [trees[i] for i in members],
                forest,
                {c: heard[c] for c in clips} if heard else {},
                {c: waveforms[c] for c in clips},
            )
        )
    return micros


def per_branch(values: Sequence[float], micro: Micro, start: int) -> torch.Tensor:
    """The slice of per-branch values that belongs to a micro batch whose first branch has number `start`."""
    count = len(micro.forest.branch_trees)
    return torch.tensor(list(values[start : start + count]), device=micro.forest.ids.device)
