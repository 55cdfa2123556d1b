"""Ask an engine about many clips and keep what it says: resumable, a batch at a time, the next one decoded meanwhile.

Between the engine and those who need its ears: captions (`build/captions.py`) and pass rates (`build/difficulty.py`).
Prompts about one clip should follow each other, so that an engine that remembers what it heard encodes it once. A clip
that cannot be read is a row with `status: error` like any other, counted, and not asked again until the file changes.
A clip longer than the engine hears says so in its row (`long_clips`) and in its key: another way to hear it is another
question.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from earwise.audio import LongAudio, audio_sha256, chunks, decode, probe
from earwise.datasets.teachers.keyed_log import WHOLE, KeyedLog, Row, Shard
from earwise.datasets.teachers.request_runner import content_key
from earwise.engine.base import Decoding, Engine, Prompt
from earwise.errors import AudioError, EngineError
from earwise.prompts import spread
from earwise.types import Completion, Text, Turn, Waveform

DECODERS = 2
CACHED_CLIPS = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """One conversation about clips."""

    id: str
    turns: tuple[Turn, ...]
    clips: tuple[Path, ...]
    """Files of the audio parts, in order."""
    settings: Mapping[str, Any]
    """What else decides the row, beside engine, decoding, words and sound."""


Read = Callable[[Asked, list[Completion]], dict[str, Any]]


def asked_key(engine: Engine, asked: Asked, decoding: Decoding, n: int, sound: Callable[[Path], str]) -> str:
    """Names what was asked: model, settings, words and the sounds themselves, as `sound` names each."""
    words = [[turn.role, *(part.text for part in turn.parts if isinstance(part, Text))] for turn in asked.turns]
    sounds = [sound(path) for path in asked.clips]
    return content_key([engine.name, engine.revision, decoding.as_dict(), n, dict(asked.settings), words, sounds])


def ask_all(
    engine: Engine,
    asked: Sequence[Asked],
    folder: Path,
    *,
    read: Read,
    decoding: Decoding,
    n: int = 1,
    batch: int = 16,
    long_audio: LongAudio = "error",
    writer: Shard = WHOLE,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Ask what the log in `folder` does not hold yet.

    Args:
        engine: Who listens.
        asked: What is asked; every one gets a row.
        folder: Of the log.
        read: From the completions to the fields of the row; `status` is "ok" unless it says otherwise.
        decoding: Decoding settings. An engine's draws depend on `(seed, key)`, so on nothing but what is asked.
        n: Completions of each.
        batch: Prompts handed to the engine at a time; changes nothing but speed.
        long_audio: For clips longer than the engine hears: `error` makes the row one, `truncate` asks about the
            beginning, `chunk` about consecutive pieces, one clip each, for engines that take several.
        writer: Whose file of the log is written.
        on_progress: Called with the number done and the number of all, after every batch.
    Returns:
        A row for each, in order; `status` is "error" where the clip cannot be heard or the engine fails on it alone;
        `long_clips` counts the clips that are longer than the engine hears.
    Raises:
        EngineError: if the engine fails altogether; what is finished is kept.
        DataError: if the disk refuses.
    """

    limit = engine.max_audio_s if math.isfinite(engine.max_audio_s) else None

    @cache
    def is_long(path: Path) -> bool:
        try:
            return limit is not None and probe(path).duration_s > limit
        except AudioError:  # which is what its row will say
            return False

    @cache
    def sound(path: Path) -> str:
        try:
            return audio_sha256(path) + (f" {long_audio} at {limit} s" if is_long(path) else "")
        except AudioError:
            return f"unreadable:{path}"

    @lru_cache(maxsize=CACHED_CLIPS)
    def hear(path: Path) -> list[Waveform]:
        wave = decode(path, engine.sample_rate, long_audio=long_audio, max_s=limit)
        return chunks(wave, engine.sample_rate, limit) if long_audio == "chunk" and limit is not None else [wave]

    def prompt(item: tuple[str, Asked]) -> Prompt | AudioError:
        key, one = item
        try:
            heard = [hear(path) for path in one.clips]
        except AudioError as error:
            return error
        turns = spread(one.turns, [len(pieces) for pieces in heard])
        return Prompt(turns, tuple(piece for pieces in heard for piece in pieces), key)

    keys = [asked_key(engine, one, decoding, n, sound) for one in asked]
    with KeyedLog(folder, writer) as log:
        todo = list({key: (key, one) for key, one in zip(keys, asked, strict=True) if key not in log}.values())
        done = len(asked) - len(todo)
        canary: list[Prompt] = []
        for items, prompts in _decoded(todo, prompt, batch):
            heard = [one for one in prompts if isinstance(one, Prompt)]
            said = iter(_answers(engine, heard, decoding, n, canary))
            for (key, one), known in zip(items, prompts, strict=True):
                result = next(said) if isinstance(known, Prompt) else known
                row: Row = {
                    "key": key, "id": one.id, "model": engine.name, "revision": engine.revision, "error": "",
                    "long_clips": sum(map(is_long, one.clips)),
                }  # fmt: skip
                if isinstance(result, AudioError | EngineError):
                    row |= {"status": "error", "error": str(result)}
                else:
                    row |= {"status": "ok"} | read(one, result)
                log.append(row)
            done += len(items)
            if on_progress is not None:
                on_progress(done, len(asked))
        return [_row(log, key) for key in keys]


def _row(log: KeyedLog, key: str) -> Row:
    row = log.get(key)
    assert row is not None
    return row


def _decoded(
    todo: Sequence[tuple[str, Asked]], prompt: Callable[[tuple[str, Asked]], Prompt | AudioError], batch: int
) -> Iterator[tuple[Sequence[tuple[str, Asked]], list[Prompt | AudioError]]]:
    """Batches in order; the next one is decoded while the engine is busy."""
    starts = range(0, len(todo), batch)
    pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
    try:
        ahead = [pool.submit(prompt, item) for item in todo[:batch]]
        for start in starts:
            ready = ahead
            ahead = [pool.submit(prompt, item) for item in todo[start + batch : start + 2 * batch]]
            yield todo[start : start + batch], [future.result() for future in ready]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _answers(
    engine: Engine, prompts: Sequence[Prompt], decoding: Decoding, n: int, canary: list[Prompt]
) -> list[list[Completion] | EngineError | AudioError]:
    """Completions of every prompt, or the error of one that alone makes the engine fail.

    `canary` holds a prompt that was answered before, if any: asked again after a failure, it tells a prompt that cannot
    be answered from an engine that is down, whose prompts must not be written as failed.
    """

    def alone(prompt: Prompt) -> list[Completion] | EngineError | AudioError:
        try:
            return engine.generate([prompt], decoding, n)[0]
        except (EngineError, AudioError) as error:
            return error

    if not prompts:
        return []
    try:
        results: list[list[Completion] | EngineError | AudioError] = list(engine.generate(prompts, decoding, n))
    except (EngineError, AudioError) as error:
        results = [alone(prompt) for prompt in prompts] if len(prompts) > 1 else [error]
    good = [prompt for prompt, result in zip(prompts, results, strict=True) if isinstance(result, list)]
    if len(good) < len(prompts):
        failure = next(result for result in results if not isinstance(result, list))
        if not good and not (canary and isinstance(alone(canary[0]), list)):
            raise failure
    canary[:] = good[:1] or canary
    return results
