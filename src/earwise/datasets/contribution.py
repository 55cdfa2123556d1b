"""How much does the sound contribute to a right answer? Rows that models answer without it are *weak*, others *strong*.

`earwise build contribution`, after AudioMCQ (arXiv:2509.21060), which trains on weak rows first (SFT) and on strong
ones then (GRPO). Every model answers every question with silence in place of the sound, as in our blind control
`silence`. Rows of published data that say themselves which part they belong to (`audio-contribution`) are divided by
that where no model is given.

The paper's rule is not known to us in detail (it asks several models; 54.8 % of its rows are weak). Ours: a row is weak
if at least a share `weak_at` of all blind attempts, of all models, is right.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from earwise.data import manifest
from earwise.datasets.difficulty import AttemptSettings, measure_pass_rates, select_rated
from earwise.datasets.teachers.audio_queries import QueryOptions
from earwise.engine.base import Engine
from earwise.errors import ConfigError, DataError
from earwise.types import Example

FIELDS = ("audio-contribution", "audio_contribution")
"""Fields of published rows (AudioMCQ) that say how much the sound contributes."""
PARTS = ("weak", "strong")
WEAK_AT = 0.5


@dataclass(frozen=True, slots=True)
class ContributionOptions:
    """How rows are divided.

    Attributes:
        attempts: Blind attempts of each model, and how they are made.
        weak_at: Share of right blind attempts from which a row is weak.
        queries: Batch size, and how clips are read; only their length matters.
    """

    attempts: AttemptSettings = field(default_factory=lambda: AttemptSettings(count=8))
    weak_at: float = WEAK_AT
    queries: QueryOptions = field(default_factory=QueryOptions)

    def __post_init__(self) -> None:
        if not 0 < self.weak_at <= 1:
            raise ConfigError(f"--weak-at {self.weak_at} is not a share above 0 and up to 1")


@dataclass(frozen=True, slots=True)
class Divided:
    """What was written.

    Attributes:
        rows: Part -> number of its rows.
        errors: Number of rows that a model could not be asked about; they are in no part.
        blind_accuracy: Share of right blind attempts over all rows; None where no model was asked.
    """

    rows: dict[str, int]
    errors: int
    blind_accuracy: float | None


def divide(
    engines: Sequence[Engine],
    examples: Iterable[Example],
    out: Path,
    options: ContributionOptions | None = None,
    *,
    notify: Callable[[str], None] = lambda line: None,
) -> Divided:
    """Write `weak.jsonl` and `strong.jsonl`; the same call again continues where it stopped.

    Args:
        engines: Models that answer blind; none takes what the rows say themselves.
        examples: The rows; those without an answer are left out.
        out: Folder to write the manifests to, with the logs of the attempts.
        options: How rows are divided; None takes the defaults.
        notify: Receives lines for a person to read.
    Raises:
        DataError: if no row has an answer, a part would be empty, or a row does not say which part it belongs to.
        EngineError: if a model fails on everything; finished rows are kept.
    """
    options = options or ContributionOptions()
    rated, num_unlabelled = select_rated(examples)
    if num_unlabelled:
        notify(f"{num_unlabelled} rows without an answer are left out")
    if not engines:
        shares: list[float | None] = [_published_share(example) for example in rated]
        marked = rated
    else:
        shares, marked = _blind_shares(engines, rated, out / "attempts", options)
    parts: dict[str, list[Example]] = {name: [] for name in PARTS}
    for example, share in zip(marked, shares, strict=True):
        if share is not None:
            parts["weak" if share >= options.weak_at else "strong"].append(example)
    for name, rows in parts.items():
        if not rows:
            remedy = "raise --weak-at" if name == "strong" else "lower --weak-at"
            raise DataError(f"{out}: none of {len(rated)} rows is {name}; {remedy}, or ask other models")
    for name, rows in parts.items():
        manifest.write(out / f"{name}.jsonl", rows)
    known = [share for share in shares if share is not None]
    accuracy = sum(known) / len(known) if engines and known else None
    counts = {name: len(rows) for name, rows in parts.items()}
    return Divided(counts, len(shares) - len(known), accuracy)


def _blind_shares(
    engines: Sequence[Engine], rated: Sequence[Example], folder: Path, options: ContributionOptions
) -> tuple[list[float | None], list[Example]]:
    """Share of right blind attempts of each row (None if it could not be asked), and the rows with it in `meta`."""
    queries = replace(options.queries, silence=True)
    counts = [[0, 0] for _ in rated]  # right and all attempts of each row
    models = [f"{engine.name}@{engine.revision}" for engine in engines]
    for engine in engines:
        rows = measure_pass_rates(engine, rated, folder, options.attempts, options=queries)
        for row_counts, row in zip(counts, rows, strict=True):
            if row["status"] == "ok":
                row_counts[0] += row["pass_count"]
                row_counts[1] += row["attempts"]
    shares = [right / asked if asked else None for right, asked in counts]
    marked = [
        replace(example, meta={**example.meta, **_provenance(right, asked, models, options)})
        for example, (right, asked) in zip(rated, counts, strict=True)
    ]
    return shares, marked


def _provenance(right: int, asked: int, models: Sequence[str], options: ContributionOptions) -> dict[str, Any]:
    """What a row keeps of its blind attempts."""
    return {
        "blind_pass_count": right, "blind_attempts": asked, "blind_models": list(models),
        "blind_style": options.attempts.style, "weak_at": options.weak_at,
    }  # fmt: skip


def _published_share(example: Example) -> float:
    """1 for a row that says its sound contributes little, 0 for one that says it contributes much.

    Raises:
        DataError: if the row says neither.
    """
    value = next((str(example.meta[name]) for name in FIELDS if example.meta.get(name) is not None), "")
    part = next((name for name in PARTS if name in value.lower()), None)
    if part is None:
        raise DataError(
            f"row {example.id!r} does not say its audio-contribution (weak or strong); give a model that answers "
            "blind: --model MODEL"
        )
    return float(part == "weak")
