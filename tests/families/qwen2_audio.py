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


def clip_of_token(ids: Sequence[int], placeholder: int) -> tuple[int, ...]:
    """Clip of every token, -1 for text: runs of the placeholder are counted from 0."""
    clips: list[int] = []
    number = -1
    for index, token in enumerate(ids):
        number += token == placeholder and (index == 0 or ids[index - 1] != placeholder)
        clips.append(number if token == placeholder else -1)
    return tuple(clips)


def tiny(seed: int = 0) -> Tiny:
    """Two layers on each side, clips of up to 2 s."""
    model = tiny_qwen2_audio(seed)

    @torch.no_grad()
    def reference(ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
        path = TokenPath(tuple(ids), (False,) * len(ids), clip_of_token(ids, model.placeholder_id))
        logits: Tensor = hf_copy(model)(**hf_inputs(path, dict(enumerate(waveforms)))).logits[0]
        return logits

    def reload(model: AudioLM, folder: Path) -> AudioLM:
        model.save(folder)
        return load(folder)

    return Tiny(model, reference, reload, max_s=float(WINDOW_S))
