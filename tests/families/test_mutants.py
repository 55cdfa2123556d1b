"""The shared suite can fail: families that are broken on purpose, each detected by the test that is meant for it."""

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
def correct_family() -> Tiny:
    return qwen2_audio.tiny(1)


def broken(tiny: Tiny, change: Callable[[AudioLM], None]) -> Tiny:
    """The family with its model changed; the reference stays."""
    model = copy.deepcopy(tiny.model)
    change(model)
    return dataclasses.replace(tiny, model=model)


def attends_to_all_earlier_tokens(model: AudioLM) -> None:
    decode = model.decode

    def leaking(embeddings: Tensor, positions: Tensor, attend: AttentionFn) -> Tensor:
        def causal(
            layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None = None
        ) -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=scale, enable_gqa=queries.shape[1] != keys.shape[1]
            )

        return decode(embeddings, positions, causal)

    vars(model)["decode"] = leaking


def numbers_positions_across_the_pack(model: AudioLM) -> None:
    decode = model.decode
    vars(model)["decode"] = lambda rows, positions, attend: decode(rows, torch.arange(len(positions)), attend)


def ignores_audio(model: AudioLM) -> None:
    project_audio = model.project_audio
    vars(model)["project_audio"] = lambda encoder_states: [rows * 0 for rows in project_audio(encoder_states)]


def depends_on_the_batch_size(model: AudioLM) -> None:
    encode_audio = model.encode_audio

    def louder(waveforms: Sequence[Waveform]) -> list[Tensor]:
        return [rows * (1 + 0.01 * len(waveforms)) for rows in encode_audio(waveforms)]

    vars(model)["encode_audio"] = louder


def saves_a_rounded_weight(model: AudioLM) -> None:
    save = model.save

    def rounded(folder: Path) -> None:
        bias = model.module.model.multi_modal_projector.linear.bias
        original = bias.data.clone()
        bias.data.mul_(1 + 1e-6)
        save(folder)
        bias.data.copy_(original)

    vars(model)["save"] = rounded


def counts_one_token_too_many(model: AudioLM) -> None:
    count = model.audio_tokens
    vars(model)["audio_tokens"] = lambda samples: count(samples) + (samples > 20000)


@pytest.mark.parametrize(
    ("change", "case"),
    [
        (attends_to_all_earlier_tokens, lambda tiny, _: test_contract.test_forest_equals_one_by_one(tiny, "full")),
        (numbers_positions_across_the_pack, lambda tiny, _: test_contract.test_forest_equals_one_by_one(tiny, "lora")),
        (numbers_positions_across_the_pack, lambda tiny, _: test_contract.test_generate_is_batch_invariant(tiny)),
        (ignores_audio, lambda tiny, _: test_contract.test_uses_audio(tiny)),
        (ignores_audio, lambda tiny, _: test_contract.test_forward_equals_the_reference(tiny)),
        (
            depends_on_the_batch_size,
            lambda tiny, _: test_contract.test_clips_do_not_depend_on_the_batch(tiny),
        ),
        (
            counts_one_token_too_many,
            lambda tiny, _: test_contract.test_clips_do_not_depend_on_the_batch(tiny),
        ),
        (saves_a_rounded_weight, test_contract.test_save_and_load_bit_for_bit),
    ],
)
def test_a_broken_family_is_detected(
    correct_family: Tiny, tmp_path: Path, change: Callable[[AudioLM], None], case: Callable[[Tiny, Path], None]
) -> None:
    with pytest.raises(AssertionError):
        case(broken(correct_family, change), tmp_path)
