"""What trimming changes for an encoder that does not mask padding: its states, and the answers that follow.

    python benchmarks/trimming.py --clips 64 --out benchmarks/results/trimming.json

The same model hears the same bundled clips twice: cut to the frames that exist, and padded with silence to the window
(as Whisper was trained). Compared are what the connector reads, the embeddings that the decoder gets, and the answers
to the clips' own questions by the likelihood of their options. One of the two ways is the way the model was trained;
the other is a measure of how much that choice matters, not of which is better.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from ways.timing import machine

from earwise.audio import decode
from earwise.data.manifest import read
from earwise.engine.base import Prompt
from earwise.engine.local import LocalEngine
from earwise.files import write_json
from earwise.models.base import AudioLM, load
from earwise.prompts import prompt_turns
from earwise.train.run import STARTER
from earwise.types import Example, Waveform


def asked(count: int) -> list[Example]:
    """Questions with options about `count` different clips, spread over the bundled validation rows."""
    rows: dict[str, Example] = {}
    for row in read(STARTER / "val.jsonl"):
        if row.choices and len(row.audio_paths) == 1:
            rows.setdefault(str(row.audio_paths[0]), row)
    some = list(rows.values())
    return some[:: max(1, len(some) // count)][:count]


@torch.inference_mode()
def hear(model: AudioLM, trim: bool, rows: Sequence[Example], waveforms: Sequence[Waveform]) -> dict[str, Any]:
    """States, embeddings and options' log-likelihoods with clips trimmed, or padded."""
    model.trims = trim
    engine = LocalEngine(model)  # with a memory of its own: what was heard the other way must not be found
    start = perf_counter()
    states = [engine.encoder_cache.encoder_states([wave])[0] for wave in waveforms]
    seconds = (perf_counter() - start) / len(waveforms)
    prompts = [Prompt(prompt_turns(row, "answer"), (wave,), row.id) for row, wave in zip(rows, waveforms, strict=True)]
    scores = engine.score(prompts, [row.choices for row in rows])
    return {"states": states, "connected": model.project_audio(states), "scores": scores, "seconds": seconds}


def compare(model: AudioLM, rows: Sequence[Example]) -> dict[str, Any]:
    """Both ways on the same clips.

    Args:
        model: Left hearing the way it came.
        rows: Questions with options, one clip each.
    Returns:
        Relative differences (norm of the difference over the padded norm: mean and largest over clips), and for the
        answers how many agree and how many are right each way.
    """
    waveforms = [decode(row.audio_paths[0], model.spec.sample_rate, max_s=model.spec.max_s) for row in rows]
    trained = model.trims
    try:
        ways = {name: hear(model, trim, rows, waveforms) for name, trim in (("trimmed", True), ("padded", False))}
    finally:
        model.trims = trained
    out: dict[str, Any] = {"model": model.name, "revision": model.revision, "trained_trimmed": trained, "n": len(rows)}
    out["clip_s_mean"] = sum(len(wave) for wave in waveforms) / len(waveforms) / model.spec.sample_rate
    for what in ("states", "connected"):
        off = [
            float((a - b).norm() / b.norm()) for a, b in zip(ways["trimmed"][what], ways["padded"][what], strict=True)
        ]
        out[f"{what}_relative_difference"] = {"mean": sum(off) / len(off), "largest": max(off)}
    pairs = list(zip(ways["trimmed"]["scores"], ways["padded"]["scores"], strict=True))
    nats = [abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True)]
    out["option_nats"] = {"mean": sum(nats) / len(nats), "largest": max(nats)}
    chosen = {
        name: [row.choices[max(range(len(s)), key=s.__getitem__)] for row, s in zip(rows, way["scores"], strict=True)]
        for name, way in ways.items()
    }
    out["answers_agree"] = sum(a == b for a, b in zip(chosen["trimmed"], chosen["padded"], strict=True))
    for name, way in ways.items():
        out[f"right_{name}"] = sum(said in row.answer for said, row in zip(chosen[name], rows, strict=True))
        out[f"listen_s_per_clip_{name}"] = way["seconds"]
    return out


def main() -> None:
    """Measure one model on the bundled clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = {"machine": machine()} | compare(load(arguments.model), asked(arguments.clips))
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
