"""The effect of trimming for an encoder that does not mask padding: on its states, and on the answers.

    python benchmarks/trimming.py --clips 64 --out benchmarks/results/trimming.json

The same model gets the same bundled clips twice: cut to their real frames, and padded with silence to the window (as in
Whisper's training). Compared are the encoder states, the audio embeddings, and the answers to the clips' own questions
by the likelihood of their options. The model was trained with one of the two, so the other only shows how much the
choice matters, not which is better.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from baselines.timing import machine

from earwise.audio import decode
from earwise.data.manifest import read
from earwise.data.manifest_path import STARTER
from earwise.engine.base import Prompt
from earwise.engine.local import LocalEngine
from earwise.files import write_json
from earwise.models.base import AudioLM, load
from earwise.prompts import prompt_turns
from earwise.types import Example, Waveform


def bundled_questions(count: int) -> list[Example]:
    """Questions with options about different clips, spread over the bundled validation rows."""
    rows: dict[str, Example] = {}
    for row in read(STARTER / "val.jsonl"):
        if row.choices and len(row.audio_paths) == 1:
            rows.setdefault(str(row.audio_paths[0]), row)
    questions = list(rows.values())
    return questions[:: max(1, len(questions) // count)][:count]


@torch.inference_mode()
def run(model: AudioLM, trim: bool, rows: Sequence[Example], waveforms: Sequence[Waveform]) -> dict[str, Any]:
    """Encoder states, embeddings and log-likelihoods of the options, with trimmed or padded clips."""
    model.trims_padding = trim
    engine = LocalEngine(model)  # with an empty encoder cache: states of the other variant must not be used
    start = perf_counter()
    states = [engine.encoder_cache.encoder_states([waveform])[0] for waveform in waveforms]
    seconds = (perf_counter() - start) / len(waveforms)
    prompts = [
        Prompt(prompt_turns(row, "answer"), (waveform,), row.id) for row, waveform in zip(rows, waveforms, strict=True)
    ]
    scores = engine.score(prompts, [row.choices for row in rows])
    return {"states": states, "connected": model.project_audio(states), "scores": scores, "seconds": seconds}


def compare(model: AudioLM, rows: Sequence[Example]) -> dict[str, Any]:
    """Run both variants on the same clips.

    Args:
        model: The model; its setting is restored afterwards.
        rows: Questions with options, one clip each.
    Returns:
        Relative differences (norm of the difference over the norm with padding: mean and largest over clips), and how
        many answers agree and are correct.
    """
    waveforms = [decode(row.audio_paths[0], model.spec.sample_rate, max_s=model.spec.max_s) for row in rows]
    original_setting = model.trims_padding
    try:
        variants = {name: run(model, trim, rows, waveforms) for name, trim in (("trimmed", True), ("padded", False))}
    finally:
        model.trims_padding = original_setting
    out: dict[str, Any] = {
        "model": model.name,
        "revision": model.revision,
        "trained_trimmed": original_setting,
        "n": len(rows),
    }
    out["clip_s_mean"] = sum(len(waveform) for waveform in waveforms) / len(waveforms) / model.spec.sample_rate
    for what in ("states", "connected"):
        differences = [
            float((a - b).norm() / b.norm())
            for a, b in zip(variants["trimmed"][what], variants["padded"][what], strict=True)
        ]
        out[f"{what}_relative_difference"] = {"mean": sum(differences) / len(differences), "largest": max(differences)}
    pairs = list(zip(variants["trimmed"]["scores"], variants["padded"]["scores"], strict=True))
    nats = [abs(a - b) for trimmed, padded in pairs for a, b in zip(trimmed, padded, strict=True)]
    out["option_nats"] = {"mean": sum(nats) / len(nats), "largest": max(nats)}
    chosen = {
        name: [
            row.choices[max(range(len(scores)), key=scores.__getitem__)]
            for row, scores in zip(rows, variant["scores"], strict=True)
        ]
        for name, variant in variants.items()
    }
    out["answers_agree"] = sum(a == b for a, b in zip(chosen["trimmed"], chosen["padded"], strict=True))
    for name, variant in variants.items():
        out[f"right_{name}"] = sum(answer in row.answer for answer, row in zip(chosen[name], rows, strict=True))
        out[f"listen_s_per_clip_{name}"] = variant["seconds"]
    return out


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = {"machine": machine()} | compare(load(arguments.model), bundled_questions(arguments.clips))
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
