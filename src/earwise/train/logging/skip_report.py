"""What a stage went on without: counted step by step in metrics.jsonl, told at the stage's end.

Whatever a recipe allows to be left out (`on_nonfinite_loss`, `on_bad_row`, `on_reward_error`, `on_rollout_error`) stands in
the log of its step, and the log survives a resume: what is told holds for the whole stage, not for the last process.
"""

from collections.abc import Mapping, Sequence
from typing import Any

COUNTED = {
    "bad_loss": "updates left out, their loss or gradient was not finite",
    "skipped": "clips or rows left out, their sound could not be read",
    "reward_errors": "rewards failed",
    "sampler_errors": "times the sampler was away and asked again",
}
"""Name in the log, without the stage's kind -> what the sum of it says."""


def told(rows: Sequence[Mapping[str, Any]], stage: str, kind: str) -> list[str]:
    """One line for everything that was left out.

    Args:
        rows: Of metrics.jsonl.
        stage: Which of its stages.
        kind: Prefix of the stage's log keys.
    """
    own = [row for row in rows if row.get("stage") == stage]
    sums = {name: sum(row.get(f"{kind}/{name}", 0.0) for row in own) for name in COUNTED}
    return [f"{kind}: {count:g} {COUNTED[name]} ({kind}/{name})" for name, count in sums.items() if count]
