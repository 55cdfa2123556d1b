"""The doctor finds each illness, and finds none in a healthy engine."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from builders import tiny_qwen2_audio
from earwise import doctor
from earwise.doctor import machine
from earwise.doctor import model as checks
from earwise.engine.base import Decoding, Prompt
from earwise.engine.local import LocalEngine
from earwise.errors import ModelError
from earwise.types import Completion

RATE = 16000


def no_base() -> None:
    """A model without base weights."""


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
            off = 1e-4 * place if self.illness == "rounding" and drawn else 0.0
            found.append([Completion(text, one, (-1.0 - off,) * 4) for one in ids])
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
    ("illness", "check"),
    [
        ("deaf", "hears"),
        ("batch", "batch invariance"),
        ("forest", "forest"),
        ("draws", "draws"),
        ("rounding", "draws"),
    ],
)
def test_every_illness_is_found_by_its_check_alone(illness: str, check: str, tmp_path: Path) -> None:
    found = verdicts(Patient(illness), tmp_path)
    assert [name for name, verdict in found.items() if verdict == "fail"] == [check]


def test_a_real_model_is_healthy(tmp_path: Path) -> None:
    """A tiny random Qwen2-Audio through the engine: everything exact, the trimmed input too."""
    rows = {check.name: check for check in doctor.examine(lambda: LocalEngine(tiny_qwen2_audio(1)), tmp_path, no_base)}
    assert [name for name, check in rows.items() if check.verdict == "fail"] == []
    assert {"hears", "batch invariance", "forest", "draws", "trimming"} <= set(rows)
    assert rows["trimming"].verdict == "ok" and "against the padded window's" in rows["trimming"].detail


def unmasked(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, _: object, **__: object) -> tuple:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).contiguous(), None


def test_an_encoder_that_ignores_its_mask_is_found() -> None:
    model = tiny_qwen2_audio(1)
    AttentionInterface.register("test_unmasked", unmasked)
    model.module.model.audio_tower.config._attn_implementation = "test_unmasked"
    engine = LocalEngine(model)
    check = checks.trimming(engine, checks.waves(engine))
    assert check is not None and check.verdict == "fail" and "padded" in check.detail and "trim=False" in check.remedy
    assert model.trims, "the check leaves the model as it was"
    model.masks = False  # a family that says so is told what its choice changes
    check = checks.trimming(engine, checks.waves(engine))
    assert check is not None
    assert check.verdict == "ok" and "masks nothing, and hears clips trimmed" in check.detail


def test_a_model_that_does_not_load_ends_the_examination(tmp_path: Path) -> None:
    def load() -> Patient:
        raise ModelError("x: no such model")

    checks = doctor.examine(load, tmp_path, lambda: None)
    assert (checks[-1].name, checks[-1].verdict, checks[-1].detail) == ("model", "fail", "x: no such model")


def test_damaged_base_weights_are_found(tmp_path: Path) -> None:
    (tmp_path / "encoder.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    check = machine.base_weights(tmp_path)
    assert check.verdict == "fail"
    assert "encoder.safetensors" in check.detail
    assert "delete" in check.remedy


def test_a_home_that_is_not_there_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    assert machine.disk(tmp_path / "not" / "yet").verdict in ("ok", "warn")
    assert not (tmp_path / "not").exists()
