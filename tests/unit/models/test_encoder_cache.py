"""Encoder states are computed once: in memory within a limit, and in a folder across processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders import tone
from earwise.models import base
from earwise.models.encoder_cache import EncoderCache, encoder_fingerprint
from families.embedded import random_base_weights, write_base_weights


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base weights at test size, where the real ones are expected."""
    write_base_weights(tmp_path / "home", random_base_weights())
    monkeypatch.setenv("EARWISE_HOME", str(tmp_path / "home"))


def counted(model: Any) -> list[int]:
    """Number of clips of each encoder pass of the model, from now on."""
    passes: list[int] = []
    encode = model.encode_audio

    def encode_and_count(waveforms: Any) -> Any:
        passes.append(len(waveforms))
        return encode(waveforms)

    model.encode_audio = encode_and_count
    return passes


def test_a_folder_gives_the_same_states_to_every_run(tmp_path: Path) -> None:
    clips = [tone(0.5), tone(1.0, 700.0)]
    model = base.load("embedded-blank", device="cpu", trim=True)
    first = EncoderCache(model, folder=tmp_path / "states").encoder_states([*clips, clips[0]])
    assert torch.equal(first[0], first[2])
    exact = model.encode_audio([clips[0]])[0]
    assert torch.equal(first[0], exact.half().float()), "states are rounded when they are written, too"
    again = base.load("embedded-blank", device="cpu", trim=True)
    passes = counted(again)
    second = EncoderCache(again, folder=tmp_path / "states").encoder_states(clips)
    assert not passes and all(torch.equal(a, b) for a, b in zip(first, second, strict=False))
    assert torch.equal(EncoderCache(again).encoder_states([clips[0]])[0], exact), "without a folder nothing is rounded"


def test_a_file_that_was_cut_off_is_computed_again(tmp_path: Path) -> None:
    model = base.load("embedded-blank", device="cpu", trim=True)
    folder, clip = tmp_path / "states", [tone(0.5)]
    (first,) = EncoderCache(model, folder=folder).encoder_states(clip)
    (path,) = folder.rglob("*.npy")
    path.write_bytes(path.read_bytes()[:-10])
    passes = counted(model)
    (second,) = EncoderCache(model, folder=folder).encoder_states(clip)
    assert passes == [1] and torch.equal(first, second)
    assert np.load(path).dtype == np.float16
    assert [file.name for file in folder.rglob("*") if file.is_file()] == [path.name], "no temporary file is left"


def test_the_fingerprint_tells_encoders_apart_that_give_other_states() -> None:
    first, same = (base.load("embedded-blank", device="cpu", trim=True) for _ in range(2))
    assert encoder_fingerprint(first) == encoder_fingerprint(same)
    padded = base.load("embedded-blank", device="cpu", trim=False)
    finer = base.load("embedded-blank", device="cpu", trim=True, connector={"kind": "mix", "token_ms": 160})
    with torch.no_grad():
        same.module.encoder.conv1.weight[0, 0, 0] += 1e-3
    fingerprints = [encoder_fingerprint(model) for model in (first, same, padded, finer)]
    assert len(set(fingerprints)) == 4
