"""Audio difference (ADIFF, arXiv:2502.04476): how do two clips differ? Three tiers of detail (CLD-1..3, ACD-1..3).

Data: the published CSV of one tier, read by `data/sources/adiff.py`. Scored as captions with one reference; each tier
is its own group; all its items are asked in the authors' prompt for it. SPICE, the leaderboard's first metric, needs a
program of its own (see `captions.py`).
"""

from dataclasses import replace
from pathlib import Path

from earwise.evaluation.published.source_file import load_source
from earwise.evaluation.tasks import captions
from earwise.evaluation.tasks.transcription import asked
from earwise.types import Example

PROMPTS = {
    1: "explain the difference between the two audios in few words.",
    2: "explain the difference between the two audios in one extended sentence.",
    3: "explain the difference between the two audios in detail.",
}
"""Tier -> prompt of the authors (arXiv:2502.04476)."""


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read a CSV of ADIFF; `category` names the set and the tier (CLD-1).

    Args:
        path: The file.
        audio_root: Folder of the clips; None: the file's own folder.
    Raises:
        DataError: if the file is wrong.
    """
    examples = load_source("adiff")(path, audio_root)
    return [
        replace(
            asked(example, PROMPTS[example.meta["tier"]]),
            category="-".join(str(example.meta.get(key, "")) for key in ("subset", "tier")),
        )
        for example in examples
    ]


TASK = replace(
    captions.TASK,
    name="adiff",
    load=load,
    prompts={"mellow": lambda example: example.question.lower()},
    max_new_tokens=256,
    source="arXiv:2502.04476, soham97/ADIFF",
    licence="MIT (explanations); audio as Clotho and AudioCaps",
    unverified="",
)
