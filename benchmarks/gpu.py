"""One GRPO step on a large GPU at the size of Qwen2-Audio-7B: time by phase, memory, and share of the peak rate.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json
    python benchmarks/gpu.py --mode lora --new-tokens 32 --out benchmarks/results/gpu-lora.json
    python benchmarks/gpu.py --estimate
    python benchmarks/gpu.py --small --device cpu --prompts 2 --group 2 --new-tokens 4 --seconds 1 --steps 1

The defaults are R1-AQA's step (recipe `r1-aqa`): all weights are trained, 16 prompts with 8 completions of up to 256
tokens, gradient checkpointing. The memory that it needs is estimated first, and a step that cannot fit is not started.

Weights are random, built on the device in bfloat16 from the released configuration, so no checkpoint is needed. Batches
come from the GRPO stage itself (sampling, rewards, packing, reference); the update is written out below. A policy with
random weights hardly ever samples an end token and hardly ever repeats itself: all completions have full length and
share only their prompt, the worst case for a token tree. It earns no rewards either; the KL keeps all groups in the
update.

Counted as work is what the mathematics needs (`baselines/flops.py`): activations that are computed twice cost time, but
are not work. `full` trains encoder, connector and decoder with AdamW in the dtype of the weights. Its time and memory
are those of a real run, its rounding is not (updates of 1e-6 need more precision than bfloat16 has).
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from baselines import flops
from baselines.qwen2_audio_7b import AUDIO, SMALL_AUDIO, SMALL_TEXT, TEXT, build, questions
from baselines.timing import high_water_mb, machine

from earwise.config.stages import DataConfig, GrpoConfig, LoraConfig, OptimizerConfig, Source, TrainableConfig
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.engine.static_cache import MIN_SLOTS, bucket_size
from earwise.files import write_json
from earwise.models.base import DTYPES, AudioLM, best_device
from earwise.models.encoder_cache import EncoderCache
from earwise.models.memory import estimate as memory
from earwise.models.memory.measured_sizes import measure_loaded
from earwise.models.memory.stage_memory import RolloutSize, StageMemory
from earwise.models.parts.gradient_checkpointing import enable_gradient_checkpointing
from earwise.prompts import prompt_turns
from earwise.training.clip_loader import ClipLoader
from earwise.training.policy import MicroBatch, Policy
from earwise.training.profiler import Profiler, describe, profiler_for
from earwise.training.stages.grpo import GrpoStage
from earwise.training.stages.stage import StageContext, StageData
from earwise.training.trainable import parameter_groups, set_trainable, trains_encoder
from earwise.types import Example

STEPS = 500  # training steps of R1-AQA's reported checkpoint
GOAL_HOURS = 1.0  # for these, on one GPU
SPARE = 0.95  # of the free memory may be asked for: an allocator leaves gaps
TRAINED = {
    "lora": TrainableConfig(lora=LoraConfig(r=64, lora_alpha=128.0)),
    "full": TrainableConfig(encoder="full", connector="full", decoder="full"),
}
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}  # dense bfloat16, as stated by the manufacturer
PHASES = ("hear", "rollout", "reference", "forward", "backward", "optimizer")


def matmul_tflops(device: str, dtype: torch.dtype, size: int) -> float:
    """Rate of a square matrix product on the device in TFLOP/s (median of five, after a warm-up run)."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    profiler = profiler_for(torch.device(device))
    rates = []
    for _ in range(6):
        profiler.split()
        with profiler.phase("matmul"):
            a @ a
        rates.append(2 * size**3 / profiler.split()["matmul"] / 1e12)
    return statistics.median(rates[1:])


def shape_of(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configs of encoder and decoder."""
    audio, text = (AUDIO | SMALL_AUDIO, TEXT | SMALL_TEXT) if arguments.small else (AUDIO, TEXT)
    if arguments.layers:
        audio, text = audio | {"encoder_layers": arguments.layers}, text | {"num_hidden_layers": arguments.layers}
    return audio, text


def _without_masters(held: Mapping[str, float], arguments: argparse.Namespace) -> dict[str, float]:
    """What is held all the time without float32 masters: this benchmark trains in the dtype of the weights."""
    if arguments.mode != "full" or memory.BYTES[arguments.dtype] == 4:
        return dict(held)
    halved = ("gradients", "optimizer")
    return {name: size / 2 if name in halved else size for name, size in held.items() if name != "masters"}


def estimate(arguments: argparse.Namespace) -> dict[str, float]:
    """Estimated gigabytes of a step, by what they hold.

    It is the planner's estimate, with the decoding buffers counted during the update as well, since they are kept
    between rollouts.
    """
    sizes = measure_loaded(build(*shape_of(arguments), "meta", DTYPES[arguments.dtype]))
    on_gpu = arguments.device.startswith("cuda")
    rollout = RolloutSize(arguments.prompts, arguments.group, arguments.new_tokens)
    stage = StageMemory(keeps_reference=True, rollout=rollout)
    needed = memory.training_memory(
        sizes, TRAINED[arguments.mode], stage, dtype=arguments.dtype, pack_tokens=arguments.pack_tokens,
        gradient_checkpointing=not arguments.keep_activations, clip_s=arguments.seconds, cpu=not on_gpu,
    )  # fmt: skip
    needed = replace(needed, permanent=_without_masters(needed.permanent, arguments))
    parts = dict(needed.parts)
    if on_gpu:
        decoder = sizes.decoder_shape
        prompt_tokens = round(arguments.seconds * sizes.audio_tokens_per_s) + memory.PROMPT_TEXT_TOKENS
        slots = bucket_size(prompt_tokens + arguments.group * arguments.new_tokens, MIN_SLOTS)
        slot_bytes = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * memory.BYTES[arguments.dtype]
        kv_cache = {"keys and values": float(slot_bytes * bucket_size(arguments.prompts) * slots)}
        phases = [
            {name: size for name, size in phase.items() if name not in kv_cache} for phase in needed.phases.values()
        ]
        parts = {**needed.permanent, **kv_cache, **max(phases, key=lambda phase: sum(phase.values()))}
    return {name: size / 1e9 for name, size in parts.items()} | {"in all": sum(parts.values()) / 1e9}


def does_not_fit(needed_gb: float, arguments: argparse.Namespace) -> str | None:
    """An error message with remedies if the step does not fit into the device's memory, otherwise None."""
    free = memory.free_memory(arguments.device)
    if free is None or needed_gb <= SPARE * free / 1e9:
        return None
    remedies = [f"--pack-tokens {arguments.pack_tokens // 2}", f"--prompts {max(1, arguments.prompts // 2)}"]
    remedies += ["--mode lora"] if arguments.mode == "full" else []
    remedies += ["no --keep-activations"] if arguments.keep_activations else []
    return (
        f"gpu.py: needs {needed_gb:.0f} GB, {arguments.device} has {free / 1e9:.0f} free; try {' or '.join(remedies)}"
    )


def compare_caches(
    model: AudioLM, rows: Sequence[Example], clip_loader: ClipLoader, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Seconds to sample the completions of one step with cached encoder states: in fixed shapes and in a growing cache.

    The second of two runs counts.
    """
    prompts = [
        Prompt(prompt_turns(row, "answer"), tuple(clip_loader.load(row) or ()), row.id)
        for row in rows[: arguments.prompts]
    ]
    sampling_params = SamplingParams(arguments.new_tokens, temperature=1.0)
    encoder_cache, profiler = EncoderCache(model, batch_size=16), profiler_for(torch.device(arguments.device))
    result: dict[str, Any] = {}
    for name, static in (("fixed_s", True), ("growing_s", False)):
        engine = LocalEngine(model, encoder_cache=encoder_cache, batch_size=arguments.prompts, use_static_cache=static)
        for _ in range(2):
            profiler.split()
            with profiler.phase("decoding"):
                engine.generate(prompts, sampling_params, arguments.group)
            result[name] = profiler.split()["decoding"]
        if static and engine._static_cache is not None:
            cache = engine._static_cache
            result |= {"shapes": len(cache.shapes), "recorded": cache.num_captured}
    return result | {"passes": arguments.new_tokens - 1}


def _num_compiled_graphs() -> int:
    """Number of graphs that torch has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def work_of(model: AudioLM, micro_batches: Sequence[MicroBatch], seconds: float, prompts: int) -> dict[str, float]:
    """Floating-point operations of each part of a step.

    Args:
        model: The model.
        micro_batches: The packed trees of the step.
        seconds: Length of each clip.
        prompts: Number of prompts.
    """
    counts = flops.weight_counts(model)
    encoding = prompts * flops.encoder_flops(counts, seconds)
    reference = train = extra = 0.0
    for micro_batch in micro_batches:
        positions, predicted = micro_batch.forest.positions.tolist(), len(micro_batch.forest.source_indices)
        reference += flops.reference_flops(counts, positions, predicted)
        train += flops.train_flops(counts, positions, predicted)
        if not counts.lora:  # gradients of the base weights
            extra += 2 * counts.base * len(positions) + 2 * counts.head * predicted
    out = {"hear": encoding, "rollout": reference, "reference": reference, "update": train + extra}
    if trains_encoder(model):  # clips are encoded again for the reference, and again with gradients
        out["reference"] += encoding
        out["update"] += 3 * encoding
    return out


def make_stage(
    model: AudioLM, rows: Sequence[Example], folder: Path, profiler: Profiler, arguments: argparse.Namespace
) -> tuple[GrpoStage, ClipLoader]:
    """The GRPO stage that makes the batches, and its clip loader."""
    config = GrpoConfig(
        kind="grpo", data=DataConfig(mixture=(Source(manifest="random"),)), max_steps=arguments.steps + 1,
        prompts_per_step=arguments.prompts, group_size=arguments.group, max_new_tokens=arguments.new_tokens,
        rewards={"accuracy_r1aqa": 1.0, "format_r1aqa": 1.0}, beta=0.04, pack_tokens=arguments.pack_tokens,
    )  # fmt: skip
    clip_loader = ClipLoader(model, long_audio="error", on_bad_row="stop")
    max_mb = 0 if trains_encoder(model) else 2048
    context = StageContext(
        model=model,
        data=StageData([(rows, 1.0)]),
        encoder_cache=EncoderCache(model, batch_size=16, max_mb=max_mb, measure=lambda: profiler.phase("hear")),
        clip_loader=clip_loader,
        seed=0,
        folder=folder,
        profiler=profiler,
    )
    return GrpoStage(context, config), clip_loader


@dataclass(frozen=True)
class StepTimes:
    """What the steps of a run measured.

    Attributes:
        splits: Seconds of each phase, for every step (the first warms up).
        micro_batches: The micro batches of the last step.
        num_graphs: Number of compiled graphs before the first step and after each step.
    """

    splits: list[dict[str, float]]
    micro_batches: Sequence[MicroBatch]
    num_graphs: list[int]


def run_steps(
    model: AudioLM, stage: GrpoStage, optimizer: torch.optim.Optimizer, profiler: Profiler, steps: int
) -> StepTimes:
    """Run one step to warm up and then the timed ones."""
    policy = Policy(model)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    times = StepTimes([], [], [_num_compiled_graphs()])
    for step in range(steps + 1):
        profiler.split()
        times = replace(times, micro_batches=stage.batches(step).micro_batches)
        model.module.train()
        for micro_batch in times.micro_batches:
            with profiler.phase("forward"):
                logprobs = policy(micro_batch.forest, micro_batch.encoder_states, micro_batch.waveforms)
                loss = stage.loss(logprobs, micro_batch).loss
            with profiler.phase("backward"):
                loss.backward()
        with profiler.phase("optimizer"):
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        model.module.eval()
        times.splits.append(profiler.split())
        times.num_graphs.append(_num_compiled_graphs())
        print(f"step {step}: {describe(times.splits[-1], 1)}", file=sys.stderr)
    return times


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Build the model, run the steps and summarise them."""
    device, dtype = arguments.device, DTYPES[arguments.dtype]
    on_gpu = device.startswith("cuda")
    rate = matmul_tflops(device, dtype, 512 if arguments.small else 8192 if on_gpu else 2048)
    torch.manual_seed(0)
    model = build(*shape_of(arguments), device, dtype)
    set_trainable(model, TRAINED[arguments.mode])
    if not arguments.keep_activations:
        enable_gradient_checkpointing(model.module)
    profiler = profiler_for(torch.device(device))
    rows = questions(folder, arguments.prompts * (arguments.steps + 1), arguments.seconds)
    stage, clip_loader = make_stage(model, rows, folder, profiler, arguments)
    groups = parameter_groups(model, OptimizerConfig(learning_rate=1e-6))
    optimizer = torch.optim.AdamW(groups, fused=True if on_gpu else None)
    times = run_steps(model, stage, optimizer, profiler, arguments.steps)
    trained = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    gpu_name = torch.cuda.get_device_name(device) if on_gpu else None
    return {
        "machine": machine() | {"gpu": gpu_name},
        "arguments": {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()},
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        "trained_parameters": trained,
        **time_summary(times, arguments),
        **work_summary(model, times, rate, gpu_name, arguments),
        "peak_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else high_water_mb() / 1e3,
        "decoding": compare_caches(model, rows, clip_loader, arguments) if arguments.compare_decoding else None,
    }


def time_summary(times: StepTimes, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step and of its phases (medians of the timed steps), and the compiled graphs."""
    timed = times.splits[1:]
    phases = {name: statistics.median(split.get(name, 0.0) for split in timed) for name in PHASES}
    step_s = statistics.median(sum(split.values()) for split in timed)
    hours = STEPS * step_s / 3600
    graphs = times.num_graphs
    is_real_run = arguments.device.startswith("cuda") and not arguments.small
    return {
        "warm_up_step_s": sum(times.splits[0].values()),
        "step_s": step_s,
        "phases_s": phases | {"rest": step_s - sum(phases.values())},
        "hours_for_500_steps": hours,
        "within_the_goal": hours <= GOAL_HOURS if is_real_run else None,
        "compiled": {"in_the_first_step": graphs[1] - graphs[0], "later": graphs[-1] - graphs[1]},
    }


def work_summary(
    model: AudioLM, times: StepTimes, rate: float, gpu_name: str | None, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Tokens and operations of the last step, and rates in comparison with the device's.

    Args:
        model: The model.
        times: What the steps measured.
        rate: Rate of matrix products on the device, in TFLOP/s.
        gpu_name: Name of the GPU, or None on a CPU.
        arguments: The command line.
    """
    summary = time_summary(times, arguments)
    step_s, phases, forests = summary["step_s"], summary["phases_s"], [batch.forest for batch in times.micro_batches]
    work = work_of(model, times.micro_batches, arguments.seconds, arguments.prompts)
    tokens = sum(len(forest) for forest in forests)
    sampled = sum(int(forest.loss_mask.sum()) for forest in forests)
    peak = arguments.peak_tflops or next(
        (value for name, value in PEAK_TFLOPS.items() if gpu_name and name in gpu_name), None
    )
    tflops = sum(work.values()) / step_s / 1e12
    return {
        "distinct_tokens": tokens,
        "sampled_tokens": sampled,
        "sequence_tokens_one_by_one": sum(
            len(path.ids) for micro_batch in times.micro_batches for paths in micro_batch.paths for path in paths
        ),
        "tokens_per_s": tokens / step_s,
        "sampled_tokens_per_s_of_rollout": sampled / (phases["hear"] + phases["rollout"]),
        "work_tflop": {name: value / 1e12 for name, value in work.items()},
        "tflops": tflops,
        "matmul_tflops": rate,
        "share_of_matmul": tflops / rate,
        "stated_peak_tflops": peak,
        "share_of_stated_peak": tflops / peak if peak else None,
        "update_share_of_matmul": work["update"] / (phases["forward"] + phases["backward"]) / 1e12 / rate,
    }


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; the defaults are R1-AQA's step on one GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=tuple(TRAINED), default="full", help="LoRA on the decoder, or everything")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of every clip")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--pack-tokens", type=int, default=8192, help="distinct tokens per forward pass")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one to warm up")
    parser.add_argument("--keep-activations", action="store_true", help="no gradient checkpointing")
    parser.add_argument(
        "--compare-decoding", action="store_true", help="also time a rollout with and without fixed shapes"
    )
    parser.add_argument("--estimate", action="store_true", help="estimate the memory and stop")
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--layers", type=int, help="layers of encoder and decoder instead of 32")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try it")
    parser.add_argument(
        "--peak-tflops", type=float, help="peak rate stated by the manufacturer; known for H200, H100, A100"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> dict[str, Any]:
    """Run the benchmark, print its result and write it."""
    arguments = parse(words)
    needed = estimate(arguments)
    print("estimated GB: " + ", ".join(f"{name} {size:.1f}" for name, size in needed.items()), file=sys.stderr)
    if arguments.estimate:
        return {"estimate_gb": needed}
    if message := does_not_fit(needed["in all"], arguments):
        sys.exit(message)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder)) | {"estimate_gb": needed}
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(arguments.out, result)
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
