"""Reading and writing checkpoint folders, the same for every family: which files are weights, what they are called in
results, whether they are whole, and the state dict that is written back.

Called by each family's `load` and `save`. Weights are safetensors only: a pickle can run code when it is read.
"""

import hashlib
import json
import pickle
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn

from earwise.errors import ModelError
from earwise.files import atomic_write
from earwise.models.parts import lora

PICKLED = (".bin", ".pth", ".pt", ".ckpt", ".pkl")
ADAPTER = "adapter_model.safetensors"  # PEFT's name for LoRA matrices, which are no part of a whole checkpoint
# What other readers of a checkpoint want beside weights, config and tokenizer.json: small, kept as it came.
SIDE_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "processor_config.json",
    "chat_template.json", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def config(folder: Path, types: Collection[str], what: str) -> dict[str, Any]:
    """The checkpoint's config.json, once it says that it is of one of these types.

    Args:
        folder: The checkpoint.
        types: Accepted values of `model_type`.
        what: Name of the family in errors, with its article ("a Qwen2-Audio model").
    Raises:
        ModelError: if there is none, it is not JSON, or it describes another kind of model (a text-only one, say).
    """
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{folder}: no config.json here; give the folder of a checkpoint of {what}")
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = read.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: not a model's config ({error}); download it again") from error
    if found not in types:
        raise ModelError(
            f"{path}: model_type is {found!r}, {what} has {' or '.join(sorted(types))}; "
            "give a checkpoint of this family, or name the family that it is of"
        )
    return read


def safetensors_shards(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint in order; LoRA adapters beside them are left out.

    Raises:
        ModelError: if there are none; named as such if there are pickled weights, which are never read.
    """
    shards = sorted(path for path in folder.glob("*.safetensors") if path.name != ADAPTER)
    if not shards:
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED) if folder.is_dir() else []
        if pickled:
            raise ModelError(
                f"{folder / pickled[0]}: pickled weights can run code and are not read; "
                "convert the checkpoint to safetensors"
            )
        raise ModelError(f"{folder}: no *.safetensors here; download the checkpoint whole")
    return shards


def tensors(
    folder: Path, what: str, *, prefix: str = "", unread: tuple[str, ...] = ()
) -> tuple[list[Path], dict[str, Tensor], set[str]]:
    """The tensors of one part of a checkpoint, on the CPU.

    Args:
        folder: The checkpoint.
        what: Name of the family in errors, with its article.
        prefix: Begins the names of the part; "" is the whole.
        unread: Begin the names of other parts. With an index, a file that holds nothing else is not opened and may be
            missing.
    Returns:
        The files with the part, its tensors named without the prefix, and the names that belong to no part.
    Raises:
        ModelError: if a file is missing or broken, or there is no tensor of the part.
    """
    shards = safetensors_shards(folder)
    known = (prefix, *unread)
    strays: set[str] = set()
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{index}: not an index of weights ({one_line(error)}); download it again") from error
        strays |= {name for name in places if not name.startswith(known)}
        shards = sorted({folder / file for name, file in places.items() if name.startswith(prefix)})
        gone = [shard.name for shard in shards if not shard.exists()]
        if gone:
            raise ModelError(f"{folder}: {gone[0]}, which holds weights of {what}, is not here; download it")
    state: dict[str, Tensor] = {}
    for shard in shards:
        try:
            with safe_open(shard, "pt") as handle:
                names = list(handle.keys())
                state |= {
                    name.removeprefix(prefix): handle.get_tensor(name) for name in names if name.startswith(prefix)
                }
        except SafetensorError as error:
            raise ModelError(f"{shard}: not a safetensors file ({one_line(error)}); download it again") from error
        strays |= {name for name in names if not name.startswith(known)}
    if not state:
        raise ModelError(f"{folder}: no tensors of {what} (names that start with {prefix!r}); download it whole")
    return shards, state, strays


def read_torch(path: Path) -> Any:
    """What a file holds that torch saved: tensors and plain values only, so that nothing in it is run.

    Raises:
        ModelError: if there is no such file, it asks for code, or it is broken.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the path of the released file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split("WeightsUnpickler error:")[-1].split())[:160]  # behind much advice
        raise ModelError(
            f"{path}: pickled code, or no checkpoint at all, and not read, since it could run code ({reason}); "
            "take the file from its publisher, or save its tensors alone"
        ) from error
    except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({one_line(error)[:160]}); download it again") from error


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Save a file for other people's code as torch saves it, all or nothing.

    Raises:
        DataError: if the disk refuses.
    """
    with atomic_write(path, "wb") as handle:
        try:
            torch.save(content, handle)
        except RuntimeError as error:  # so torch reports a full disk
            raise OSError(one_line(error)) from error


def digest(shards: Sequence[Path]) -> str:
    """Twelve hexadecimal digits that name these weights: SHA-256 over the SHA-256 of each file."""
    whole = hashlib.sha256()
    for shard in shards:
        with shard.open("rb") as handle:
            whole.update(hashlib.file_digest(handle, "sha256").digest())
    return whole.hexdigest()[:12]


def check_keys(
    folder: Path, missing: Collection[str], unexpected: Collection[str], misshapen: Collection[str], what: str
) -> None:
    """Refuse a checkpoint that does not fill the model exactly.

    Args:
        folder: The checkpoint.
        missing: Names of tensors that the model has and the checkpoint has not.
        unexpected: Names of tensors that the checkpoint has and the model has not.
        misshapen: Names and shapes of tensors that do not fit, see `misshapen`.
        what: Name of the family in errors, with its article ("a Qwen2-Audio model").
    Raises:
        ModelError: naming the first three of each kind.
    """
    faults = {"missing": missing, "unexpected": unexpected, "of the wrong shape": misshapen}
    if any(faults.values()):
        listed = "; ".join(f"{fault}: {_some(names)}" for fault, names in faults.items() if names)
        raise ModelError(f"{folder}: tensors {listed}; give a whole checkpoint of {what} and its own config.json")


def misshapen(mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]]) -> set[str]:
    """transformers' `mismatched_keys` (name, stored shape, wanted shape) in words."""
    return {f"{name} {tuple(stored)} for {tuple(wanted)}" for name, stored, wanted in mismatched}


def tokenizer(folder: Path, needed_mark: str) -> Tokenizer:
    """The checkpoint's tokenizer, once it knows `needed_mark`.

    Raises:
        ModelError: if tokenizer.json is broken, or nothing here makes a tokenizer that knows the mark.
    """
    path = folder / "tokenizer.json"
    try:
        found = Tokenizer.from_file(str(path)) if path.exists() else None
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{path}: not a tokenizer ({error}); download it again") from error
    if found is None or found.token_to_id(needed_mark) is None:
        # Some checkpoints keep their marks outside tokenizer.json, or have only vocab.json and merges.txt.
        from transformers import AutoTokenizer

        try:
            found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
        except (OSError, ValueError, KeyError, AttributeError):
            found = None
    if found is None or found.token_to_id(needed_mark) is None:
        raise ModelError(
            f"{folder}: no tokenizer that knows {needed_mark}; put the checkpoint's tokenizer files beside its weights"
        )
    return found


def side_files(folder: Path) -> dict[str, bytes]:
    """Name -> content of the small files (chat template, settings of the tokenizer) that `save` hands on."""
    return {name: (folder / name).read_bytes() for name in SIDE_FILES if (folder / name).exists()}


def older_config(folder: Path) -> None:
    """Say in config.json also what transformers 4 and vLLM look for: `rope_theta` and `torch_dtype` beside the newer
    `rope_parameters` and `dtype`, at every level. transformers 5 reads such a config as it read the other."""

    def both(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        out = {key: both(inner) for key, inner in value.items()}
        rope = value.get("rope_parameters")
        if isinstance(rope, dict) and "rope_theta" in rope:
            out["rope_theta"] = rope["rope_theta"]
            scaling = {key: inner for key, inner in rope.items() if key != "rope_theta"}
            out["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
        if isinstance(value.get("dtype"), str):
            out["torch_dtype"] = value["dtype"]
        return out

    path = folder / "config.json"
    path.write_text(json.dumps(both(json.loads(path.read_text(encoding="utf-8"))), indent=2) + "\n", encoding="utf-8")


def from_hub(name: str, why: str, remedy: str) -> Path:
    """The folder of a checkpoint on a model hub, downloaded once.

    Args:
        name: Of the repository, with `@REVISION` behind it where it is not the newest.
        why: Begins the error: what is missing here.
        remedy: Ends the error.
    Raises:
        ModelError: if no hub can be reached, or it has no such checkpoint.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ModelError(f"{why}, and {name} cannot be fetched from a model hub; {remedy}") from error


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict under the names it has without LoRA, LoRA merged in (float32 sum, rounded once).

    Tensors that share memory (a tied head) are each written by themselves: safetensors wants it so.
    """
    updates = lora.collect(module)
    state: dict[str, Tensor] = {}
    written: set[int] = set()
    for key, value in module.state_dict().items():
        if ".lora_" in key:
            continue
        name = key.replace(".base_layer.", ".")
        stem = name.removesuffix(".weight")
        if f"{stem}.lora_B" in updates:
            change = updates[f"{stem}.lora_B"].float() @ updates[f"{stem}.lora_A"].float()
            value = (value.float() + change).to(value.dtype)
        value = value.detach().contiguous()
        state[name] = value.clone() if value.numel() and value.data_ptr() in written else value
        written.add(value.data_ptr())
    return state


def one_line(error: Exception) -> str:
    """An error's own words on one line, the first 300 characters."""
    return " ".join(str(error).split())[:300]


def _some(names: Collection[str]) -> str:
    shown = sorted(names)
    return f"{', '.join(shown[:3])}{f' and {len(shown) - 3} more' if len(shown) > 3 else ''}"
