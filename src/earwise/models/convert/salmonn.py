"""SALMONN's released parts -> one folder for `families/salmonn.py`, and back to the released form.

    python -m earwise.models.convert.salmonn convert salmonn_v1.pth --whisper whisper-large-v2 \\
        --beats BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt --vicuna vicuna-13b-v1.1 --out salmonn-13b
    python -m earwise.models.convert.salmonn release my-salmonn my-salmonn.pth

The released `.pth` contains only what was trained (Q-Former, its query, two norms, projection, LoRA); the three base
models come from their own publishers. Every expected tensor must be there, and no other, except buffers that follow
from the sizes. LoRA is merged into Vicuna (float32, rounded once), and its matrices are kept in a file of their own.

Pickled files are read as tensors and plain values only (`weights_only`); one that contains code is refused.

Source: SALMONN (arXiv:2310.13289) and its released code bytedance/SALMONN (tensor names, settings); BEATs
(arXiv:2212.09058), released configuration.
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
from earwise.files import remove_abandoned, temporary_path
from earwise.models import checkpoint
from earwise.models.families.salmonn import (
    PLACEHOLDER,
    STATES_PER_S,
    WHISPER_LARGE_V2,
    Salmonn,
    SalmonnConfig,
    SalmonnModule,
    check_same_tensors,
    empty_module,
    fill_module,
    load,
    write_folder,
)
from earwise.models.parts import lora
from earwise.models.parts.beats import Beats, BeatsConfig, fold_weight_norm

LORA_RANK, LORA_ALPHA, LORA_TARGETS = 8, 32.0, ("q_proj", "v_proj")
"""LoRA of the released checkpoints."""
LLAMA_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_parameters",
)  # fmt: skip
"""Keys of Vicuna's config.json that are kept."""
BEATS_SIZES = {
    "patch_dim": "embed_dim", "layers": "encoder_layers", "dim": "encoder_embed_dim",
    "ffn_dim": "encoder_ffn_embed_dim", "heads": "encoder_attention_heads", "conv_kernel": "conv_pos",
    "conv_groups": "conv_pos_groups", "buckets": "num_buckets", "max_distance": "max_distance",
}  # fmt: skip
"""Fields of `BeatsConfig` -> keys of the released configuration."""
BEATS_REQUIRED = {
    "input_patch_size": 16, "conv_bias": False, "activation_fn": "gelu", "layer_norm_first": False, "deep_norm": True,
    "relative_position_embedding": True, "gru_rel_pos": True,
}  # fmt: skip
"""Settings that the released configuration must have."""
BEATS_STEM = {
    "patches": "patch_embedding", "patch_norm": "layer_norm", "widen": "post_extract_proj",
    "place": "encoder.pos_conv.0", "norm": "encoder.layer_norm",
    "distance.table": "encoder.layers.0.self_attn.relative_attention_bias",
}  # fmt: skip
"""Our names of BEATs tensors outside its layers -> the released ones."""
BEATS_LAYER = {
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj", "attention.gates": "self_attn.grep_linear",
    "attention_norm": "self_attn_layer_norm", "fc1": "fc1", "fc2": "fc2", "norm": "final_layer_norm",
}  # fmt: skip
"""Our names of tensors of a BEATs layer -> the released ones."""
SHARED_TABLE = "self_attn.relative_attention_bias.weight"
"""End of the names of BEATs' table of position biases, which the released files repeat for every layer."""


def convert(pth: Path, whisper: Path, beats: Path, vicuna: Path, out: Path) -> None:
    """Put the released parts together.

    Args:
        pth: `salmonn_v1.pth` (13B) or `salmonn_7b_v0.pth`, or what the official trainer saved.
        whisper: Folder of Whisper-large-v2 in transformers' format (whole, or the encoder alone).
        beats: `BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt`.
        vicuna: Folder of Vicuna (v1.1, 13B or 7B) in transformers' format.
        out: Folder to write; must be empty or not exist. It appears only when it is complete.
    Raises:
        ModelError: naming what does not fit: missing or unexpected tensors, other shapes, settings that this model
            does not have, files that contain code.
    """
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out}: holds something already; name a new folder")
    trained, settings = _read_trained(pth)
    beats_config, beats_tensors = _read_beats(beats)
    _check_same_beats(pth, beats, trained, beats_tensors["distance.table.weight"])
    whisper_sizes = checkpoint.read_config(whisper, ("whisper",), "Whisper-large-v2")
    llama_sizes = checkpoint.read_config(vicuna, ("llama",), "Vicuna")
    tokenizer = _read_tokenizer(vicuna)
    config = SalmonnConfig(
        whisper={name: whisper_sizes[name] for name in WHISPER_LARGE_V2},
        llama={name: llama_sizes[name] for name in LLAMA_SIZES if llama_sizes.get(name) is not None},
        beats=beats_config,
        window=_window_states(pth, settings),
    )
    module = empty_module(config)
    tensors = {f"beats.{name}": value for name, value in beats_tensors.items()}
    whisper_prefixes = {"speech_encoder.": ("model.encoder.", "encoder.")}
    tensors |= _read_base(whisper, whisper_prefixes, module, "Whisper-large-v2")
    vicuna_prefixes = {"llama.model.": ("model.",), "llama.lm_head.": ("lm_head.",)}
    tensors |= _read_base(vicuna, vicuna_prefixes, module, "Vicuna")
    ours = _rename_trained(pth, module, trained)
    merged_lora = {name: ours.pop(name) for name in list(ours) if ".lora_" in name}
    fill_module(module, tensors | ours, pth)
    scale = float(settings.get("lora_alpha", LORA_ALPHA)) / len(next(iter(merged_lora.values())))
    merged_lora = {name: value * scale if name.endswith("lora_B") else value for name, value in merged_lora.items()}
    _write_atomically(out, config, _merge_lora(module, merged_lora), tokenizer, merged_lora)


def _merge_lora(module: SalmonnModule, matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The module's weights with LoRA added (float32 sum, rounded once)."""
    weights = module.state_dict()
    for name, up in matrices.items():
        if name.endswith("lora_B"):
            stem = name.removesuffix(".lora_B")
            weight = weights[f"{stem}.weight"]
            merged = weight.float() + up.float() @ matrices[f"{stem}.lora_A"].float()
            weights[f"{stem}.weight"] = merged.to(weight)
    return weights


def _write_atomically(
    out: Path, config: SalmonnConfig, weights: Mapping[str, Tensor], tokenizer: Tokenizer,
    merged_lora: Mapping[str, Tensor],
) -> None:  # fmt: skip
    """Write the folder beside `out` and rename it when it is complete."""
    part = temporary_path(out)
    remove_abandoned(out.parent)
    try:
        write_folder(part, config, weights, tokenizer, merged_lora)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except (OSError, SafetensorError) as error:  # safetensors has its own class for a full disk
        raise ModelError(f"{out}: cannot be written ({error}); free some space or choose another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def release(model: Salmonn, pth: Path) -> None:
    """Write what was trained in the form that the official code reads (`ckpt:` in its config). Ranks of all LoRA stages
    add up, so `lora_rank` and `lora_alpha` of that config have to be those in the file's `config`.

    A decoder or an encoder that was trained in full has no place in that form: whoever runs it needs the base models
    that training started from.

    Raises:
        ModelError: if the model has no LoRA, or it is not on the decoder's query and value projections.
        DataError: if the file cannot be written.
    """
    matrices = lora.concatenate_ranks(model.merged_lora, lora.collect(model.module))
    names = released_names(model.module)
    different = {name for name in names if ".lora_" in name} ^ matrices.keys()
    if different:
        raise ModelError(
            f"{pth}: the released form holds LoRA on {' and '.join(LORA_TARGETS)} of every layer, here "
            f"{sorted(different)[0]} is too many or missing; export the merged weights instead"
        )
    rank = len(next(value for name, value in matrices.items() if name.endswith("lora_A")))
    alpha = rank * LORA_ALPHA / LORA_RANK
    weights = model.module.state_dict()
    tensors = {}
    for name, released in names.items():
        value = matrices[name] if name in matrices else weights[name]
        value = value * (rank / alpha) if name.endswith("lora_B") else value
        tensors[released] = value.detach().float().cpu().clone()
    window_s = model.module.config.window / STATES_PER_S
    settings = {"lora_rank": rank, "lora_alpha": alpha, "second_per_window": window_s}
    checkpoint.write_torch_file(pth, {"model": tensors, "config": {"model": settings}})


def released_names(module: SalmonnModule) -> dict[str, str]:
    """Our name -> the released checkpoint's name of everything that was trained: the connector, and LoRA."""
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
                path = f"model.layers.{layer}.self_attn.{target}.{matrix}"
                names[f"llama.{path}"] = f"llama_model.base_model.model.{path}.default.weight"
    return names


def released_beats_name(name: str) -> str:
    """The released name of one of our BEATs tensors."""
    if name.startswith("layers."):
        _, number, inner = name.split(".", 2)
        stem, _, kind = inner.rpartition(".")
        released = "self_attn.grep_a" if kind == "gate_scale" else f"{BEATS_LAYER[stem]}.{kind}"
        return f"encoder.layers.{number}.{released}"
    stem, _, kind = name.rpartition(".")
    return f"{BEATS_STEM[stem]}.{kind}"


def _read_trained(pth: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trained tensors of a released checkpoint, and the `model` section of its settings (may be empty)."""
    content = checkpoint.read_torch_file(pth)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ModelError(f"{pth}: no `model` in it; give the .pth that SALMONN's authors or their trainer wrote")
    settings = content.get("config")
    section = settings.get("model") if isinstance(settings, dict) else None
    return content["model"], section if isinstance(section, dict) else {}


def _window_states(pth: Path, settings: Mapping[str, Any]) -> int:
    """Encoder states per window, from the seconds in the settings."""
    for name in ("use_speech_Qformer", "window_level_Qformer", "lora"):
        if settings.get(name) is False:
            raise ModelError(f"{pth}: trained with {name}: false, which this model does not have; train with true")
    window_s = float(settings.get("second_per_window", 0.333333))
    stride_s = float(settings.get("second_stride", window_s))
    if window_s != stride_s:
        raise ModelError(f"{pth}: trained on windows of {window_s} s every {stride_s} s; here they must not overlap")
    return round(window_s * STATES_PER_S)


def _read_beats(path: Path) -> tuple[BeatsConfig, dict[str, Tensor]]:
    """Sizes and weights of a BEATs checkpoint under our names, with its weight norm folded and without its
    classifier."""
    content = checkpoint.read_torch_file(path)
    if not isinstance(content, dict) or not {"cfg", "model"} <= content.keys():
        raise ModelError(f"{path}: no `cfg` and `model` in it; give the released BEATs checkpoint")
    settings: dict[str, Any] = content["cfg"]
    for name, required in BEATS_REQUIRED.items():
        if settings.get(name) != required:
            raise ModelError(
                f"{path}: BEATs with {name}={settings.get(name)}, but SALMONN's has {required}; "
                "give BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt"
            )
    config = BeatsConfig(**{ours: int(settings[released]) for ours, released in BEATS_SIZES.items()})
    weights: dict[str, Tensor] = dict(content["model"])
    gain, direction = (f"encoder.pos_conv.0.weight_{letter}" for letter in "gv")
    if {gain, direction} <= weights.keys():
        weights["encoder.pos_conv.0.weight"] = fold_weight_norm(weights.pop(gain), weights.pop(direction))
    with torch.device("meta"):
        names = {name: released_beats_name(name) for name in Beats(config).state_dict()}
    unexpected = {
        name
        for name in weights.keys() - set(names.values())
        if not name.startswith("predictor.") and not name.endswith(SHARED_TABLE)
    }
    checkpoint.check_tensors(path, set(names.values()) - weights.keys(), unexpected, (), "BEATs")
    return config, {ours: weights[released].contiguous() for ours, released in names.items()}


def _read_base(
    folder: Path, prefixes: Mapping[str, tuple[str, ...]], module: SalmonnModule, label: str
) -> dict[str, Tensor]:
    """Tensors of a base model in transformers' format, renamed, without rotary frequencies.

    Args:
        folder: The base model's folder.
        prefixes: Beginning of our names -> beginnings of the folder's names, of which the first that fits is replaced.
        module: The module that the tensors are for.
        label: The base model in error messages.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ModelError(f"{folder}: no *.safetensors or pytorch_model*.bin here; download {label} whole")
    tensors = {}
    for file in files:
        content = load_file(file) if file.suffix == ".safetensors" else checkpoint.read_torch_file(file)
        for name, value in content.items():
            for ours, released in prefixes.items():
                start = next((prefix for prefix in released if name.startswith(prefix)), None)
                if start is not None and not name.endswith("rotary_emb.inv_freq"):
                    tensors[ours + name.removeprefix(start)] = value.contiguous()
    needed = {name: value for name, value in module.state_dict().items() if name.startswith(tuple(prefixes))}
    check_same_tensors(tensors, needed, folder, label)
    return tensors


def _read_tokenizer(vicuna: Path) -> Tokenizer:
    """Vicuna's tokenizer; its folder as released has it only in SentencePiece's format."""
    try:
        return checkpoint.read_tokenizer(vicuna, PLACEHOLDER)
    except ModelError as error:
        if not (vicuna / "tokenizer.model").exists():
            raise
        raise ModelError(
            f"{vicuna}: tokenizer.model cannot be read here; pip install sentencepiece protobuf, or put a "
            "tokenizer.json of Vicuna beside it"
        ) from error


def _rename_trained(pth: Path, module: SalmonnModule, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was trained, under our names; refused unless it is complete, fits the base models and contains nothing
    else."""
    names = released_names(module)
    follows_from_sizes = ("rotary_emb.inv_freq", "embeddings.position_ids", SHARED_TABLE)
    weights = module.state_dict()
    needed = {released: weights[ours] for ours, released in names.items() if ours in weights}
    for ours, released in names.items():
        if ".lora_" not in ours:
            continue
        needed[released] = torch.empty(0, device="meta")
        if released in trained:
            stem, _, matrix = ours.rpartition(".")
            rank = trained[released].shape[0 if matrix == "lora_A" else -1]
            outputs, inputs = weights[f"{stem}.weight"].shape
            shape = (rank, inputs) if matrix == "lora_A" else (outputs, rank)
            needed[released] = torch.empty(shape, device="meta")
    present = {
        name: value for name, value in trained.items() if name in needed or not name.endswith(follows_from_sizes)
    }
    check_same_tensors(present, needed, pth, "SALMONN, and the Vicuna (7B or 13B) that it was trained with")
    return {ours: trained[released].contiguous() for ours, released in names.items()}


def _check_same_beats(pth: Path, beats: Path, trained: Mapping[str, Tensor], table: Tensor) -> None:
    """Compare BEATs' table of position biases, of which the trainer also saves a copy per layer, to see whether this is
    the BEATs of the training."""
    for name, value in trained.items():
        if name.startswith("beats.") and name.endswith(SHARED_TABLE):
            if value.shape != table.shape or not torch.allclose(value.float(), table.float(), rtol=1e-3, atol=1e-4):
                raise ModelError(f"{beats}: not the BEATs that {pth.name} was trained with; give the one it names")
            return


def main() -> None:
    """The command line of this file; exit code 2 for an error in the user's input."""
    parser = argparse.ArgumentParser(prog="python -m earwise.models.convert.salmonn", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, dest="command")
    convert_command = commands.add_parser("convert", help="released parts -> a folder for --model")
    convert_command.add_argument("pth", type=Path, help="salmonn_v1.pth or salmonn_7b_v0.pth")
    convert_command.add_argument("--whisper", type=Path, required=True, help="folder of Whisper-large-v2")
    convert_command.add_argument("--beats", type=Path, required=True, help="the .pt of BEATs")
    convert_command.add_argument("--vicuna", type=Path, required=True, help="folder of Vicuna")
    convert_command.add_argument("--out", type=Path, required=True, help="folder to write")
    release_command = commands.add_parser("release", help="a folder of ours -> what the official code reads")
    release_command.add_argument("folder", type=Path, help="written by convert, train or export")
    release_command.add_argument("pth", type=Path, help="file to write")
    arguments = parser.parse_args()
    try:
        if arguments.command == "convert":
            convert(arguments.pth, arguments.whisper, arguments.beats, arguments.vicuna, arguments.out)
        else:
            release(load(arguments.folder), arguments.pth)
    except EarwiseError as error:
        parser.exit(2, f"Error: {error}\n")


if __name__ == "__main__":
    main()
