"""Qwen3-Omni's thinker where it differs from other families: encoder windows, token counts, positions, and tensor names
in checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3OmniMoeThinkerForConditionalGeneration
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import _get_feat_extract_output_lengths

from builders import feature_extractor, max_abs, tone, user_question
from earwise.forest import build_tree, pack
from earwise.models import base
from earwise.models.families.qwen3_omni import TEMPLATE, token_count
from earwise.models.parts import mel
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.prompts import render
from families.qwen3_omni import our_model, reference_model, tokenizer
from families.transformers_audio import FULL_WINDOW


def test_counts_as_the_class() -> None:
    frames = torch.arange(1, 3201)
    assert [token_count(int(count)) for count in frames] == _get_feat_extract_output_lengths(frames).tolist()


@torch.no_grad()
@pytest.mark.parametrize("samples", [(1,), (1600,), (15999,), (16000,), (16001,), (31999, 32000, 16001, 20000)])
def test_embeddings_equal_those_of_the_class(samples: tuple[int, ...]) -> None:
    """One clip of any length; several if each has a whole second (else the class pads the short one further)."""
    module = reference_model(4)
    model = our_model(module)
    waveforms = [tone(2.0, 300 + 70 * number)[:count] for number, count in enumerate(samples)]
    features = feature_extractor()(waveforms, **FULL_WINDOW)
    expected = module.get_audio_features(features.input_features, features.attention_mask).last_hidden_state
    ours = model.project_audio(model.encode_audio(waveforms))
    assert [len(clip) for clip in ours] == [model.audio_tokens(count) for count in samples]
    assert max_abs([torch.cat(ours) - expected]) < 1e-5


@torch.no_grad()
def test_attends_within_eight_seconds() -> None:
    """The released window: 104 tokens; 17.3 s are two windows and a part of one."""
    module = reference_model(5)
    module.model.audio_tower.n_window_infer = 800
    waveform = tone(17.3)
    features = feature_extractor(window_s=20)([waveform], **FULL_WINDOW)
    expected = module.get_audio_features(features.input_features, features.attention_mask).last_hidden_state
    model = our_model(module, window_s=20)
    (ours,) = model.project_audio(model.encode_audio([waveform]))
    assert len(ours) == 13 * 17 + 4
    assert max_abs([ours - expected]) < 1e-5
    # A change after 9 s reaches the second window only.
    changed_waveform = waveform.copy()
    changed_waveform[9 * 16000 :] *= -0.5
    (changed,) = model.project_audio(model.encode_audio([changed_waveform]))
    assert max_abs([changed[:104] - ours[:104]]) < 1e-5 < 1e-3 < max_abs([changed[104:208] - ours[104:208]])


@torch.no_grad()
def test_positions_are_the_depths() -> None:
    module = reference_model()
    model = our_model(module)
    samples = [9999, 24000]
    trunk = conversation_path(model, user_question("Which is louder?", 2), [0, 1], samples, generate=True)
    path = trunk + answer_path(model, "the second")
    ids = torch.tensor([path.ids])
    frames = torch.tensor([mel.frame_count(count) for count in samples])
    no_images = torch.zeros(0, 3, dtype=torch.long)  # an empty list selects the class's multimodal branch
    expected, _ = module.get_rope_index(ids, no_images, None, torch.ones_like(ids), audio_seqlens=frames)
    assert torch.equal(expected, pack([build_tree([path])]).positions.expand(3, 1, -1).to(expected))


def test_checkpoints_name_every_expert(tmp_path: Path) -> None:
    """The released names (one tensor per expert, all under `thinker.`) are read; the saved ones are the same, and
    transformers' own class reads them as a whole thinker."""
    module = reference_model(6)
    module.save_pretrained(tmp_path / "reference")
    tensors = load_file(tmp_path / "reference" / "model.safetensors")
    assert "model.layers.1.mlp.experts.3.gate_proj.weight" in tensors
    released = tmp_path / "released"
    released.mkdir()
    talker = {"talker.codec_head.weight": torch.zeros(2), "code2wav.decoder.weight": torch.zeros(2)}
    save_file({f"thinker.{name}": value for name, value in tensors.items()} | talker, released / "model.safetensors")
    config = {"model_type": "qwen3_omni_moe", "thinker_config": module.config.to_dict()}
    (released / "config.json").write_text(json.dumps(config))
    feature_extractor().save_pretrained(released)
    tokenizer().save(str(released / "tokenizer.json"))
    model = base.load("qwen3_omni", released, device="cpu")
    expected = our_model(module).module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.module.state_dict().items())
    model.save(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == {f"thinker.{name}" for name in tensors}
    loaded, report = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(report.values())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in module.state_dict().items())


def test_chat_format() -> None:
    spans = render(user_question("What?"), TEMPLATE, generate=True)
    assert "".join("@" if span.audio else span.text for span in spans) == (
        "<|im_start|>user\n<|audio_start|>@<|audio_end|>What?<|im_end|>\n<|im_start|>assistant\n"
    )
