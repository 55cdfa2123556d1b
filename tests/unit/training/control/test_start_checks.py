"""The check at the start of a run compares with transformers' own attention: it sees faults that all of ours share."""

import pytest
import torch

from builders import tiny_qwen2_audio, tone, user_question
from earwise.errors import ModelError
from earwise.models.decoders import transformers_decoder
from earwise.models.encoder_cache import EncoderCache
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.training.batches import build_micro_batches
from earwise.training.policy import FOREST_TOLERANCE, MicroBatch, Policy, check_forest


def micro_batch_of(model: Qwen2Audio) -> MicroBatch[None]:
    """One tree of two answers about a clip."""
    waveforms = {0: tone(1.2)}
    prompt = conversation_path(model, user_question("What is it?"), [0], [len(waveforms[0])], generate=True)
    paths = [prompt + answer_path(model, text) for text in ("a dog barks", "rain")]
    (micro_batch,) = build_micro_batches(model, EncoderCache(model), [paths], waveforms, 4096)
    return micro_batch


def check(model: Qwen2Audio, dtype: torch.dtype = torch.float32) -> float:
    return check_forest(Policy(model), micro_batch_of(model), tolerance=FOREST_TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_sound_model_passes_and_keeps_its_attention(dtype: torch.dtype) -> None:
    model = tiny_qwen2_audio(2)
    model.module.to(dtype)
    before = check(model, dtype)
    assert before < FOREST_TOLERANCE[dtype] / 5
    config = model.module.model.language_model.config
    assert config._attn_implementation == transformers_decoder.IMPLEMENTATION
    assert model.module.model.audio_tower.config._attn_implementation == "sdpa"
    assert check(model, dtype) == before


def test_positions_that_are_wrong_everywhere_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed trees and single sequences share this fault, so a comparison of the two alone cannot see it."""
    model = tiny_qwen2_audio(2, scale=2.0)
    decode = Qwen2Audio.decode
    monkeypatch.setattr(Qwen2Audio, "decode", lambda self, rows, places, attend: decode(self, rows, places * 2, attend))
    with pytest.raises(ModelError, match="transformers' own attention"):
        check(model)


def test_a_window_of_the_config_that_a_forest_ignores_is_seen() -> None:
    model = tiny_qwen2_audio(2, scale=2.0)
    config = model.module.model.language_model.config
    config.sliding_window, config.layer_types = 8, ["sliding_attention"] * config.num_hidden_layers
    for layer in model.module.model.language_model.layers:
        layer.attention_type = "sliding_attention"
    model.module.model.language_model.has_sliding_layers = True
    with pytest.raises(ModelError, match="transformers' own attention"):
        check(model)
