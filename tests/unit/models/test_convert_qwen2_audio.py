"""The start of Qwen2-Audio's training, assembled: equal to transformers' Whisper encoder and Qwen2 decoder."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, WhisperConfig, WhisperForConditionalGeneration

from builders import MELS, WINDOW_S, byte_tokenizer, feature_extractor, randomize_weights, tiny_hf_model
from earwise.models.convert import qwen2_audio as convert
from earwise.models.families.qwen2_audio import load

VOCABULARY = 264
"""Eight tokens fewer than the assembled model has."""


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, WhisperForConditionalGeneration, Qwen2ForCausalLM]:
    """Folders `whisper`, `qwen` and `layout`, with small random models as transformers writes them."""
    layout = tiny_hf_model(kv_heads=4).config  # Qwen-7B has no grouped heads
    audio, text = layout.audio_config, layout.text_config
    whisper = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=50, num_mel_bins=MELS, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48,
            decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=8, d_model=24,
            max_source_positions=audio.max_source_positions, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=1,
        )
    ).eval()  # fmt: skip
    qwen = Qwen2ForCausalLM(Qwen2Config(**text.to_dict() | {"vocab_size": VOCABULARY, "bos_token_id": None})).eval()
    randomize_weights(whisper, 1)
    randomize_weights(qwen, 2)
    for parameter in (*whisper.parameters(), *qwen.parameters()):  # values that bfloat16 holds exactly
        parameter.data = parameter.data.bfloat16().float()
    whisper.save_pretrained(tmp_path / "whisper")
    feature_extractor(MELS, WINDOW_S).save_pretrained(tmp_path / "whisper")
    qwen.save_pretrained(tmp_path / "qwen", max_shard_size="20KB")
    layout.save_pretrained(tmp_path / "layout")
    byte_tokenizer().save(str(tmp_path / "layout" / "tokenizer.json"))
    return tmp_path, whisper, qwen


def run(folder: Path, *, decoder: str = "qwen", out: str = "start") -> dict:
    arguments = ["--encoder", folder / "whisper", "--decoder", folder / decoder, "--layout", folder / "layout"]
    result = CliRunner().invoke(convert.main, [*map(str, arguments), "--out", str(folder / out)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_text_and_encoder_are_those_of_the_parts(parts) -> None:
    folder, whisper, qwen = parts
    assert run(folder)["template"] == "qwen2-audio"
    model = load(folder / "start", dtype=torch.float32)
    ids = torch.tensor([[7, 100, 263, 30, 5]])
    assembled = model.module.to(torch.float32)
    assembled.model.language_model.config._attn_implementation = "eager"
    logits = assembled(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(logits[..., :VOCABULARY], qwen(ids).logits, atol=1e-5, rtol=1e-5)
    features = torch.randn(1, MELS, 100 * WINDOW_S, generator=torch.Generator().manual_seed(0))
    encoder = whisper.model.encoder
    before_norm = []
    encoder.layer_norm.register_forward_pre_hook(lambda _, inputs: before_norm.append(inputs[0]))
    with torch.no_grad():
        encoder(features)
        pooled = torch.nn.functional.avg_pool1d(before_norm[0].mT, 2, 2).mT
        expected = torch.nn.functional.layer_norm(pooled, (24,), encoder.layer_norm.weight, encoder.layer_norm.bias)
        states = assembled.model.audio_tower(features).last_hidden_state
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


def test_new_rows_are_the_mean_and_the_projector_follows_from_the_seed(parts) -> None:
    folder, _, _ = parts
    run(folder)
    run(folder, out="again")
    first, second = (load(folder / name).module.state_dict() for name in ("start", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    table = first[convert.EMBEDDING].float()
    torch.testing.assert_close(table[VOCABULARY], table[:VOCABULARY].mean(0), atol=0.01, rtol=0.05)
    assert not first[convert.PROJECTOR + "bias"].any()
    assert 0.015 < float(first[convert.PROJECTOR + "weight"].float().std()) < 0.025


def test_names_of_qwen_7b_give_the_same_model(parts) -> None:
    """The first generation stacks query, key and value, and calls gate and up `w2` and `w1`."""
    folder, _, qwen = parts
    state = {name.removeprefix("model."): value for name, value in qwen.state_dict().items()}
    names = {"embed_tokens.": "wte.", "norm.": "ln_f.", "layers.": "h."}
    inner = {
        "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2", "self_attn.o_proj": "attn.c_proj",
        "mlp.up_proj": "mlp.w1", "mlp.gate_proj": "mlp.w2", "mlp.down_proj": "mlp.c_proj",
    }  # fmt: skip
    old = {"lm_head.weight": state.pop("lm_head.weight").clone()}
    for name, value in state.items():
        if any(part in name for part in (".k_proj.", ".v_proj.")):
            continue
        if ".q_proj." in name:
            parts_of_matrix = [state[name.replace("q_proj", layer)] for layer in ("q_proj", "k_proj", "v_proj")]
            name, value = name.replace("self_attn.q_proj", "attn.c_attn"), torch.cat(parts_of_matrix)
        for new, former in inner.items():
            name = name.replace(new, former)
        start = next(start for start in names if name.startswith(start))
        old["transformer." + names[start] + name.removeprefix(start)] = value.clone()
    (folder / "qwen1").mkdir()
    save_file(old, folder / "qwen1" / "model.safetensors")
    run(folder)
    run(folder, decoder="qwen1", out="again")
    first, second = (load(folder / name).module.state_dict() for name in ("start", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_folder_of_another_size_is_refused_in_a_line(parts) -> None:
    folder, _, _ = parts
    arguments = ["--encoder", folder / "qwen", "--decoder", folder / "qwen", "--layout", folder / "layout"]
    result = CliRunner().invoke(convert.main, [*map(str, arguments), "--out", str(folder / "start")])
    assert result.exit_code == 2 and not (folder / "start").exists()
    assert len(result.output.strip().splitlines()) == 1, result.output
