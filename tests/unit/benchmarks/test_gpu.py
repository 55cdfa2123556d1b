"""The GPU benchmark's own code, small and on a CPU; its operation counts by hand; the size of the released model."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
from baselines import flops  # noqa: E402

SMALL = ["--small", "--device=cpu", "--prompts=2", "--group=2", "--new-tokens=3", "--seconds=0.5", "--steps=1"]


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_step_on_a_cpu(mode: str, tmp_path: Path) -> None:
    options = ["--keep-activations", "--compare-decoding"] if mode == "lora" else []
    dtype = "bfloat16" if mode == "lora" else "float32"
    result = gpu.main(
        [*SMALL, "--pack-tokens=120", "--mode", mode, "--dtype", dtype, *options, "--out", str(tmp_path / "r.json")]
    )
    assert json.loads((tmp_path / "r.json").read_text())["step_s"] == result["step_s"]
    for phase in ("hear", "rollout", "reference", "forward", "backward", "optimizer"):
        assert result["phases_s"][phase] > 0, phase
    assert sum(result["phases_s"].values()) == pytest.approx(result["step_s"])
    assert 6 <= result["sampled_tokens"] <= 12
    assert result["distinct_tokens"] < result["sequence_tokens_one_by_one"]
    assert result["hours_for_500_steps"] == pytest.approx(500 * result["step_s"] / 3600)
    assert result["tflops"] * result["step_s"] == pytest.approx(sum(result["work_tflop"].values()))
    assert (result["trained_parameters"] == result["parameters"]) == (mode == "full")
    assert result["compiled"] == {"in_the_first_step": 0, "later": 0} and result["within_the_goal"] is None
    assert (result["decoding"] is not None) == (mode == "lora")
    work = result["work_tflop"]
    assert work["update"] > (2.5 if mode == "full" else 1.8) * work["rollout"]


def test_memory_is_estimated_and_a_step_that_cannot_fit_is_not_started(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the released size, by hand: 8.4 billion bfloat16 numbers five times (weights, gradients, two moments, and the
    reference), and 16 trees of 3072 slots of half a megabyte."""
    estimate = gpu.main(["--estimate", "--device=cuda"])["estimate_gb"]
    copies = sum(estimate[name] for name in ("weights", "gradients", "optimizer", "reference"))
    assert copies == pytest.approx(5 * 2 * 8.4, rel=0.01)
    assert estimate["keys and values"] == pytest.approx(16 * 3072 * 2 * 32 * 4096 * 2 / 1e9)
    assert estimate["in all"] == pytest.approx(sum(size for name, size in estimate.items() if name != "in all"))
    assert 110 < estimate["in all"] < 0.95 * 141, "R1-AQA's step does not fit on one H200"
    monkeypatch.setattr(gpu.memory, "free_memory", lambda _: 80e9)
    capsys.readouterr()
    with pytest.raises(
        SystemExit, match=r"gpu.py: needs 1\d\d GB, cuda has 80 free; try --pack-tokens 4096 or --prompts 8"
    ):
        gpu.main(["--device=cuda"])
    assert "keys and values 25.8" in capsys.readouterr().err


def test_the_sizes_are_those_of_the_released_model() -> None:
    """8.4 billion parameters, as in its checkpoint; the encoder is that of Whisper large v3."""
    config = Qwen2AudioConfig(audio_config=gpu.AUDIO, text_config={"model_type": "qwen2"} | gpu.TEXT)
    with torch.device("meta"):
        module = Qwen2AudioForConditionalGeneration(config)
    count = {
        name: sum(parameter.numel() for parameter in part.parameters()) for name, part in module.model.named_children()
    }
    count["head"] = module.lm_head.weight.numel()
    assert sum(count.values()) == pytest.approx(8.4e9, rel=0.005)
    assert count["audio_tower"] == pytest.approx(0.637e9, rel=0.01)
    # By hand: per layer 4 * 4096^2 + 3 * 4096 * 11008 weights, biases and norms; two tables of 156032 * 4096.
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 3 * 4096 + 2 * 4096
    assert count["language_model"] == 32 * layer + 156032 * 4096 + 4096
    assert count["head"] == 156032 * 4096


def test_operations_by_hand() -> None:
    """One token at position 2 that predicts one token: linear layers, head, three attended pairs."""
    model = gpu.build(gpu.AUDIO | gpu.SMALL_AUDIO, gpu.TEXT | gpu.SMALL_TEXT, "cpu", torch.float32)
    counts = flops.weight_counts(model)
    assert counts.base == 2 * (4 * 64**2 + 3 * 64 * 96)
    assert counts.head == 1024 * 64 and counts.attention == 2 * 64
    assert flops.reference_flops(counts, [2], 1) == 2 * counts.base + 2 * counts.head + 4 * counts.attention * 3
