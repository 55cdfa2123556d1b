"""GRPO on one large GPU at Qwen2-Audio-7B's real shape: seconds of a step by phase, memory, and the share of the peak.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json
    python benchmarks/gpu.py --mode lora --new-tokens 32 --out benchmarks/results/gpu-lora.json
    python benchmarks/gpu.py --estimate
    python benchmarks/gpu.py --small --device cpu --prompts 2 --group 2 --new-tokens 4 --seconds 1 --steps 1

The defaults are R1-AQA's step (`recipes/r1-aqa.yaml`): everything is trained, 16 prompts x 8 completions of up to 256
tokens, layers computed again in the backward pass. What it will need is printed first, and what cannot fit is refused.

Weights are random, built on the device in bfloat16 from the released configuration; no checkpoint is needed. Batches
come from the GRPO stage itself (sampling, rewards, packing, reference), the update is written out below. A policy of
random weights hardly ever ends and hardly ever agrees with itself: every completion has full length and shares nothing
but its prompt, the worst case for a forest. It earns nothing either; the KL term keeps every group in the update.

What is counted as work is what the mathematics needs (`ways/floor.py`): activations computed a second time are time,
not work. `full` trains encoder, connector and decoder with AdamW in the weights' own dtype: its time and memory, not
its rounding, are what a run would have (updates of 1e-6 need more digits than bfloat16 keeps).
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, WhisperFeatureExtractor
from ways import floor
from ways.models import SPECIAL, word_tokenizer
from ways.timing import high_water_mb, machine

from earwise.config.stages import DataConfig, GrpoStage, LoraConfig, OptimizerConfig, Source, TrainableConfig
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.engine.static_cache import FEWEST_SLOTS, rung
from earwise.files import write_json
from earwise.models.base import DTYPES, AudioLM, best_device
from earwise.models.encoder_cache import EncoderCache
from earwise.models.families.qwen2_audio import from_parts
from earwise.models.memory import config_shapes
from earwise.models.memory import estimate as memory
from earwise.models.parts.recompute import recompute_layers
from earwise.prompts import INSTRUCTIONS, CHOICES_PROMPT, prompt_turns
from earwise.train.batches import Sounds
from earwise.train.policy import Micro, Policy
from earwise.train.profiler import describe, settled_on
from earwise.train.stages import grpo
from earwise.train.trainable import encoder_trains, parameter_groups, prepare
from earwise.types import Audio, Example, Text, Turn

# As released: config.json of Qwen2-Audio-7B-Instruct (papers: encoder of Whisper large v3, decoder of Qwen-7B).
AUDIO = {
    "num_mel_bins": 128, "max_source_positions": 1500, "encoder_layers": 32, "d_model": 1280,
    "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
}  # fmt: skip
TEXT = {
    "vocab_size": 156032, "max_position_embeddings": 8192, "num_hidden_layers": 32, "hidden_size": 4096,
    "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 11008, "rms_norm_eps": 1e-5,
}  # fmt: skip
SMALL_AUDIO = {"encoder_layers": 2, "d_model": 32, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
SMALL_TEXT = {
    "vocab_size": 1024, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 96,
}  # fmt: skip
CHOICES = ("man", "woman", "dog", "car")
QUESTION = "What is the source of the sound that is heard in the second half of the video"
STEPS = 500  # of R1-AQA's reported checkpoint
GOAL_HOURS = 1.0  # for these, on one GPU
SPARE = 0.95  # of the free memory may be asked for: an allocator leaves gaps
TRAINED = {
    "lora": TrainableConfig(lora=LoraConfig(r=64, alpha=128.0)),
    "full": TrainableConfig(encoder="full", connector="full", decoder="full"),
}
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}  # dense bfloat16, as the maker states
PHASES = ("hear", "rollout", "reference", "forward", "backward", "optimizer")


def build(audio: dict[str, Any], text: dict[str, Any], device: str, dtype: torch.dtype) -> AudioLM:
    """A random Qwen2-Audio of the given sizes, built where it is to live."""
    marks = {"bos_token_id": None, "eos_token_id": SPECIAL.index("<|im_end|>"), "pad_token_id": 1}
    decoder = {"model_type": "qwen2"} | text | marks
    config = Qwen2AudioConfig(audio_config=audio, text_config=decoder, audio_token_index=SPECIAL.index("<|AUDIO|>"))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            module = Qwen2AudioForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    words = [QUESTION, *CHOICES, *INSTRUCTIONS.values(), CHOICES_PROMPT, "system user assistant You are a helpful Audio 1"]
    extractor = WhisperFeatureExtractor(feature_size=audio["num_mel_bins"])
    return from_parts(module, word_tokenizer(words), extractor, name="qwen2_audio-random")


def questions(folder: Path, count: int, seconds: float) -> list[Example]:
    """`count` questions, each about a sound of its own."""
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * 16000)) / 16000
    examples = []
    for number in range(count):
        wave = 0.3 * np.sin(2 * np.pi * (200 + 7 * number) * time) + 0.02 * rng.standard_normal(len(time))
        soundfile.write(folder / f"{number}.wav", wave.astype(np.float32), 16000)
        turn = Turn("user", (Audio(f"{number}.wav"), Text(QUESTION)))
        examples.append(Example(str(number), (turn,), answer=CHOICES[:1], choices=CHOICES, root=folder))
    return examples


def matmul_tflops(device: str, dtype: torch.dtype, size: int) -> float:
    """What a square matrix product reaches here, TFLOP/s (median of five, after one run to warm up)."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    clock = settled_on(torch.device(device))
    rates = []
    for _ in range(6):
        clock.split()
        with clock("matmul"):
            a @ a
        rates.append(2 * size**3 / clock.split()["matmul"] / 1e12)
    return statistics.median(rates[1:])


def shape_of(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Encoder's and decoder's config."""
    audio, text = (AUDIO | SMALL_AUDIO, TEXT | SMALL_TEXT) if arguments.small else (AUDIO, TEXT)
    if arguments.layers:
        audio, text = audio | {"encoder_layers": arguments.layers}, text | {"num_hidden_layers": arguments.layers}
    return audio, text


def estimate(arguments: argparse.Namespace) -> dict[str, float]:
    """Gigabytes of a step by what holds them, on paper: the planner's, and the decoding buffers beside an update, since
    they stay where they are between rollouts."""
    sizes = config_shapes.of_model(build(*shape_of(arguments), "meta", DTYPES[arguments.dtype]))
    on_gpu = arguments.device.startswith("cuda")
    needed = memory.training(
        sizes, TRAINED[arguments.mode], dtype=arguments.dtype, pack_tokens=arguments.pack_tokens,
        checkpoint=not arguments.keep_activations, reference=True,
        rollout=(arguments.prompts, arguments.group, arguments.new_tokens), clip_s=arguments.seconds, cpu=not on_gpu,
    )  # fmt: skip
    parts = dict(needed.parts)
    if on_gpu:
        says, trunk = sizes.says, round(arguments.seconds * sizes.tokens_per_s) + memory.TRUNK
        slots = rung(trunk + arguments.group * arguments.new_tokens, FEWEST_SLOTS)
        a_slot = 2 * says.layers * says.kv_heads * says.head_dim * memory.BYTES[arguments.dtype]
        kept = {"keys and values": float(a_slot * rung(arguments.prompts) * slots)}
        phases = [{name: size for name, size in phase.items() if name not in kept} for phase in needed.phases.values()]
        parts = {**needed.lasting, **kept, **max(phases, key=lambda phase: sum(phase.values()))}
    return {name: size / 1e9 for name, size in parts.items()} | {"in all": sum(parts.values()) / 1e9}


def refusal(needed_gb: float, arguments: argparse.Namespace) -> str | None:
    """One line if so much does not fit, with what would help."""
    free = memory.free_memory(arguments.device)
    if free is None or needed_gb <= SPARE * free / 1e9:
        return None
    ways = [f"--pack-tokens {arguments.pack_tokens // 2}", f"--prompts {max(1, arguments.prompts // 2)}"]
    ways += ["--mode lora"] if arguments.mode == "full" else []
    ways += ["no --keep-activations"] if arguments.keep_activations else []
    return f"gpu.py: needs {needed_gb:.0f} GB, {arguments.device} has {free / 1e9:.0f} free; try {' or '.join(ways)}"


def decoding(model: AudioLM, rows: Sequence[Example], sounds: Sounds, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds to sample one step's completions with what was heard at hand: in fixed shapes (graphs on CUDA) and in a
    cache that grows; the second of two runs each."""
    prompts = [
        Prompt(prompt_turns(row, "answer"), tuple(sounds.load(row) or ()), row.id) for row in rows[: arguments.prompts]
    ]
    settings = SamplingParams(arguments.new_tokens, temperature=1.0)
    encoder_cache, clock = EncoderCache(model, batch=16), settled_on(torch.device(arguments.device))
    found: dict[str, Any] = {}
    for name, static in (("fixed_s", True), ("growing_s", False)):
        engine = LocalEngine(model, encoder_cache=encoder_cache, trees=arguments.prompts, static=static)
        for _ in range(2):
            clock.split()
            with clock("decoding"):
                engine.generate(prompts, settings, arguments.group)
            found[name] = clock.split()["decoding"]
        if static and engine._static is not None:
            found |= {"shapes": len(engine._static.shapes), "recorded": engine._static.recorded}
    return found | {"passes": arguments.new_tokens - 1}


def _graphs() -> int:
    """Graphs that torch has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def work_of(model: AudioLM, micros: Sequence[Micro], seconds: float, prompts: int) -> dict[str, float]:
    """Floating-point operations that each part of a step needs."""
    sizes = floor.sizes(model)
    listen = prompts * floor.listen_flops(sizes, seconds)
    reference = train = extra = 0.0
    for micro in micros:
        positions, predicted = micro.forest.positions.tolist(), len(micro.forest.source_indices)
        reference += floor.reference_flops(sizes, positions, predicted)
        train += floor.train_flops(sizes, positions, predicted)
        if not sizes.lora:  # gradients of the weights themselves
            extra += 2 * sizes.base * len(positions) + 2 * sizes.head * predicted
    out = {"hear": listen, "rollout": reference, "reference": reference, "update": train + extra}
    if encoder_trains(model):  # heard again for the reference, and again with gradients
        out["reference"] += listen
        out["update"] += 3 * listen
    return out


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Build the model, run one step to warm up and `--steps` that count."""
    device, dtype = arguments.device, DTYPES[arguments.dtype]
    on_gpu = device.startswith("cuda")
    rate = matmul_tflops(device, dtype, 512 if arguments.small else 8192 if on_gpu else 2048)
    torch.manual_seed(0)
    model = build(*shape_of(arguments), device, dtype)
    prepare(model, TRAINED[arguments.mode])
    if not arguments.keep_activations:
        recompute_layers(model.module)
    stage = GrpoStage(
        kind="grpo", data=DataConfig(mixture=(Source(manifest="random"),)), max_steps=arguments.steps + 1,
        prompts_per_step=arguments.prompts, group_size=arguments.group, max_new_tokens=arguments.new_tokens,
        rewards={"accuracy_r1aqa": 1.0, "format_r1aqa": 1.0}, beta=0.04, pack_tokens=arguments.pack_tokens,
    )  # fmt: skip
    clock = settled_on(torch.device(device))
    encoder_cache = EncoderCache(model, batch=16, keep_mb=0 if encoder_trains(model) else 2048, watch=clock.phase("hear"))
    rows = questions(folder, arguments.prompts * (arguments.steps + 1), arguments.seconds)
    sounds = Sounds(model, long_audio="error", on_bad_row="stop")
    batches = grpo.work(model, stage, [(rows, 1.0)], encoder_cache, sounds, 0, lambda _: None, folder, lambda _: None, clock)
    policy = Policy(model)
    groups = parameter_groups(model, OptimizerConfig(lr=1e-6))
    optimizer = torch.optim.AdamW(groups, fused=True if on_gpu else None)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    splits, micros, graphs = [], [], [_graphs()]
    for step in range(arguments.steps + 1):
        clock.split()
        micros, _ = batches.batches(step)
        model.module.train()
        for micro in micros:
            with clock("forward"):
                loss = batches.loss(policy(micro.forest, micro.heard, micro.waveforms), micro).loss
            with clock("backward"):
                loss.backward()
        with clock("optimizer"):
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        model.module.eval()
        splits.append(clock.split())
        graphs.append(_graphs())
        print(f"step {step}: {describe(splits[-1], 1)}", file=sys.stderr)
    warm = splits[1:]
    phases = {name: statistics.median(split.get(name, 0.0) for split in warm) for name in PHASES}
    step_s = statistics.median(sum(split.values()) for split in warm)
    work = work_of(model, micros, arguments.seconds, arguments.prompts)
    tokens = sum(len(micro.forest) for micro in micros)
    sampled = sum(int(micro.forest.loss_mask.sum()) for micro in micros)
    gpu = torch.cuda.get_device_name(device) if on_gpu else None
    stated = arguments.peak_tflops or next((v for name, v in PEAK_TFLOPS.items() if gpu and name in gpu), None)
    done = sum(work.values()) / step_s / 1e12
    return {
        "machine": machine() | {"gpu": gpu},
        "arguments": {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()},
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "warm_up_step_s": sum(splits[0].values()),
        "step_s": step_s,
        "phases_s": phases | {"rest": step_s - sum(phases.values())},
        "hours_for_500_steps": STEPS * step_s / 3600,
        "within_the_goal": STEPS * step_s / 3600 <= GOAL_HOURS if on_gpu and not arguments.small else None,
        "compiled": {"in_the_first_step": graphs[1] - graphs[0], "later": graphs[-1] - graphs[1]},
        "distinct_tokens": tokens,
        "sampled_tokens": sampled,
        "sequence_tokens_one_by_one": sum(len(path.ids) for micro in micros for paths in micro.paths for path in paths),
        "tokens_per_s": tokens / step_s,
        "sampled_tokens_per_s_of_rollout": sampled / (phases["hear"] + phases["rollout"]),
        "work_tflop": {name: value / 1e12 for name, value in work.items()},
        "tflops": done,
        "matmul_tflops": rate,
        "share_of_matmul": done / rate,
        "stated_peak_tflops": stated,
        "share_of_stated_peak": done / stated if stated else None,
        "update_share_of_matmul": work["update"] / (phases["forward"] + phases["backward"]) / 1e12 / rate,
        "peak_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else high_water_mb() / 1e3,
        "decoding": decoding(model, rows, sounds, arguments) if arguments.compare_decoding else None,
    }


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line; defaults are R1-AQA's shape on one GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=tuple(TRAINED), default="full", help="LoRA on the decoder, or everything")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0, help="of every clip")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--pack-tokens", type=int, default=8192, help="distinct tokens of one forward pass")
    parser.add_argument("--steps", type=int, default=3, help="that count, after one to warm up")
    parser.add_argument("--keep-activations", action="store_true", help="no layer is computed twice")
    parser.add_argument("--compare-decoding", action="store_true", help="a rollout with and without fixed shapes too")
    parser.add_argument("--estimate", action="store_true", help="say what memory it needs, and stop")
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--layers", type=int, help="of encoder and of decoder, in place of 32")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the code")
    parser.add_argument("--peak-tflops", type=float, help="stated by the maker; known for H200, H100, A100")
    parser.add_argument("--out", type=Path, help="write the result here too")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> dict[str, Any]:
    """Measure, print, keep."""
    arguments = parse(words)
    needed = estimate(arguments)
    print("on paper, GB: " + ", ".join(f"{name} {size:.1f}" for name, size in needed.items()), file=sys.stderr)
    if arguments.estimate:
        return {"estimate_gb": needed}
    if refused := refusal(needed["in all"], arguments):
        sys.exit(refused)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder)) | {"estimate_gb": needed}
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(arguments.out, result)
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
