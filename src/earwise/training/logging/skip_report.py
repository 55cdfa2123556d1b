"""Summary of what a stage skipped, printed when it ends.

Whatever a recipe allows to be skipped (`on_nonfinite_loss`, `on_bad_row`, `on_reward_error`, `on_rollout_error`) is
counted in the log row of its step. The log survives a resume, so the summary covers the whole stage and not only the
last process.
"""

from collections.abc import Mapping, Sequence
from typing import Any

SKIPPED = {
    "bad_loss": "updates skipped because the loss or gradient was not finite",
    "spike": "spikes of loss or gradient norm",
    "rollbacks": "rollbacks to a checkpoint",
    "skipped": "clips or rows skipped because their audio could not be read",
    "reward_errors": "rewards that failed",
    "sampler_errors": "requests to the rollout server that failed and were repeated",
}
"""Log key, without the prefix of the stage's kind -> what its sum counts."""


def skip_summary(rows: Sequence[Mapping[str, Any]], stage: str, kind: str) -> list[str]:
    """Describe what a stage skipped, one line for each cause that occurred.

    Args:
        rows: The rows of metrics.jsonl.
        stage: Name of the stage's folder, as in the rows' `stage` field.
        kind: Kind of the stage: the prefix of its log keys.
    """
    stage_rows = [row for row in rows if row.get("stage") == stage]
    sums = {name: sum(row.get(f"{kind}/{name}", 0.0) for row in stage_rows) for name in SKIPPED}
    return [f"{kind}: {count:g} {SKIPPED[name]} ({kind}/{name})" for name, count in sums.items() if count]
