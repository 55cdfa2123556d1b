"""What can be wrong with a recipe and its data, looked for before a model is loaded.

Called by `earwise train`: a run that would stop after an hour over a missing file or a misspelt reward stops at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from earwise.commands.loading import note
from earwise.errors import AudioError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from earwise.config.recipe import Recipe
    from earwise.types import Example


def preflight(recipe: "Recipe", base: Path) -> list[dict[str, int]]:
    """Look for what would stop the run later.

    Args:
        recipe: Resolved recipe.
        base: Folder that its manifests start from.
    Returns:
        For each stage: manifest -> rows with an answer.
    Raises:
        ConfigError: for an unknown style, reward or tracker.
        DataError: for a bad manifest, or rows that a style cannot use.
        AudioError: naming manifest, row and file, unless bad rows are to be skipped.
    """
    from earwise.algorithms.curriculum import Band, pass_rate, within
    from earwise.algorithms.rewards import load_reward
    from earwise.config.stages import CompressStage, DpoStage, GrpoStage, SftStage
    from earwise.data import manifest
    from earwise.data.index import open_rows
    from earwise.data.manifest_path import manifest_path
    from earwise.engine.remote.address import parse as parse_address
    from earwise.prompts import THINKING, question_text
    from earwise.train.logging.tracking import check

    check(recipe.trackers)
    rows = []
    for stage in recipe.stages:
        for style in stage.data.styles:
            question_text("", (), style)
        if isinstance(stage, GrpoStage):
            for name in stage.rewards:
                if name != "judge":
                    load_reward(name)
            load_reward(stage.curriculum.reward)
            if stage.judge:
                parse_address(stage.judge.server)
        preferred = isinstance(stage, DpoStage) and stage.negatives == "rows"
        counts: dict[str, int] = {}
        for source in stage.data.mixture:
            if not (path := manifest_path(source.manifest, base)).exists():
                raise DataError(
                    f"{path}: is not there; build it (docs/data.md), say with --data where manifests lie, or take a "
                    "profile on bundled clips: --profile cpu"
                )
            examples = open_rows(path, say=note).select(source.where, answered=not preferred, preferred=preferred)
            shown = source.manifest + "".join(f" {key}={value}" for key, value in source.where.items())
            if not examples:
                what, how = ("`rejected`", "preferences") if preferred else ("an answer", "labels")
                raise DataError(f"{shown}: no such row has {what}; build some with `earwise build {how}`")
            thinking = [style for style in stage.data.styles if style in (*THINKING, "xs-cot")]
            told = isinstance(stage, SftStage | CompressStage)
            if told and thinking and (lacking := examples.without_reasoning()):
                raise DataError(
                    f"{shown}: row {lacking[0].id!r} has no reasoning for style {thinking[0]!r} "
                    f"({len(lacking)} such rows); add it, or use style answer"
                )
            if stage.data.on_bad_row == "stop":
                _look(path, examples)
            if isinstance(stage, DpoStage) and stage.negatives == "options":
                _options(shown, examples)
            if stage.curriculum.order == "banded":
                examples = examples.take(within(examples, Band(**stage.curriculum.band.model_dump())))
            if stage.curriculum.order == "easy_to_hard":
                for example in examples:
                    pass_rate(example)
            counts[shown] = len(examples)
        rows.append(counts)
    for one in recipe.eval:
        question_text("", (), one.style)
        at = manifest_path(one.manifest, base)
        asked = manifest.select(manifest.read(at), one.where)
        _look(at, asked)
        if not asked:
            raise DataError(f"eval: {one.manifest} has no row with {dict(one.where)}; correct `where`")
    return rows


def _options(shown: str, examples: "Sequence[Example]") -> None:
    """Rows that a preference is to be made of by rejecting a wrong option must have options."""
    for number in range(0, len(examples), max(1, len(examples) // SAMPLED)):
        if len(examples[number].choices) < 2:
            raise DataError(
                f"{shown}: row {examples[number].id!r} has no options to reject; narrow `where`, or use negatives: rows"
            )


LOOK_AT_ALL = 10_000  # rows of one source; the sounds of more would take minutes,
SAMPLED = 2_000  # so of those some are looked at, spread evenly

_looked_at: set[Path] = set()


def _look(path: Path, examples: "Sequence[Example]") -> None:
    """Look at the headers of the sounds of a source's rows."""
    from earwise.audio import probe

    step = len(examples) // SAMPLED if len(examples) > LOOK_AT_ALL else 1
    if step > 1:
        note(f"{path}: sounds of every {step}th row looked at; `earwise build scan` looks at all of {len(examples)}")
    for number in range(0, len(examples), step):
        example = examples[number]
        for clip in example.audio_paths:
            if clip not in _looked_at:
                try:
                    probe(clip)
                except AudioError as error:
                    raise AudioError(f"{path}: row {example.id!r}: {error}, or set data.on_bad_row: skip") from error
                _looked_at.add(clip)
