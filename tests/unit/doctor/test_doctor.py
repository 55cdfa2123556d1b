"""The doctor finds each fault of an engine by the check for it, and finds none in a sound engine."""

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
from earwise.doctor import local_model, machine
from earwise.doctor.questions import example_clips
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import ModelError
from earwise.types import Completion

RATE = 16000


def no_base_weights() -> None:
    """Stands in for the base weights of a model that has none."""


class FaultyEngine:
    """An engine by formula: its output depends on the audio and the prompt alone, unless it has the named fault."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.name, self.revision, self.sample_rate, self.max_audio_s = "faulty", "1", RATE, 30.0

    def _loudness(self, prompt: Prompt) -> float:
        return 0.0 if self.fault == "ignores audio" else float(np.abs(prompt.waveforms[0]).mean())

    def generate(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int = 1
    ) -> list[list[Completion]]:
        completions = []
        for place, prompt in enumerate(prompts):
            samples = sampling_params.temperature > 0
            depends_on_place = (self.fault == "batch" and not samples) or (self.fault == "draws" and samples)
            text = f"{self._loudness(prompt):.4f} {place if depends_on_place else ''}"
            seeds = [f"{sampling_params.seed} {prompt.key} {number} {text}" for number in range(n)]
            ids = [tuple(hashlib.sha256(seed.encode()).digest()[:4]) for seed in seeds]
            error = 1e-4 * place if self.fault == "rounding" and samples else 0.0
            completions.append([Completion(text, token_ids, (-1.0 - error,) * 4) for token_ids in ids])
        return completions

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        return [
            [
                -len(text) * (1 + self._loudness(prompt)) - (place if self.fault == "forest" else 0)
                for place, text in enumerate(texts)
            ]
            for prompt, texts in zip(prompts, continuations, strict=True)
        ]


def verdicts(engine: FaultyEngine, home: Path) -> dict[str, str]:
    checks = doctor.examine(lambda: engine, home, lambda: None)
    for check in checks:
        assert check.detail
        assert bool(check.remedy) == (check.verdict != "ok"), f"{check}: a remedy where it is needed, and only there"
    return {check.name: check.verdict for check in checks}


def test_a_sound_engine_passes(tmp_path: Path) -> None:
    by_check = verdicts(FaultyEngine(), tmp_path)
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
    } <= set(by_check)
    assert "fail" not in by_check.values()


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("ignores audio", "hears"),
        ("batch", "batch invariance"),
        ("forest", "forest"),
        ("draws", "draws"),
        ("rounding", "draws"),
    ],
)
def test_every_fault_is_found_by_its_check_alone(fault: str, check: str, tmp_path: Path) -> None:
    by_check = verdicts(FaultyEngine(fault), tmp_path)
    assert [name for name, verdict in by_check.items() if verdict == "fail"] == [check]


def test_a_real_model_passes(tmp_path: Path) -> None:
    """A tiny random Qwen2-Audio through the engine: everything exact, the trimmed input too."""
    checks = doctor.examine(lambda: LocalEngine(tiny_qwen2_audio(1)), tmp_path, no_base_weights)
    by_name = {check.name: check for check in checks}
    assert [name for name, check in by_name.items() if check.verdict == "fail"] == []
    assert {"hears", "batch invariance", "forest", "draws", "trimming"} <= set(by_name)
    assert by_name["trimming"].verdict == "ok" and "against the padded window's" in by_name["trimming"].detail


def unmasked(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, _: object, **__: object) -> tuple:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).contiguous(), None


def test_an_encoder_that_ignores_its_mask_is_found() -> None:
    model = tiny_qwen2_audio(1)
    AttentionInterface.register("test_unmasked", unmasked)
    model.module.model.audio_tower.config._attn_implementation = "test_unmasked"
    engine = LocalEngine(model)
    check = local_model.trimming(engine, example_clips(engine))
    assert check is not None and check.verdict == "fail" and "padded" in check.detail and "trim=False" in check.remedy
    assert model.trims_padding, "the check leaves the model as it was"
    model.masks_padding = False  # for a family that says so the check only measures what trimming changes
    check = local_model.trimming(engine, example_clips(engine))
    assert check is not None
    assert check.verdict == "ok" and "masks nothing, and hears clips trimmed" in check.detail


def test_a_model_that_does_not_load_ends_the_examination(tmp_path: Path) -> None:
    def load() -> FaultyEngine:
        raise ModelError("x: no such model")

    checks = doctor.examine(load, tmp_path, lambda: None)
    assert (checks[-1].name, checks[-1].verdict, checks[-1].detail) == ("model", "fail", "x: no such model")


def test_damaged_base_weights_are_found(tmp_path: Path) -> None:
    (tmp_path / "encoder.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    check = machine.base_weights(tmp_path)
    assert check.verdict == "fail"
    assert "encoder.safetensors" in check.detail
    assert "delete" in check.remedy


def test_a_home_that_does_not_exist_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    assert machine.disk(tmp_path / "not" / "yet").verdict in ("ok", "warn")
    assert not (tmp_path / "not").exists()
