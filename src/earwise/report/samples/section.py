"""The section with every sample: its data as JSON and the frame that the page's script fills.

Part of `earwise.report`. Nothing of a run becomes markup: all texts travel as JSON in a data block, in which `<` is
escaped, and the script writes them into text nodes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from earwise.data.clip_fields import clips_of_row
from earwise.evaluation.metrics.mmau import SCORE_NOTES
from earwise.report.page import data_block
from earwise.report.samples.clips import page_clips
from earwise.report.samples.outcomes import OUTCOMES, draw_items
from earwise.report.samples.rows import sample_objects
from earwise.report.tables import ColouredRun

AUDIO_BUDGET = 6_000_000
"""Bytes of embedded clips on a page, as base64."""
FRAME = (
    '<div class="tools" id="sample-tools" role="search" aria-label="Samples"></div>'
    '<p class="note" id="sample-count" role="status" aria-live="polite"></p>'
    '<div id="sample-list"></div><div id="sample-detail"></div>'
    '<noscript><p class="note">The list of samples needs JavaScript; the tables above do not. All rows are in '
    "samples.jsonl of the run.</p></noscript>"
)
"""What the script fills; without it the page says where the rows are."""


def sample_section(
    runs: Sequence[ColouredRun], name: str, seed: int, folder: Path, budget: int = AUDIO_BUDGET
) -> tuple[str, str]:
    """The frame of the list of samples, and its data.

    Args:
        runs: The runs of the page; clips and questions are those of the last one.
        name: Name of the score that decides between right and wrong.
        seed: Seed of the order in which clips are embedded.
        folder: Folder of the page, from which links to clips start.
        budget: Number of bytes that embedded clips may take, as base64.
    Returns:
        The section's body and the data block, both HTML.
    """
    plain_runs = [run for run, _ in runs]
    last = plain_runs[-1]
    rows = last.first
    drawn = [rows[item] for item, _ in draw_items(plain_runs, name, seed)]
    clips = page_clips((clip for row in drawn for clip in clips_of_row(row, last.path)), folder, budget)
    samples = sample_objects(plain_runs, name, {clip: number for number, clip in enumerate(clips)})
    data = {
        "headline": name,
        "outcomes": OUTCOMES,
        "runs": [_run_object(run, colour) for run, colour in runs],
        "clips": list(clips.values()),
        "samples": samples,
    }
    num_embedded = sum("url" in clip for clip in clips.values())
    note = (
        f'<p class="note">{num_embedded} of {len(clips)} clips are in this page, those drawn first by seed {seed} in '
        "turn from each outcome; the others are linked by their path from the page’s folder.</p>"
        if num_embedded < len(clips)
        else ""
    )
    return FRAME + note, data_block("sample-data", data)


def _run_object(run: Any, colour: int) -> dict[str, Any]:
    """What the page knows of a run: its name, colour, and what its scores measure."""
    return {"name": run.name, "colour": colour, "notes": run.metrics.get("score_notes", SCORE_NOTES)}
