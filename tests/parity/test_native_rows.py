"""Qwen3-Omni's thinker and Audio Flamingo 3 where they differ from others: windows, counts, names in checkpoints."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3OmniMoeThinkerForConditionalGeneration
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import _get_feat_extract_output_lengths

from builders import ask, feature_extractor, largest, sound
from earwise.errors import AudioError, ModelError
from earwise.forest import build_tree, pack
from earwise.models import base
from earwise.models.families import audio_flamingo3, native, qwen3_omni
from earwise.models.families.native import Native
from earwise.models.parts import mel
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.prompts import render
from families.native import PADDED, marked, plain_audio_flamingo3, plain_qwen3_omni

OMNI_MARKS = {"mark": "<|audio_pad|>", "start": "<|audio_start|>", "end": "<|audio_end|>"}


def omni(module: Qwen3OmniMoeThinkerForConditionalGeneration, window_s: int = 2) -> Native:
    return native.from_parts(
        qwen3_omni.ROW, copy.deepcopy(module), marked(**OMNI_MARKS), feature_extractor(window_s=window_s)
    )


def flamingo(seed: int = 0) -> Native:
    features = feature_extractor(window_s=1)
    return native.from_parts(audio_flamingo3.ROW, plain_audio_flamingo3(seed), marked(mark="<sound>"), features)


def test_qwen3_omni_counts_as_the_class() -> None:
    frames = torch.arange(1, 3201)
    assert [qwen3_omni.token_count(int(n)) for n in frames] == _get_feat_extract_output_lengths(frames).tolist()


@torch.no_grad()
@pytest.mark.parametrize("samples", [(1,), (1600,), (15999,), (16000,), (16001,), (31999, 32000, 16001, 20000)])
def test_qwen3_omni_hears_what_the_class_hears(samples: tuple[int, ...]) -> None:
    """One clip of any length; several if each has a whole second (else the class pads the short one further)."""
    module = plain_qwen3_omni(4)
    model = omni(module)
    waveforms = [sound(2.0, 300 + 70 * number)[:count] for number, count in enumerate(samples)]
    heard = feature_extractor()(waveforms, **PADDED)
    own = module.get_audio_features(heard.input_features, heard.attention_mask).last_hidden_state
    ours = model.project_audio(model.encode_audio(waveforms))
    assert [len(clip) for clip in ours] == [model.audio_tokens(count) for count in samples]
    assert largest([torch.cat(ours) - own]) < 1e-5


@torch.no_grad()
def test_qwen3_omni_attends_within_eight_seconds() -> None:
    """The released window: 104 tokens; 17.3 s are two windows and a rest."""
    module = plain_qwen3_omni(5)
    module.model.audio_tower.n_window_infer = 800
    wave = sound(17.3)
    heard = feature_extractor(window_s=20)([wave], **PADDED)
    own = module.get_audio_features(heard.input_features, heard.attention_mask).last_hidden_state
    model = omni(module, window_s=20)
    (ours,) = model.project_audio(model.encode_audio([wave]))
    assert len(ours) == 13 * 17 + 4
    assert largest([ours - own]) < 1e-5
    # What lies 8 s on changes nothing before it but through the second that holds both.
    later = wave.copy()
    later[9 * 16000 :] *= -0.5
    (changed,) = model.project_audio(model.encode_audio([later]))
    assert largest([changed[:104] - ours[:104]]) < 1e-5 < 1e-3 < largest([changed[104:208] - ours[104:208]])


@torch.no_grad()
def test_qwen3_omni_positions_are_the_depths() -> None:
    module = plain_qwen3_omni()
    model = omni(module)
    samples = [9999, 24000]
    trunk = conversation_path(model, ask("Which is louder?", 2), [0, 1], samples, generate=True)
    path = trunk + answer_path(model, "the second")
    ids = torch.tensor([path.ids])
    frames = torch.tensor([mel.frame_count(count) for count in samples])
    nothing = torch.zeros(0, 3, dtype=torch.long)  # an empty list of images leads into the multimodal branch
    theirs, _ = module.get_rope_index(ids, nothing, None, torch.ones_like(ids), audio_seqlens=frames)
    assert torch.equal(theirs, pack([build_tree([path])]).positions.expand(3, 1, -1).to(theirs))


def test_qwen3_omni_checkpoints_name_every_expert(tmp_path: Path) -> None:
    """The released names (an expert a tensor, all under `thinker.`) are read; what is saved has them, too, and is a
    whole thinker to transformers' own class."""
    module = plain_qwen3_omni(6)
    module.save_pretrained(tmp_path / "own")
    state = load_file(tmp_path / "own" / "model.safetensors")
    assert "model.layers.1.mlp.experts.3.gate_proj.weight" in state
    full = tmp_path / "full"
    full.mkdir()
    talker = {"talker.codec_head.weight": torch.zeros(2), "code2wav.decoder.weight": torch.zeros(2)}
    save_file({f"thinker.{name}": value for name, value in state.items()} | talker, full / "model.safetensors")
    config = {"model_type": "qwen3_omni_moe", "thinker_config": module.config.to_dict()}
    (full / "config.json").write_text(json.dumps(config))
    feature_extractor().save_pretrained(full)
    marked(**OMNI_MARKS).save(str(full / "tokenizer.json"))
    model = base.load("qwen3_omni", full, device="cpu")
    same = omni(module).module.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in model.module.state_dict().items())
    model.save(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == {f"thinker.{name}" for name in state}
    theirs, report = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(report.values())
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in module.state_dict().items())


def test_chat_formats() -> None:
    def written(row: native.Row) -> str:
        return "".join("@" if span.audio else span.text for span in render(ask("What?"), row.template, generate=True))

    assert written(qwen3_omni.ROW) == (
        "<|im_start|>user\n<|audio_start|>@<|audio_end|>What?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert written(audio_flamingo3.ROW) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n@What?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


LONG = (321, 15999, 16000, 16001, 16320, 16321, 31840, 32000, 48000, 50000, 63999)


@torch.no_grad()
@pytest.mark.parametrize("batch", [LONG, *((samples,) for samples in LONG)])
def test_audio_flamingo3_lays_windows_end_to_end(batch: tuple[int, ...]) -> None:
    """Windows of one second, the last one trimmed, equal the class on windows padded to one second; the count is that
    of the processor: over the real frames of all windows."""
    module, model = plain_audio_flamingo3(7), flamingo(7)
    waveforms = [sound(4.0, 300 + 70 * number)[:count] for number, count in enumerate(batch)]
    ours = model.project_audio(model.encode_audio(waveforms))
    for wave, clip in zip(waveforms, ours, strict=True):
        pieces = [wave[at : at + 16000] for at in range(0, len(wave), 16000)]
        heard = feature_extractor(window_s=1)(pieces, **PADDED)
        own = module.get_audio_features(heard.input_features, heard.attention_mask).pooler_output
        frames = int(heard.attention_mask.sum())
        assert len(clip) == len(own) == model.audio_tokens(len(wave)) == ((frames - 1) // 2 + 1 - 2) // 2 + 1
        assert largest([clip - own]) < 1e-5


def test_audio_flamingo3_hears_twenty_windows() -> None:
    model = flamingo()
    assert model.spec.max_s == 20.0 and model.audio_tokens(20 * 16000) == 500
    with pytest.raises(AudioError, match=r"20\.01 s is longer than the 20 s .* truncate"):
        model.audio_tokens(20 * 16000 + 160)
    with pytest.raises(ModelError, match="windows of 200 frames, the encoder of 100"):
        native.from_parts(audio_flamingo3.ROW, plain_audio_flamingo3(), marked(mark="<sound>"), feature_extractor())


def test_audio_flamingo3_published_key_names(tmp_path: Path) -> None:
    """Names of transformers 4 (as released) load to the same model, and are those that `save` writes."""
    model = flamingo()
    model.save(tmp_path)
    published = {}
    for name, value in model.module.state_dict().items():
        old = name.removeprefix("model.").replace("language_model.", "language_model.model.")
        published["language_model.lm_head.weight" if name == "lm_head.weight" else old] = value.contiguous()
    assert published.keys() == load_file(tmp_path / "model.safetensors").keys()
    for state in (published, {name: value.contiguous() for name, value in model.module.state_dict().items()}):
        save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
        loaded = native.audio_flamingo3(tmp_path)
        ours = model.module.state_dict()
        assert all(torch.equal(value, ours[name]) for name, value in loaded.module.state_dict().items())
