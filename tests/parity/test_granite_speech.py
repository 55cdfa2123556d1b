"""Granite Speech where it differs from other families: features, the scale of its scores, and training mode."""

import copy
from types import SimpleNamespace

import numpy as np
import torch
from transformers import GraniteForCausalLM, GraniteSpeechConfig, GraniteSpeechFeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from builders import max_abs, tone
from earwise.audio import decode
from earwise.data.manifest_path import STARTER
from earwise.forest import TokenPath
from earwise.models.families.granite_speech import LogMel, audio_tokens
from families.forests import scores
from families.granite_speech import reference_model, tiny


def test_features() -> None:
    """Equal to transformers' numpy spectrogram (another implementation than torch's) on a recording and on noise; as
    many as the class counts."""
    clip = decode(STARTER / "clips" / "dog_0.ogg", 16000)
    noise = np.random.default_rng(0).standard_normal(4321).astype(np.float32)
    log_mel = LogMel()
    bank = mel_filter_bank(257, 80, 0.0, 8000.0, 16000, norm=None, mel_scale="htk")
    for waveform in (clip, noise, noise[:257], noise[:3200]):
        log = spectrogram(
            waveform, window_function(400, "hann"), 400, 160, fft_length=512, power=2.0, pad_mode="reflect",
            mel_filters=bank, mel_floor=1e-10, log_mel="log10",
        ).T  # fmt: skip
        scaled = np.maximum(log, log.max() - 8.0) / 4 + 1
        joined = scaled[: len(scaled) // 2 * 2].reshape(-1, 160)
        ours = log_mel(waveform)
        assert ours.shape == joined.shape == (log_mel.frames(len(waveform)), 160)
        assert max_abs([ours - torch.from_numpy(joined)]) < 1e-4
    settings = SimpleNamespace(
        melspec_kwargs={"hop_length": 160}, projector_window_size=15, projector_downsample_rate=5
    )
    lengths = [257, 319, 320, 4799, 4800, 16000, 47999, 48000, 480000]
    expected = GraniteSpeechFeatureExtractor._get_num_audio_features(settings, lengths)
    assert [audio_tokens(GraniteSpeechConfig(), log_mel, samples) for samples in lengths] == expected


@torch.no_grad()
def test_scores_are_those_of_its_text_model() -> None:
    """Granite's own text class divides by `logits_scaling`; transformers' speech class does not."""
    module = reference_model()
    text_model = GraniteForCausalLM(module.config.text_config).eval()
    text_model.model.load_state_dict(module.model.language_model.state_dict())
    text_model.lm_head.load_state_dict(module.lm_head.state_dict())
    model = tiny().model
    ids = model.tokenizer.encode("Two plus two?")
    ours = scores(model, TokenPath(tuple(ids), (False,) * len(ids), (-1,) * len(ids)), {})
    batch = torch.tensor([ids])
    assert max_abs([text_model(input_ids=batch).logits[0] - ours]) < 1e-4
    assert max_abs([module(input_ids=batch).logits[0] - ours]) > 0.1


def test_embeddings_are_the_same_in_training_mode() -> None:
    """Batch normalisation keeps its statistics and there is no dropout."""
    model = tiny().model
    waveforms = [tone(0.7)]
    evaluated = model.project_audio(model.encode_audio(waveforms))
    before = copy.deepcopy(model.module.state_dict())
    model.module.train()
    trained = model.project_audio(model.encode_audio(waveforms))
    assert torch.equal(evaluated[0], trained[0])
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
