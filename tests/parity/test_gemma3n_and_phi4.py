"""Gemma 3n and Phi-4-multimodal where they differ from other families: sequences that a forest cannot decode exactly,
clips longer than an encoder block, tensors that are never computed with, and audio tokens that are padded.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import max_abs, tone
from earwise.errors import ModelError
from earwise.forest import TokenPath
from earwise.models.families.gemma3n import load
from earwise.models.families.transformers_audio import TransformersAudioLM
from earwise.types import Waveform
from families import gemma3n, phi4_multimodal
from families.forests import conversation, scores, turn
from families.tiny import Tiny


def text_path(ids: list[int]) -> TokenPath:
    """Text tokens as a path."""
    return TokenPath(tuple(ids), (False,) * len(ids), (-1,) * len(ids))


def check_limit(family: Tiny, limit: int) -> list[int]:
    """Check that `limit` tokens are decoded as the class does and one more is refused; returns those."""
    ids = family.model.tokenizer.encode("".join(chr(97 + index * index % 26) for index in range(limit + 1)))
    ours = scores(family.model, text_path(ids[:limit]), {})
    assert max_abs([ours - family.reference(ids[:limit], [])]) < 1e-4
    with pytest.raises(ModelError, match=f"{limit + 1} tokens is longer than the {limit}"):
        scores(family.model, text_path(ids), {})
    return ids


@torch.no_grad()
def test_gemma_decodes_sequences_longer_than_its_window() -> None:
    family = gemma3n.tiny(sliding_window=40)
    ids = family.model.tokenizer.encode("".join(chr(97 + index * index % 26) for index in range(130)))
    ours, reference = scores(family.model, text_path(ids), {}), family.reference(ids, [])
    assert max_abs([ours - reference]) < 1e-4
    unlimited = gemma3n.tiny(sliding_window=4000).reference(ids, [])
    assert max_abs([unlimited[:40] - reference[:40]]) < 1e-4 and float((unlimited - reference)[40].abs().max()) > 1e-3


@torch.no_grad()
def test_phi4_refuses_sequences_that_longrope_rotates_differently() -> None:
    family = phi4_multimodal.tiny()
    limit = phi4_multimodal.MAX_SEQUENCE
    ids = check_limit(family, limit)
    assert max_abs([family.reference(ids, [])[:limit] - family.reference(ids[:limit], [])]) > 1e-2


@torch.no_grad()
def test_phi4_encodes_more_than_one_block_of_40_s() -> None:
    family = phi4_multimodal.tiny()
    waveform = tone(41.0)
    path = conversation(family.model, [turn("user", "What?", 0)], {0: waveform})
    assert path.clips.count(0) == 513
    expected = family.reference(path.ids, [waveform])
    assert max_abs([scores(family.model, path, {0: waveform}) - expected]) < 1e-4


def test_gemma_keeps_image_tensors_and_skips_those_of_sharing_layers(tmp_path: Path) -> None:
    model = gemma3n.tiny().model
    model.save(tmp_path / "first")
    file = tmp_path / "first" / "model.safetensors"
    images = {
        "model.vision_tower.timm_model.conv_stem.weight": torch.randn(2, 3),
        "model.embed_vision.embedding.weight": torch.randn(8, 8),
    }
    unused = {"model.language_model.layers.3.self_attn.k_proj.weight": torch.randn(16, 32)}
    save_file(load_file(file) | images | unused, file, {"format": "pt"})
    loaded = load(tmp_path / "first")
    assert isinstance(loaded, TransformersAudioLM)
    assert all(
        torch.equal(value, model.module.state_dict()[name]) for name, value in loaded.module.state_dict().items()
    )
    loaded.save(tmp_path / "second")
    written = load_file(tmp_path / "second" / "model.safetensors")
    assert all(torch.equal(value, written[name]) for name, value in images.items())
    assert not unused.keys() & written.keys()


def test_gemma_pads_the_tokens_of_short_clips() -> None:
    """A clip of 0.32 s gives two states of its own; the other rows are the padding token's, the same in every clip."""
    model = gemma3n.tiny().model
    waveforms: list[Waveform] = [tone(0.32), tone(1.9, 900.0)]
    encoder_states = model.encode_audio(waveforms)
    assert [len(states) for states in encoder_states] == [2, 12]
    short, long = model.project_audio(encoder_states)
    assert short.shape == long.shape == (13, 32 + 4 * 8)
    assert torch.equal(short[2:], long[12:].expand(11, -1))
