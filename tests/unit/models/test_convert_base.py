"""Conversion of base weights, on small files built here; and errors for files of another kind."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from earwise.errors import ModelError
from earwise.models.embedded.base_weights import check_sha256
from earwise.models.embedded.convert_base import encoder_from_ctranslate2, gguf_name, read_ctranslate2, unpermute
from earwise.models.parts.whisper import WhisperEncoder, layer_states
from families.embedded import transformers_encoder

DTYPE_CODES = {
    np.dtype(np.float32): 0,
    np.dtype(np.int8): 1,
    np.dtype(np.int16): 2,
    np.dtype(np.int32): 3,
    np.dtype(np.float16): 4,
}
WIDTH, MELS, POSITIONS, LAYERS = 64, 16, 20, 2


def ctranslate2(variables: dict[str, np.ndarray], *, version: int = 6, spec: str = "WhisperSpec") -> bytes:
    """A CTranslate2 file with these variables, written by hand."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        out += text(name) + struct.pack("<B", value.ndim) + struct.pack(f"<{value.ndim}I", *value.shape)
        out += struct.pack("<BI", DTYPE_CODES[value.dtype], value.nbytes) + value.tobytes()
    return out + struct.pack("<I", 1) + text("alias") + text("encoder/conv1/weight")


def encoder_variables() -> dict[str, np.ndarray]:
    """Random variables of a small Whisper encoder."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder/conv1/weight": (WIDTH, MELS, 3),
        "encoder/conv1/bias": (WIDTH,),
        "encoder/conv2/weight": (WIDTH, WIDTH, 3),
        "encoder/conv2/bias": (WIDTH,),
        "encoder/position_encodings/encodings": (POSITIONS, WIDTH),
        "encoder/layer_norm/gamma": (WIDTH,),
        "encoder/layer_norm/beta": (WIDTH,),
        "decoder/embeddings/weight": (7, WIDTH),
    }
    for number in range(LAYERS):
        layer = f"encoder/layer_{number}"
        sizes = {
            "self_attention/linear_0": 3 * WIDTH,
            "self_attention/linear_1": WIDTH,
            "ffn/linear_0": 96,
            "ffn/linear_1": WIDTH,
        }
        for part, rows in sizes.items():
            shapes |= {
                f"{layer}/{part}/weight": (rows, 96 if part == "ffn/linear_1" else WIDTH),
                f"{layer}/{part}/bias": (rows,),
            }
        for part in ("self_attention", "ffn"):
            shapes |= {f"{layer}/{part}/layer_norm/{kind}": (WIDTH,) for kind in ("gamma", "beta")}
    return {name: (0.1 * rng.standard_normal(shape)).astype(np.float16) for name, shape in shapes.items()}


def test_read_ctranslate2() -> None:
    variables = {
        "a/b": np.arange(6, dtype=np.float16).reshape(2, 3),
        "c": np.array([-1, 5], np.int8),
        "d": np.array(2.5, np.float32),
    }
    back = read_ctranslate2(ctranslate2(variables))
    assert back.keys() == variables.keys()
    for name, value in variables.items():
        assert back[name].dtype == value.dtype and np.array_equal(back[name], value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a CTranslate2 model file"),
        (b"PK\x03\x04", "file version 67324752 is not supported"),
        (ctranslate2({}, version=3), "file version 3 is not supported"),
        (ctranslate2({}, spec="TransformerSpec"), "'TransformerSpec' is not WhisperSpec"),
        (ctranslate2(encoder_variables())[:5000], "not a CTranslate2 model file"),
    ],
)
def test_other_files_are_rejected(data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_ctranslate2(data)


def test_encoder_from_two_parts(tmp_path: Path) -> None:
    variables = encoder_variables()
    data = ctranslate2(variables)
    parts = [tmp_path / "part1", tmp_path / "part2"]
    parts[0].write_bytes(data[:12345])
    parts[1].write_bytes(data[12345:])
    encoder_from_ctranslate2(parts, tmp_path)
    sizes = json.loads((tmp_path / "encoder.json").read_text())
    assert sizes == {
        "d_model": WIDTH, "encoder_layers": LAYERS, "encoder_attention_heads": 1, "encoder_ffn_dim": 96,
        "num_mel_bins": MELS, "max_source_positions": POSITIONS,
    }  # fmt: skip
    encoder = WhisperEncoder(sizes).eval()
    weights = load_file(tmp_path / "encoder.safetensors")
    encoder.load_state_dict({name: torch.from_numpy(value).float() for name, value in weights.items()})
    stacked = variables["encoder/layer_1/self_attention/linear_0/weight"]
    attention = encoder.layers[1].self_attn
    for number, projection in enumerate((attention.q_proj, attention.k_proj, attention.v_proj)):
        assert np.array_equal(
            projection.weight.detach().numpy(), stacked[number * WIDTH : (number + 1) * WIDTH].astype(np.float32)
        )
    mel = torch.randn(1, MELS, 2 * POSITIONS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = transformers_encoder(sizes, encoder.state_dict())(mel).last_hidden_state[0]
        states = layer_states(encoder, [mel[0]])[0][-1]
    assert float((expected - states).abs().max()) < 1e-5


def test_unpermute_inverts_llama_cpp() -> None:
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    rng = np.random.default_rng(1)
    for heads, key_heads, head_dim in ((4, 2, 8), (9, 3, 64), (1, 1, 2)):
        for count in (heads, key_heads):
            weight = rng.standard_normal((count * head_dim, 5)).astype(np.float32)
            # llama.cpp's converter: halves of a head side by side become interleaved pairs.
            permuted = weight.reshape(count, 2, head_dim // 2, 5).swapaxes(1, 2).reshape(weight.shape)
            assert np.array_equal(unpermute(permuted, count), weight)
            assert np.array_equal(
                unpermute(permuted, count), LlamaTensorProcessor()._reverse_permute_weights(permuted, heads, count)
            )


def test_gguf_names() -> None:
    assert gguf_name("token_embd.weight") == "embed_tokens.weight"
    assert gguf_name("output_norm.weight") == "norm.weight"
    assert gguf_name("blk.12.ffn_norm.weight") == "layers.12.post_attention_layernorm.weight"
    with pytest.raises(KeyError):
        gguf_name("blk.0.attn_magic.weight")


def test_a_file_with_another_hash_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"weights")
    actual = hashlib.sha256(b"weights").hexdigest()
    check_sha256(file, actual)
    with pytest.raises(ModelError, match=rf"model\.bin: SHA-256 is {actual}, expected 000"):
        check_sha256(file, "0" * 64)
