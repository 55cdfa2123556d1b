"""Products in bfloat16 against float32 on the same items: speed of each phase, and what rounding changes.

    python benchmarks/compute.py --out benchmarks/results/compute.json

Items are those of `evaluate.py`. Both precisions take turns on blocks of items. Bounds (issue of the project's speed):
greedy answers equal on 99 % of the items, accuracy within half a point, log-probabilities within 0.05 nats per token,
gradients of LoRA within 2 %.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from baselines.timing import machine
from evaluate import Item, items
from torch import Tensor

from earwise.algorithms.rewards import total
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.engine.base import SamplingParams
from earwise.engine.local import LocalEngine
from earwise.files import write_json
from earwise.forest import build_tree, insert_audio_embeddings, pack, target_logprobs
from earwise.models.base import AudioLM, load
from earwise.models.parts.attention import TreeAttention
from earwise.models.precision import compute
from earwise.models.prompt_encoding import answer_path
from earwise.training.trainable import set_trainable

GREEDY = SamplingParams(256, 0.0)
SAMPLED = SamplingParams(64, 1.0, seed=11)
PHASES = ("encode", "greedy", "score", "sample 8")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that some work takes, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def run_block(engine: LocalEngine, block: Sequence[Item]) -> dict[str, Any]:
    """Seconds of each phase on a block of items, greedy completions and scores of the options."""
    prompts = [item.prompt for item in block]
    waveforms = [waveform for prompt in prompts for waveform in prompt.waveforms]
    encode, _ = timed(lambda: engine.encoder_cache.encoder_states(waveforms))
    greedy, completions = timed(lambda: engine.generate(prompts, GREEDY))
    score, scores = timed(lambda: engine.score(prompts, [item.example.choices for item in block]))
    sample, _ = timed(lambda: engine.generate(prompts[:2], SAMPLED, 8))
    seconds = dict(zip(PHASES, (encode, greedy, score, sample), strict=True))
    return {"seconds": seconds, "completions": [group[0] for group in completions], "scores": scores}


def differences(pairs: Sequence[tuple[Any, Any]], block_items: Sequence[Item]) -> dict[str, Any]:
    """What rounding changed in completions, `(float32, bfloat16)`, of the same items."""
    equal = [exact.token_ids == fast.token_ids for exact, fast in pairs]
    nats = [
        abs(a - b)
        for (exact, fast), same in zip(pairs, equal, strict=True)
        if same
        for a, b in zip(exact.logprobs, fast.logprobs, strict=True)
    ]
    right = [
        [total(item.example, completion.text, {"accuracy": 1.0})[0] for completion in pair]
        for pair, item in zip(pairs, block_items, strict=True)
    ]
    accuracy = [statistics.fmean(column) for column in zip(*right, strict=True)]
    return {
        "items": len(pairs), "equal_answers": sum(equal) / len(equal),
        "accuracy_float32": accuracy[0], "accuracy_bfloat16": accuracy[1],
        "nats_per_token_mean": statistics.fmean(nats), "nats_per_token_largest": max(nats),
    }  # fmt: skip


def gradient(model: AudioLM, block: Sequence[Item]) -> tuple[float, Tensor]:
    """Seconds of a forward and backward pass over the gold answers of some items, and the gradient of LoRA."""
    prompts = [item.prompt for item in block]
    engine = LocalEngine(model)
    with torch.no_grad():
        paths, embeddings = engine._encode_prompts(prompts)
    trees = [
        build_tree([path + answer_path(model, item.example.answer[0])]) for path, item in zip(paths, block, strict=True)
    ]
    forest = pack(trees)

    def step() -> None:
        model.module.zero_grad()
        inputs = insert_audio_embeddings(model.embed(forest.ids), forest, embeddings)
        hidden = model.decode(inputs, forest.positions, TreeAttention(forest))
        (-target_logprobs(hidden, forest, model.logits).sum()).backward()

    step()
    seconds, _ = timed(step)
    parts = [value.grad.flatten() for value in model.module.parameters() if value.grad is not None]
    return seconds, torch.cat(parts)


def gradients(name: str, block: Sequence[Item]) -> dict[str, float]:
    """Relative difference of LoRA's gradients, and seconds in both precisions."""
    model = load(name)
    torch.manual_seed(0)
    set_trainable(model, TrainableConfig(lora=LoraConfig(r=16, lora_alpha=32)))
    for parameter_name, parameter in model.module.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.01)
    exact_s, exact = gradient(model, block)
    compute.apply(model, compute.BFLOAT16)
    fast_s, fast = gradient(model, block)
    relative = ((fast - exact).norm() / exact.norm()).item()
    return {
        "relative_difference": relative,
        "float32_s": exact_s,
        "bfloat16_s": fast_s,
        "times_faster": exact_s / fast_s,
    }


def measure(name: str, count: int, block_size: int) -> dict[str, Any]:
    """All figures.

    Args:
        name: Model to load twice.
        count: Number of items.
        block_size: Items per block.
    """
    models = {"float32": load(name), "bfloat16": load(name)}
    chosen = compute.set_compute(load(name), "auto")
    compute.apply(models["bfloat16"], compute.BFLOAT16)
    engines = {precision: LocalEngine(model) for precision, model in models.items()}
    all_items = items(models["float32"], count + 2, 10.0)
    warm_up, all_items = all_items[:2], all_items[2:]
    for engine in engines.values():
        run_block(engine, warm_up)
    results: dict[str, list[dict[str, Any]]] = {precision: [] for precision in engines}
    for start in range(0, count, block_size):
        for precision, engine in engines.items():
            results[precision].append(run_block(engine, all_items[start : start + block_size]))
    ratios = {
        phase: statistics.median(
            exact["seconds"][phase] / fast["seconds"][phase]
            for exact, fast in zip(results["float32"], results["bfloat16"], strict=True)
        )
        for phase in PHASES
    }
    completions = {
        precision: [completion for block in blocks for completion in block["completions"]]
        for precision, blocks in results.items()
    }
    option_nats = [
        abs(a - b)
        for exact, fast in zip(results["float32"], results["bfloat16"], strict=True)
        for first, second in zip(exact["scores"], fast["scores"], strict=True)
        for a, b in zip(first, second, strict=True)
    ]
    return {
        "machine": machine(), "model": name, "auto_chooses": str(chosen), "times_faster": ratios,
        "seconds": {
            precision: {phase: sum(block["seconds"][phase] for block in blocks) for phase in PHASES}
            for precision, blocks in results.items()
        },
        "differences": differences(list(zip(completions["float32"], completions["bfloat16"], strict=True)), all_items)
        | {"option_nats_mean": statistics.fmean(option_nats), "option_nats_largest": max(option_nats)},
        "lora_gradient": gradients(name, all_items[:8]),
    }  # fmt: skip


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="model to measure")
    parser.add_argument("--items", type=int, default=500, help="number of items")
    parser.add_argument("--block", type=int, default=25, help="items per block; the precisions take turns on blocks")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the result")
    options = parser.parse_args()
    write_json(options.out, measure(options.model, options.items, options.block))


if __name__ == "__main__":
    main()
