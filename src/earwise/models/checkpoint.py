"""Reading and writing checkpoint folders, the same for every family: which files contain weights, what they are called
in results, whether they are complete, and the state dict that is written back.

Used by each family's `load` and `save`. Weights are read from safetensors only: a pickle can run code when it is read.
"""

import hashlib
import json
import pickle
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn

from earwise.errors import ModelError, is_out_of_memory
from earwise.files import atomic_write
from earwise.models.detect import MARKER
from earwise.models.parts import lora
from earwise.models.precision import lora_beside

PICKLED_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")
PEFT_WEIGHTS = "adapter_model.safetensors"
"""PEFT's own name for LoRA matrices, which are not part of a whole checkpoint."""
SIDE_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "processor_config.json",
    "chat_template.json", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
"""Small files that other readers of a checkpoint need beside weights, config and tokenizer.json; kept unchanged."""


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Inside the block, transformers shows no bars of its own while it reads and writes weights; downloads keep theirs.

    A command prints what it loads in a line of its own, and a bar between its lines says nothing more.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers import logging

    was_enabled, downloads_are_silent = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    logging.disable_progress_bar()
    if not downloads_are_silent:
        enable_progress_bars()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
        if downloads_are_silent:
            disable_progress_bars()


def read_config(folder: Path, model_types: Collection[str], label: str) -> dict[str, Any]:
    """The content of a checkpoint's config.json, if it says that it is of one of these types.

    Args:
        folder: The checkpoint.
        model_types: Accepted values of `model_type`.
        label: The family in error messages, with its article ("a Qwen2-Audio model").
    Raises:
        ModelError: if there is no config.json, it is not JSON, or it describes another kind of model (such as a
            text-only one).
    """
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{folder}: no config.json here; give the folder of a checkpoint of {label}")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        model_type = content.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: not a model's config ({error}); download it again") from error
    if model_type not in model_types:
        raise ModelError(
            f"{path}: model_type is {model_type!r}, {label} has {' or '.join(sorted(model_types))}; "
            "give a checkpoint of this family, or name the family that it is of"
        )
    return content


def safetensors_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint in order, without LoRA matrices beside them.

    Raises:
        ModelError: if there are none. Pickled weights, which are never read, are named in the message.
    """
    files = sorted(path for path in folder.glob("*.safetensors") if path.name != PEFT_WEIGHTS)
    if not files:
        pickled = (
            sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED_SUFFIXES) if folder.is_dir() else []
        )
        if pickled:
            raise ModelError(
                f"{folder / pickled[0]}: pickled weights can run code and are not read; "
                "convert the checkpoint to safetensors"
            )
        raise ModelError(f"{folder}: no *.safetensors here; download the checkpoint whole")
    return files


def read_tensors(
    folder: Path, label: str, *, prefix: str = "", other_prefixes: tuple[str, ...] = ()
) -> tuple[list[Path], dict[str, Tensor], set[str]]:
    """Read the tensors of one part of a checkpoint, to the CPU.

    Args:
        folder: The checkpoint.
        label: The family in error messages, with its article.
        prefix: Beginning of the names of the part's tensors; "" reads the whole checkpoint.
        other_prefixes: Beginnings of the names of other parts. If the checkpoint has an index, a file with tensors of
            other parts only is not opened and may be missing.
    Returns:
        The files that contain the part, its tensors by name without the prefix, and the names that belong to no part.
    Raises:
        ModelError: if a file is missing or broken, or there is no tensor of the part.
    """
    files = safetensors_files(folder)
    known_prefixes = (prefix, *other_prefixes)
    unexpected: set[str] = set()
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            file_names: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{index}: not an index of weights ({one_line(error)}); download it again") from error
        unexpected |= {name for name in file_names if not name.startswith(known_prefixes)}
        outside = [file for file in file_names.values() if not _is_file_name(file)]
        if outside:
            raise ModelError(f"{index}: names the file {str(outside[0])[:80]!r}, which is not in its folder; delete it")
        files = sorted({folder / file for name, file in file_names.items() if name.startswith(prefix)})
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise ModelError(f"{folder}: {missing[0]}, which holds weights of {label}, is not here; download it")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as handle:
                names = list(handle.keys())
                tensors |= {
                    name.removeprefix(prefix): handle.get_tensor(name) for name in names if name.startswith(prefix)
                }
        except SafetensorError as error:
            raise ModelError(f"{file}: not a safetensors file ({one_line(error)}); download it again") from error
        unexpected |= {name for name in names if not name.startswith(known_prefixes)}
    if not tensors:
        raise ModelError(f"{folder}: no tensors of {label} (names that start with {prefix!r}); download it whole")
    return files, tensors, unexpected


def _is_file_name(value: object) -> bool:
    """Whether a value from an index is the name of a file, without a path."""
    return isinstance(value, str) and Path(value).name == value and value not in ("", "..")


def read_torch_file(path: Path) -> Any:
    """The content of a file that torch saved, read as tensors and plain values only, so that no code in it is run.

    Raises:
        ModelError: if there is no such file, it contains code, or it is broken.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the path of the released file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch puts the reason behind several lines of advice.
        reason = " ".join(str(error).split("WeightsUnpickler error:")[-1].split())[:160]
        raise ModelError(
            f"{path}: pickled code, or no checkpoint at all, and not read, since it could run code ({reason}); "
            "take the file from its publisher, or save its tensors alone"
        ) from error
    except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{path}: cannot be read ({one_line(error)[:160]}); download it again") from error


def write_torch_file(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file as `torch.save` does, for other people's code; it appears only when it is complete.

    Raises:
        DataError: if the file cannot be written.
    """
    with atomic_write(path, "wb") as handle:
        try:
            torch.save(content, handle)
        except RuntimeError as error:  # torch reports a full disk like this
            raise OSError(one_line(error)) from error


def write_marker(folder: Path, content: Mapping[str, object]) -> None:
    """Write earwise.json, by which `detect.find_checkpoint` recognises a checkpoint; `content` has its `family`."""
    (folder / MARKER).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def weights_digest(files: Sequence[Path]) -> str:
    """Twelve hexadecimal digits that identify these weights: SHA-256 over the SHA-256 of each file."""
    combined = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            combined.update(hashlib.file_digest(handle, "sha256").digest())
    return combined.hexdigest()[:12]


def check_tensors(
    folder: Path, missing: Collection[str], unexpected: Collection[str], mismatches: Collection[str], label: str
) -> None:
    """Refuse a checkpoint that does not fill the model exactly.

    Args:
        folder: The checkpoint.
        missing: Names of tensors that the model has and the checkpoint has not.
        unexpected: Names of tensors that the checkpoint has and the model has not.
        mismatches: Names and shapes of tensors that do not fit, see `describe_mismatches`.
        label: The family in error messages, with its article ("a Qwen2-Audio model").
    Raises:
        ModelError: naming the first three of each kind.
    """
    problems = {"missing": missing, "unexpected": unexpected, "of the wrong shape": mismatches}
    if any(problems.values()):
        listed = "; ".join(f"{problem}: {_first_three(names)}" for problem, names in problems.items() if names)
        raise ModelError(f"{folder}: tensors {listed}; give a whole checkpoint of {label} and its own config.json")


def describe_mismatches(mismatches: Collection[tuple[str, Sequence[int], Sequence[int]]]) -> set[str]:
    """Text for each of transformers' `mismatched_keys`: name, stored shape, needed shape."""
    return {f"{name} {tuple(stored)} for {tuple(needed)}" for name, stored, needed in mismatches}


def shape_mismatches(stored: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> set[str]:
    """`describe_mismatches` of the tensors that two state dicts share by name but not by shape."""
    return describe_mismatches(
        [
            (name, stored[name].shape, value.shape)
            for name, value in needed.items()
            if name in stored and stored[name].shape != value.shape
        ]
    )


def read_tokenizer(folder: Path, needed_token: str) -> Tokenizer:
    """The checkpoint's tokenizer, if it has the token `needed_token`.

    Raises:
        ModelError: if tokenizer.json is broken, or no tokenizer with that token can be made from the folder.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.exists() else None
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{path}: not a tokenizer ({error}); download it again") from error
    if tokenizer is None or tokenizer.token_to_id(needed_token) is None:
        # Some checkpoints keep their special tokens outside tokenizer.json, or have only vocab.json and merges.txt.
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
        except (OSError, ValueError, KeyError, AttributeError):
            tokenizer = None
    if tokenizer is None or tokenizer.token_to_id(needed_token) is None:
        raise ModelError(
            f"{folder}: no tokenizer that knows {needed_token}; put the checkpoint's tokenizer files beside its weights"
        )
    return tokenizer


def read_side_files(folder: Path) -> dict[str, bytes]:
    """Name -> content of the small files (chat template, tokenizer settings) that `save` writes back unchanged."""
    return {name: (folder / name).read_bytes() for name in SIDE_FILES if (folder / name).exists()}


def add_older_config_keys(folder: Path) -> None:
    """Add to config.json what transformers 4 and vLLM look for: `rope_theta` and `torch_dtype` beside the newer
    `rope_parameters` and `dtype`, at every level. transformers 5 reads the extended config like the original."""

    def extended(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        result = {key: extended(inner) for key, inner in value.items()}
        rope = value.get("rope_parameters")
        if isinstance(rope, dict) and "rope_theta" in rope:
            result["rope_theta"] = rope["rope_theta"]
            scaling = {key: inner for key, inner in rope.items() if key != "rope_theta"}
            result["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
        if isinstance(value.get("dtype"), str):
            result["torch_dtype"] = value["dtype"]
        return result

    path = folder / "config.json"
    config = extended(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def merged_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state dict under the names it has without LoRA, with LoRA merged in (float32 sum, rounded once).

    Tensors that share memory (a tied head) are copied, since safetensors does not write shared memory.
    """
    updates = lora.concatenate_ranks(lora_beside.attached(module, own=True), lora.collect(module))
    tensors: dict[str, Tensor] = {}
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
        tensors[name] = value.clone() if value.numel() and value.data_ptr() in written else value
        written.add(value.data_ptr())
    return tensors


def one_line(error: Exception) -> str:
    """An error's message on one line, its first 300 characters."""
    return " ".join(str(error).split())[:300]


def _first_three(names: Collection[str]) -> str:
    ordered = sorted(names)
    return f"{', '.join(ordered[:3])}{f' and {len(ordered) - 3} more' if len(ordered) > 3 else ''}"
