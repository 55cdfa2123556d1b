"""Short runs of every stage end where they ended before: losses, gradient norms, completions and data order per step.

`data/trajectories.json` was written by commit 5113ae8, before the stages were restructured, except for the run at
temperature 0.8 (`grpo, banded, unreadable clip`): since then the temperature is part of the log-probabilities in the
loss, as in TRL, so that its weights differ from the first update on. Texts, token ids, row ids
and counts must be equal; floating-point values must agree to 1e-5, because processors round differently.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from builders import tiny_qwen2_audio
from earwise.config.recipe import check_recipe
from earwise.data import manifest
from earwise.engine.local import LocalEngine
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.training import run
from earwise.types import Audio, Example, Text, Turn

EXPECTED = Path(__file__).parent / "data" / "trajectories.json"
MODULE = "trajectories"
"""Name under which recipes find this module's `load` and `vowels`."""
TIMINGS = {"seconds", "data_seconds", "tokens_per_s", "audio_s_per_s"}

FULL = {"encoder": "frozen", "connector": "full", "decoder": "full"}
LORA = {"encoder": "frozen", "connector": "full", "decoder": "lora", "lora": {"r": 2, "lora_alpha": 4.0}}
SFT = {"kind": "sft", "max_steps": 5, "clips_per_step": 3, "questions_per_clip": 2, "log_completions_steps": 3,
       "data": {"mixture": [{"manifest": "rows.jsonl"}], "styles": {"answer": 1.0, "think": 2.0}}}  # fmt: skip
DPO = {"kind": "dpo", "max_steps": 4, "clips_per_step": 2, "questions_per_clip": 2, "log_completions_steps": 2}
GRPO = {"kind": "grpo", "max_steps": 4, "prompts_per_step": 3, "group_size": 4, "max_new_tokens": 6,
        "rewards": {f"{MODULE}:vowels": 1.0, "format_answer": 0.5}, "log_completions_steps": 1}  # fmt: skip
COMPRESS = {"kind": "compress", "max_steps": 5, "clips_per_step": 2, "questions_per_clip": 2, "steps_per_unit": 1,
            "data": {"mixture": [{"manifest": "rows.jsonl"}], "styles": {"think": 1.0}}, "eval_steps": 2}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "sft": SFT,
    "sft, trained encoder, packed small": SFT | {"trainable": FULL | {"encoder": "full"}, "pack_tokens": 150},
    "sft, lora, easy to hard, by size": SFT
    | {
        "trainable": LORA,
        "curriculum": {"order": "easy_to_hard"},
        "data": {
            "mixture": [{"manifest": "rows.jsonl", "weight": 2.0}, {"manifest": "more.jsonl"}],
            "weight_by_size": True,
            "mixture_temperature": 2.0,
        },
    },
    "sft, unreadable clip": SFT | {"data": {"mixture": [{"manifest": "broken.jsonl"}], "on_bad_row": "skip"}},
    "dpo, rows": DPO | {"data": {"mixture": [{"manifest": "rows.jsonl"}]}},
    "dpo, options, ipo": DPO | {"negatives": "options", "loss_type": "ipo", "trainable": LORA},
    "compress, sentences": COMPRESS
    | {"held_out": {"manifest": "more.jsonl"}, "held_out_limit": 2, "max_new_tokens": 8},
    "compress, tokens": COMPRESS
    | {"unit": "tokens", "smoothing": 2.0, "reset_optimizer": True, "log_completions_steps": 2, "trainable": LORA},
    "grpo": GRPO,
    "grpo, lora, two updates, online": GRPO
    | {"num_iterations": 2, "trainable": LORA, "curriculum": {"order": "online", "reward": f"{MODULE}:vowels"}},
    "grpo, no kl, dynamic sampling": GRPO
    | {"beta": 0.0, "dynamic_sampling": 3, "rewards": {f"{MODULE}:rare": 1.0}, "loss_type": "dapo"},
    "grpo, banded, unreadable clip": GRPO
    | {
        "curriculum": {"order": "banded", "band": {"low": 2, "high": 6, "attempts": 8}},
        "data": {"mixture": [{"manifest": "broken.jsonl"}], "on_bad_row": "skip", "styles": {"answer": 1, "think": 1}},
        "scale_rewards": "batch",
        "top_k": 20,
        "top_p": 0.9,
        "temperature": 0.8,
    },
    "grpo, adaptive thinking": GRPO
    | {"rewards": {"adaptive_thinking": 1.0, f"{MODULE}:vowels": 0.5}, "balance_thinking": True},
}


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """The tiny model that all runs start from."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


def vowels(_: Example, completion: str) -> float:
    """A reward that a byte model can earn: the number of vowels."""
    return float(sum(character in "aeiou" for character in completion))


def rare(example: Example, completion: str) -> float:
    """A reward that only some rows can earn, so that the groups of the others are flat."""
    return vowels(example, completion) if int(example.id[0]) % 2 else 0.0


def write_manifests(folder: Path) -> None:
    """Write rows.jsonl (six clips, two questions each), more.jsonl (two of the clips) and broken.jsonl, which also
    names a clip that cannot be decoded."""
    examples = []
    for number in range(6):
        hertz, name = [(200, "low"), (800, "mid"), (3000, "high")][number % 3]
        times = np.arange(8000 + 800 * number) / 16000
        soundfile.write(folder / f"{number}.wav", 0.3 * np.sin(2 * np.pi * hertz * times), 16000)
        for question in ("pitch?", "how high?"):
            examples.append(example(folder, f"{number}{question}", f"{number}.wav", question, name))
    (folder / "broken.wav").write_bytes(b"RIFF no sound")
    broken = example(folder, "9broken", "broken.wav", "pitch?", "low")
    manifest.write(folder / "rows.jsonl", examples)
    manifest.write(folder / "more.jsonl", examples[4:8])
    manifest.write(folder / "broken.jsonl", [*examples[:4], broken, *examples[4:]])


def example(folder: Path, identifier: str, clip: str, question: str, name: str) -> Example:
    """A row with an answer, a reasoning, a rejected reply and a pass rate."""
    number = int(identifier[0])
    return Example(
        identifier, (Turn("user", (Audio(clip), Text(question))),), (name,), ("low", "mid", "high"), root=folder,
        reasoning=f"A tone is heard. It sounds {name} to me. It lasts {number} ticks.",
        rejected=tuple(choice for choice in ("low", "high") if choice != name),
        meta={"pass_count": (number + len(question)) % 7, "attempts": 8},
    )  # fmt: skip


def trajectory(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the recipe `name` of `RUNS` and return its log rows, its logged samples and all generated token ids."""
    monkeypatch.setitem(sys.modules, MODULE, sys.modules[__name__])
    token_ids: list[list[list[int]]] = []
    generate = LocalEngine.generate

    def recording_generate(engine: LocalEngine, *arguments: Any, **named: Any) -> Any:
        groups = generate(engine, *arguments, **named)
        token_ids.extend([list(completion.token_ids) for completion in group] for group in groups)
        return groups

    monkeypatch.setattr(LocalEngine, "generate", recording_generate)
    write_manifests(folder)
    common = {"data": {"mixture": [{"manifest": "rows.jsonl"}]}, "trainable": FULL, "pack_tokens": 400,
              "optimizer": {"learning_rate": 3e-3, "lr_scheduler_type": "cosine", "warmup_steps": 1}}  # fmt: skip
    raw = {"recipe": "t", "model": {"name": f"{MODULE}:load"}, "seed": 5, "trackers": [],
           "stages": [common | RUNS[name]]}  # fmt: skip
    out = folder / "run"
    run.start(check_recipe(raw, "test"), out, folder)
    steps = [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows_of(out / "metrics.jsonl")]
    samples = rows_of(out / "rollouts.jsonl")
    return {"steps": steps, "samples": samples, "token_ids": token_ids}


def rows_of(log: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines log; none if the stage wrote no such log."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("name", RUNS)
def test_run_follows_the_recorded_trajectory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = json.loads(EXPECTED.read_text())[name]
    actual = json.loads(json.dumps(trajectory(name, tmp_path, monkeypatch)))
    assert actual["token_ids"] == expected["token_ids"]
    assert len(actual["samples"]) == len(expected["samples"])
    for actual_rows, expected_rows in ((actual[key], expected[key]) for key in ("steps", "samples")):
        assert_rows_agree(actual_rows, expected_rows)


def assert_rows_agree(actual: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """Assert that all recorded keys are there (later versions may log more); floating-point values may differ by
    rounding, all others must be equal. A margin is a difference of log-probabilities near -30, whose last bit is
    1.9e-6: on another processor than that of the record it was off by 9.5e-7."""
    for actual_row, expected_row in zip(actual, expected, strict=True):
        assert actual_row.keys() >= expected_row.keys()
        for key, value in expected_row.items():
            if isinstance(value, float):
                assert actual_row[key] == pytest.approx(value, rel=1e-5, abs=2e-6), (expected_row["step"], key)
            else:
                assert actual_row[key] == value, (expected_row["step"], key)
