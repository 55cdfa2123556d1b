"""Items per second of an evaluation in MMAU's shape, greedy and with 16 samples per item: earwise and a batch loop.

    python benchmarks/evaluate.py --out benchmarks/results/evaluate.json

`batch-loop`  As in R1-AQA's released test script: 32 rows per batch in the data's order, clips padded to 30 s, prompts
              padded on the left, transformers' `generate` with at most 256 new tokens, which continues until the last
              row of the batch has ended. Greedy decoding is set here; the script leaves it to the checkpoint. 16
              samples are `num_return_sequences=16`; then a batch has 2 items, so that it has 32 rows again.
`trimmed`     The same with clips padded to the longest of the batch only (embedded model only; on request).
`earwise`     The engine that `earwise evaluate` and difficulty scoring use.

Items are bundled questions with four options in one of R1-AQA's wordings, each with a real clip of 8 to 12 s; no two
clips are the same, and all are decoded beforehand. The implementations take turns on blocks of items, and are compared
on the same block. Padding is masked in the encoder (`baselines/collator.py`), so greedy answers can be compared word
for word. With `--slow-items` the baselines run on the first items only; the result then says `extrapolated`.
"""

import argparse
import json
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from baselines import precision
from baselines.collator import ClipQuestion, Collator, as_batched_hf_model
from baselines.implementation import cut_at_end
from baselines.models import RANDOM, random_qwen2_audio
from baselines.timing import alternate, machine, matmul_gflops
from baselines.transformers_step import generation_config
from baselines.workload import clip, examples
from transformers import GenerationConfig

from earwise.algorithms.rewards import total
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.files import write_json
from earwise.models.base import AudioLM, load
from earwise.models.precision.compute import COMPUTE_CHOICES, set_compute
from earwise.models.prompt_encoding import conversation_path
from earwise.prompts import prompt_turns
from earwise.types import Example

STYLE = "answer"
OPTIONS = 4
BATCH = 32
SAMPLES = 16
SEED = 11
PROBED_TOKENS = 4
"""Tokens of the answers by which the faster precision of the batch loop is chosen."""
GOALS = {"greedy": 3.0, "samples": 8.0}


@dataclass(frozen=True, slots=True)
class Item:
    """One question, as an earwise prompt and as a row of a batch."""

    example: Example
    prompt: Prompt
    row: ClipQuestion


AnswerItems = Callable[[Sequence[Item]], list[list[str]]]
"""Answers items: the texts of the samples of each."""


def items(model: AudioLM, count: int, seconds: float) -> list[Item]:
    """Items with four options, and clips of different lengths.

    Args:
        model: Model whose tokenizer is used.
        count: Number of items.
        seconds: Mean length of the clips, which vary by a fifth.
    """
    rng, rows, out = random.Random(SEED), examples(), []
    for number in range(count):
        row = rows[number % len(rows)]
        same_category = {candidate.answer[0] for candidate in rows if candidate.category == row.category}
        distractors = sorted(same_category - set(row.choices))
        choices = [*row.choices, *rng.sample(distractors, OPTIONS - len(row.choices))]
        rng.shuffle(choices)
        example = replace(row, id=f"{number} {row.id}", choices=tuple(choices))
        waveform = clip(example, seconds * rng.uniform(0.8, 1.2))
        turns = prompt_turns(example, STYLE)
        path = conversation_path(model, turns, [0], [len(waveform)], generate=True)
        out.append(Item(example, Prompt(turns, (waveform,), example.id), ClipQuestion(path, waveform)))
    return out


def batch_loop(
    model: AudioLM, max_new_tokens: int, samples: int, *, trimmed: bool, computes_in: str = "float32"
) -> AnswerItems:
    """transformers' `generate` on batches of 32 rows.

    Args:
        model: The model.
        max_new_tokens: Longest answer.
        samples: Answers per item; 1 is greedy decoding.
        trimmed: True pads clips to the longest of the batch, False to the window.
        computes_in: `float32`, or `bfloat16` by autocast.
    """
    hf_model = as_batched_hf_model(model)
    collator = Collator(hf_model.extractor, model.eos_ids[-1], pad_left=True, trimmed=trimmed)
    config = generation_config(max_new_tokens, model.eos_ids, pad=collator.pad_id)
    if samples == 1:
        config = GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=False,
            eos_token_id=list(model.eos_ids), pad_token_id=collator.pad_id,
        )  # fmt: skip
    config.num_return_sequences = samples
    size = max(1, BATCH // samples)

    @torch.no_grad()
    def answer(batch_items: Sequence[Item]) -> list[list[str]]:
        out: list[list[str]] = []
        for start in range(0, len(batch_items), size):
            batch = collator([item.row for item in batch_items[start : start + size]])
            with precision.autocast(computes_in):
                ids = hf_model.module.generate(**batch, generation_config=config)
            texts = [decode_answer(model, row) for row in ids[:, batch["input_ids"].shape[1] :].tolist()]
            out += [texts[first : first + samples] for first in range(0, len(texts), samples)]
        return out

    return answer


def decode_answer(model: AudioLM, ids: Sequence[int]) -> str:
    """Text of an answer, up to the first end token."""
    return model.tokenizer.decode([token for token in cut_at_end(ids, model.eos_ids) if token not in model.eos_ids])


def earwise_engine(engine: LocalEngine, max_new_tokens: int, samples: int) -> AnswerItems:
    """earwise's engine; the arguments are those of `batch_loop`."""
    sampling_params = SamplingParams(max_new_tokens, 0.0 if samples == 1 else 1.0, seed=SEED)

    def answer(batch_items: Sequence[Item]) -> list[list[str]]:
        groups = engine.generate([item.prompt for item in batch_items], sampling_params, samples)
        return [[completion.text for completion in group] for group in groups]

    return answer


def blocks(all_items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The items in order, in blocks of a size."""
    return [all_items[start : start + size] for start in range(0, len(all_items), size)]


def compare(model: AudioLM, all_items: Sequence[Item], options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Time, answers and speed-ups of all implementations.

    Args:
        model: The model.
        all_items: The items.
        options: The command line.
        kind: Key of `GOALS`: greedy decoding, or several samples per item.
    """
    samples = 1 if kind == "greedy" else options.samples
    slow_items = min(len(all_items), options.slow_items or len(all_items))
    engine = LocalEngine(model)
    implementations: dict[str, AnswerItems] = {"earwise": earwise_engine(engine, options.max_new_tokens, samples)}
    chosen = precision.choose(
        options.baseline_precision, lambda: batch_loop(model, PROBED_TOKENS, 1, trimmed=False)(all_items[:1])
    )
    for name in options.implementations:
        implementations[name] = batch_loop(
            model, options.max_new_tokens, samples, trimmed=name == "trimmed", computes_in=chosen
        )
    plan = set_compute(model, options.compute)
    answers: dict[str, list[list[str]]] = {name: [] for name in implementations}

    def answer_next_block(name: str, item_blocks: Iterator[Sequence[Item]]) -> Callable[[], None]:
        return lambda: answers[name].extend(implementations[name](next(item_blocks)))

    size = max(1, options.block // samples)
    paired, remaining = blocks(all_items[:slow_items], size), blocks(all_items[slow_items:], size)
    for name in options.implementations:
        implementations[name](all_items[:1])  # warm up; an engine would cache the clip
    earwise_engine(LocalEngine(model), options.max_new_tokens, samples)(all_items[:1])
    runs = {name: answer_next_block(name, iter(paired)) for name in implementations}
    times = alternate(runs, len(paired), warm_up=False)
    remaining_times = {"earwise": []}
    if remaining:
        run = {"earwise": answer_next_block("earwise", iter(remaining))}
        remaining_times = alternate(run, len(remaining), warm_up=False)
    rates = {name: slow_items / sum(seconds) for name, seconds in times.items()}
    speedups = {
        name: {
            "over_all_blocks": rates["earwise"] / rates[name],
            "median_of_blocks": statistics.median(a / b for a, b in zip(times[name], times["earwise"], strict=True)),
        }
        for name in options.implementations
    }
    lengths = [len(model.tokenizer.encode(text)) for texts in answers["earwise"] for text in texts]
    out: dict[str, Any] = {
        "items": len(all_items), "paired_items": slow_items, "extrapolated": slow_items < len(all_items),
        "samples_per_item": samples, "items_per_block": size, "max_new_tokens": options.max_new_tokens,
        "precision": {"earwise": str(plan)} | dict.fromkeys(options.implementations, str(chosen)),
        "items_per_s": rates,
        "items_per_s_of_all_items": {
            "earwise": len(all_items) / (sum(times["earwise"]) + sum(remaining_times["earwise"]))
        },
        "times_faster_than": speedups,
        "seconds_in_blocks": times,
        "accuracy": {name: accuracy(all_items, texts) for name, texts in answers.items()},
        "answer_tokens": {"mean": statistics.mean(lengths), "largest": max(lengths)},
        "distinct_tokens": engine.stats.computed_tokens,
        "sampled_tokens": engine.stats.sampled_tokens,
    }  # fmt: skip
    if kind == "greedy":
        out["same_answers"] = {
            name: sum(a == b for a, b in zip(answers[name], answers["earwise"], strict=False)) / slow_items
            for name in options.implementations
        }
    out["goals"] = goals(kind, speedups)
    return out


def goals(kind: str, speedups: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """The speed-up over the batch loop beside its goal; trimming has no goal."""
    if "batch-loop" not in speedups:
        return []
    speedup, goal = speedups["batch-loop"]["median_of_blocks"], GOALS[kind]
    what = f"{kind}, items per second, times batch-loop"
    return [{"what": what, "found": speedup, "goal": goal, "reached": speedup >= goal}]


def accuracy(all_items: Sequence[Item], answers: Sequence[Sequence[str]]) -> float:
    """Share of correct answers, with or without tags; it should be similar for all implementations."""
    rewards = [
        total(item.example, text, {"accuracy": 1.0})[0]
        for item, texts in zip(all_items, answers, strict=False)
        for text in texts
    ]
    return statistics.mean(rewards)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="embedded", help=f"embedded, a checkpoint folder, or {RANDOM}small")
    parser.add_argument("--kinds", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument(
        "--implementations", "--ways", nargs="+", choices=["batch-loop", "trimmed"], default=["batch-loop"]
    )
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--sample-items", type=int, default=64, help="items for several samples per item")
    parser.add_argument("--slow-items", type=int, help="number of items that the baselines run on")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="samples per item")
    parser.add_argument("--seconds", type=float, default=10.0, help="mean length of a clip")
    parser.add_argument(
        "--block", type=int, default=64, help="rows per block; the implementations take turns on blocks"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--compute", choices=COMPUTE_CHOICES, default="float32", help=precision.COMPUTE_HELP)
    parser.add_argument(
        "--baseline-precision", choices=precision.CHOICES, default="float32", help=precision.BASELINE_HELP
    )
    parser.add_argument("--quick", action="store_true", help="a tiny random model and a few items, to try it")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.items, options.sample_items, options.seconds = f"{RANDOM}tiny", 6, 3, 1.0
        options.samples, options.block, options.max_new_tokens = 4, 4, 8
        options.slow_items = options.slow_items or 4
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its results."""
    transformers.logging.set_verbosity_error()
    options = parse(arguments)
    torch.manual_seed(SEED)
    is_random = options.model.startswith(RANDOM)
    model = random_qwen2_audio(options.model.removeprefix(RANDOM)) if is_random else load(options.model)
    result: dict[str, Any] = {"machine": machine(), "matmul_gflops": matmul_gflops(256 if options.quick else 2048)}
    result |= {"model": options.model, "clip_s": [0.8 * options.seconds, 1.2 * options.seconds]}
    for kind in options.kinds:
        all_items = items(model, options.items if kind == "greedy" else options.sample_items, options.seconds)
        result[kind] = compare(model, all_items, options, kind)
        result["machine"]["load_average_at_end"] = machine()["load_average"]
        if options.out:
            write_json(options.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
