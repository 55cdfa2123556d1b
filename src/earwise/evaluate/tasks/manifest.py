"""Any JSONL manifest as a task: what earwise's own builders write, and what a user writes by hand."""

from dataclasses import replace
from pathlib import Path

from earwise.data import manifest
from earwise.errors import DataError
from earwise.types import Example


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read a manifest for evaluation.

    Args:
        path: The JSONL file.
        audio_root: Folder that relative audio paths start from, if it is not the manifest's own.
    Raises:
        DataError: if the manifest is wrong (see `earwise.data.manifest.read`), empty, or no row has an answer.
    """
    examples = manifest.read(path, check_files=audio_root is None)
    if not any(example.answer for example in examples):
        raise DataError(f"{path}: none of its {len(examples)} rows has an answer; evaluation needs gold answers")
    return examples if audio_root is None else [replace(example, root=audio_root) for example in examples]
