"""Convert the base weights to safetensors with transformers' names.

CTranslate2's Whisper becomes the encoder (or encoder and decoder, for the recogniser), and a GGUF Llama becomes the
decoder. Called once by `models.embedded.base_weights`.

Source: the file formats as CTranslate2 (model spec revision 3, file version 6) and llama.cpp (GGUF) define them.
"""

import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from earwise.errors import ModelError

Array = NDArray[Any]
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(data: bytes) -> dict[str, Array]:
    """All variables of a CTranslate2 `model.bin` (file version 4 to 6), by name.

    Raises:
        ModelError: if the bytes are not such a file.
    """
    offset = 0

    def read_int(struct_format: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from("<" + struct_format, data, offset)
        offset += struct.calcsize("<" + struct_format)
        return int(value)

    def read_text() -> str:
        nonlocal offset
        size = read_int("H")
        offset += size
        return data[offset - size : offset].rstrip(b"\0").decode()

    variables: dict[str, Array] = {}
    try:
        version = read_int("I")
        if not 4 <= version <= 6:
            raise ModelError(f"CTranslate2 file version {version} is not supported; expected 4 to 6")
        spec, _revision = read_text(), read_int("I")
        if spec != "WhisperSpec":
            raise ModelError(f"CTranslate2 spec {spec!r} is not WhisperSpec")
        for _ in range(read_int("I")):
            name = read_text()
            shape = [read_int("I") for _ in range(read_int("B"))]
            dtype = np.dtype(_DTYPES[read_int("B")])
            size = read_int("I")
            variables[name] = np.frombuffer(data, dtype, size // dtype.itemsize, offset).reshape(shape)
            offset += size
    except (struct.error, KeyError, ValueError) as error:
        raise ModelError(f"not a CTranslate2 model file ({error})") from error
    return variables


def whisper_encoder_state(variables: dict[str, Array], layers: int) -> dict[str, Array]:
    """Encoder weights with the names of transformers' `WhisperEncoder`, in their float16.

    Args:
        variables: Variables of the CTranslate2 file.
        layers: Number of encoder layers.
    """
    weights = {}
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            weights[f"{conv}.{kind}"] = variables[f"encoder/{conv}/{kind}"]
    weights["embed_positions.weight"] = variables["encoder/position_encodings/encodings"]
    norms = {"weight": "gamma", "bias": "beta"}
    for name, source_name in norms.items():
        weights[f"layer_norm.{name}"] = variables[f"encoder/layer_norm/{source_name}"]
    for i in range(layers):
        source, target = f"encoder/layer_{i}", f"layers.{i}"
        for kind in ("weight", "bias"):
            # linear_0 stacks query, key and value; transformers' key projection has no bias (it is zero here).
            query, key, value = np.split(variables[f"{source}/self_attention/linear_0/{kind}"], 3)
            weights[f"{target}.self_attn.q_proj.{kind}"] = query
            weights[f"{target}.self_attn.v_proj.{kind}"] = value
            if kind == "weight":
                weights[f"{target}.self_attn.k_proj.weight"] = key
            weights[f"{target}.self_attn.out_proj.{kind}"] = variables[f"{source}/self_attention/linear_1/{kind}"]
            weights[f"{target}.fc1.{kind}"] = variables[f"{source}/ffn/linear_0/{kind}"]
            weights[f"{target}.fc2.{kind}"] = variables[f"{source}/ffn/linear_1/{kind}"]
        for name, source_name in norms.items():
            weights[f"{target}.self_attn_layer_norm.{name}"] = variables[
                f"{source}/self_attention/layer_norm/{source_name}"
            ]
            weights[f"{target}.final_layer_norm.{name}"] = variables[f"{source}/ffn/layer_norm/{source_name}"]
    return {name: np.ascontiguousarray(value) for name, value in weights.items()}


def encoder_from_ctranslate2(parts: Sequence[Path], target: Path) -> None:
    """Join the parts of Whisper base and write `encoder.safetensors` and `encoder.json`."""
    variables = read_ctranslate2(b"".join(part.read_bytes() for part in parts))
    config = _encoder_config(variables)
    save_file(whisper_encoder_state(variables, config["encoder_layers"]), target / "encoder.safetensors")
    (target / "encoder.json").write_text(json.dumps(config, indent=1) + "\n")


def _encoder_config(variables: dict[str, Array]) -> dict[str, int]:
    """Sizes of the encoder, as fields of transformers' `WhisperConfig`."""
    width = variables["encoder/conv1/weight"].shape[0]
    return {
        "d_model": int(width),
        "encoder_layers": _count_layers(variables, "encoder"),
        "encoder_attention_heads": int(width) // 64,
        "encoder_ffn_dim": int(variables["encoder/layer_0/ffn/linear_0/weight"].shape[0]),
        "num_mel_bins": int(variables["encoder/conv1/weight"].shape[1]),
        "max_source_positions": int(variables["encoder/position_encodings/encodings"].shape[0]),
    }


def _count_layers(variables: dict[str, Array], side: str) -> int:
    """Number of layers of the encoder or decoder."""
    return len({match[1] for name in variables if (match := re.match(rf"{side}/layer_(\d+)/", name))})


def whisper_decoder_state(variables: dict[str, Array], layers: int) -> dict[str, Array]:
    """Decoder weights with the names of transformers' `WhisperDecoder`; the output head is tied to `embed_tokens`.

    Args:
        variables: Variables of the CTranslate2 file.
        layers: Number of decoder layers.
    """
    weights = {
        "embed_tokens.weight": variables["decoder/embeddings/weight"],
        "embed_positions.weight": variables["decoder/position_encodings/encodings"],
        "layer_norm.weight": variables["decoder/layer_norm/gamma"],
        "layer_norm.bias": variables["decoder/layer_norm/beta"],
    }
    norms = {"self_attention": "self_attn", "attention": "encoder_attn", "ffn": "final"}
    for i in range(layers):
        source, target = f"decoder/layer_{i}", f"layers.{i}"
        for kind in ("weight", "bias"):
            query, key, value = np.split(variables[f"{source}/self_attention/linear_0/{kind}"], 3)
            # cross-attention: linear_0 is the query, linear_1 stacks key and value of the encoder's states
            cross_key, cross_value = np.split(variables[f"{source}/attention/linear_1/{kind}"], 2)
            parts = {
                "self_attn.q_proj": query,
                "self_attn.v_proj": value,
                "self_attn.out_proj": variables[f"{source}/self_attention/linear_1/{kind}"],
                "encoder_attn.q_proj": variables[f"{source}/attention/linear_0/{kind}"],
                "encoder_attn.v_proj": cross_value,
                "encoder_attn.out_proj": variables[f"{source}/attention/linear_2/{kind}"],
                "fc1": variables[f"{source}/ffn/linear_0/{kind}"],
                "fc2": variables[f"{source}/ffn/linear_1/{kind}"],
            }
            if kind == "weight":
                parts |= {"self_attn.k_proj": key, "encoder_attn.k_proj": cross_key}
            weights |= {f"{target}.{part}.{kind}": array for part, array in parts.items()}
        for part, norm in norms.items():
            weights[f"{target}.{norm}_layer_norm.weight"] = variables[f"{source}/{part}/layer_norm/gamma"]
            weights[f"{target}.{norm}_layer_norm.bias"] = variables[f"{source}/{part}/layer_norm/beta"]
    return {name: np.ascontiguousarray(value) for name, value in weights.items()}


def recogniser_from_ctranslate2(parts: Sequence[Path], package_config: Path, target: Path) -> None:
    """Join the parts of Whisper base and write `model.safetensors` and `recogniser.json`.

    Args:
        parts: The parts of the file `model.bin`.
        package_config: CTranslate2's `config.json` with the ids of suppressed tokens.
        target: Folder to write to.
    """
    variables = read_ctranslate2(b"".join(part.read_bytes() for part in parts))
    config = _encoder_config(variables)
    layers = _count_layers(variables, "decoder")
    encoder = whisper_encoder_state(variables, config["encoder_layers"])
    decoder = whisper_decoder_state(variables, layers)
    weights = {f"encoder.{name}": value for name, value in encoder.items()}
    weights |= {f"decoder.{name}": value for name, value in decoder.items()}
    vocab_size, width = variables["decoder/embeddings/weight"].shape
    config |= {
        "decoder_layers": layers,
        "decoder_attention_heads": int(width) // 64,
        "decoder_ffn_dim": int(variables["decoder/layer_0/ffn/linear_0/weight"].shape[0]),
        "vocab_size": int(vocab_size),
        "max_target_positions": int(variables["decoder/position_encodings/encodings"].shape[0]),
    }
    package = json.loads(package_config.read_text(encoding="utf-8"))
    suppressed = {"never": package["suppress_ids"], "never_first": package["suppress_ids_begin"]}
    save_file(weights, target / "model.safetensors")
    (target / "recogniser.json").write_text(json.dumps({"sizes": config} | suppressed) + "\n")


WHISPER_HUB = ("openai/whisper-base", "e37978b90ca9030d5170a5c07aadb050351a65bb")
SMOLLM2_HUB = ("HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac")
"""Repository on the model hub, and the revision that was tested; no other is fetched."""


def recogniser_from_hub(target: Path, reason: ModelError) -> dict[str, str]:
    """Write the files of `recogniser_from_ctranslate2` and the tokenizer, from `openai/whisper-base` on a model hub.

    Args:
        target: Folder to write to.
        reason: Why the package index failed, for the error message.
    Returns:
        The revision of each repository.
    Raises:
        ModelError: if the hub cannot be reached either.
    """
    from transformers import AutoTokenizer, GenerationConfig, WhisperModel

    try:
        repository, revision = WHISPER_HUB
        whisper = WhisperModel.from_pretrained(repository, revision=revision, use_safetensors=True)
        generation_config = GenerationConfig.from_pretrained(repository, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(repository, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(f"Whisper base cannot be fetched: {reason}; and no model hub answers") from error
    save_file(
        {name: value.half().numpy() for name, value in whisper.state_dict().items()}, target / "model.safetensors"
    )
    keys = (
        "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins",
        "max_source_positions", "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "vocab_size",
        "max_target_positions",
    )  # fmt: skip
    suppressed = {
        "never": generation_config.suppress_tokens,
        "never_first": generation_config.begin_suppress_tokens,
    }
    sizes = {"sizes": {key: getattr(whisper.config, key) for key in keys}}
    (target / "recogniser.json").write_text(json.dumps(sizes | suppressed) + "\n")
    tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
    return dict([WHISPER_HUB])


_GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_name(name: str) -> str:
    """The name in transformers' `LlamaModel` of a GGUF tensor.

    >>> gguf_name("blk.3.attn_q.weight")
    'layers.3.self_attn.q_proj.weight'
    """
    if name in ("token_embd.weight", "output_norm.weight"):
        return {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}[name]
    _, layer, part, kind = name.split(".")
    return f"layers.{layer}.{_GGUF_LAYER[part]}.{kind}"


def unpermute(weight: Array, heads: int) -> Array:
    """Undo llama.cpp's interleaving of the rotary halves in a query or key projection, `(heads * head_dim, dim)`."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def decoder_from_gguf(path: Path, target: Path) -> None:
    """Dequantise a GGUF Llama and write `decoder.safetensors` (float32), `decoder.json` and `tokenizer.json`.

    transformers can read GGUF as well, but takes half a minute and cannot save the result; this takes seconds.
    """
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(str(path))
    fields = {
        name: field.contents()
        for name, field in reader.fields.items()
        if name.startswith(("llama.", "general.architecture"))
    }
    if fields.get("general.architecture") != "llama":
        raise ModelError(f"{path.name}: architecture {fields.get('general.architecture')!r} is not llama")
    heads, key_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    weights = {}
    for tensor in reader.tensors:
        value = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        value = value.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            value = unpermute(value, heads if ".attn_q." in tensor.name else key_heads)
        weights[gguf_name(tensor.name)] = np.ascontiguousarray(value)
    config = {
        "vocab_size": weights["embed_tokens.weight"].shape[0],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": float(fields["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": float(fields["llama.rope.freq_base"]),
    }
    save_file(weights, target / "decoder.safetensors")
    (target / "decoder.json").write_text(json.dumps(config, indent=1) + "\n")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))


def from_hub(target: Path, reason: ModelError) -> dict[str, str]:
    """Write the base weights from a model hub (`openai/whisper-base`, `HuggingFaceTB/SmolLM2-135M-Instruct`).

    Args:
        target: Folder to write to.
        reason: Why the package index failed, for the error message.
    Returns:
        The revision of each repository.
    Raises:
        ModelError: if the hub cannot be reached either.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperModel

    try:
        whisper = WhisperModel.from_pretrained(WHISPER_HUB[0], revision=WHISPER_HUB[1], use_safetensors=True)
        smol = AutoModelForCausalLM.from_pretrained(SMOLLM2_HUB[0], revision=SMOLLM2_HUB[1], use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(SMOLLM2_HUB[0], revision=SMOLLM2_HUB[1])
    except (OSError, ValueError) as error:
        raise ModelError(f"base weights cannot be fetched: {reason}; and no model hub answers") from error
    encoder = {name: value.half().numpy() for name, value in whisper.encoder.state_dict().items()}
    save_file(encoder, target / "encoder.safetensors")
    keys = (
        "d_model",
        "encoder_layers",
        "encoder_attention_heads",
        "encoder_ffn_dim",
        "num_mel_bins",
        "max_source_positions",
    )
    (target / "encoder.json").write_text(
        json.dumps({key: getattr(whisper.config, key) for key in keys}, indent=1) + "\n"
    )
    save_file(
        {name: value.float().numpy() for name, value in smol.model.state_dict().items()}, target / "decoder.safetensors"
    )
    sizes = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
    )  # fmt: skip
    config = {key: getattr(smol.config, key) for key in sizes}
    config["rope_theta"] = smol.config.rope_parameters["rope_theta"]
    (target / "decoder.json").write_text(json.dumps(config, indent=1) + "\n")
    tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
    return dict([WHISPER_HUB, SMOLLM2_HUB])
