"""Two processes on gloo train what one trains: the same losses, rows and weights, whoever has which trees, or none."""

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
from earwise.config.recipe import check_recipe
from earwise.data import manifest
from earwise.errors import ConfigError
from earwise.models import registry
from earwise.models.base import load
from earwise.models.memory.estimate import MemoryEstimate
from earwise.models.memory.plan import Machine, PlannedStage, process_memory
from earwise.train.distributed import parallel
from earwise.train.stages.table import stage_class
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
}  # fmt: skip

CUT = ("sft", "sft, one tree", "sft, lora", "grpo, flat groups", "grpo, two updates", "grpo, Ctrl-C", "dpo")
"""Also with the decoder's layers cut over the processes."""
PAIRS = [("two", name) for name in STAGES] + [("cut", name) for name in CUT]


def rows(folder: Path) -> None:
    """Questions about one clip, about two, and about none."""
    for number in range(5):
        t = np.arange(4000 + 1600 * number) / 16000
        soundfile.write(folder / f"{number}.wav", 0.3 * np.sin(2 * np.pi * (200 + 400 * number) * t), 16000)
    heard: list[tuple[int, ...]] = [(0,), (1,), (2,), (3, 4), (4, 0), (), ()]
    examples = []
    for number, clips in enumerate(heard):
        for letter, question in (("a", "pitch?"), ("b", "how high is it, in words?")):
            turns = (Turn("user", (*(Audio(f"{clip}.wav") for clip in clips), Text(f"{question}{number}"))),)
            answer = ("low", "mid", "high")[number % 3]
            examples.append(
                Example(
                    f"{letter}{number}", turns, (answer,), ("low", "mid", "high"), root=folder,
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


def together(
    jobs: list[dict[str, Any]], folder: Path, count: int = 2, environment: dict[str, str] | None = None
) -> None:
    """Run jobs in `count` processes that found each other."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(port), "PYTHONPATH": str(HERE)}
    command = [sys.executable, str(HERE / "parallel_worker.py"), str(folder / "jobs.json")]
    workers = [
        subprocess.Popen(
            command, text=True, stderr=subprocess.PIPE,
            env=os.environ | common | (environment or {}) | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        said = [worker.communicate(timeout=500)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * count, "\n".join(said)[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage run by two processes, and by one."""
    folder = tmp_path_factory.mktemp("parallel")
    rows(folder)
    both, alone = folder / "two", folder / "one"
    two = [{"recipe": recipe(stage), "out": str(both / name), "base": str(folder)} for name, stage in STAGES.items()]
    together(two, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "parallel_worker", parallel_worker)
        parallel_worker.work([job | {"out": job["out"].replace(str(both), str(alone))} for job in two])
    return folder


@pytest.fixture(scope="module")
def cut(runs: Path) -> Path:
    """Some of them by two processes with FSDP2."""
    jobs = [{"recipe": recipe(STAGES[name]), "out": str(runs / "cut" / name), "base": str(runs)} for name in CUT]
    jobs[CUT.index("sft, lora")]["reshard"] = "false"  # as fsdp2-zero2.yaml
    together(jobs, runs, environment={"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})
    return runs


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return dict(load(str(out / "final")).module.named_parameters())


@pytest.mark.parametrize(("how", "name"), PAIRS)
def test_two_processes_train_what_one_trains(runs: Path, request: pytest.FixtureRequest, how: str, name: str) -> None:
    """Losses within 2e-6; weights within 1e-5, a hundredth of a step of AdamW, which magnifies the rounding of small
    gradients."""
    if how == "cut":
        request.getfixturevalue("cut")
    one, two = log(runs / "one" / name), log(runs / how / name)
    assert [row["step"] for row in two] == list(range(1, STAGES[name]["max_steps"] + 1))
    kind = STAGES[name]["kind"]
    for first, second in zip(one, two, strict=True):
        assert first.get("ids") == second.get("ids")
        for key in ("loss", "reward", "flat_groups", "rounds", "clips", "pairs", "chain_tokens", "delay", "audio_s"):
            assert second.get(f"{kind}/{key}") == pytest.approx(first.get(f"{kind}/{key}"), abs=2e-6), key
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4, abs=1e-6)
    before = weights_before()
    alone, both = weights(runs / "one" / name), weights(runs / how / name)
    worst = max(float((alone[key] - both[key]).abs().max()) for key in alone)
    moved = max(float((alone[key] - before[key]).abs().max()) for key in alone)
    assert moved > 0.9 * LR
    assert worst < 0.01 * LR, f"{worst:.1e}"


def weights_before() -> dict[str, torch.Tensor]:
    return dict(parallel_worker.load().module.named_parameters())


def test_some_steps_left_a_process_without_work(runs: Path) -> None:
    """Otherwise the tests above would prove little."""
    flat = [row["grpo/flat_groups"] for row in log(runs / "two" / "grpo, flat groups")]
    assert max(flat) > 0.6 and min(flat) < 1
    assert all(row["sft/clips"] == 1 for row in log(runs / "two" / "sft, one tree"))


@pytest.mark.parametrize(("name", "steps"), [("sft", [3]), ("dpo", [2, 3]), ("compress", [1, 3])])
def test_answers_on_the_way_are_shown_once(runs: Path, cut: Path, name: str, steps: list[int]) -> None:
    """Those of one process; where layers are cut, by a stage that wants them whole anyway."""
    rows = {where: [json.loads(line) for line in (runs / where / name / "rollouts.jsonl").read_text().splitlines()]
            for where in ("one", "two", "cut") if (runs / where / name / "rollouts.jsonl").exists()}  # fmt: skip
    assert set(rows) == ({"one", "two", "cut"} if name == "dpo" else {"one", "two"})
    assert rows["one"] == rows["two"] == rows.get("cut", rows["one"])
    shown = {row["step"]: [one["id"] for one in rows["one"] if one["step"] == row["step"]] for row in rows["one"]}
    assert list(shown) == steps and all(len(ids) == (2 if name == "compress" else 4) for ids in shown.values())


def test_rollouts_are_logged_once(runs: Path) -> None:
    one, two = ((runs / where / "grpo, two updates" / "rollouts.jsonl").read_text() for where in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("how", ["two", "cut"])
def test_ctrl_c_for_one_stops_all_and_resumes(cut: Path, runs: Path, how: str) -> None:
    assert (runs / how / "grpo, Ctrl-C" / "interrupted").exists()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "fsdp2-zero2.yaml for ZeRO-2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "leave it out"),
    ],
)
def test_engines_that_do_not_run_are_refused(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        parallel.launcher_engine()


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_every_item_has_one_owner(parts: int) -> None:
    sizes = [5.0, 3.0, 3.0, 1.0, 8.0]
    shares = parallel.balance(sizes, parts)
    assert sorted(number for share in shares for number in share) == [0, 1, 2, 3, 4]
    loads = [sum(sizes[number] for number in share) for share in shares]
    assert max(loads) <= sum(sizes) / parts + max(sizes) / 2


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_the_plan_of_a_process_of_four(kind: str) -> None:
    """Three quarters of the layers, of their gradients and AdamW's state lie elsewhere; rollouts gather layers."""
    model = registry.default_sizes("qwen25_omni")
    assert model is not None
    stage = check_recipe(recipe((SFT if kind == "sft" else GRPO) | {"trainable": FULL}), "t").stages[0]
    def memory(processes: int, engine: str) -> MemoryEstimate:
        planned = PlannedStage(stage, stage_class(stage).memory(stage, processes), {})
        machine = Machine("a GPU", None, is_gpu=True, processes=processes, engine=engine)
        return process_memory(model, planned, machine, dtype="bfloat16")

    one, four = (memory(count, "fsdp2") for count in (1, 4))
    shape = model.decoder_shape
    layer = shape.width * (2 * shape.heads * shape.head_dim + 2 * shape.kv_heads * shape.head_dim + 3 * shape.ffn)
    away = 0.75 * 2 * layer * shape.layers
    for name, times in (("weights", 1), ("gradients", 1), ("optimizer", 2)):
        assert one.permanent[name] - four.permanent[name] == pytest.approx(times * away), name
    assert four.phases.get("rollout", {}).get("gathered layers", 0.0) == pytest.approx(away if kind == "grpo" else 0)
    alone = memory(4, "ddp")
    assert alone.permanent == one.permanent
