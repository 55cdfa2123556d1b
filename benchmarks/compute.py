"""Products in bfloat16 and int8 against float32 on the same items: speed of each phase, and what rounding changes.

    python benchmarks/compute.py --out benchmarks/results/compute.json

Items are those of `evaluate.py`. The precisions take turns on blocks of items. Every block is kept in a file beside
`--out` as soon as it is done, and a run that was stopped continues there. About twelve minutes on two idle cores.
Bounds of what `auto` may choose (issue of the project's speed): greedy answers equal on 99 % of the items, accuracy
within half a point, log-probabilities within 0.05 nats per token, gradients of LoRA within 2 %. Of int8, which has to
be asked for: accuracy within one point.
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
from earwise.files import append_jsonl, read_log, write_json
from earwise.forest import build_tree, insert_audio_embeddings, pack, target_logprobs
from earwise.models.base import AudioLM, load
from earwise.models.parts.attention import TreeAttention
from earwise.models.precision import compute
from earwise.models.prompt_encoding import answer_path
from earwise.training.trainable import set_trainable

GREEDY = SamplingParams(256, 0.0)
SAMPLED = SamplingParams(64, 1.0, seed=11)
PHASES = ("encode", "greedy", "score", "sample 8")
PRECISIONS = ("float32", "bfloat16", "int8")
EQUAL, NATS, GRADIENT = 0.99, 0.05, 0.02
"""Bounds of bfloat16: share of equal answers; nats per token; relative difference of gradients."""
ACCURACY = {"bfloat16": 0.005, "int8": 0.01}
"""Largest difference of accuracy."""
Block = dict[str, Any]
"""What one precision made of a block of items, as it is kept in the file of blocks."""


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that some work takes, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def run_block(engine: LocalEngine, block: Sequence[Item]) -> Block:
    """Seconds of each phase on a block of items, greedy completions and scores of the options."""
    prompts = [item.prompt for item in block]
    waveforms = [waveform for prompt in prompts for waveform in prompt.waveforms]
    encode, _ = timed(lambda: engine.encoder_cache.encoder_states(waveforms))
    greedy, groups = timed(lambda: engine.generate(prompts, GREEDY))
    score, scores = timed(lambda: engine.score(prompts, [item.example.choices for item in block]))
    sample, _ = timed(lambda: engine.generate(prompts[:2], SAMPLED, 8))
    completions = [group[0] for group in groups]
    return {
        "seconds": dict(zip(PHASES, (encode, greedy, score, sample), strict=True)),
        "tokens": [completion.token_ids for completion in completions],
        "logprobs": [completion.logprobs for completion in completions],
        "right": [
            total(item.example, completion.text, {"accuracy": 1.0})[0]
            for item, completion in zip(block, completions, strict=True)
        ],
        "option_tokens": [
            [len(answer_path(engine.model, option).ids) for option in item.example.choices] for item in block
        ],
        "option_logprobs": scores,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, 99th percentile and largest of some differences, and the share of them within the bound."""
    return {
        "mean": statistics.fmean(values),
        "percentile_99": statistics.quantiles(values, n=100)[-1],
        "largest": max(values),
        "within_bound": sum(value <= NATS for value in values) / len(values),
    }


def differences(exact: Sequence[Block], fast: Sequence[Block]) -> dict[str, Any]:
    """What rounding changed in the completions and scores of the same blocks."""

    def column(blocks: Sequence[Block], key: str) -> list[Any]:
        return [value for block in blocks for value in block[key]]

    tokens = zip(column(exact, "tokens"), column(fast, "tokens"), strict=True)
    equal = [list(first) == list(second) for first, second in tokens]
    pairs = zip(column(exact, "logprobs"), column(fast, "logprobs"), equal, strict=True)
    greedy = [abs(a - b) for first, second, same in pairs if same for a, b in zip(first, second, strict=True)]
    scores = zip(
        column(exact, "option_logprobs"), column(fast, "option_logprobs"), column(exact, "option_tokens"), strict=True
    )
    options = [abs(a - b) / n for triple in scores for a, b, n in zip(*triple, strict=True)]
    before, after = column(exact, "right"), column(fast, "right")
    changed = [b - a for a, b in zip(before, after, strict=True)]
    return {
        "items": len(equal), "equal_answers": statistics.fmean(equal),
        "right_only_before": sum(change < 0 for change in changed),
        "right_only_after": sum(change > 0 for change in changed),
        "accuracy_float32": statistics.fmean(before), "accuracy": statistics.fmean(after),
        "nats_per_greedy_token": spread(greedy), "nats_per_option_token": spread(options),
    }  # fmt: skip


def bounds(precision: str, changed: dict[str, Any], gradient_difference: float) -> list[dict[str, Any]]:
    """Each bound beside what was measured."""
    accuracy = abs(changed["accuracy"] - changed["accuracy_float32"])
    nats = max(changed["nats_per_greedy_token"]["mean"], changed["nats_per_option_token"]["mean"])
    lines = [("accuracy, absolute difference", accuracy, ACCURACY[precision], accuracy <= ACCURACY[precision] + 1e-9)]
    if precision == "bfloat16":
        lines += [
            ("equal greedy answers", changed["equal_answers"], EQUAL, changed["equal_answers"] >= EQUAL),
            ("log-probabilities, mean difference in nats per token", nats, NATS, nats <= NATS),
            ("LoRA's gradient, relative difference", gradient_difference, GRADIENT, gradient_difference <= GRADIENT),
        ]
    return [dict(zip(("what", "measured", "bound", "held"), line, strict=True)) for line in lines]


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


def all_blocks(name: str, count: int, block_size: int, path: Path) -> dict[str, list[Block]]:
    """Run the blocks that are not in the file yet, and add each to it.

    Args:
        name: Model to load once for each precision.
        count: Number of items.
        block_size: Items per block.
        path: JSON lines, one for each precision and block.
    """
    kept = {(line["precision"], line["start"]): line["block"] for line in (read_log(path) if path.exists() else [])}
    starts = range(0, count, block_size)
    if any((precision, start) not in kept for precision in PRECISIONS for start in starts):
        engines = {precision: LocalEngine(load_in(name, precision)) for precision in PRECISIONS}
        warm_up, *blocks = blocked(items(engines["float32"].model, count + 2, 10.0), block_size)
        for engine in engines.values():
            run_block(engine, warm_up)
        for start, block in zip(starts, blocks, strict=True):
            for precision, engine in engines.items():
                if (precision, start) in kept:
                    continue
                kept[precision, start] = run_block(engine, block)
                append_jsonl(path, {"precision": precision, "start": start, "block": kept[precision, start]})
    return {precision: [kept[precision, start] for start in starts] for precision in PRECISIONS}


def blocked(values: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Two items to warm up with, then blocks."""
    return [values[:2], *(values[start : start + size] for start in range(2, len(values), size))]


def load_in(name: str, precision: str) -> AudioLM:
    """A model that answers in a precision, as `earwise ask --compute` loads it."""
    model = load(name, answers_in=precision)
    compute.set_compute(model, precision, for_answers=True)
    return model


def measure(name: str, count: int, block_size: int, path: Path) -> dict[str, Any]:
    """All figures, those of bfloat16 on the first level; the arguments are those of `all_blocks`."""
    blocks = all_blocks(name, count, block_size, path)
    model = load(name)
    lora_gradient = gradients(name, items(model, 10, 10.0)[2:])
    result: dict[str, Any] = {
        "machine": machine() | {"precision": ", ".join(PRECISIONS)}, "model": name,
        "auto_chooses": str(compute.set_compute(model, "auto")), "lora_gradient": lora_gradient,
        "seconds": {
            precision: {phase: sum(block["seconds"][phase] for block in mine) for phase in PHASES}
            for precision, mine in blocks.items()
        },
        "bounds": {},
    }  # fmt: skip
    for precision in PRECISIONS[1:]:
        exact, fast = blocks["float32"], blocks[precision]
        changed = differences(exact, fast)
        speedups = {
            phase: statistics.median(
                a["seconds"][phase] / b["seconds"][phase] for a, b in zip(exact, fast, strict=True)
            )
            for phase in PHASES
        }
        compared = {"times_faster": speedups, "differences": changed}
        result |= compared if precision == "bfloat16" else {precision: compared}
        result["bounds"][precision] = bounds(precision, changed, lora_gradient["relative_difference"])
    return result


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="model to measure")
    parser.add_argument("--items", type=int, default=500, help="number of items")
    parser.add_argument("--block", type=int, default=25, help="items per block; the precisions take turns on blocks")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the result")
    parser.add_argument("--blocks", type=Path, help="file of finished blocks  [default: OUT with .blocks.jsonl]")
    options = parser.parse_args()
    path = options.blocks or options.out.with_suffix(".blocks.jsonl")
    write_json(options.out, measure(options.model, options.items, options.block, path))


if __name__ == "__main__":
    main()
