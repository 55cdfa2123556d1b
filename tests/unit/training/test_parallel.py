"""Two processes on gloo give the same losses, rows and weights as one, however the trees are divided among them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import parallel_worker
from child_process import python_path
from earwise.config.recipe import check_recipe
from earwise.data import manifest
from earwise.errors import ConfigError
from earwise.models import registry
from earwise.models.base import load
from earwise.models.memory.estimate import MemoryEstimate
from earwise.models.memory.plan import Machine, PlannedStage, process_memory
from earwise.training.distributed import parallel
from earwise.training.stages.table import stage_class
from earwise.types import Audio, Example, Text, Turn

HERE = Path(__file__).parents[2]
LR = 1e-3
FULL = {"encoder": "frozen", "connector": "full", "decoder": "full"}
LORA = {"encoder": "frozen", "connector": "full", "decoder": "lora", "lora": {"r": 2, "lora_alpha": 4.0}}
SFT = {"kind": "sft", "max_steps": 4, "clips_per_step": 5, "questions_per_clip": 2}
GRPO = {
    "kind": "grpo", "max_steps": 4, "prompts_per_step": 3, "group_size": 4, "max_new_tokens": 5, "beta": 0.0,
    "rewards": {"parallel_worker:likes_e": 1.0},
}  # fmt: skip
STAGES: dict[str, dict[str, Any]] = {
    "sft": SFT | {"log_completions_steps": 2},
    "sft, one tree": SFT | {"clips_per_step": 1},
    "sft, lora": SFT | {"trainable": LORA},
    "sft, only the connector": SFT | {"trainable": FULL | {"decoder": "frozen"}},
    "sft, encoder": SFT | {"trainable": FULL | {"encoder": "full"}},
    "grpo, flat groups": GRPO | {"rewards": {"parallel_worker:likes_a": 1.0}},
    "grpo, two updates": GRPO | {"beta": 0.04, "num_iterations": 2, "curriculum": {"order": "online"}},
    "grpo, dynamic": GRPO | {"rewards": {"parallel_worker:likes_a": 1.0}, "dynamic_sampling": 3, "trainable": LORA},
    "grpo, Ctrl-C": GRPO | {"rewards": {"parallel_worker:stops_second": 1.0}},
    "dpo": {"kind": "dpo", "max_steps": 3, "clips_per_step": 4, "questions_per_clip": 2, "negatives": "options",
            "log_completions_steps": 1},
    "compress": {"kind": "compress", "max_steps": 3, "clips_per_step": 3, "steps_per_unit": 1,
                 "held_out": {"manifest": "rows.jsonl"}, "held_out_limit": 2, "eval_steps": 2, "max_new_tokens": 5},
    "gkd": {"kind": "gkd", "max_steps": 3, "clips_per_step": 3, "questions_per_clip": 2, "group_size": 2, "lmbda": 0.7,
            "teacher_context": "answer", "max_new_tokens": 5, "log_completions_steps": 1},
}  # fmt: skip

SHARDED = ("sft", "sft, one tree", "sft, lora", "grpo, flat groups", "grpo, two updates", "grpo, Ctrl-C", "dpo", "gkd")
"""Stages that also run with the decoder's layers sharded over the processes (FSDP2)."""
PAIRS = [("two", name) for name in STAGES] + [("sharded", name) for name in SHARDED]


def write_rows(folder: Path) -> None:
    """Write a manifest of questions about one clip, about two, and about none."""
    for number in range(5):
        times = np.arange(4000 + 1600 * number) / 16000
        soundfile.write(folder / f"{number}.wav", 0.3 * np.sin(2 * np.pi * (200 + 400 * number) * times), 16000)
    clips_of_rows: list[tuple[int, ...]] = [(0,), (1,), (2,), (3, 4), (4, 0), (), ()]
    examples = []
    for number, clips in enumerate(clips_of_rows):
        for letter, question in (("a", "pitch?"), ("b", "how high is it, in words?")):
            turns = (Turn("user", (*(Audio(f"{clip}.wav") for clip in clips), Text(f"{question}{number}"))),)
            answer = ("low", "mid", "high")[number % 3]
            examples.append(
                Example(
                    f"{letter}{number}", turns, (answer,), ("low", "mid", "high"), root=folder, text_only=not clips,
                    reasoning=f"It swings. So slow it is. Hence {answer}.",
                )
            )  # fmt: skip
    manifest.write(folder / "rows.jsonl", examples)


def recipe(stage: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {"mixture": [{"manifest": "rows.jsonl"}]}
    if stage["kind"] == "compress":
        data["styles"] = {"think": 1.0}
    common = {"data": data, "save_steps": 1, "pack_tokens": 120, "optimizer": {"learning_rate": LR}, "trainable": FULL}
    model = {"name": "parallel_worker:load"}
    return {"recipe": "t", "model": model, "seed": 5, "stages": [common | stage]}


def run_in_processes(
    jobs: list[dict[str, Any]], folder: Path, count: int = 2, environment: dict[str, str] | None = None
) -> None:
    """Run jobs in `count` processes of one process group."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(port), "PYTHONPATH": python_path()}
    command = [sys.executable, str(HERE / "parallel_worker.py"), str(folder / "jobs.json")]
    workers = [
        subprocess.Popen(
            command, text=True, stderr=subprocess.PIPE,
            env=os.environ | common | (environment or {}) | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        outputs = [worker.communicate(timeout=500)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * count, "\n".join(outputs)[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with every stage run by two processes, and by one."""
    folder = tmp_path_factory.mktemp("parallel")
    write_rows(folder)
    by_two, by_one = folder / "two", folder / "one"
    jobs = [{"recipe": recipe(stage), "out": str(by_two / name), "base": str(folder)} for name, stage in STAGES.items()]
    run_in_processes(jobs, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "parallel_worker", parallel_worker)
        parallel_worker.run_jobs([job | {"out": job["out"].replace(str(by_two), str(by_one))} for job in jobs])
    return folder


@pytest.fixture(scope="module")
def sharded_runs(runs: Path) -> Path:
    """Adds the stages `SHARDED`, run by two processes with FSDP2."""
    jobs = [
        {"recipe": recipe(STAGES[name]), "out": str(runs / "sharded" / name), "base": str(runs)} for name in SHARDED
    ]
    jobs[SHARDED.index("sft, lora")]["reshard"] = "false"  # as fsdp2-zero2.yaml
    run_in_processes(jobs, runs, environment={"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})
    return runs


def metrics_rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    return dict(load(str(out / "final")).module.named_parameters())


@pytest.mark.parametrize(("how", "name"), PAIRS)
def test_two_processes_train_as_one(runs: Path, request: pytest.FixtureRequest, how: str, name: str) -> None:
    """Losses agree within 2e-6, and weights within 1e-5: a hundredth of a step of AdamW, which magnifies the rounding
    of small gradients."""
    if how == "sharded":
        request.getfixturevalue("sharded_runs")
    single, several = metrics_rows(runs / "one" / name), metrics_rows(runs / how / name)
    assert [row["step"] for row in several] == list(range(1, STAGES[name]["max_steps"] + 1))
    kind = STAGES[name]["kind"]
    for first, second in zip(single, several, strict=True):
        assert first.get("ids") == second.get("ids")
        for key in ("loss", "reward", "flat_groups", "rounds", "clips", "pairs", "chain_tokens", "delay", "audio_s"):
            assert second.get(f"{kind}/{key}") == pytest.approx(first.get(f"{kind}/{key}"), abs=2e-6), key
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4, abs=1e-6)
    before = initial_weights()
    by_one, by_two = final_weights(runs / "one" / name), final_weights(runs / how / name)
    largest_difference = max(float((by_one[key] - by_two[key]).abs().max()) for key in by_one)
    largest_change = max(float((by_one[key] - before[key]).abs().max()) for key in by_one)
    assert largest_change > 0.9 * LR
    assert largest_difference < 0.01 * LR, f"{largest_difference:.1e}"


def initial_weights() -> dict[str, torch.Tensor]:
    return dict(parallel_worker.load().module.named_parameters())


def test_some_steps_leave_a_process_without_work(runs: Path) -> None:
    """Otherwise the tests above would prove little."""
    flat = [row["grpo/flat_groups"] for row in metrics_rows(runs / "two" / "grpo, flat groups")]
    assert max(flat) > 0.6 and min(flat) < 1
    assert all(row["sft/clips"] == 1 for row in metrics_rows(runs / "two" / "sft, one tree"))


@pytest.mark.parametrize(("name", "steps"), [("sft", [3]), ("dpo", [2, 3]), ("compress", [1, 3])])
def test_logged_answers_are_logged_once(runs: Path, sharded_runs: Path, name: str, steps: list[int]) -> None:
    """They are those of one process. With sharded layers, only a stage that gathers them anyway logs answers."""
    rows = {folder: [json.loads(line) for line in (runs / folder / name / "rollouts.jsonl").read_text().splitlines()]
            for folder in ("one", "two", "sharded") if (runs / folder / name / "rollouts.jsonl").exists()}  # fmt: skip
    assert set(rows) == ({"one", "two", "sharded"} if name == "dpo" else {"one", "two"})
    assert rows["one"] == rows["two"] == rows.get("sharded", rows["one"])
    ids_by_step: dict[int, list[str]] = {}
    for row in rows["one"]:
        ids_by_step.setdefault(row["step"], []).append(row["id"])
    num_rows = 2 if name == "compress" else 4
    assert list(ids_by_step) == steps and all(len(ids) == num_rows for ids in ids_by_step.values())


def test_rollouts_are_logged_once(runs: Path) -> None:
    by_one, by_two = ((runs / folder / "grpo, two updates" / "rollouts.jsonl").read_text() for folder in ("one", "two"))
    assert by_one == by_two


@pytest.mark.parametrize("how", ["two", "sharded"])
def test_ctrl_c_in_one_process_stops_all_and_resumes(sharded_runs: Path, runs: Path, how: str) -> None:
    assert (runs / how / "grpo, Ctrl-C" / "interrupted").exists()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "fsdp2-zero2 for ZeRO-2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "leave it out"),
    ],
)
def test_unsupported_engines_are_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        parallel.launcher_engine()


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_each_item_is_assigned_to_one_process(parts: int) -> None:
    sizes = [5.0, 3.0, 3.0, 1.0, 8.0]
    shares = parallel.balance(sizes, parts)
    assert sorted(number for share in shares for number in share) == [0, 1, 2, 3, 4]
    loads = [sum(sizes[number] for number in share) for share in shares]
    assert max(loads) <= sum(sizes) / parts + max(sizes) / 2


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_memory_plan_of_one_process_of_four(kind: str) -> None:
    """Three quarters of the layers, gradients and AdamW's state are in other processes; rollouts gather layers."""
    model = registry.default_sizes("qwen25_omni")
    assert model is not None
    stage = check_recipe(recipe((SFT if kind == "sft" else GRPO) | {"trainable": FULL}), "t").stages[0]

    def memory(processes: int, engine: str) -> MemoryEstimate:
        planned = PlannedStage(stage, stage_class(stage).memory(stage, processes), {})
        machine = Machine("a GPU", None, is_gpu=True, processes=processes, engine=engine)
        return process_memory(model, planned, machine, dtype="bfloat16")

    of_one, of_four = (memory(count, "fsdp2") for count in (1, 4))
    shape = model.decoder_shape
    layer = shape.width * (2 * shape.heads * shape.head_dim + 2 * shape.kv_heads * shape.head_dim + 3 * shape.ffn)
    in_others = 0.75 * 2 * layer * shape.layers
    # Layers are float32 shards, their bfloat16 weights are only gathered: of 18 bytes a parameter 16 / 4 stay.
    for name, times in (("weights", 4 / 3), ("masters", 2), ("gradients", 2), ("optimizer", 4)):
        assert of_one.permanent[name] - of_four.permanent[name] == pytest.approx(times * in_others), name
    assert of_four.phases.get("rollout", {}).get("gathered layers", 0.0) == pytest.approx(
        in_others if kind == "grpo" else 0
    )
    replicated = memory(4, "ddp")
    assert replicated.permanent == of_one.permanent
