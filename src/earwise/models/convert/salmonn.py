"""SALMONN's released parts -> one folder for `salmonn.load`, and back to the released form.

    python -m earwise.models.convert.salmonn convert salmonn_v1.pth --whisper whisper-large-v2 \\
        --beats BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt --vicuna vicuna-13b-v1.1 --out salmonn-13b
    python -m earwise.models.convert.salmonn release my-salmonn my-salmonn.pth

The released `.pth` holds only what was trained (Q-Former, its query, two norms, projection, LoRA); the three base
models come from their own publishers. Every tensor that is expected must be there, and nothing else, but for buffers
that follow from the sizes. LoRA is merged into Vicuna (float32, rounded once) and kept beside it.

Pickled files are read as tensors and plain values only (`weights_only`); one that asks for code is refused.

Source: papers/salmonn.md sections 1, 3 and 6 (key names, settings); BEATs' released configuration.
"""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from earwise.errors import EarwiseError, ModelError
from earwise.models import checkpoint
from earwise.models.families.salmonn import (
    PLACEHOLDER,
    STATES_PER_S,
    WHISPER_LARGE_V2,
    Salmonn,
    SalmonnConfig,
    SalmonnModule,
    check,
    empty,
    fill,
    load,
    write,
)
from earwise.models.parts import lora
from earwise.models.parts.beats import Beats, BeatsConfig, fold_weight_norm

LORA_RANK, LORA_ALPHA, LORA_TARGETS = 8, 32.0, ("q_proj", "v_proj")
LLAMA_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_parameters",
)  # fmt: skip
BEATS_SIZES = {
    "patch_dim": "embed_dim", "layers": "encoder_layers", "dim": "encoder_embed_dim",
    "ffn_dim": "encoder_ffn_embed_dim", "heads": "encoder_attention_heads", "conv_kernel": "conv_pos",
    "conv_groups": "conv_pos_groups", "buckets": "num_buckets", "max_distance": "max_distance",
}  # fmt: skip
BEATS_KIND = {
    "input_patch_size": 16, "conv_bias": False, "activation_fn": "gelu", "layer_norm_first": False, "deep_norm": True,
    "relative_position_embedding": True, "gru_rel_pos": True,
}  # fmt: skip
# Our name of a BEATs tensor (without its layer) -> the released one.
BEATS_STEM = {
    "patches": "patch_embedding", "patch_norm": "layer_norm", "widen": "post_extract_proj",
    "place": "encoder.pos_conv.0", "norm": "encoder.layer_norm",
    "distance.table": "encoder.layers.0.self_attn.relative_attention_bias",
}  # fmt: skip
BEATS_LAYER = {
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj", "attention.gates": "self_attn.grep_linear",
    "attention_norm": "self_attn_layer_norm", "fc1": "fc1", "fc2": "fc2", "norm": "final_layer_norm",
}  # fmt: skip
SHARED_TABLE = "self_attn.relative_attention_bias.weight"


def convert(pth: Path, whisper: Path, beats: Path, vicuna: Path, out: Path) -> None:
    """Put the released parts together.

    Args:
        pth: `salmonn_v1.pth` (13B) or `salmonn_7b_v0.pth`, or what the official trainer saved.
        whisper: Folder of Whisper-large-v2 as transformers keeps it (whole, or the encoder alone).
        beats: `BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt`.
        vicuna: Folder of Vicuna (v1.1, 13B or 7B) as transformers keeps it.
        out: Folder to write; must not hold anything yet. It appears when it is whole.
    Raises:
        ModelError: naming what does not fit: missing or unexpected tensors, other shapes, settings that this model
            does not have, files that ask for code.
    """
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out}: holds something already; name a new folder")
    trained, settings = _trained(pth)
    ear, heard = _beats(beats)
    _check_table(pth, beats, trained, heard["distance.table.weight"])
    sizes = checkpoint.config(whisper, ("whisper",), "Whisper-large-v2")
    llama = checkpoint.config(vicuna, ("llama",), "Vicuna")
    words = _tokenizer(vicuna)
    config = SalmonnConfig(
        whisper={name: sizes[name] for name in WHISPER_LARGE_V2},
        llama={name: llama[name] for name in LLAMA_SIZES if llama.get(name) is not None},
        beats=ear,
        window=_window(pth, settings),
    )
    module = empty(config)
    state = {f"beats.{name}": value for name, value in heard.items()}
    state |= _base(whisper, {"speech_encoder.": ("model.encoder.", "encoder.")}, module, "Whisper-large-v2")
    state |= _base(vicuna, {"llama.model.": ("model.",), "llama.lm_head.": ("lm_head.",)}, module, "Vicuna")
    matrices = _matrices(pth, module, trained)
    merged = {name: matrices.pop(name) for name in list(matrices) if ".lora_" in name}
    fill(module, state | matrices, pth)
    scale = float(settings.get("lora_alpha", LORA_ALPHA)) / len(next(iter(merged.values())))
    merged = {name: value * scale if name.endswith("lora_B") else value for name, value in merged.items()}
    weights = module.state_dict()
    for name, up in merged.items():
        if name.endswith("lora_B"):
            stem = name.removesuffix(".lora_B")
            before = weights[f"{stem}.weight"]
            weights[f"{stem}.weight"] = (before.float() + up.float() @ merged[f"{stem}.lora_A"].float()).to(before)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        write(part, config, weights, words, merged)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except (OSError, SafetensorError) as error:  # safetensors has its own class for a full disk
        raise ModelError(f"{out}: cannot be written ({error}); free some space or choose another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def release(model: Salmonn, pth: Path) -> None:
    """Write what was trained in the form that the official code reads (`ckpt:` in its config): ranks of all LoRA
    stages add up, so set its `lora_rank` and `lora_alpha` to those in the file's `config`.

    A decoder or an encoder that was trained directly has no place in that form: give those who run it the base models
    that training started from.

    Raises:
        ModelError: if the model has no LoRA, or it is not on the decoder's query and value projections.
        DataError: if it cannot be written.
    """
    found = lora.concatenate_ranks(model.merged_lora, lora.collect(model.module))
    names = released_names(model.module)
    strange = {name for name in names if ".lora_" in name} ^ found.keys()
    if strange:
        raise ModelError(
            f"{pth}: the released form holds LoRA on {' and '.join(LORA_TARGETS)} of every layer, here "
            f"{sorted(strange)[0]} is too many or missing; export the merged weights instead"
        )
    rank = len(next(value for name, value in found.items() if name.endswith("lora_A")))
    alpha = rank * LORA_ALPHA / LORA_RANK
    connector = model.module.state_dict()
    state = {}
    for ours, theirs in names.items():
        value = found[ours] if ours in found else connector[ours]
        state[theirs] = (value * (rank / alpha) if ours.endswith("lora_B") else value).detach().float().cpu().clone()
    settings = {"lora_rank": rank, "lora_alpha": alpha, "second_per_window": model.module.config.window / STATES_PER_S}
    checkpoint.write_torch(pth, {"model": state, "config": {"model": settings}})


def released_names(module: SalmonnModule) -> dict[str, str]:
    """Our name -> the released checkpoint's, of everything that was trained: the connector, and LoRA."""
    names = {}
    for name in module.state_dict():
        if name.startswith(("ln_speech.", "ln_audio.")):
            names[name] = name
        elif name.startswith("proj."):
            names[name] = f"speech_llama_{name}"
        elif name == "qformer.query":
            names[name] = "speech_query_tokens"
        elif name.startswith("qformer.former.layernorm."):
            names[name] = name.replace("qformer.former.layernorm.", "speech_Qformer.bert.embeddings.LayerNorm.")
        elif name.startswith("qformer.former."):
            inner = name.removeprefix("qformer.former.").replace("attention.attention.", "attention.self.")
            names[name] = f"speech_Qformer.bert.{inner}"
    for layer in range(module.llama.config.num_hidden_layers):
        for target in LORA_TARGETS:
            for matrix in ("lora_A", "lora_B"):
                place = f"model.layers.{layer}.self_attn.{target}.{matrix}"
                names[f"llama.{place}"] = f"llama_model.base_model.model.{place}.default.weight"
    return names


def beats_name(name: str) -> str:
    """The released name of one of our BEATs tensors."""
    if name.startswith("layers."):
        _, number, rest = name.split(".", 2)
        stem, _, kind = rest.rpartition(".")
        inner = "self_attn.grep_a" if kind == "gate_scale" else f"{BEATS_LAYER[stem]}.{kind}"
        return f"encoder.layers.{number}.{inner}"
    stem, _, kind = name.rpartition(".")
    return f"{BEATS_STEM[stem]}.{kind}"


def _trained(pth: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trained tensors of a released checkpoint, and the model's block of its settings (may be empty)."""
    found = checkpoint.read_torch(pth)
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        raise ModelError(f"{pth}: no `model` in it; give the .pth that SALMONN's authors or their trainer wrote")
    settings = found.get("config")
    block = settings.get("model") if isinstance(settings, dict) else None
    return found["model"], block if isinstance(block, dict) else {}


def _window(pth: Path, settings: Mapping[str, Any]) -> int:
    """States a window, from the seconds in the settings."""
    for name in ("use_speech_Qformer", "window_level_Qformer", "lora"):
        if settings.get(name) is False:
            raise ModelError(f"{pth}: trained with {name}: false, which this model does not have; train with true")
    length = float(settings.get("second_per_window", 0.333333))
    stride = float(settings.get("second_stride", length))
    if length != stride:
        raise ModelError(f"{pth}: trained on windows of {length} s every {stride} s; here they must not overlap")
    return round(length * STATES_PER_S)


def _beats(path: Path) -> tuple[BeatsConfig, dict[str, Tensor]]:
    """Sizes and weights of a BEATs checkpoint under our names, its weight norm folded, its classifier left out."""
    found = checkpoint.read_torch(path)
    if not isinstance(found, dict) or not {"cfg", "model"} <= found.keys():
        raise ModelError(f"{path}: no `cfg` and `model` in it; give the released BEATs checkpoint")
    settings: dict[str, Any] = found["cfg"]
    for name, needed in BEATS_KIND.items():
        if settings.get(name) != needed:
            raise ModelError(
                f"{path}: BEATs with {name}={settings.get(name)}, but SALMONN's has {needed}; "
                "give BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt"
            )
    config = BeatsConfig(**{ours: int(settings[theirs]) for ours, theirs in BEATS_SIZES.items()})
    weights: dict[str, Tensor] = dict(found["model"])
    gain, direction = (f"encoder.pos_conv.0.weight_{letter}" for letter in "gv")
    if {gain, direction} <= weights.keys():
        weights["encoder.pos_conv.0.weight"] = fold_weight_norm(weights.pop(gain), weights.pop(direction))
    with torch.device("meta"):
        names = {name: beats_name(name) for name in Beats(config).state_dict()}
    extra = {name for name in weights.keys() - set(names.values()) if not name.startswith("predictor.")}
    extra = {name for name in extra if not name.endswith(SHARED_TABLE)}
    checkpoint.check_keys(path, set(names.values()) - weights.keys(), extra, (), "BEATs")
    return config, {ours: weights[theirs].contiguous() for ours, theirs in names.items()}


def _base(folder: Path, prefixes: Mapping[str, tuple[str, ...]], module: SalmonnModule, what: str) -> dict[str, Tensor]:
    """Tensors of a transformers folder that stand under one of the given names, renamed, but for rotary frequencies."""
    shards = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not shards:
        raise ModelError(f"{folder}: no *.safetensors or pytorch_model*.bin here; download {what} whole")
    state = {}
    for shard in shards:
        for name, value in (
            load_file(shard) if shard.suffix == ".safetensors" else checkpoint.read_torch(shard)
        ).items():
            for ours, theirs in prefixes.items():
                start = next((prefix for prefix in theirs if name.startswith(prefix)), None)
                if start is not None and not name.endswith("rotary_emb.inv_freq"):
                    state[ours + name.removeprefix(start)] = value.contiguous()
    check({n: v for n, v in module.state_dict().items() if n.startswith(tuple(prefixes))}, state, folder, what)
    return state


def _tokenizer(vicuna: Path) -> Tokenizer:
    """Vicuna's tokenizer; its folder as released has it only in SentencePiece's form."""
    try:
        return checkpoint.tokenizer(vicuna, PLACEHOLDER)
    except ModelError as error:
        if not (vicuna / "tokenizer.model").exists():
            raise
        raise ModelError(
            f"{vicuna}: tokenizer.model cannot be read here; pip install sentencepiece protobuf, or put a "
            "tokenizer.json of Vicuna beside it"
        ) from error


def _matrices(pth: Path, module: SalmonnModule, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was trained, under our names; refused unless it is whole, fits the base models and holds nothing else."""
    names = released_names(module)
    follows = ("rotary_emb.inv_freq", "embeddings.position_ids", SHARED_TABLE)
    wanted = module.state_dict()
    shapes = {theirs: wanted[ours] for ours, theirs in names.items() if ours in wanted}
    for ours, theirs in names.items():
        if ".lora_" in ours and theirs in trained:
            stem, _, matrix = ours.rpartition(".")
            rank = trained[theirs].shape[0 if matrix == "lora_A" else -1]
            outs, ins = wanted[f"{stem}.weight"].shape
            shapes[theirs] = torch.empty((rank, ins) if matrix == "lora_A" else (outs, rank), device="meta")
        elif ".lora_" in ours:
            shapes[theirs] = torch.empty(0, device="meta")
    found = {name: value for name, value in trained.items() if name in shapes or not name.endswith(follows)}
    check(shapes, found, pth, "SALMONN, and the Vicuna (7B or 13B) that it was trained with")
    return {ours: trained[theirs].contiguous() for ours, theirs in names.items()}


def _check_table(pth: Path, beats: Path, trained: Mapping[str, Tensor], table: Tensor) -> None:
    """The trainer also saves BEATs' shared table, once a layer: it tells whether this is the BEATs it listened with."""
    for name, value in trained.items():
        if name.startswith("beats.") and name.endswith(SHARED_TABLE):
            if value.shape != table.shape or not torch.allclose(value.float(), table.float(), rtol=1e-3, atol=1e-4):
                raise ModelError(f"{beats}: not the BEATs that {pth.name} was trained with; give the one it names")
            return


def main() -> None:
    """The command line of this file."""
    parser = argparse.ArgumentParser(prog="python -m earwise.models.convert.salmonn", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, dest="command")
    make = commands.add_parser("convert", help="released parts -> a folder for --model")
    make.add_argument("pth", type=Path, help="salmonn_v1.pth or salmonn_7b_v0.pth")
    for name, meant in (("whisper", "folder of Whisper-large-v2"), ("beats", "the .pt of BEATs"), ("vicuna", "folder")):
        make.add_argument(f"--{name}", type=Path, required=True, help=meant)
    make.add_argument("--out", type=Path, required=True, help="folder to write")
    back = commands.add_parser("release", help="a folder of ours -> what the official code reads")
    back.add_argument("folder", type=Path, help="written by convert, train or export")
    back.add_argument("pth", type=Path, help="file to write")
    given = parser.parse_args()
    try:
        if given.command == "convert":
            convert(given.pth, given.whisper, given.beats, given.vicuna, given.out)
        else:
            release(load(given.folder), given.pth)
    except EarwiseError as error:
        parser.exit(2, f"Error: {error}\n")


if __name__ == "__main__":
    main()
