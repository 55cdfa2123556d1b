"""What samples of one question share: the share of distinct tokens, and the passes that guesses save, by policy.

    python benchmarks/distinct.py --out benchmarks/results/distinct.json \\
        --policy fresh embedded answer --policy trained runs/recipes/r1-aqa/final answer

A policy is a label, a model and a prompt style. Each answers the same bundled questions, a group of samples each, at
temperature 1; prompts are sampled one by one (`passes`, as in a small run) and together.

`answer_share`  distinct tokens of the answers, of all their tokens
`tree_share`    distinct tokens of trunks and answers, of what one-by-one sequences hold: what a step's log shows
`passes`        decoding passes a prompt takes, and would take without guesses (its longest answer less one)
`came_true`     of all guesses
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ways.shapes import clip, examples
from ways.timing import machine

from earwise.engine.base import Decoding, Prompt
from earwise.engine.local import LocalEngine
from earwise.files import write_json
from earwise.models.base import load
from earwise.models.prompt_encoding import conversation_path
from earwise.prompts import prompt_turns

SEED = 5


def measure(name: str, style: str, known: argparse.Namespace) -> dict[str, Any]:
    """The figures of one policy."""
    model = load(name, device="cpu")
    rows = list({row.audio_paths[0]: row for row in examples()}.values())[:: known.every][: known.items]
    prompts = [Prompt(prompt_turns(row, style), (clip(row, known.seconds),), row.id) for row in rows]
    trunks = [len(conversation_path(model, one.turns, [0], [len(one.waves[0])], generate=True).ids) for one in prompts]
    decoding = Decoding(known.max_new_tokens, 1.0, seed=SEED)
    engine = LocalEngine(model)
    passes, longest, lengths = [], [], []
    for prompt in prompts:
        before = engine.tally.passes
        (group,) = engine.generate([prompt], decoding, known.samples)
        passes.append(engine.tally.passes - before)
        lengths += [len(one.token_ids) for one in group]
        longest.append(max(len(one.token_ids) for one in group) - 1)
    alone = engine.tally
    together = LocalEngine(model)
    together.generate(prompts, decoding, known.samples)
    said, distinct = sum(lengths), alone.distinct - sum(trunks)
    return {
        "model": name, "style": style, "items": len(prompts), "samples": known.samples,
        "mean_length": said / len(lengths), "ended": sum(length < known.max_new_tokens for length in lengths),
        "answer_share": distinct / said,
        "tree_share": alone.distinct / (sum(trunks) * known.samples + said),
        "passes": sum(passes) / len(passes), "passes_without_guesses": sum(longest) / len(longest),
        "came_true": alone.kept / max(1, alone.guessed),
        "passes_together": together.tally.passes, "passes_together_without_guesses": max(longest),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", nargs=3, action="append", metavar=("LABEL", "MODEL", "STYLE"), required=True)
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--every", type=int, default=4, help="take every so many-th bundled question")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, help="keep the JSON here")
    known = parser.parse_args(arguments)
    out = {
        "machine": machine(),
        "policies": {label: measure(name, style, known) for label, name, style in known.policy},
    }
    if known.out:
        write_json(known.out, out)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
