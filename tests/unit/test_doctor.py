"""The doctor finds each illness, and finds none in a healthy engine."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from earwise import doctor
from earwise.engine.base import Decoding, Prompt
from earwise.errors import ModelError
from earwise.types import Completion

RATE = 16000


class Patient:
    """An engine by formula: what it says depends on the sound, unless it has the named illness."""

    def __init__(self, illness: str = "") -> None:
        self.illness = illness
        self.name, self.revision, self.sample_rate, self.max_audio_s = "patient", "1", RATE, 30.0

    def _heard(self, prompt: Prompt) -> float:
        return 0.0 if self.illness == "deaf" else float(np.abs(prompt.waves[0]).mean())

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding, n: int = 1) -> list[list[Completion]]:
        found = []
        for place, prompt in enumerate(prompts):
            drawn = decoding.temperature > 0
            lapse = (self.illness == "batch" and not drawn) or (self.illness == "draws" and drawn)
            text = f"{self._heard(prompt):.4f} {place if lapse else ''}"
            seeds = [f"{decoding.seed} {prompt.key} {number} {text}" for number in range(n)]
            ids = [tuple(hashlib.sha256(seed.encode()).digest()[:4]) for seed in seeds]
            found.append([Completion(text, one) for one in ids])
        return found

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        return [
            [
                -len(text) * (1 + self._heard(prompt)) - (place if self.illness == "forest" else 0)
                for place, text in enumerate(texts)
            ]
            for prompt, texts in zip(prompts, continuations, strict=True)
        ]


def verdicts(patient: Patient, home: Path) -> dict[str, str]:
    checks = doctor.examine(lambda: patient, home, lambda: None)
    for check in checks:
        assert check.detail
        assert bool(check.remedy) == (check.verdict != "ok"), f"{check}: a remedy for what is wrong, and only for that"
    return {check.name: check.verdict for check in checks}


def test_a_healthy_engine_passes(tmp_path: Path) -> None:
    found = verdicts(Patient(), tmp_path)
    assert {
        "python",
        "torch",
        "threads",
        "memory",
        "disk",
        "model",
        "hears",
        "batch invariance",
        "forest",
        "draws",
    } <= set(found)
    assert "fail" not in found.values()


@pytest.mark.parametrize(
    ("illness", "check"), [("deaf", "hears"), ("batch", "batch invariance"), ("forest", "forest"), ("draws", "draws")]
)
def test_every_illness_is_found_by_its_check_alone(illness: str, check: str, tmp_path: Path) -> None:
    found = verdicts(Patient(illness), tmp_path)
    assert [name for name, verdict in found.items() if verdict == "fail"] == [check]


def test_a_model_that_does_not_load_ends_the_examination(tmp_path: Path) -> None:
    def load() -> Patient:
        raise ModelError("x: no such model")

    checks = doctor.examine(load, tmp_path, lambda: None)
    assert (checks[-1].name, checks[-1].verdict, checks[-1].detail) == ("model", "fail", "x: no such model")


def test_damaged_base_weights_are_found(tmp_path: Path) -> None:
    (tmp_path / "encoder.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    check = doctor.base_weights(tmp_path)
    assert check.verdict == "fail"
    assert "encoder.safetensors" in check.detail
    assert "delete" in check.remedy


def test_a_home_that_is_not_there_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    assert doctor.disk(tmp_path / "not" / "yet").verdict in ("ok", "warn")
    assert not (tmp_path / "not").exists()
