"""Audio Flamingo 3 where it differs from other families: windows, token counts, and tensor names in checkpoints."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import feature_extractor, max_abs, tone, user_question
from earwise.errors import AudioError, ModelError
from earwise.models.families.audio_flamingo3 import ARCHITECTURE, TEMPLATE, load
from earwise.models.families.transformers_audio import from_parts
from earwise.prompts import render
from families.audio_flamingo3 import our_model, reference_model, tokenizer
from families.transformers_audio import FULL_WINDOW

CLIP_SAMPLES = (321, 15999, 16000, 16001, 16320, 16321, 31840, 32000, 48000, 50000, 63999)


def test_chat_format() -> None:
    spans = render(user_question("What?"), TEMPLATE, generate=True)
    assert "".join("@" if span.audio else span.text for span in spans) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n@What?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@torch.no_grad()
@pytest.mark.parametrize("batch", [CLIP_SAMPLES, *((samples,) for samples in CLIP_SAMPLES)])
def test_windows_are_joined_end_to_end(batch: tuple[int, ...]) -> None:
    """Windows of one second, the last one trimmed, equal the class on windows padded to one second; the count is that
    of the processor: over the real frames of all windows."""
    module = reference_model(7)
    model = our_model(module)
    waveforms = [tone(4.0, 300 + 70 * number)[:count] for number, count in enumerate(batch)]
    ours = model.project_audio(model.encode_audio(waveforms))
    for waveform, clip in zip(waveforms, ours, strict=True):
        windows = [waveform[start : start + 16000] for start in range(0, len(waveform), 16000)]
        features = feature_extractor(window_s=1)(windows, **FULL_WINDOW)
        expected = module.get_audio_features(features.input_features, features.attention_mask).pooler_output
        frames = int(features.attention_mask.sum())
        assert len(clip) == len(expected) == model.audio_tokens(len(waveform)) == ((frames - 1) // 2 + 1 - 2) // 2 + 1
        assert max_abs([clip - expected]) < 1e-5


def test_takes_twenty_windows() -> None:
    model = our_model(reference_model())
    assert model.spec.max_s == 20.0 and model.audio_tokens(20 * 16000) == 500
    with pytest.raises(AudioError, match=r"20\.01 s is longer than the 20 s .* truncate"):
        model.audio_tokens(20 * 16000 + 160)
    with pytest.raises(ModelError, match="windows of 200 frames, the encoder of 100"):
        from_parts(ARCHITECTURE, reference_model(), tokenizer(), feature_extractor())


def test_published_tensor_names(tmp_path: Path) -> None:
    """Names of transformers 4 (as released) load to the same model, and are those that `save` writes."""
    model = our_model(reference_model())
    model.save(tmp_path)
    ours = {name: value.contiguous() for name, value in model.module.state_dict().items()}
    published = {}
    for name, value in ours.items():
        old_name = name.removeprefix("model.").replace("language_model.", "language_model.model.")
        published["language_model.lm_head.weight" if name == "lm_head.weight" else old_name] = value
    assert published.keys() == load_file(tmp_path / "model.safetensors").keys()
    for tensors in (published, ours):
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        loaded = load(tmp_path)
        assert all(torch.equal(value, ours[name]) for name, value in loaded.module.state_dict().items())
