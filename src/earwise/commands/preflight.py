"""What can be wrong with a recipe and its data, looked for before a model is loaded.

Called by `earwise train`: a run that would stop after an hour over a missing file or a misspelt reward stops at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from earwise.errors import AudioError, DataError

if TYPE_CHECKING:
    from earwise.config import Recipe
    from earwise.types import Example


def preflight(recipe: "Recipe", base: Path) -> list[dict[str, int]]:
    """Look for what would stop the run later.

    Args:
        recipe: Resolved recipe.
        base: Folder that its manifests start from.
    Returns:
        For each stage: manifest -> rows with an answer.
    Raises:
        ConfigError: for an unknown style or reward.
        DataError: for a bad manifest, or rows that a style cannot use.
        AudioError: naming manifest, row and file, unless bad rows are to be skipped.
    """
    from earwise.config import SftStage
    from earwise.prompts import THINKING, question_text
    from earwise.rewards import load_reward
    from earwise.train.run import select

    rows = []
    for stage in recipe.stages:
        for style in stage.data.styles:
            question_text("", (), style)
        if not isinstance(stage, SftStage):
            for name in stage.rewards:
                load_reward(name)
        counts: dict[str, int] = {}
        for source in stage.data.mixture:
            examples = read_rows(source.manifest, base, listen=stage.data.on_bad_row == "stop")
            examples = [row for row in select(examples, source.where) if row.answer]
            shown = source.manifest + "".join(f" {key}={value}" for key, value in source.where.items())
            if not examples:
                raise DataError(f"{shown}: no such row has an answer; build questions with `earwise build labels`")
            thinking = [style for style in stage.data.styles if style in THINKING]
            if isinstance(stage, SftStage) and thinking and (lacking := [e.id for e in examples if not e.reasoning]):
                raise DataError(
                    f"{shown}: row {lacking[0]!r} has no reasoning for style {thinking[0]!r} "
                    f"({len(lacking)} such rows); add it, or use style answer"
                )
            counts[shown] = len(examples)
        rows.append(counts)
    for one in recipe.eval:
        question_text("", (), one.style)
        if not select(read_rows(one.manifest, base, listen=True), one.where):
            raise DataError(f"eval: {one.manifest} has no row with {dict(one.where)}; correct `where`")
    return rows


_looked_at: set[Path] = set()


def read_rows(name: str, base: Path, *, listen: bool) -> "list[Example]":
    """A manifest's examples, their files looked at by their headers."""
    from earwise.audio import probe
    from earwise.data import manifest
    from earwise.train.run import manifest_path

    path = manifest_path(name, base)
    examples = manifest.read(path)
    for example in examples if listen else ():
        for clip in example.audio_paths:
            if clip not in _looked_at:
                try:
                    probe(clip)
                except AudioError as error:
                    raise AudioError(f"{path}: row {example.id!r}: {error}, or set data.on_bad_row: skip") from error
                _looked_at.add(clip)
    return examples
