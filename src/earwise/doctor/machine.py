"""Checks of the machine: Python, libraries, threads, memory, disk, base weights."""

import hashlib
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from earwise.doctor.check import Check, check_row
from earwise.models.memory.estimate import free_memory

FREE_DISK_GB = 2.0
"""Space for the base weights while they are converted."""
FREE_MEMORY_GB = 2.0
"""Memory for the embedded model while it answers, with a margin."""


def python() -> Check:
    """Whether Python is new enough."""
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return check_row("python", sys.version_info >= (3, 11), detail, "install Python 3.11 or newer")


def libraries() -> list[Check]:
    """Whether the largest libraries that earwise needs are installed."""
    checks = []
    for name in ("torch", "transformers", "accelerate", "peft"):
        try:
            checks.append(Check(name, "ok", version(name)))
        except PackageNotFoundError:
            checks.append(Check(name, "fail", "not installed", "pip install earwise"))
    return checks


def threads() -> Check:
    """Number of threads that torch uses, and of cores."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    num_threads = torch.get_num_threads()
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    detail = f"{num_threads} threads on {cores} cores, {device}"
    return check_row("threads", num_threads <= cores, detail, f"set OMP_NUM_THREADS={cores}", "warn")


def memory() -> Check:
    """Free memory of the machine."""
    free_bytes = free_memory()
    if free_bytes is None:
        return Check("memory", "warn", "free memory is not known on this system", f"have {FREE_MEMORY_GB:g} GB free")
    remedy = f"close other programs: answering takes up to {FREE_MEMORY_GB:g} GB, training more"
    return check_row("memory", free_bytes >= FREE_MEMORY_GB * 1e9, f"{free_bytes / 1e9:.1f} GB free", remedy, "warn")


def disk(home: Path) -> Check:
    """Whether the cache folder can be written and has space for the base weights.

    Args:
        home: The cache folder; if it does not exist yet, its closest existing parent is checked.
    """
    existing = next(folder for folder in (home.absolute(), *home.absolute().parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        return Check("disk", "fail", f"{home}: cannot be written", "set EARWISE_HOME to a folder of your own")
    free_gb = shutil.disk_usage(existing).free / 1e9
    remedy = f"free {FREE_DISK_GB:g} GB, or set EARWISE_HOME to another disk"
    return check_row("disk", free_gb >= FREE_DISK_GB, f"{home}: {free_gb:.1f} GB free", remedy, "warn")


def base_weights(folder: Path) -> Check:
    """Whether the converted base weights are complete, with their hashes for comparing two machines.

    The downloads were verified when they were fetched. A file can only have been damaged since, and safetensors refuses
    one of the wrong length.
    """
    from safetensors import SafetensorError, safe_open

    descriptions = []
    for name in ("encoder.safetensors", "decoder.safetensors"):
        path = folder / name
        try:
            with safe_open(str(path), "np") as handle:
                count = len(list(handle.keys()))
            with path.open("rb") as file:
                descriptions.append(
                    f"{path.stem} {hashlib.file_digest(file, 'sha256').hexdigest()[:12]} ({count} tensors)"
                )
        except (OSError, SafetensorError) as error:
            return Check("base weights", "fail", f"{path}: {error}", f"delete {folder}; they are then fetched again")
    return Check("base weights", "ok", f"{folder}: {', '.join(descriptions)}")
