"""How hard is each example for a policy? Its pass rate: right answers out of 16 attempts, judged as rewards are.

`earwise build difficulty`, and the filter and the order of SARI's data (arXiv 2504.15900; papers/sari.md, sections 2
and 7). The sound is heard once for all attempts and for all questions about a clip (engine: listen once, branch many).
Attempts are drawn at temperature 1 with the options in the row's own order. The row keeps count, number of attempts,
policy, revision and sampler settings.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from earwise.algorithms.rewards import load_reward
from earwise.answers import parse
from earwise.audio import LongAudio
from earwise.datasets.teachers.audio_queries import Asked, ask_all
from earwise.datasets.teachers.keyed_log import WHOLE, Row, Shard
from earwise.engine.base import Decoding, Engine
from earwise.errors import ConfigError
from earwise.prompts import prompt_turns
from earwise.types import Completion, Example

BANDS = ("unsolved", "hard", "medium", "easy", "solved")
KEPT_ANSWERS = 8  # different answers whose counts stand in a row of the log


@dataclass(frozen=True, slots=True)
class Attempts:
    """How a policy is tried."""

    count: int = 16
    """Attempts an example (SARI: 16)."""
    style: str = "answer"
    """Wording of the question, a key of `prompts.INSTRUCTIONS`."""
    reward: str = "accuracy"
    """An attempt is right if this reward is 1."""
    temperature: float = 1.0
    max_new_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.temperature < 0 or self.max_new_tokens < 1:
            raise ConfigError(
                f"attempts {self.count}, temperature {self.temperature}, max_new_tokens {self.max_new_tokens}: "
                "attempts and tokens must be 1 or more, the temperature 0 or more"
            )

    @property
    def decoding(self) -> Decoding:
        """As the engine takes it."""
        return Decoding(max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed)


def band(pass_count: int, attempts: int) -> str:
    """The name of a pass rate; of 16: 0, 1-4, 5-11, 12-15, 16.

    >>> [band(count, 16) for count in (0, 1, 4, 5, 11, 12, 15, 16)]
    ['unsolved', 'hard', 'hard', 'medium', 'medium', 'easy', 'easy', 'solved']
    """
    if not 0 <= pass_count <= attempts or attempts < 1:
        raise ConfigError(f"pass count {pass_count} of {attempts} attempts; it must be from 0 to their number")
    if pass_count == 0:
        return BANDS[0]
    if pass_count == attempts:
        return BANDS[-1]
    return BANDS[1] if 4 * pass_count <= attempts else BANDS[2] if 4 * pass_count < 3 * attempts else BANDS[3]


def measure(
    engine: Engine,
    examples: Sequence[Example],
    folder: Path,
    attempts: Attempts | None = None,
    *,
    batch: int = 16,
    long_audio: LongAudio = "error",
    writer: Shard = WHOLE,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Let a policy try every example.

    Args:
        engine: The policy.
        examples: Rows with answers.
        folder: Of the log; the same call again does only what is missing.
        attempts: How often, and how.
        batch: Examples at a time; changes nothing but speed.
        long_audio: For clips longer than the engine hears.
        writer: Whose file of the log is written.
        on_progress: Called with the number done and the number of all.
    Returns:
        A row for each example, in order: `status` "ok" or "error", and if ok `pass_count`, `attempts`, `unparsed` and
        `cut` (attempts without a readable answer, or longer than the limit), and the most frequent `answers`.
    Raises:
        ConfigError: if an example has no answer, or style or reward are unknown.
        EngineError: if the engine fails altogether; what is finished is kept.
    """
    attempts = attempts or Attempts()
    reward = load_reward(attempts.reward)
    by_id: dict[str, Example] = {}
    for example in examples:
        if not example.answer:
            raise ConfigError(f"example {example.id!r} has no answer to compare attempts with; leave it out")
        by_id[example.id] = example

    def read(asked: Asked, completions: list[Completion]) -> dict[str, Any]:
        example = by_id[asked.id]
        parsed = [parse(completion.text, example.choices) for completion in completions]
        answers = Counter(one.answer for one in parsed if one.answer is not None)
        return {
            "pass_count": sum(reward(example, completion.text) >= 1 for completion in completions),
            "attempts": len(completions),
            "unparsed": sum(one.status != "ok" for one in parsed),
            "cut": sum(completion.finish_reason == "length" for completion in completions),
            "answers": dict(answers.most_common(KEPT_ANSWERS)),
        }

    order = sorted(range(len(examples)), key=lambda index: (examples[index].audio_paths, index))
    asked = [_asked(examples[index], attempts) for index in order]
    rows = ask_all(
        engine,
        asked,
        folder,
        read=read,
        decoding=attempts.decoding,
        n=attempts.count,
        batch=batch,
        long_audio=long_audio,
        writer=writer,
        on_progress=on_progress,
    )
    placed = dict(zip(order, rows, strict=True))
    return [placed[index] for index in range(len(examples))]


def labelled(examples: Iterable[Example], rows: Iterable[Row], attempts: Attempts) -> Iterator[Example]:
    """The examples with `difficulty` and, in `meta`, the pass rate and how it was measured.

    An example whose clip could not be heard keeps no difficulty, and says why in `difficulty_error`; one with clips
    that are longer than the policy hears says how many in `long_clips`.
    """
    for example, row in zip(examples, rows, strict=True):
        how = {
            "policy": row["model"], "policy_revision": row["revision"], "policy_style": attempts.style,
            "policy_reward": attempts.reward, "policy_decoding": attempts.decoding.as_dict(),
        }  # fmt: skip
        meta = {name: value for name, value in example.meta.items() if name != "difficulty_error"}
        if row["status"] != "ok":
            yield replace(example, difficulty=None, meta=meta | {"difficulty_error": row["error"]})
            continue
        count, number = row["pass_count"], row["attempts"]
        rate = {"pass_count": count, "attempts": number, "pass_rate": count / number}
        if long := row.get("long_clips", 0):  # logs of earlier versions do not say
            rate["long_clips"] = long
        yield replace(example, difficulty=band(count, number), meta=meta | rate | how)


def histogram(examples: Iterable[Example]) -> dict[str, int]:
    """How many examples are in each band, all bands named; `unmeasured` beside."""
    counts = Counter(example.difficulty or "unmeasured" for example in examples)
    return {name: counts[name] for name in (*BANDS, "unmeasured")}


def _asked(example: Example, attempts: Attempts) -> Asked:
    settings = {"reward": attempts.reward, "answer": list(example.answer), "choices": list(example.choices)}
    return Asked(example.id, prompt_turns(example, attempts.style), example.audio_paths, settings)
