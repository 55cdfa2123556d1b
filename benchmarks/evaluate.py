"""Items per second of an evaluation in MMAU's shape, greedy and with 16 samples an item: earwise against a batch loop.

    python benchmarks/evaluate.py --out benchmarks/results/evaluate.json

`batch-loop`  as R1-AQA's test script goes (papers/r1-aqa.md section 8): 32 rows a batch in the data's order, sounds
              padded to 30 s, prompts padded on the left, transformers' `generate` with at most 256 new tokens, which
              goes on until the last row of the batch has ended. Greedy is set here; the script leaves it to the
              checkpoint. 16 samples are `num_return_sequences=16`; then a batch holds 2 items, so that it has 32 rows
              again (transformers repeats the sounds with the rows)
`trimmed`     the same with sounds padded to the longest of the batch only (embedded model only; on demand)
`earwise`     the engine of `earwise evaluate` and of difficulty scoring

Items: bundled questions with four options in R1-AQA's wording <2>, each with a real clip brought to 8 to 12 s, no two
alike, decoded beforehand. Items come in blocks; the ways take turns block by block, so a pair is the same block by two
ways. Padding is masked in the encoder (`ways/rows.py`), so all ways hear the same and greedy answers are compared word
for word. `--slow-items` times the slow ways on the first so many items only; the result then says `extrapolated`.
"""

import argparse
import json
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig
from ways.models import RANDOM, random_qwen2_audio
from ways.plain import sampling
from ways.rows import Collator, Row, hearing_rows
from ways.shapes import clip, examples
from ways.timing import alternate, machine, matmul_gflops
from ways.way import cut

from earwise.algorithms.rewards import total
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.files import write_json
from earwise.models.base import AudioLM, load
from earwise.models.prompt_encoding import conversation_path
from earwise.prompts import prompt_turns
from earwise.types import Example

STYLE = "answer"
OPTIONS = 4
BATCH = 32
SAMPLES = 16
SEED = 11
GOALS = {"greedy": 3.0, "samples": 8.0}


@dataclass(frozen=True, slots=True)
class Item:
    """One question for both kinds of ways."""

    example: Example
    prompt: Prompt
    row: Row


Answer = Callable[[Sequence[Item]], list[list[str]]]  # texts of every item


def items(model: AudioLM, count: int, seconds: float) -> list[Item]:
    """`count` items with four options; lengths lie within a fifth of `seconds`, so no sound is heard twice."""
    rng, rows, out = random.Random(SEED), examples(), []
    for number in range(count):
        row = rows[number % len(rows)]
        others = sorted({r.answer[0] for r in rows if r.category == row.category} - set(row.choices))
        choices = [*row.choices, *rng.sample(others, OPTIONS - len(row.choices))]
        rng.shuffle(choices)
        example = replace(row, id=f"{number} {row.id}", choices=tuple(choices))
        wave = clip(example, seconds * rng.uniform(0.8, 1.2))
        turns = prompt_turns(example, STYLE)
        path = conversation_path(model, turns, [0], [len(wave)], generate=True)
        out.append(Item(example, Prompt(turns, (wave,), example.id), Row(path, wave)))
    return out


def batch_loop(model: AudioLM, max_new_tokens: int, samples: int, *, trimmed: bool) -> Answer:
    """transformers' `generate`, 32 rows at a time; `samples` 1 is greedy."""
    ears = hearing_rows(model)
    collator = Collator(ears.extractor, model.eos_ids[-1], left=True, trimmed=trimmed)
    config = sampling(max_new_tokens, model.eos_ids, pad=collator.pad_id)
    if samples == 1:
        config = GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=False,
            eos_token_id=list(model.eos_ids), pad_token_id=collator.pad_id,
        )  # fmt: skip
    config.num_return_sequences = samples
    size = max(1, BATCH // samples)

    @torch.no_grad()
    def answer(asked: Sequence[Item]) -> list[list[str]]:
        out: list[list[str]] = []
        for start in range(0, len(asked), size):
            batch = collator([item.row for item in asked[start : start + size]])
            ids = ears.module.generate(**batch, generation_config=config)
            said = [words(model, row) for row in ids[:, batch["input_ids"].shape[1] :].tolist()]
            out += [said[first : first + samples] for first in range(0, len(said), samples)]
        return out

    return answer


def words(model: AudioLM, ids: Sequence[int]) -> str:
    """Text up to the first end mark."""
    return model.tokenizer.decode([token for token in cut(ids, model.eos_ids) if token not in model.eos_ids])


def own(engine: LocalEngine, max_new_tokens: int, samples: int) -> Answer:
    """earwise's engine."""
    sampling_params = SamplingParams(max_new_tokens, 0.0 if samples == 1 else 1.0, seed=SEED)

    def answer(asked: Sequence[Item]) -> list[list[str]]:
        groups = engine.generate([item.prompt for item in asked], sampling_params, samples)
        return [[completion.text for completion in group] for group in groups]

    return answer


def blocks(asked: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The items in order, `size` at a time."""
    return [asked[start : start + size] for start in range(0, len(asked), size)]


def compete(model: AudioLM, asked: Sequence[Item], known: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Greedy or sampled: seconds, answers and how they compare."""
    samples = 1 if kind == "greedy" else known.samples
    slow_items = min(len(asked), known.slow_items or len(asked))
    engine = LocalEngine(model)
    ways: dict[str, Answer] = {"earwise": own(engine, known.max_new_tokens, samples)}
    for name in known.ways:
        ways[name] = batch_loop(model, known.max_new_tokens, samples, trimmed=name == "trimmed")
    said: dict[str, list[list[str]]] = {name: [] for name in ways}

    def go(name: str, some: Iterator[Sequence[Item]]) -> Callable[[], None]:
        return lambda: said[name].extend(ways[name](next(some)))

    size = max(1, known.block // samples)
    paired, rest = blocks(asked[:slow_items], size), blocks(asked[slow_items:], size)
    for name in known.ways:
        ways[name](asked[:1])  # warm up; an engine would remember the sound
    own(LocalEngine(model), known.max_new_tokens, samples)(asked[:1])
    times = alternate({name: go(name, iter(paired)) for name in ways}, len(paired), warm_up=False)
    alone = alternate({"earwise": go("earwise", iter(rest))}, len(rest), warm_up=False) if rest else {"earwise": []}
    rates = {name: slow_items / sum(seconds) for name, seconds in times.items()}
    faster = {
        name: {
            "over_all_blocks": rates["earwise"] / rates[name],
            "median_of_blocks": statistics.median(a / b for a, b in zip(times[name], times["earwise"], strict=True)),
        }
        for name in known.ways
    }
    lengths = [len(model.tokenizer.encode(text)) for texts in said["earwise"] for text in texts]
    out: dict[str, Any] = {
        "items": len(asked), "paired_items": slow_items, "extrapolated": slow_items < len(asked),
        "samples_per_item": samples, "items_per_block": size, "max_new_tokens": known.max_new_tokens,
        "items_per_s": rates,
        "items_per_s_of_all_items": {"earwise": len(asked) / (sum(times["earwise"]) + sum(alone["earwise"]))},
        "times_faster_than": faster,
        "seconds_in_blocks": times,
        "accuracy": {name: accuracy(asked, texts) for name, texts in said.items()},
        "answer_tokens": {"mean": statistics.mean(lengths), "largest": max(lengths)},
        "distinct_tokens": engine.stats.computed_tokens,
        "sampled_tokens": engine.stats.sampled_tokens,
    }  # fmt: skip
    if kind == "greedy":
        out["same_answers"] = {
            name: sum(a == b for a, b in zip(said[name], said["earwise"], strict=False)) / slow_items
            for name in known.ways
        }
    out["goals"] = [
        {"what": f"{kind}, items per second, times {name}", "found": found, "goal": goal, "reached": found >= goal}
        for name, found, goal in [(n, faster[n]["median_of_blocks"], GOALS[kind]) for n in known.ways]
        if name == "batch-loop"
    ]
    return out


def accuracy(asked: Sequence[Item], said: Sequence[Sequence[str]]) -> float:
    """Share of right answers among all that were given, tags or not: a sign that the ways say the same things."""
    right = [
        total(item.example, text, {"accuracy": 1.0})[0]
        for item, texts in zip(asked, said, strict=False)
        for text in texts
    ]
    return statistics.mean(right)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="embedded", help=f"embedded, a checkpoint folder, or {RANDOM}small")
    parser.add_argument("--kinds", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--ways", nargs="+", choices=["batch-loop", "trimmed"], default=["batch-loop"])
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--sample-items", type=int, default=64, help="items that are answered several times")
    parser.add_argument("--slow-items", type=int, help="time the slow ways on the first so many items only")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="answers to an item of --sample-items")
    parser.add_argument("--seconds", type=float, default=10.0, help="mean length of a sound")
    parser.add_argument("--block", type=int, default=64, help="rows of a block; the ways take turns by blocks")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="a tiny random model, a few items: does it work")
    parser.add_argument("--out", type=Path, help="keep the JSON here")
    known = parser.parse_args(arguments)
    if known.quick:
        known.model, known.items, known.sample_items, known.seconds = f"{RANDOM}tiny", 6, 3, 1.0
        known.samples, known.block, known.max_new_tokens = 4, 4, 8
        known.slow_items = known.slow_items or 4
    return known


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    transformers.logging.set_verbosity_error()
    known = parse(arguments)
    torch.manual_seed(SEED)
    named = known.model.startswith(RANDOM)
    model = random_qwen2_audio(known.model.removeprefix(RANDOM)) if named else load(known.model)
    result: dict[str, Any] = {"machine": machine(), "matmul_gflops": matmul_gflops(256 if known.quick else 2048)}
    result |= {"model": known.model, "clip_s": [0.8 * known.seconds, 1.2 * known.seconds]}
    for kind in known.kinds:
        asked = items(model, known.items if kind == "greedy" else known.sample_items, known.seconds)
        result[kind] = compete(model, asked, known, kind)
        result["machine"]["load_average_at_end"] = machine()["load_average"]
        if known.out:
            write_json(known.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
