"""Everything that is to be known on the first day with a GPU, in one command: `make gpu-day`.

    python benchmarks/gpu_day.py --out runs/gpu-day
    python benchmarks/gpu_day.py --out runs/gpu-day --only recipes --recipe r1-aqa
    python benchmarks/gpu_day.py --toy --out runs/gpu-day-toy       (tiny models on the CPU: does it start?)

Five parts, all but the second in processes of their own, so that one that fails or runs out of memory leaves the others
alone:

- `doctor`: the checks of `earwise doctor` on this machine;
- `plans`: the memory that every stage of every recipe needs at its published size, by `earwise train --plan`, with the
  profiles for GPUs; needs no GPU;
- `kernels`: the tests marked `gpu`, and one model on the device and on the CPU: log-probabilities of a packed tree,
  gradients, greedy completions;
- `r1-aqa`: its step at the size of Qwen2-Audio-7B by phase, against the goal of one GPU-hour for 500 steps (`gpu.py`),
  all weights if they fit, otherwise LoRA;
- `recipes`: one step of every stage of every recipe with its profile for one GPU, from a checkpoint with random weights
  in the released sizes and synthetic rows.

The result is `OUT/gpu-day.json`, with machine and commit, written after every part. Exit code 1 if any part failed. A
part that is already in it is not run again; `--again` starts anew. Checkpoints of 17 GB are written below `OUT/work`
and deleted after the recipes of their family.
"""

import argparse
import contextlib
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from baselines.timing import machine

from earwise import cli
from earwise.config.recipe import Recipe, load_recipe
from earwise.config.recipe_files import PACKAGED_RECIPES
from earwise.errors import ConfigError
from earwise.files import write_json
from earwise.models.base import best_device

HERE = Path(__file__).parent
PARTS = ("doctor", "plans", "kernels", "r1-aqa", "recipes")
PROFILE = "one-gpu"
PLANNED = ("paper", "one-gpu", "24gb")
"""Profiles that are planned, where a recipe has them."""
ROWS_EACH, CLIP_S = 64, 10.0
TOY_ROWS_EACH, TOY_CLIP_S = 16, 1.0
TOY_SETTINGS = {
    "clips_per_step": 2, "questions_per_clip": 1, "prompts_per_step": 2, "group_size": 2, "max_new_tokens": 4,
    "held_out_limit": 2,
}  # fmt: skip
TOY_STEP = ("--small", "--prompts=2", "--group=2", "--new-tokens=4", "--seconds=1", "--steps=1")
GPU_TESTS = ("tests/unit/engine/test_static_cache.py", "tests/unit/models/test_flex.py")
TOY_KERNELS = ("--size=qwen2audio-random:tiny", "--shape=quick")
MAX_OUTPUT_CHARS = 1500
"""Part of a failed process's output that is kept."""
Row = dict[str, Any]


def git_commit() -> Row:
    """The commit of this clone, and whether files differ from it; nothing outside a clone."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()

    return {"commit": git("rev-parse", "HEAD") or None, "changed": bool(git("status", "--porcelain"))}


def gpus() -> list[Row]:
    """The CUDA devices of this machine."""
    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [
        {"name": device.name, "memory_gb": device.total_memory / 1e9, "capability": f"{device.major}.{device.minor}"}
        for device in devices
    ]


def run_process(arguments: Sequence[str], log: Path) -> Row:
    """Run a Python program to its end.

    Args:
        arguments: Arguments of the interpreter.
        log: File for what it prints.
    Returns:
        `ok`, `seconds`, and for a failed program the end of its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        completed = subprocess.run(
            [sys.executable, *arguments], cwd=HERE.parent, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    result: Row = {"ok": completed.returncode == 0, "seconds": round(time.perf_counter() - started, 1)}
    if not result["ok"]:
        end = log.read_text(encoding="utf-8", errors="replace")[-MAX_OUTPUT_CHARS:]
        result |= {"status": completed.returncode, "output": end}
    return result


def run_doctor(arguments: argparse.Namespace) -> Row:
    """The checks of `earwise doctor`."""
    log = arguments.out / "logs" / "doctor.txt"
    result = run_process(["-m", "earwise", "doctor", "--json"], log)
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    return result | {"checks": json.loads(lines[-1]) if lines else None}


def recipe_names(arguments: argparse.Namespace) -> list[str]:
    """The recipes to run: those of the command line, or all of the package."""
    return arguments.recipe or sorted(path.stem for path in PACKAGED_RECIPES.glob("*.yaml"))


def run_plans(arguments: argparse.Namespace) -> Row:
    """The planned memory of every recipe at its published size, with each of its profiles for GPUs."""
    from baselines.recipe_rows import write_manifests

    plans: Row = {}
    for name in recipe_names(arguments):
        profiles = yaml.safe_load((PACKAGED_RECIPES / f"{name}.yaml").read_text(encoding="utf-8")).get("profiles", {})
        for profile in (profile for profile in PLANNED if profile in profiles):
            work = arguments.out / "work" / f"plan-{name}"
            write_manifests(load_recipe(name, profile=profile), work, TOY_ROWS_EACH, TOY_CLIP_S)
            plans[f"{name} {profile}"] = plan_recipe(name, profile, work)
            shutil.rmtree(work)
    return {"ok": all(plan["ok"] for plan in plans.values()), "each": plans}


def plan_recipe(name: str, profile: str, data: Path) -> Row:
    """What `earwise train --plan` says of each stage: the trained parameters, the memory in GB, and whether it fits."""
    command = ["train", name, "--profile", profile, "--data", str(data), "--plan", "--json", "model.weights=null"]
    printed, messages = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(messages):
        code = cli.run([*command, "eval=[]"])
    if not printed.getvalue():
        return {"ok": False, "output": messages.getvalue()[-MAX_OUTPUT_CHARS:]}
    plan = json.loads(printed.getvalue())
    return {"ok": code == 0, "machine": plan["machine"], "stages": plan["stages"]}


def run_kernels(arguments: argparse.Namespace) -> Row:
    """The tests marked `gpu` (a toy run only collects them), and the comparison of both devices."""
    logs = arguments.out / "logs"
    collect = ["--collect-only"] if arguments.toy else []
    tests = run_process(["-m", "pytest", "-q", "-n0", "-m", "gpu", *GPU_TESTS, *collect], logs / "gpu-tests.txt")
    compared = arguments.out / "kernels.json"
    size = TOY_KERNELS if arguments.toy else ()
    program = [str(HERE / "gpu_kernels.py"), "--device", arguments.device, "--out", str(compared), *size]
    comparison = run_process(program, logs / "kernels.txt")
    differences = json.loads(compared.read_text()) if compared.exists() else None
    ok = tests["ok"] and comparison["ok"]
    return {"ok": ok, "tests": tests, "comparison": comparison | {"differences": differences}}


def run_r1_aqa(arguments: argparse.Namespace) -> Row:
    """R1-AQA's step: all weights, and LoRA if they do not fit."""
    size = [*TOY_STEP, "--dtype=float32"] if arguments.toy else ["--compare-decoding"]
    result: Row = {"ok": False}
    for mode in ("full", "lora"):
        out = arguments.out / f"r1-aqa-{mode}.json"
        program = [str(HERE / "gpu.py"), "--mode", mode, "--device", arguments.device, "--out", str(out), *size]
        result[mode] = run_process(program, arguments.out / "logs" / f"r1-aqa-{mode}.txt")
        if result[mode]["ok"]:
            measured = json.loads(out.read_text())
            kept = ("step_s", "phases_s", "hours_for_500_steps", "within_the_goal", "peak_memory_gb")
            result[mode] |= {name: measured[name] for name in kept}
            return result | {"ok": True}
    return result


def load_profile(name: str) -> tuple[Recipe, str | None]:
    """A recipe with its profile for one GPU, or without one if it has none."""
    try:
        return load_recipe(name, profile=PROFILE), PROFILE
    except ConfigError:
        return load_recipe(name), None


def toy_settings(recipe: Recipe) -> Iterator[str]:
    """Settings that make the steps of a recipe tiny; everything else stays as it is."""
    yield "model.dtype=float32"
    for number, stage in enumerate(recipe.stages):
        for key, value in TOY_SETTINGS.items():
            if hasattr(stage, key):
                yield f"stages.{number}.{key}={value}"


def teacher_settings(recipe: Recipe, checkpoint: Path | None) -> Iterator[str]:
    """Settings that put the random weights in place of the published ones of a distillation stage's teacher."""
    for number, stage in enumerate(recipe.stages):
        if checkpoint is not None and getattr(stage, "teacher", None) is not None:
            yield f"stages.{number}.teacher.weights={checkpoint}"


def run_recipe(name: str, checkpoint: Path | None, arguments: argparse.Namespace) -> Row:
    """One step of every stage of a recipe.

    Args:
        name: Name of the recipe.
        checkpoint: Random weights; None for a model of the package.
        arguments: The command line.
    """
    from baselines.recipe_rows import write_manifests

    recipe, profile = load_profile(name)
    work, run = arguments.out / "work" / name, arguments.out / "runs" / name
    for folder in (work, run):
        shutil.rmtree(folder, ignore_errors=True)
    size = (TOY_ROWS_EACH, TOY_CLIP_S) if arguments.toy else (ROWS_EACH, CLIP_S)
    write_manifests(recipe, work, *size)
    command = ["-m", "earwise", "train", name, "--data", str(work), "--out", str(run)]
    command += ["--profile", profile] if profile else []
    command += [f"model.weights={checkpoint}"] if checkpoint else []
    command += teacher_settings(recipe, checkpoint)
    command += ["eval=[]", "stages.*.max_steps=1", "stages.*.optimizer.warmup_steps=0"]
    command += toy_settings(recipe) if arguments.toy else ()
    result = run_process(command, arguments.out / "logs" / f"{name}.txt")
    metrics = run / "metrics.jsonl"
    steps = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    shutil.rmtree(work)
    shutil.rmtree(run, ignore_errors=True)  # its checkpoints are as large as the model
    return result | {"profile": profile, "model": recipe.model.name, "steps": steps}


def run_recipes(arguments: argparse.Namespace) -> Row:
    """One step of every recipe, family by family, so that only one checkpoint is on the disk."""
    from baselines.random_checkpoints import BUILDERS, write_checkpoint
    from baselines.recipe_rows import CHOICES, QUESTION, REASONING

    from earwise.prompts import CHOICES_PROMPT, INSTRUCTIONS

    texts = [*INSTRUCTIONS.values(), CHOICES_PROMPT, QUESTION, REASONING, *CHOICES, "system user assistant Audio 1:"]
    families: dict[str, list[str]] = {}
    for name in recipe_names(arguments):
        families.setdefault(load_profile(name)[0].model.name, []).append(name)
    results: Row = {}
    for family, names in families.items():
        checkpoint = arguments.out / "work" / f"{family}-random" if family in BUILDERS else None
        try:
            if checkpoint is not None:
                write_checkpoint(family, checkpoint, texts, arguments.device, small=arguments.toy)
                torch.cuda.empty_cache()
            for name in names:
                print(f"recipe {name}", file=sys.stderr)
                results[name] = run_recipe(name, checkpoint, arguments)
        finally:
            if checkpoint is not None:
                shutil.rmtree(checkpoint, ignore_errors=True)
    return {"ok": all(result["ok"] for result in results.values()), "each": results}


RUN: dict[str, Callable[[argparse.Namespace], Row]] = {
    "doctor": run_doctor, "plans": run_plans, "kernels": run_kernels, "r1-aqa": run_r1_aqa, "recipes": run_recipes,
}  # fmt: skip


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-day"))
    parser.add_argument("--only", action="append", choices=PARTS, help="part to run; may be given several times")
    parser.add_argument("--recipe", action="append", help="recipe to run; may be given several times (default: all)")
    parser.add_argument("--again", action="store_true", help="run parts again that are in the result already")
    parser.add_argument("--toy", action="store_true", help="tiny models on the CPU, to see that it starts")
    parser.add_argument("--device", help="default: the GPU; with --toy, cpu")
    arguments = parser.parse_args(words)
    arguments.device = arguments.device or ("cpu" if arguments.toy else best_device())
    if not arguments.toy and not arguments.device.startswith("cuda"):
        parser.error("no CUDA device here; --toy runs tiny models on the CPU")
    arguments.out = arguments.out.resolve()
    return arguments


def main(words: Sequence[str]) -> Row:
    """Run the parts and write the result after each of them."""
    arguments = parse(words)
    path = arguments.out / "gpu-day.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    result: Row = json.loads(path.read_text()) if path.exists() and not arguments.again else {"parts": {}}
    result |= {"machine": machine() | {"gpus": gpus()}, "toy": arguments.toy, **git_commit()}
    for part in arguments.only or PARTS:
        if part in result["parts"]:
            print(f"{part}: in {path} already", file=sys.stderr)
            continue
        print(part, file=sys.stderr)
        result["parts"][part] = RUN[part](arguments)
        write_json(path, result)
    for part, values in result["parts"].items():
        print(f"{part}: {'ok' if values['ok'] else 'FAILED'}")
    return result


if __name__ == "__main__":
    sys.exit(not all(part["ok"] for part in main(sys.argv[1:])["parts"].values()))
