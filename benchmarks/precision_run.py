"""200 optimizer steps on a bfloat16 base with float32 masters and the same 200 in float32: loss curves and weights.

    python benchmarks/precision_run.py --out benchmarks/results/precision_run.json

A Qwen2-Audio of the released layout with random weights (two layers on each side, 64 wide) is trained on 48 questions
by `earwise train`'s own loop, three times in each precision: in full at the papers' learning rate of 1e-6, in full at
1e-4, at which the loss falls, and LoRA at 1e-3. Both runs of a pair start from the same bfloat16 values and see the
same rows in the same order. The noise that a difference is compared with is that of the float32 run: the standard
deviation of its loss around its mean over 20 steps.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from baselines.qwen2_audio_7b import SMALL_AUDIO, SMALL_TEXT, build, questions
from baselines.timing import machine
from torch import Tensor

from earwise.config.recipe import check_recipe
from earwise.data import manifest
from earwise.files import write_json
from earwise.models import base
from earwise.models.base import AudioLM
from earwise.models.precision import float32_values
from earwise.training import run

WINDOW = 20
"""Steps of the running mean that a loss curve is compared by."""
DECODER = "model.language_model."
FULL = {"encoder": "frozen", "connector": "full", "decoder": "full"}
LORA = {"encoder": "frozen", "connector": "full", "decoder": "lora", "lora": {"r": 8, "lora_alpha": 16.0}}
SETTINGS: dict[str, tuple[dict[str, Any], float]] = {
    "full, 1e-6": (FULL, 1e-6),
    "full, 1e-4": (FULL, 1e-4),
    "lora, 1e-3": (LORA, 1e-3),
}


def load(_: Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> AudioLM:
    """The model of all runs: the same bfloat16 values in either dtype."""
    torch.manual_seed(0)
    audio = {"num_mel_bins": 128, "max_source_positions": 1500} | SMALL_AUDIO
    model = build(audio, SMALL_TEXT | {"max_position_embeddings": 2048}, device, torch.float32)
    for parameter in model.module.parameters():
        parameter.data = parameter.data.bfloat16().to(dtype)
    return model


def train(rows: Path, out: Path, trainable: dict[str, Any], learning_rate: float, dtype: str, steps: int) -> Path:
    """Run one stage; returns its final checkpoint."""
    stage = {
        "kind": "sft", "data": {"mixture": [{"manifest": "rows.jsonl"}]}, "clips_per_step": 4, "trainable": trainable,
        "max_steps": steps, "log_completions_steps": 0,
        "optimizer": {"learning_rate": learning_rate, "lr_scheduler_type": "constant"},
    }  # fmt: skip
    model = {"name": f"{Path(__file__).resolve()}:load", "dtype": dtype}
    recipe = check_recipe({"recipe": "precision", "model": model, "seed": 5, "stages": [stage]}, "precision_run")
    run.start(recipe, out, rows)
    return out / "final"


def losses_of(out: Path) -> Tensor:
    """The loss of every step of a run."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return torch.tensor([row["sft/loss"] for row in rows if "sft/loss" in row], dtype=torch.float64)


def change(final: Path) -> tuple[float, float]:
    """Share of the decoder's elements that a full training has changed, and the norm of the change."""
    start = dict(load().module.named_parameters())
    trained = float32_values.read(final) or dict(base.load(str(final)).module.named_parameters())
    names = [name for name in start if name.startswith(DECODER)]
    difference = torch.cat([(trained[name].detach().float() - start[name].detach()).flatten() for name in names])
    return float((difference != 0).float().mean()), float(difference.norm())


def compare(rows: Path, folder: Path, trainable: dict[str, Any], learning_rate: float, steps: int) -> dict[str, Any]:
    """Train in both precisions and compare."""
    curves, result = {}, {}
    for dtype in ("float32", "bfloat16"):
        started = time.perf_counter()
        final = train(rows, folder / dtype, trainable, learning_rate, dtype, steps)
        curves[dtype] = losses_of(folder / dtype)
        result[dtype] = {"seconds": round(time.perf_counter() - started, 1)}
        result[dtype] |= {"first": float(curves[dtype][:WINDOW].mean()), "last": float(curves[dtype][-WINDOW:].mean())}
        if trainable is FULL:
            share, norm = change(final)
            result[dtype] |= {"changed_share": share, "change_norm": norm}
    smooth = {dtype: curve.unfold(0, WINDOW, 1).mean(1) for dtype, curve in curves.items()}
    noise = float(curves["float32"].unfold(0, WINDOW, WINDOW).std(1).mean())
    differences = (smooth["bfloat16"] - smooth["float32"]).abs()
    return result | {
        "noise": noise,
        "largest_difference": float(differences.max()),
        "mean_difference": float(differences.mean()),
        "curves": {dtype: [round(float(value), 5) for value in curve] for dtype, curve in curves.items()},
    }


def main() -> None:
    """Run all settings and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--settings", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": machine(), "steps": options.steps, "settings": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "rows"
        rows.mkdir()
        manifest.write(rows / "rows.jsonl", questions(rows, 48, 0.5))
        for number, setting in enumerate(options.settings):
            results["settings"][setting] = compare(rows, folder / str(number), *SETTINGS[setting], options.steps)
            write_json(options.out, results)


if __name__ == "__main__":
    main()
