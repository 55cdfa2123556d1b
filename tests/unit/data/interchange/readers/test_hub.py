"""A data set on a hub, read through `datasets`: fetched, found again without the hub, and refused in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from earwise.data import manifest
from earwise.data.interchange.detection import find_dataset
from earwise.data.interchange.writers.exporting import write_parquet
from earwise.data.manifest_path import manifest_path
from earwise.errors import ConfigError
from hub_server import serve_hub

pytestmark = pytest.mark.usefixtures("own_home")


def convert(name: str, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `earwise build convert` in a process of its own, because the library reads its environment once."""
    command = [sys.executable, "-m", "earwise", "build", "convert", name, "--out", str(out)]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_fetched_once_and_found_again_offline(tmp_path: Path) -> None:
    small = tmp_path / "small.jsonl"
    manifest.write(small, manifest.read(manifest_path("starter:val", Path()))[:6])
    write_parquet(small, tmp_path / "repository")
    home = {"HF_HOME": str(tmp_path / "hf")}
    with serve_hub(tmp_path / "repository") as address:
        fetched = convert("hf://datasets/org/name", tmp_path / "a" / "m.jsonl", HF_ENDPOINT=address, **home)
    assert (fetched.returncode, fetched.stdout) == (0, f"{tmp_path}/a/m.jsonl: 6 rows\n"), fetched.stderr
    offline = convert("hf://datasets/org/name?split=validation", tmp_path / "b" / "m.jsonl", HF_HUB_OFFLINE="1", **home)
    assert offline.returncode == 0, offline.stderr
    originals = manifest.read(small)
    for name in ("a", "b"):
        rows = manifest.read(tmp_path / name / "m.jsonl")
        assert [(row.id, row.question, row.answer) for row in rows] == [
            (row.id, row.question, row.answer) for row in originals
        ]
        assert [row.audio_paths[0].read_bytes() for row in rows] == [
            row.audio_paths[0].read_bytes() for row in originals
        ]


def test_without_hub_and_cache_the_reason_is_one_line(tmp_path: Path) -> None:
    empty = convert("hf://datasets/org/name", tmp_path / "m.jsonl", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    assert empty.returncode == 2
    assert empty.stderr.splitlines()[-1].startswith(
        "error: hf://datasets/org/name: the hub cannot be reached and the cache does not hold this data set; check"
    )


def test_names_on_a_hub() -> None:
    location = find_dataset("hf://datasets/org/name@v1?split=test&config=en&question=Frage", Path())
    assert location is not None
    assert (location.kind, location.path, location.revision) == ("hub", Path("org/name"), "v1")
    assert (location.split, location.config, dict(location.columns)) == ("test", "en", {"question": "Frage"})
    with pytest.raises(ConfigError, match="is not hf://datasets/ORGANISATION/NAME"):
        find_dataset("hf://datasets/org/name/file.parquet", Path())
