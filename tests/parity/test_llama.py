"""Our Llama decoder and log-mel features against transformers' own: equal bit for bit, gradients included."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor

from builders import max_abs, tone
from earwise.forest import TokenPath, build_tree, pack
from earwise.models.decoders import transformers_decoder
from earwise.models.decoders.llama import LlamaDecoder, LlamaSizes
from earwise.models.parts import gradient_checkpointing, whisper
from earwise.models.parts.attention import TreeAttention

SIZES = LlamaSizes(60, 32, 48, 3, 4, 2, rms_norm_eps=1e-5, rope_theta=1e5)


def decoder(dtype: torch.dtype) -> LlamaDecoder:
    """A decoder with random weights, in which no norm is neutral."""
    generator = torch.Generator().manual_seed(3)
    module = LlamaDecoder(SIZES)
    for parameter in module.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.data = (values * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1 + 0.2 * values).to(dtype)
    return module


def trees() -> list[list[int]]:
    """Two completions of one prompt, and another prompt."""
    return [[5, 6, 7, 8, 9], [5, 6, 7, 10], [20, 21]]


def results(module: nn.Module, decode: object) -> list[Tensor]:
    """Hidden states of packed trees, and the gradients of all parameters of a weighted sum of them."""
    paths = [TokenPath(tuple(ids), (False,) * len(ids), (-1,) * len(ids)) for ids in trees()]
    forest = pack([build_tree(paths[:2]), build_tree(paths[2:])])
    module.zero_grad()
    hidden = decode(module.embed_tokens(forest.ids), forest.positions, TreeAttention(forest))  # type: ignore[operator]
    (hidden.float() * torch.arange(hidden.numel()).view(hidden.shape).cos()).sum().backward()
    return [hidden, *(value for value in (parameter.grad for parameter in module.parameters()) if value is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("recomputes", [False, True], ids=["stored", "recomputed"])
def test_the_decoder_equals_transformers_bit_for_bit(dtype: torch.dtype, recomputes: bool) -> None:
    ours = decoder(dtype).train()
    theirs = transformers_decoder.as_transformers(ours, transformers_decoder.IMPLEMENTATION)
    assert all(not parameter.is_meta for parameter in theirs.parameters())
    if recomputes:
        assert gradient_checkpointing.enable_gradient_checkpointing(ours) == SIZES.num_hidden_layers
    expected = results(theirs, lambda *inputs: transformers_decoder.decode_packed(theirs, *inputs))
    got = results(ours, ours)
    assert len(got) == len(expected) == 1 + len(list(ours.parameters()))
    assert all(torch.equal(value, other) for value, other in zip(got, expected, strict=True))


def test_the_check_runs_transformers_eager_attention() -> None:
    module = decoder(torch.float32)
    ids = torch.tensor(trees()[0])
    forest = pack([build_tree([TokenPath(tuple(ids.tolist()), (False,) * len(ids), (-1,) * len(ids))])])
    ours = module(module.embed_tokens(ids), forest.positions, TreeAttention(forest))
    eager = transformers_decoder.decode_eagerly(module, module.embed_tokens(ids))
    assert 0 < max_abs([ours - eager]) < 1e-5
    module.layers[1].self_attn.scaling *= 2  # a fault of ours, which transformers' attention does not share
    assert max_abs([module(module.embed_tokens(ids), forest.positions, TreeAttention(forest)) - eager]) > 1e-3


@pytest.mark.parametrize("mels", [16, 80, 128])
def test_log_mel_equals_transformers_feature_extractor(mels: int) -> None:
    extractor = WhisperFeatureExtractor(feature_size=mels)
    for waveform in (tone(1.3), 0.3 * tone(0.4, 900.0), np.zeros(3200, np.float32)):
        expected = extractor(waveform, sampling_rate=16000, return_tensors="pt").input_features[0]
        assert max_abs([whisper.log_mel(waveform, mels, 30.0) - torch.as_tensor(expected)]) < 1e-6
