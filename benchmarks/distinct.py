"""What samples of one question share: the share of distinct tokens, and the passes that drafts save, by policy.

    python benchmarks/distinct.py --out benchmarks/results/distinct.json \\
        --policy fresh embedded answer --policy trained runs/recipes/r1-aqa/final answer

A policy is given by a label, a model and a prompt style. Each answers the same bundled questions with a group of
samples at temperature 1; prompts are sampled one by one (`passes`, as in a small run) and together.

`answer_share`  Distinct tokens of the answers, divided by all of their tokens.
`tree_share`    Distinct tokens of prompts and answers, divided by those of separate sequences, as in a step's log.
`passes`        Decoding passes per prompt; without drafts it would be the longest answer less one.
`came_true`     Accepted draft tokens, divided by all draft tokens.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines.timing import machine
from baselines.workload import clip, examples

from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.files import write_json
from earwise.models.base import load
from earwise.models.prompt_encoding import conversation_path
from earwise.prompts import prompt_turns

SEED = 5


def measure(name: str, style: str, options: argparse.Namespace) -> dict[str, Any]:
    """The results of one policy.

    Args:
        name: Name of the model.
        style: Prompt style.
        options: The command line.
    """
    model = load(name, device="cpu")
    rows = list({row.audio_paths[0]: row for row in examples()}.values())[:: options.every][: options.items]
    prompts = [Prompt(prompt_turns(row, style), (clip(row, options.seconds),), row.id) for row in rows]
    prompt_lengths = [
        len(conversation_path(model, prompt.turns, [0], [len(prompt.waveforms[0])], generate=True).ids)
        for prompt in prompts
    ]
    sampling_params = SamplingParams(options.max_new_tokens, 1.0, seed=SEED)
    engine = LocalEngine(model)
    passes, longest, lengths = [], [], []
    for prompt in prompts:
        before = engine.stats.forward_passes
        (group,) = engine.generate([prompt], sampling_params, options.samples)
        passes.append(engine.stats.forward_passes - before)
        group_lengths = [len(completion.token_ids) for completion in group]
        lengths += group_lengths
        longest.append(max(group_lengths) - 1)
    stats = engine.stats
    together = LocalEngine(model)
    together.generate(prompts, sampling_params, options.samples)
    sampled, distinct = sum(lengths), stats.computed_tokens - sum(prompt_lengths)
    return {
        "model": name, "style": style, "items": len(prompts), "samples": options.samples,
        "mean_length": sampled / len(lengths), "ended": sum(length < options.max_new_tokens for length in lengths),
        "answer_share": distinct / sampled,
        "tree_share": stats.computed_tokens / (sum(prompt_lengths) * options.samples + sampled),
        "passes": sum(passes) / len(passes), "passes_without_guesses": sum(longest) / len(longest),
        "came_true": stats.accepted_tokens / max(1, stats.draft_tokens),
        "passes_together": together.stats.forward_passes, "passes_together_without_guesses": max(longest),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", nargs=3, action="append", metavar=("LABEL", "MODEL", "STYLE"), required=True)
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--every", type=int, default=4, help="use every n-th bundled question")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args(arguments)
    out = {
        "machine": machine(),
        "policies": {label: measure(name, style, options) for label, name, style in options.policy},
    }
    if options.out:
        write_json(options.out, out)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
