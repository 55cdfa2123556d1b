"""Sizes that `growth.py` varies beside those of a GRPO step: questions and clips of an SFT step, processes of an
evaluation, rows of a manifest."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from baselines.models import load_benchmark_model
from baselines.timing import PhaseTimer, alternate_phases, medians, peak_memory
from baselines.workload import clip, examples
from earwise.algorithms.losses import sft_loss
from earwise.data.manifest_path import STARTER
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.prompts import prompt_turns
from earwise.training.batches import build_micro_batches
from earwise.training.policy import Policy

CLIP_S = 10.0
QUESTIONS_A_CLIP = 4
"""Questions about each clip where the number of clips varies."""
PACK_TOKENS = 1024


def sft_pass(model: AudioLM, clips: int, questions: int, seconds: float, timer: PhaseTimer) -> None:
    """Encoding, forward and backward pass of an SFT step."""
    rows = examples()
    waveforms = {number: clip(rows[number], seconds) for number in range(clips)}
    trees = []
    for number, waveform in waveforms.items():
        asked = [rows[(number * questions + index) % len(rows)] for index in range(questions)]
        trees.append(
            [
                conversation_path(model, prompt_turns(row, "open"), [number], [len(waveform)], generate=True)
                + answer_path(model, row.answer[0])
                for row in asked
            ]
        )
    num_trained = float(sum(sum(path.trained) for tree in trees for path in tree))
    with timer("step"):
        policy = Policy(model)
        for micro_batch in build_micro_batches(model, EncoderCache(model), trees, waveforms, PACK_TOKENS):
            logprobs = policy(*micro_batch.policy_inputs)
            sft_loss(logprobs, micro_batch.forest.loss_mask, denominator=num_trained).loss.backward()
    model.module.zero_grad()


def sft_pass_alone(model_name: str, clips: int, questions: int, seconds: float) -> None:
    """The same in a new process, for measuring its memory."""
    sft_pass(load_benchmark_model(model_name), clips, questions, seconds, PhaseTimer())


def measure_sft(
    model_name: str, model: AudioLM, axis: str, value: int, rounds: int, *, memory: bool, seconds: float = CLIP_S
) -> dict[str, Any]:
    """An SFT step with a number of `questions` about one clip, or of `clips`."""
    clips, questions = (1, value) if axis == "questions" else (value, QUESTIONS_A_CLIP)
    run: Callable[[PhaseTimer], None] = partial(sft_pass, model, clips, questions, seconds)
    times = medians(alternate_phases({"earwise": run}, rounds)["earwise"])
    out: dict[str, Any] = {axis: value, "step_s": times["step"]}
    if memory:
        out["peak_memory_mb"] = peak_memory(partial(sft_pass_alone, model_name, clips, questions, seconds))
    return out


def measure_processes(processes: int, items: int) -> dict[str, Any]:
    """An evaluation of some bundled items by processes that share the cores, and the sum of their peak memory."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "earwise",
            "evaluate",
            "--task",
            "manifest",
            "--data",
            str(STARTER / "val.jsonl"),
        ]
        command += ["--limit", str(items), "--out", str(Path(folder) / "run")]
        started = time.perf_counter()
        running = [
            subprocess.Popen(
                [*command, "--part", f"{number + 1}/{processes}"],
                env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for number in range(processes)
        ]  # fmt: skip
        memory = 0.0
        for process in running:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            memory += usage.ru_maxrss / 1024
            if process.returncode:
                raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
        seconds = time.perf_counter() - started
    return {
        "processes": processes, "threads_each": threads, "items": items, "step_s": seconds, "peak_memory_mb": memory
    }  # fmt: skip


def measure_rows(rows: int) -> dict[str, Any]:
    """A manifest of this many rows, indexed for the first time and opened again (`build.py`)."""
    import build  # imports psutil, which nothing else here needs

    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("EARWISE_HOME")
        os.environ["EARWISE_HOME"] = str(Path(folder) / "home")
        try:
            path = build.write_manifest(Path(folder), rows)
            first = build.measure(f"{rows} rows, first index", partial(build.index_first, path))
            again = build.measure(f"{rows} rows, opened again", partial(build.index_again, path))
        finally:
            if before is None:
                del os.environ["EARWISE_HOME"]
            else:
                os.environ["EARWISE_HOME"] = before
    return {
        "rows": rows, "step_s": first["seconds"], "peak_memory_mb": first["peak_memory_mb"],
        "again_s": again["ready_s"], "again_memory_mb": again["peak_memory_mb"],
    }  # fmt: skip


def measure_other(
    axis: str, value: int, model_name: str, model: AudioLM, rounds: int, *, memory: bool, toy: bool
) -> dict[str, Any]:
    """One size of an axis that is not one of a GRPO step; `toy` makes everything small."""
    if axis in ("questions", "clips"):
        return measure_sft(model_name, model, axis, value, rounds, memory=memory, seconds=1.0 if toy else CLIP_S)
    return measure_processes(value, 4 if toy else 48) if axis == "processes" else measure_rows(value)


OTHER_AXES: dict[str, tuple[str, Sequence[int]]] = {
    "questions": ("SFT: questions about a clip", [1, 2, 4, 8, 16]),
    "clips": (f"SFT: clips, {QUESTIONS_A_CLIP} questions each", [1, 2, 4, 8, 16]),
    "processes": ("processes of an evaluation", [1, 2]),
    "rows": ("rows of a manifest", [10_000, 100_000, 1_000_000]),
}
"""Axis -> label and values."""
