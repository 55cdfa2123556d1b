"""The doctor's look at the machine: Python, libraries, threads, memory, disk, base weights."""

import hashlib
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from earwise.doctor.check import Check, judged
from earwise.models.memory.estimate import free_memory

FREE_DISK_GB = 2.0  # base weights while they are converted
FREE_MEMORY_GB = 2.0  # the embedded model loaded and answering, with room


def python() -> Check:
    """Python is new enough."""
    found = platform.python_version()
    said = f"{found} on {platform.system()} {platform.machine()}"
    return judged("python", sys.version_info >= (3, 11), said, "install Python 3.11 or newer")


def libraries() -> list[Check]:
    """The libraries that everything rests on, and those that training needs."""
    rows = []
    for name, needed in (("torch", True), ("transformers", True), ("accelerate", False), ("peft", False)):
        try:
            rows.append(Check(name, "ok", version(name)))
        except PackageNotFoundError:
            remedy = "pip install earwise" if needed else "pip install 'earwise[train]', if you want to train"
            rows.append(Check(name, "fail" if needed else "warn", "not installed", remedy))
    return rows


def threads() -> Check:
    """How many threads torch uses of how many cores."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    used = torch.get_num_threads()
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    said = f"{used} threads on {cores} cores, {device}"
    return judged("threads", used <= cores, said, f"set OMP_NUM_THREADS={cores}", "warn")


def memory() -> Check:
    """Free memory of the machine."""
    found = free_memory()
    if found is None:
        return Check("memory", "warn", "free memory is not known here", f"have {FREE_MEMORY_GB:g} GB free")
    remedy = f"close other programs: answering takes up to {FREE_MEMORY_GB:g} GB, training more"
    return judged("memory", found >= FREE_MEMORY_GB * 1e9, f"{found / 1e9:.1f} GB free", remedy, "warn")


def disk(home: Path) -> Check:
    """Room for the base weights, in a cache folder that can be written."""
    there = next(folder for folder in (home.absolute(), *home.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK):
        return Check("disk", "fail", f"{home}: cannot be written", "set EARWISE_HOME to a folder of your own")
    free = shutil.disk_usage(there).free / 1e9
    remedy = f"free {FREE_DISK_GB:g} GB, or set EARWISE_HOME to another disk"
    return judged("disk", free >= FREE_DISK_GB, f"{home}: {free:.1f} GB free", remedy, "warn")


def base_weights(folder: Path) -> Check:
    """The converted base weights are whole; their hashes, for comparing two machines.

    `fetch` has checked the downloads; a file here can only have been damaged since, and safetensors refuses its length.
    """
    from safetensors import SafetensorError, safe_open

    marks = []
    for name in ("encoder.safetensors", "decoder.safetensors"):
        path = folder / name
        try:
            with safe_open(str(path), "np") as handle:
                count = len(list(handle.keys()))
            with path.open("rb") as raw:
                marks.append(f"{path.stem} {hashlib.file_digest(raw, 'sha256').hexdigest()[:12]} ({count} tensors)")
        except (OSError, SafetensorError) as error:
            return Check("base weights", "fail", f"{path}: {error}", f"delete {folder}; they are fetched again")
    return Check("base weights", "ok", f"{folder}: {', '.join(marks)}")
