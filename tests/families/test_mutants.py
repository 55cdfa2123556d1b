"""The shared suite can fail: families broken on purpose, each caught by the case that is there for it."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from earwise.models.base import AudioLM
from earwise.models.parts.attention import AttentionFn
from earwise.types import Waveform
from families import qwen2_audio, test_contract
from families.tiny import Tiny


@pytest.fixture
def sound_family() -> Tiny:
    return qwen2_audio.tiny(1)


def broken(tiny: Tiny, change: Callable[[AudioLM], None]) -> Tiny:
    """The family with its model changed; the reference stays."""
    model = copy.deepcopy(tiny.model)
    change(model)
    return dataclasses.replace(tiny, model=model)


def sees_all_that_came_before(model: AudioLM) -> None:
    decode = model.decode

    def leaking(embeddings: Tensor, positions: Tensor, attend: AttentionFn) -> Tensor:
        def causal(layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=scale, enable_gqa=queries.shape[1] != keys.shape[1]
            )

        return decode(embeddings, positions, causal)

    vars(model)["decode"] = leaking


def counts_positions_through_the_pack(model: AudioLM) -> None:
    decode = model.decode
    vars(model)["decode"] = lambda rows, positions, attend: decode(rows, torch.arange(len(positions)), attend)


def is_deaf(model: AudioLM) -> None:
    project_audio = model.project_audio
    vars(model)["project_audio"] = lambda heard: [rows * 0 for rows in project_audio(heard)]


def hears_by_batch(model: AudioLM) -> None:
    encode_audio = model.encode_audio

    def louder(waveforms: Sequence[Waveform]) -> list[Tensor]:
        return [rows * (1 + 0.01 * len(waveforms)) for rows in encode_audio(waveforms)]

    vars(model)["encode_audio"] = louder


def forgets_a_weight(model: AudioLM) -> None:
    save = model.save

    def rounded(folder: Path) -> None:
        bias = model.module.model.multi_modal_projector.linear.bias
        kept = bias.data.clone()
        bias.data.mul_(1 + 1e-6)
        save(folder)
        bias.data.copy_(kept)

    vars(model)["save"] = rounded


def announces_a_token_more(model: AudioLM) -> None:
    count = model.audio_tokens
    vars(model)["audio_tokens"] = lambda samples: count(samples) + (samples > 20000)


@pytest.mark.parametrize(
    ("change", "case"),
    [
        (sees_all_that_came_before, lambda tiny, _: test_contract.test_forest_equals_one_by_one(tiny, "full")),
        (counts_positions_through_the_pack, lambda tiny, _: test_contract.test_forest_equals_one_by_one(tiny, "lora")),
        (counts_positions_through_the_pack, lambda tiny, _: test_contract.test_generate_is_batch_invariant(tiny)),
        (is_deaf, lambda tiny, _: test_contract.test_hears(tiny)),
        (is_deaf, lambda tiny, _: test_contract.test_forward_equals_the_reference(tiny)),
        (
            hears_by_batch,
            lambda tiny, _: test_contract.test_every_clip_comes_out_as_if_alone_and_as_long_as_announced(tiny),
        ),
        (
            announces_a_token_more,
            lambda tiny, _: test_contract.test_every_clip_comes_out_as_if_alone_and_as_long_as_announced(tiny),
        ),
        (forgets_a_weight, test_contract.test_save_and_load_bit_for_bit),
    ],
)
def test_a_broken_family_is_caught(
    sound_family: Tiny, tmp_path: Path, change: Callable[[AudioLM], None], case: Callable[[Tiny, Path], None]
) -> None:
    with pytest.raises(AssertionError):
        case(broken(sound_family, change), tmp_path)
