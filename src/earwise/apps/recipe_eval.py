"""What a recipe says under `eval:`, done: a model asked a manifest, with blind controls, into a folder; resumable.

Between evaluation, which knows nothing of recipes, and those who run whole recipes: `earwise train` and the demo.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from earwise.config.recipe import EvalConfig
from earwise.data import manifest
from earwise.data.manifest_path import manifest_path
from earwise.engine.base import Decoding, Engine
from earwise.evaluate.controls import Control
from earwise.evaluate.run import Progress, evaluate_with_controls
from earwise.types import Example

TELL_EVERY_S = 5.0


def measure(
    one: EvalConfig,
    base: Path,
    engine: Engine,
    out: Path,
    *,
    seed: int = 0,
    blind: Sequence[Control] = ("silence", "shuffled"),
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Ask an engine the manifest of an `eval:` entry; rows that are finished in `out` are not asked again.

    Args:
        one: Manifest, style, longest answer, limit.
        base: Folder that a relative manifest starts from.
        engine: Who answers.
        out: Folder of the evaluation.
        seed: Of controls and the order of options.
        blind: Controls.
        say: Progress.
    Returns:
        What `metrics.json` holds.
    Raises:
        EarwiseError: as `evaluate.run.evaluate`.
    """
    examples = spread(manifest.select(manifest.read(manifest_path(one.manifest, base)), one.where), one.limit)
    decoding = Decoding(max_new_tokens=one.max_new_tokens)
    return evaluate_with_controls(
        engine, examples, out, blind=blind, seed=seed, style=one.style, decoding=decoding, on_progress=progress(say)
    )


def spread(examples: list[Example], limit: int | None) -> list[Example]:
    """`limit` examples evenly spaced over the list (in a sorted manifest the first are much alike); all for None."""
    if limit is None or limit >= len(examples):
        return examples
    return [examples[number * len(examples) // limit] for number in range(limit)]


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """`n`, official accuracy with sound and under silence, share in the asked format; None where not measured."""
    silence = metrics.get("blind", {}).get("silence", {})
    return {
        "n": metrics["n"],
        "accuracy": metrics["accuracy"]["official"]["accuracy"],
        "blind_accuracy": silence["accuracy"]["official"]["accuracy"] if "accuracy" in silence else None,
        "format": metrics["format"]["accuracy"] if metrics["format"] else None,
    }


def progress(say: Callable[[str], None]) -> Callable[[Progress], None]:
    """A listener for `evaluate` that tells how far it is: at the end, and before that every few seconds."""
    told = monotonic()

    def tell(state: Progress) -> None:
        nonlocal told
        if state.done < state.total and monotonic() - told < TELL_EVERY_S:
            return
        told = monotonic()
        errors = f", {state.errors} errors" if state.errors else ""
        say(f"  {state.control or 'with sound'}: {state.done} of {state.total} items, {state.correct} right{errors}")

    return tell
