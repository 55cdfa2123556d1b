"""What all stages share on the way from rows to micro batches: decode sounds, hear them once, plant and pack trees."""

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath

import torch

from earwise.audio import decode
from earwise.errors import AudioError
from earwise.forest import Path, bins, pack, plant
from earwise.models.base import AudioLM
from earwise.models.ears import Ears
from earwise.train.policy import Micro
from earwise.types import Example, Waveform


class Sounds:
    """Decodes an example's clips for one model; a bad file stops the run or is skipped and counted, as the recipe
    says."""

    def __init__(self, model: AudioLM, *, long_audio: str, on_bad_row: str) -> None:
        self._spec = model.spec
        self._long_audio = long_audio
        self._skip = on_bad_row == "skip"
        self.skipped: dict[FilePath, str] = {}

    def load(self, example: Example) -> list[Waveform] | None:
        """Waveforms in the order of the conversation; None if one cannot be read and rows may be skipped.

        Raises:
            AudioError: naming the row and the file.
        """
        waves = []
        for path in example.audio_paths:
            try:
                waves.append(decode(path, self._spec.sample_rate, long_audio=self._long_audio, max_s=self._spec.max_s))  # type: ignore[arg-type]
            except AudioError as error:
                if not self._skip:
                    raise AudioError(f"example {example.id!r}: {error}") from error
                self.skipped[path] = str(error)
                return None
        return waves


def assemble(
    model: AudioLM,
    ears: Ears | None,
    trees: Sequence[list[Path]],
    waves: Mapping[int, Waveform],
    pack_tokens: int,
    *,
    merge: bool = True,
) -> list[Micro]:
    """Pack trees into micro batches.

    Args:
        model: Says where tensors live.
        ears: Gives what was heard; None while the encoder is trained.
        trees: Paths of each tree.
        waves: Clip number -> waveform.
        pack_tokens: Distinct tokens of one forward pass.
        merge: False runs every path by itself (benchmarks and checks only).
    """
    device = next(model.module.parameters()).device
    planted = [plant(paths, merge=merge) for paths in trees]
    heard = dict(zip(waves, ears.heard(list(waves.values())), strict=True)) if ears is not None else {}
    micros = []
    for members in bins([len(tree) for tree in planted], pack_tokens):
        forest = pack([planted[i] for i in members], device)
        clips = set(forest.clips)
        micros.append(
            Micro(
                [trees[i] for i in members],
                forest,
                {c: heard[c] for c in clips} if heard else {},
                {c: waves[c] for c in clips},
            )
        )
    return micros


def per_branch(values: Sequence[float], micro: Micro, start: int) -> torch.Tensor:
    """The slice of per-branch values that belongs to a micro batch whose first branch has number `start`."""
    count = len(micro.forest.branch_trees)
    return torch.tensor(list(values[start : start + count]), device=micro.forest.ids.device)
