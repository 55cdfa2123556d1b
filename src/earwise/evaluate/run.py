"""A task through an engine: every item asked once, every answer kept, and the same items again without their sound.

examples -> options permuted by seed -> clips decoded in threads -> engine -> scorer -> `samples.jsonl` (one line an
item, appended as the answers come, so that a kill costs at most one batch) -> `metrics.json`. An item never leaves the
denominator: an unreadable clip, a failed call and an answer that cannot be parsed are rows like the others, scored 0
and counted by status.
"""

import math
import random
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from earwise.algorithms import rewards
from earwise.answers import parse
from earwise.audio import LongAudio, audio_sha256, chunks, decode, is_silent, probe
from earwise.engine.base import Decoding, Engine, Prompt
from earwise.errors import AudioError, ConfigError, DataError, EarwiseError, EngineError
from earwise.evaluate import controls
from earwise.evaluate.controls import Control
from earwise.evaluate.metrics import mmau
from earwise.evaluate.results import METRICS, SAMPLES, Settings, resume, settings_hash
from earwise.evaluate.summary import blind_summary, headline, summarise
from earwise.files import append_jsonl, seen_from, write_json
from earwise.prompts import TAGGED, THINKING, prompt_turns, spread
from earwise.types import Completion, Example, Score, Text, Turn, Waveform

ScoreFn = Callable[[Example, str], Score]
DECODERS = 3  # decoding threads; a clip takes milliseconds, a batch of answers seconds
CACHED_CLIPS = 32  # decoded clips kept, since neighbouring rows often ask about one clip; 2 MB each at 30 s and 16 kHz
_NO_EXAMPLE = Example("", ())  # the format rewards look at the completion alone


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: items done of `total`, how many of them are right (headline score) and how many are errors."""

    control: Control | None
    done: int
    total: int
    correct: int
    errors: int


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt to be: an example with its options in the order that the model reads, and the clips it will hear."""

    example: Example
    clips: tuple[Path, ...]
    permutation: int
    turns: tuple[Turn, ...]

    @property
    def prompt(self) -> str:
        """The text of the last user turn."""
        return "\n".join(part.text for part in self.turns[-1].parts if isinstance(part, Text))

    @property
    def key(self) -> str:
        """Names the prompt for the engine's random draws."""
        return f"{self.example.id}#{self.permutation}" if self.permutation else self.example.id


@dataclass(frozen=True, slots=True)
class Heard:
    """The decoded clips of one item, or why they cannot be heard."""

    waves: tuple[Waveform, ...] = ()
    pieces: tuple[int, ...] = ()
    """For each clip, how many of the waves are pieces of it; more than one under `chunk`."""
    sha256: str = ""
    """SHA-256 of the files, parted by a blank where there are several."""
    silent: bool = False
    """No clip of the item holds any sound (before a control took it away)."""
    truncated: bool = False
    error: AudioError | None = None


def permuted(example: Example, seed: int, permutation: int = 0) -> Example:
    """The example with its options in an order that depends on the seed and the example's id alone.

    Permutation k is permutation 0 turned by k places, so that over as many permutations as options the right one
    stands everywhere once.
    """
    order = list(example.choices)
    random.Random(controls.seeded("options", seed, example.id)).shuffle(order)
    turn = permutation % len(order) if order else 0
    return replace(example, choices=tuple(order[turn:] + order[:turn]))


def is_formatted(output: str, style: str) -> bool | None:
    """Whether a completion is one answer block and nothing else (after one reasoning block in thinking styles); None
    without tags.

    >>> is_formatted("<answer>dog</answer>", "answer"), is_formatted("dog", "answer"), is_formatted("dog", "open")
    (True, False, None)
    """
    if style not in TAGGED:
        return None
    rule = rewards.format_think if style in THINKING else rewards.format_answer
    rule = rewards.format_adaptive if style == "adaptive" else rule
    return rule(_NO_EXAMPLE, output) == 1


def evaluate(
    engine: Engine,
    examples: Sequence[Example],
    out: Path,
    *,
    style: str = "answer",
    decoding: Decoding | None = None,
    seed: int = 0,
    batch: int = 16,
    control: Control | None = None,
    score: ScoreFn = mmau.score,
    scorer: str = mmau.SCORER,
    shuffle_options: bool = True,
    permutations: int = 1,
    long_audio: LongAudio = "error",
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Ask an engine every example and write what it says; resumes where a killed run with the same settings stopped.

    Args:
        engine: Who answers.
        examples: The items; ids are unique. Items without an answer are asked and written, and stand outside the
            accuracy.
        out: Folder for `samples.jsonl`, `settings.json` and `metrics.json`.
        style: Wording of the question, a key of `prompts.INSTRUCTIONS`.
        decoding: Decoding settings; greedy by default.
        seed: Seed of the options' order and of the controls.
        batch: Prompts handed to the engine at a time; changes nothing but speed.
        control: Replace the clips: `silence`, `noise`, or `shuffled` (of another item with another answer).
        score: Scorer of one output.
        scorer: Name and version of `score` for the rows.
        shuffle_options: Whether options are permuted (by seed and id).
        permutations: Ask each item under this many turns of its options; the headline is the first, the mean stands
            beside it.
        long_audio: What to do with a clip longer than the engine hears: `error` (the row is an error, counted as
            wrong), `truncate` (counted as such) or `chunk` (several clips one after the other, for engines that take
            several).
        on_progress: Called after every batch.
    Returns:
        What `metrics.json` holds (see `summary.summarise`).
    Raises:
        ConfigError: if a setting is wrong, or `out` holds samples made with other settings.
        DataError: if there are no examples, an id stands twice, or the disk refuses.
        EngineError: if the engine fails on a whole batch; what is finished is kept.
    """
    decoding = decoding or Decoding()
    controls.check(control)
    _check(examples, batch, permutations)
    asked = _asked(examples, style, seed, control, shuffle_options, permutations)
    settings: Settings = {
        "model": engine.name, "revision": engine.revision, "style": style, "decoding": decoding.as_dict(), "seed": seed,
        "control": control, "scorer": scorer, "shuffle_options": shuffle_options, "permutations": permutations,
        "long_audio": long_audio, "items": settings_hash([[e.id, e.question, e.choices, e.answer] for e in examples]),
    }  # fmt: skip
    rows = resume(out, settings)
    have = {(row["id"], row["permutation"]) for row in rows}
    todo = [item for item in asked if (item.example.id, item.permutation) not in have]
    common = {
        "decoding": decoding.as_dict(), "scorer": scorer, "style": style, "control": control, "model": engine.name,
        "revision": engine.revision, "settings": settings_hash(settings),
    }  # fmt: skip

    limit = engine.max_audio_s if math.isfinite(engine.max_audio_s) else None

    @lru_cache(maxsize=CACHED_CLIPS)
    def clip(path: Path) -> tuple[Waveform, str, bool]:
        wave = decode(path, engine.sample_rate, long_audio=long_audio, max_s=limit)
        return wave, audio_sha256(path), limit is not None and probe(path).duration_s > limit

    def pieces(wave: Waveform) -> list[Waveform]:
        return chunks(wave, engine.sample_rate, limit) if long_audio == "chunk" and limit is not None else [wave]

    def hear(item: Asked) -> Heard:
        try:
            sounds = [clip(path) for path in item.clips]
        except AudioError as error:
            return Heard(error=error)
        waves = tuple(
            controls.blinded(wave, control, controls.seeded(seed, item.example.id, k)) if control else wave
            for k, (wave, _, _) in enumerate(sounds)
        )
        silent = bool(sounds) and all(is_silent(wave) for wave, _, _ in sounds)
        cut = [pieces(wave) for wave in waves]
        return Heard(
            waves=tuple(piece for some in cut for piece in some),
            pieces=tuple(len(some) for some in cut),
            sha256=" ".join(sha for _, sha, _ in sounds),
            silent=silent,
            truncated=long_audio == "truncate" and any(long for _, _, long in sounds),
        )

    def tell() -> None:
        if on_progress is not None:
            right = sum(row["scores"][headline(style)] >= 1 for row in rows if row["scores"])
            on_progress(Progress(control, len(rows), len(asked), right, sum(row["status"] == "error" for row in rows)))

    tell()
    canary: Prompt | None = None
    loaded = _prefetched(todo, hear, ahead=2 * batch)
    try:
        while pairs := list(islice(loaded, batch)):
            started = time.perf_counter()
            prompts = [
                Prompt(spread(item.turns, heard.pieces), heard.waves, item.key)
                for item, heard in pairs
                if heard.error is None
            ]
            results = _answers(engine, prompts, decoding, canary)
            seconds = round((time.perf_counter() - started) / max(len(prompts), 1), 4)
            answered = [p for p, result in zip(prompts, results, strict=True) if isinstance(result, Completion)]
            canary = answered[-1] if answered else canary
            said = iter(results)
            for item, heard in pairs:
                output = next(said) if heard.error is None else heard.error
                row = _row(item, heard, output, score, style, out) | common | {"seconds": seconds}
                append_jsonl(out / SAMPLES, row)
                rows.append(row)
            tell()
    finally:
        loaded.close()
    metrics = summarise(rows, settings)
    write_json(out / METRICS, metrics)
    return metrics


def evaluate_with_controls(
    engine: Engine,
    examples: Sequence[Example],
    out: Path,
    *,
    blind: Sequence[Control] = ("silence", "shuffled"),
    seed: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    """`evaluate` with the real sound into `out`, then under each blind control into `out/CONTROL`; `metrics.json`
    gains `blind`.

    A control that the items do not allow (one clip, one answer) is named in `blind` with the reason and left out.

    Args:
        engine: Who answers.
        examples: The items.
        out: Folder of the run.
        blind: The controls to run.
        seed: As in `evaluate`; also of the bootstrap.
        **settings: The other arguments of `evaluate`, the same for all runs.
    Returns:
        The metrics of the real run with `blind`: per control its accuracies and the hearing gain with its interval.
    Raises:
        EarwiseError: as `evaluate`.
    """
    metrics = evaluate(engine, examples, out, seed=seed, **settings)
    metrics["blind"] = {}
    for control in blind:
        try:
            evaluate(engine, examples, out / control, seed=seed, control=control, **settings)
        except ConfigError as error:
            if control != "shuffled" or (out / control / SAMPLES).exists():
                raise
            metrics["blind"][control] = {"left_out": str(error)}
            continue
        metrics["blind"][control] = blind_summary(out, out / control, seed)
    write_json(out / METRICS, metrics)
    return metrics


def _check(examples: Sequence[Example], batch: int, permutations: int) -> None:
    if not examples:
        raise DataError("nothing to evaluate: the task has no examples; check the split or the file")
    if batch < 1 or permutations < 1:
        raise ConfigError(f"batch ({batch}) and permutations ({permutations}) must be at least 1")
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(
                f"id {example.id!r} stands twice; ids name the rows of samples.jsonl, so each must be unique"
            )
        seen.add(example.id)


def _asked(
    examples: Sequence[Example],
    style: str,
    seed: int,
    control: Control | None,
    shuffle_options: bool,
    permutations: int,
) -> list[Asked]:
    lenders = controls.partners(examples, seed) if control == "shuffled" else list(range(len(examples)))
    asked = []
    for example, lender in zip(examples, lenders, strict=True):
        lent, need = examples[lender].audio_paths, len(example.audio_paths)
        clips = tuple(lent[k % len(lent)] for k in range(need))
        for permutation in range(permutations if example.choices else 1):
            shown = permuted(example, seed, permutation) if shuffle_options else example
            asked.append(Asked(shown, clips, permutation, prompt_turns(shown, style)))
    return asked


def _prefetched(
    items: Iterable[Asked], hear: Callable[[Asked], Heard], ahead: int
) -> Generator[tuple[Asked, Heard], None, None]:
    """The items in order with their decoded clips; `ahead` of them are decoded while the engine is busy with others."""
    pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
    waiting: deque[tuple[Asked, Future[Heard]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(hear, item)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _answers(
    engine: Engine, prompts: list[Prompt], decoding: Decoding, canary: Prompt | None
) -> list[Completion | EarwiseError]:
    """One completion a prompt, or the error of a prompt that alone makes the engine fail.

    Args:
        engine: Who answers.
        prompts: The batch.
        decoding: Decoding settings.
        canary: A prompt that the engine has answered before; asked again after a failure, to tell a prompt that cannot
            be answered from an engine that is down, whose items must not be written as wrong.
    Raises:
        EngineError, AudioError, DataError: if the engine is down, or has never answered.
    """
    if not prompts:
        return []
    try:
        return [samples[0] for samples in engine.generate(prompts, decoding)]
    except (EngineError, AudioError, DataError) as error:
        results: list[Completion | EarwiseError] = [error]
    if len(prompts) > 1:
        results = [_alone(engine, prompt, decoding) for prompt in prompts]
    for prompt, result in zip(prompts, results, strict=True):
        canary = canary if isinstance(result, EarwiseError) else prompt
    failure = next((result for result in results if isinstance(result, EarwiseError)), None)
    if failure is not None and (canary is None or isinstance(_alone(engine, canary, decoding), EarwiseError)):
        raise failure
    return results


def _alone(engine: Engine, prompt: Prompt, decoding: Decoding) -> Completion | EarwiseError:
    try:
        return engine.generate([prompt], decoding)[0][0]
    except (EngineError, AudioError, DataError) as error:
        return error


def _row(
    item: Asked, heard: Heard, output: Completion | EarwiseError, score: ScoreFn, style: str, out: Path
) -> dict[str, Any]:
    example = item.example
    if isinstance(output, EarwiseError):
        text, finish, delay = "", None, None
        verdict = Score(0.0, 0.0, 0.0, "error", explanation=str(output))
    else:
        text, finish, delay = output.text, output.finish_reason, output.reasoning_tokens
        verdict = score(example, text)
    parsed = parse(text, example.choices)
    meta = example.meta
    return {
        "id": example.id,
        "permutation": item.permutation,
        "prompt": item.prompt,
        "output": text,
        "reasoning": parsed.reasoning,
        "answer": verdict.answer,
        "status": verdict.status,
        "scores": {"official": verdict.official, "strict": verdict.strict, "lenient": verdict.lenient}
        if example.answer
        else None,
        "explanation": verdict.explanation,
        "task": example.task,
        "category": example.category,
        "sub_category": meta.get("sub-category"),
        "difficulty": example.difficulty,
        "language": example.language,
        "benchmark": f"{meta['benchmark']} {meta['version']}" if "benchmark" in meta and "version" in meta else None,
        "question": example.question,
        "choices": list(example.choices),
        "gold": list(example.answer),
        "gold_position": next((k for k, choice in enumerate(example.choices) if choice in example.answer), None),
        "choice": parsed.choice,
        "formatted": is_formatted(text, style),
        "finish_reason": finish,
        "reasoning_tokens": delay,
        "audio": [seen_from(path, out) for path in item.clips],
        "audio_sha256": heard.sha256,
        "silent": heard.silent,
        "truncated": heard.truncated,
        "pieces": sum(heard.pieces),
    }
