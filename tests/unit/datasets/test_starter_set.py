"""The bundled starter set passes the checks, and its clips are selected by size and licence."""

import json
from collections import Counter

import pytest

from earwise.data import manifest
from earwise.data.manifest_path import STARTER
from earwise.datasets.checks.check_examples import check_examples
from earwise.datasets.labels import starter_set
from earwise.errors import DataError


def test_the_bundled_set_has_no_problems():
    train, val = manifest.read(STARTER / "train.jsonl"), manifest.read(STARTER / "val.jsonl")
    report = check_examples([*train, *val], strict=True)
    assert len(val) >= 400 and len(train) >= 700
    for split in ("train", "val"):
        for rate in report["bias_by_split"][split].values():
            assert rate["low"] <= rate["chance"]
    from_train = report["bias_by_split"]["val"]["blind_from_train"]
    assert from_train["low"] <= from_train["chance"] <= from_train["high"]


def test_the_bundled_clips_are_the_listed_ones():
    rows = [json.loads(line) for line in (STARTER / "labels.jsonl").read_text().splitlines()]
    assert {row["path"] for row in rows} == {f"clips/{path.name}" for path in (STARTER / "clips").iterdir()}
    clips = {path for name in ("train", "val") for example in manifest.iterate(STARTER / f"{name}.jsonl")
             for path in example.audio_paths}  # fmt: skip
    assert clips == {STARTER / row["path"] for row in rows}
    assert sum(path.stat().st_size for path in STARTER.rglob("*") if path.is_file()) <= 8_000_000
    assert (STARTER / "ATTRIBUTION.md").read_text() == starter_set.attribution(rows)


def test_only_committable_clips_are_selected_and_the_smallest_first():
    def row(number, **fields):
        base = {
            "path": f"{number:02}.ogg",
            "labels": [("dog", "cat")[number % 2]],
            "category": "sound",
            "group": str(number),
        }
        return base | {"split": "train", "committable": True, "bytes": 100 + number} | fields

    rows = [row(number) for number in range(20)]
    rows += [row(30, committable=False), row(31, split="val"), row(32, split="val", labels=["notification_x"])]
    selected = starter_set.select_clips(rows, max_bytes=1000)
    assert [row["path"] for row in selected] == [f"{number:02}.ogg" for number in (*range(8), 31)]
    assert Counter(row["labels"][0] for row in selected if row["split"] == "train") == {"dog": 4, "cat": 4}
    with pytest.raises(DataError, match="val clips take 131 bytes, the limit is 100"):
        starter_set.select_clips(rows, max_bytes=100)
