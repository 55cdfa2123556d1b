"""Speech recognition with Whisper: the converted checkpoint equals the original, and so do its transcripts."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from builders import tone
from earwise.errors import AudioError, ConfigError
from earwise.models.embedded.convert_base import recogniser_from_ctranslate2
from earwise.models.parts import whisper_asr

CONTROL_TOKENS = (
    "<|endoftext|>", "<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>", "<|translate|>",
    "<|nospeech|>",
)  # fmt: skip
WORDS = tuple(f"w{number} " for number in range(11))
SUPPRESSED, SUPPRESSED_FIRST = [1, 2, 3, 4, 5, 6, 9], [0]


def original_model() -> WhisperForConditionalGeneration:
    """transformers' Whisper with two small layers in encoder and decoder, and weights large enough to matter."""
    config = WhisperConfig(
        vocab_size=len(CONTROL_TOKENS) + len(WORDS), d_model=64, encoder_layers=2, decoder_layers=2, num_mel_bins=8,
        encoder_attention_heads=1, decoder_attention_heads=1, encoder_ffn_dim=48, decoder_ffn_dim=48,
        max_target_positions=24, dropout=0.0, pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not name.endswith("encoder.embed_positions.weight"):
                shift = 1.0 if "norm.weight" in name else 0.0
                scale = 0.1 if value.dim() == 1 else value[0].numel() ** -0.5
                value.copy_((shift + scale * torch.randn(value.shape, generator=generator)).half().float())
    return model


def as_ctranslate2(model: WhisperForConditionalGeneration) -> bytes:
    """The model as a CTranslate2 file, written by hand."""
    weights = {name: value.numpy() for name, value in model.model.state_dict().items()}
    variables: dict[str, np.ndarray] = {}

    def stack(source: str, parts: tuple[str, ...], target: str) -> None:
        width = weights[f"{source}.out_proj.bias"].shape
        for kind in ("weight", "bias"):
            empty = np.zeros(width, np.float32)  # transformers' key projection has no bias
            variables[f"{target}/{kind}"] = np.concatenate(
                [weights.get(f"{source}.{part}.{kind}", empty) for part in parts]
            )

    def norm(source: str, target: str) -> None:
        variables[f"{target}/layer_norm/gamma"], variables[f"{target}/layer_norm/beta"] = (
            weights[f"{source}.{kind}"] for kind in ("weight", "bias")
        )

    for side in ("encoder", "decoder"):
        variables[f"{side}/position_encodings/encodings"] = weights[f"{side}.embed_positions.weight"]
        norm(f"{side}.layer_norm", side)
        for number in range(2):
            source, target = f"{side}.layers.{number}", f"{side}/layer_{number}"
            stack(f"{source}.self_attn", ("q_proj", "k_proj", "v_proj"), f"{target}/self_attention/linear_0")
            stack(f"{source}.self_attn", ("out_proj",), f"{target}/self_attention/linear_1")
            norm(f"{source}.self_attn_layer_norm", f"{target}/self_attention")
            norm(f"{source}.final_layer_norm", f"{target}/ffn")
            for kind in ("weight", "bias"):
                variables[f"{target}/ffn/linear_0/{kind}"] = weights[f"{source}.fc1.{kind}"]
                variables[f"{target}/ffn/linear_1/{kind}"] = weights[f"{source}.fc2.{kind}"]
            if side == "decoder":
                stack(f"{source}.encoder_attn", ("q_proj",), f"{target}/attention/linear_0")
                stack(f"{source}.encoder_attn", ("k_proj", "v_proj"), f"{target}/attention/linear_1")
                stack(f"{source}.encoder_attn", ("out_proj",), f"{target}/attention/linear_2")
                norm(f"{source}.encoder_attn_layer_norm", f"{target}/attention")
    variables["decoder/embeddings/weight"] = weights["decoder.embed_tokens.weight"]
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            variables[f"encoder/{conv}/{kind}"] = weights[f"encoder.{conv}.{kind}"]

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        data += text(name) + struct.pack("<B", value.ndim) + struct.pack(f"<{value.ndim}I", *value.shape)
        data += struct.pack("<BI", 0, value.nbytes) + value.astype(np.float32).tobytes()
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted original, with a tokenizer of whole words."""
    path = tmp_path_factory.mktemp("whisper")
    data = as_ctranslate2(original_model())
    parts = (path / "1", path / "2")
    parts[0].write_bytes(data[:1000])
    parts[1].write_bytes(data[1000:])
    (path / "config.json").write_text(json.dumps({"suppress_ids": SUPPRESSED, "suppress_ids_begin": SUPPRESSED_FIRST}))
    recogniser_from_ctranslate2(parts, path / "config.json", path)
    vocab = {word: number for number, word in enumerate((*CONTROL_TOKENS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=WORDS[0]))
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_converted_weights_equal_the_original(folder: Path) -> None:
    expected = original_model().model.state_dict()
    recogniser = whisper_asr.load(folder)
    parts = {"encoder": recogniser.encoder, "decoder": recogniser.transcriber.decoder}
    converted = {f"{part}.{name}": value for part in parts for name, value in parts[part].state_dict().items()}
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


def test_greedy_transcripts_equal_the_original(folder: Path) -> None:
    recogniser = whisper_asr.load(folder)
    waveforms = [tone(1.0, 300.0), tone(2.0, 700.0, seed=1)]
    together = recogniser.transcribe(waveforms, "de", max_new_tokens=8)
    assert together == [recogniser.transcribe([waveform], "de", max_new_tokens=8)[0] for waveform in waveforms]
    model, extractor = original_model(), WhisperFeatureExtractor(feature_size=8)
    for waveform, transcript in zip(waveforms, together, strict=True):
        features = extractor(waveform, sampling_rate=16000, return_tensors="pt").input_features
        ids = [1, 2, 3, 4]
        for step in range(8):
            with torch.no_grad():
                logits = model(features, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
            logits[SUPPRESSED + (SUPPRESSED_FIRST if step == 0 else [])] = -torch.inf
            ids.append(int(logits.argmax()))
            if ids[-1] == 0:
                break
        assert transcript.split() == [WORDS[token - len(CONTROL_TOKENS)].strip() for token in ids[4:] if token]
        assert transcript


def test_unknown_languages_and_long_clips_are_rejected(folder: Path) -> None:
    recogniser = whisper_asr.load(folder)
    with pytest.raises(ConfigError, match="'xx' is not one of Whisper's"):
        recogniser.transcribe([tone(1.0)], "xx")
    with pytest.raises(AudioError, match=r"lasts 31\.0 s"):
        recogniser.transcribe([np.zeros(31 * 16000, np.float32)], "de")
