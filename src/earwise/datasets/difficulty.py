"""How difficult is each example for a policy? Its pass rate: correct answers out of 16 attempts, judged by a reward.

Used by `earwise build difficulty`, and by the filter and the order of SARI's data (arXiv:2504.15900). The attempts of
one example are sampled together, and examples about one clip follow each other, so that the engine encodes the clip
once. Attempts are sampled at temperature 1 with the options in the order of the row. A row
keeps the pass count, the number of attempts, the policy, its revision and the sampling parameters.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from earwise.algorithms.rewards import Reward, load_reward
from earwise.answers import parse
from earwise.audio import Channel, LongAudio
from earwise.data import manifest
from earwise.datasets.teachers.audio_queries import AudioQuery, QueryOptions, run_audio_queries
from earwise.datasets.teachers.keyed_log import UNSHARDED, LogRow, Shard, in_shard
from earwise.engine.base import Engine, SamplingParams
from earwise.errors import ConfigError, DataError
from earwise.prompts import prompt_turns
from earwise.types import Completion, Example

BANDS = ("unsolved", "hard", "medium", "easy", "solved")
"""Names of the pass-rate bands, from no correct attempt to all correct; see `band`."""
LOGGED_ANSWERS = 8
"""Number of different answers whose counts a row of the log keeps."""


@dataclass(frozen=True, slots=True)
class AttemptSettings:
    """How a policy attempts the examples."""

    count: int = 16
    """Attempts per example (SARI: 16)."""
    style: str = "answer"
    """Wording of the question, a key of `prompts.INSTRUCTIONS`."""
    reward: str = "accuracy"
    """Reward that judges the attempts; an attempt is correct if it earns 1."""
    temperature: float = 1.0
    """Sampling temperature; 0 makes all attempts alike."""
    max_new_tokens: int = 64
    """Longest attempt, in tokens."""
    seed: int = 0
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.temperature < 0 or self.max_new_tokens < 1:
            raise ConfigError(
                f"attempts {self.count}, temperature {self.temperature}, max_new_tokens {self.max_new_tokens}: "
                "attempts and tokens must be 1 or more, the temperature 0 or more"
            )

    @property
    def sampling_params(self) -> SamplingParams:
        """The sampling parameters that the engine receives."""
        return SamplingParams(max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed)


@dataclass(frozen=True, slots=True)
class DifficultyOptions:
    """How a manifest is rated, and which of its examples are kept."""

    attempts: AttemptSettings = field(default_factory=AttemptSettings)
    """Number of attempts, wording, reward and sampling."""
    drop: tuple[str, ...] = ()
    """Bands whose examples are left out, out of `BANDS`."""
    batch: int = 16
    """Examples handed to the engine at a time; changes nothing but speed."""
    long_audio: LongAudio = "error"
    """What to do with clips longer than the engine accepts, see `QueryOptions`."""
    log_folder: Path | None = None
    """Folder of the log; None takes one beside the manifest."""
    channel: Channel = "mean"
    """What the channels of a clip become: their `mean`, or the `first`."""


def band(pass_count: int, attempts: int) -> str:
    """The name of a pass rate; of 16 attempts: 0, 1-4, 5-11, 12-15, 16.

    >>> [band(count, 16) for count in (0, 1, 4, 5, 11, 12, 15, 16)]
    ['unsolved', 'hard', 'hard', 'medium', 'medium', 'easy', 'easy', 'solved']

    Raises:
        ConfigError: if the pass count is not between 0 and the number of attempts.
    """
    if not 0 <= pass_count <= attempts or attempts < 1:
        raise ConfigError(
            f"pass count {pass_count} of {attempts} attempts: it must lie between 0 and the number of attempts"
        )
    if pass_count == 0:
        return BANDS[0]
    if pass_count == attempts:
        return BANDS[-1]
    return BANDS[1] if 4 * pass_count <= attempts else BANDS[2] if 4 * pass_count < 3 * attempts else BANDS[3]


def measure_pass_rates(
    engine: Engine,
    examples: Sequence[Example],
    folder: Path,
    attempts: AttemptSettings | None = None,
    *,
    options: QueryOptions | None = None,
    shard: Shard = UNSHARDED,
) -> list[LogRow]:
    """Let a policy attempt every example; attempts that the log holds already are not repeated.

    Args:
        engine: The policy.
        examples: Examples with answers.
        folder: Folder of the log.
        attempts: Number of attempts, wording, reward and sampling; None takes the defaults.
        options: Batch size and the handling of clips; the number of completions is that of `attempts`. None takes the
            defaults.
        shard: The part of the examples that this process attempts; it names the log's file that is written.
    Returns:
        A row for each example, in order: `status` "ok" or "error", and if ok `pass_count`, `attempts`, `unparsed` and
        `cut` (attempts without a readable answer, and attempts ended by the token limit), and the counts of the most
        frequent `answers`.
    Raises:
        ConfigError: if an example has no answer, or style or reward are unknown.
        EngineError: if the engine fails on everything; finished rows are kept.
    """
    attempts = attempts or AttemptSettings()
    reward = load_reward(attempts.reward)
    examples_by_id: dict[str, Example] = {}
    for example in examples:
        if not example.answer:
            raise ConfigError(f"example {example.id!r} has no answer to compare attempts with; leave it out")
        examples_by_id[example.id] = example

    def read(query: AudioQuery, completions: list[Completion]) -> dict[str, Any]:
        return _judged(examples_by_id[query.id], completions, reward)

    order = sorted(range(len(examples)), key=lambda index: (_clip_order(examples[index]), index))
    rows = run_audio_queries(
        engine,
        [_query(examples[index], attempts) for index in order],
        folder,
        read=read,
        sampling_params=attempts.sampling_params,
        options=replace(options or QueryOptions(), n=attempts.count, description="questions attempted"),
        shard=shard,
    )
    rows_by_index = dict(zip(order, rows, strict=True))
    return [rows_by_index[index] for index in range(len(examples))]


def with_pass_rates(
    examples: Iterable[Example], rows: Iterable[LogRow], attempts: AttemptSettings
) -> Iterator[Example]:
    """The examples with `difficulty` and, in `meta`, the pass rate and how it was measured.

    An example whose clip could not be read gets no difficulty, and `meta` holds the reason as `difficulty_error`. Where
    clips are longer than the policy accepts, `meta` holds their number as `long_clips`.

    Args:
        examples: The examples that were attempted.
        rows: The rows that `measure_pass_rates` returned for them, in the same order.
        attempts: The settings of that call.
    """
    for example, row in zip(examples, rows, strict=True):
        provenance = {
            "policy": row["model"], "policy_revision": row["revision"], "policy_style": attempts.style,
            "policy_reward": attempts.reward, "policy_decoding": attempts.sampling_params.as_dict(),
        }  # fmt: skip
        meta = {name: value for name, value in example.meta.items() if name != "difficulty_error"}
        if row["status"] != "ok":
            yield replace(example, difficulty=None, meta=meta | {"difficulty_error": row["error"]})
            continue
        pass_count, num_attempts = row["pass_count"], row["attempts"]
        pass_rate = {"pass_count": pass_count, "attempts": num_attempts, "pass_rate": pass_count / num_attempts}
        if long_clips := row.get("long_clips", 0):  # logs of earlier versions lack this field
            pass_rate["long_clips"] = long_clips
        yield replace(example, difficulty=band(pass_count, num_attempts), meta=meta | pass_rate | provenance)


def select_rated(examples: Iterable[Example], shard: Shard = UNSHARDED) -> tuple[list[Example], int]:
    """Select the examples that a process rates: those of its shard that have an answer.

    Args:
        examples: All examples.
        shard: Shard of this process, by the hash of an example's first clip, so that one process encodes a clip.
    Returns:
        The examples, and the number of those of the shard that have no answer.
    Raises:
        DataError: if no example of the shard has an answer.
    """
    members = [example for example in examples if in_shard(_shard_key(example), shard)]
    with_answer = [example for example in members if example.answer]
    if not with_answer:
        raise DataError("no row has an answer to compare attempts with; add answers to the rows")
    return with_answer, len(members) - len(with_answer)


def build_difficulty(
    engine: Engine,
    examples: Iterable[Example],
    out: Path,
    options: DifficultyOptions | None = None,
    *,
    shard: Shard = UNSHARDED,
    notify: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Rate examples and write them with `difficulty` and pass rates; the same call again continues where it stopped.

    Args:
        engine: The policy.
        examples: The examples; those without an answer are left out.
        out: Manifest to write.
        options: How examples are rated, and which are kept; None takes the defaults.
        shard: The part of the clips that this process rates. A shard writes no manifest: copy the logs of all shards
            into one folder, then build without `shard`.
        notify: Called with every line about progress.
    Returns:
        Counts: `rows` rated, `unlabelled` rows without an answer, `errors`, `long` (rows with clips longer than the
        engine accepts), `bands`, `attempts` in all, `right`, `unparsed` and `cut` ones, and rows `kept`; also `model`,
        and `out` if the manifest was written.
    Raises:
        DataError: if no example has an answer, all are left out, or a file cannot be written.
        EngineError: if the engine fails on everything; finished rows are kept.
    """
    options = options or DifficultyOptions()
    rated, num_unlabelled = select_rated(examples, shard)
    rows = measure_pass_rates(
        engine,
        rated,
        options.log_folder or out.with_name(f"{out.stem}.attempts"),
        options.attempts,
        options=QueryOptions(batch=options.batch, long_audio=options.long_audio, channel=options.channel),
        shard=shard,
    )
    rated = list(with_pass_rates(rated, rows, options.attempts))
    remaining = [example for example in rated if example.difficulty not in options.drop]
    summary = _summarize(rows, rated, engine, options.long_audio, notify)
    summary |= {"unlabelled": num_unlabelled, "kept": len(remaining)}
    if shard == UNSHARDED:
        if not remaining:
            bands = " or ".join(options.drop)
            raise DataError(f"{out}: all {len(rated)} rows are {bands}; keep them or use another model")
        manifest.write(out, remaining)
        summary["out"] = str(out)
    return summary


def count_bands(examples: Iterable[Example]) -> dict[str, int]:
    """Number of examples in each band, every band named, and of those without a difficulty as `unmeasured`."""
    counts = Counter(example.difficulty or "unmeasured" for example in examples)
    return {name: counts[name] for name in (*BANDS, "unmeasured")}


def _shard_key(example: Example) -> str:
    """Hash that decides the shard of an example: that of its first clip, or of its id if it has no clip."""
    clips = [part.path for part in example.audio_parts]
    return hashlib.sha256((clips or [example.id])[0].encode()).hexdigest()


def _clip_order(example: Example) -> list[tuple[Path, float, float]]:
    """Sorting key that brings questions about the same clips together."""
    return [(clip.path, clip.start, math.inf if clip.end is None else clip.end) for clip in example.clips]


def _summarize(
    rows: Sequence[LogRow],
    rated: Sequence[Example],
    engine: Engine,
    long_audio: LongAudio,
    notify: Callable[[str], None],
) -> dict[str, Any]:
    """Counts of the attempts; failed rows and long clips are also reported as lines."""
    errors = [row for row in rows if row["status"] != "ok"]
    if errors:
        notify(f"{len(errors)} rows could not be attempted (first: {errors[0]['id']}: {errors[0]['error']})")
    num_long = sum(row.get("long_clips", 0) > 0 for row in rows)
    if num_long:
        treatment = {"error": "not attempted", "truncate": "cut to their beginning", "chunk": "cut into chunks"}
        notify(f"{num_long} rows have clips longer than {engine.name} accepts: {treatment[long_audio]}")
    attempted = [row for row in rows if row["status"] == "ok"]
    return {
        "rows": len(rated), "unlabelled": 0, "errors": len(errors), "long": num_long, "bands": count_bands(rated),
        "attempts": sum(row["attempts"] for row in attempted), "right": sum(row["pass_count"] for row in attempted),
        "unparsed": sum(row.get("unparsed", 0) for row in rows), "cut": sum(row.get("cut", 0) for row in rows),
        "kept": 0, "model": engine.name,
    }  # fmt: skip


def _query(example: Example, attempts: AttemptSettings) -> AudioQuery:
    """The question of an example. The names in `settings` are hashed into the log's keys and must not change."""
    settings = {"reward": attempts.reward, "answer": list(example.answer), "choices": list(example.choices)}
    return AudioQuery(example.id, prompt_turns(example, attempts.style), example.clips, settings)


def _judged(example: Example, completions: Sequence[Completion], reward: Reward) -> dict[str, Any]:
    """The fields of a row: counts of correct, unparsed and truncated completions, and the most frequent answers."""
    parsed = [parse(completion.text, example.choices) for completion in completions]
    answers = Counter(attempt.answer for attempt in parsed if attempt.answer is not None)
    return {
        "pass_count": sum(reward(example, completion.text) >= 1 for completion in completions),
        "attempts": len(completions),
        "unparsed": sum(attempt.status != "ok" for attempt in parsed),
        "cut": sum(completion.finish_reason == "length" for completion in completions),
        "answers": dict(answers.most_common(LOGGED_ANSWERS)),
    }
