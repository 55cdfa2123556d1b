"""Qwen2-Audio at test size; the reference is transformers' own class on clips padded to its window."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from builders import WINDOW_S, hf_copy, hf_inputs, tiny_qwen2_audio
from earwise.forest import TokenPath
from earwise.models.base import AudioLM
from earwise.models.families.qwen2_audio import load
from earwise.types import Waveform
from families.tiny import Tiny


def runs(ids: Sequence[int], placeholder: int) -> tuple[int, ...]:
    """Clip of every token, -1 for text: unbroken runs of the placeholder are counted from 0."""
    clips: list[int] = []
    number = -1
    for place, token in enumerate(ids):
        number += token == placeholder and (place == 0 or ids[place - 1] != placeholder)
        clips.append(number if token == placeholder else -1)
    return tuple(clips)


def tiny(seed: int = 0) -> Tiny:
    """Two layers on each side, hears 2 s."""
    model = tiny_qwen2_audio(seed)

    @torch.no_grad()
    def reference(ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
        path = TokenPath(tuple(ids), (False,) * len(ids), runs(ids, model.placeholder_id))
        logits: Tensor = hf_copy(model)(**hf_inputs(path, dict(enumerate(waveforms)))).logits[0]
        return logits

    def reload(changed: AudioLM, folder: Path) -> AudioLM:
        changed.save(folder)
        return load(folder)

    return Tiny(model, reference, reload, max_s=float(WINDOW_S))
