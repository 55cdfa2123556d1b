"""Ask an engine about many clips and keep the answers in a log, so that a stopped build continues where it was.

Between `engine.request_pipeline`, which decodes, batches and retries, and the builders that need a model with audio
input: captions (`datasets/sari/captions.py`) and pass rates (`datasets/difficulty.py`). The key of a row is a hash of
everything that decides it: model, sampling parameters, text, the files' contents, and how a clip longer than the engine
accepts is handled. What the log holds already is not asked again. A clip that cannot be read gives a row with `status:
error`; it is not asked again until the file changes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from earwise import progress
from earwise.audio import Channel, LongAudio
from earwise.datasets.teachers.keyed_log import UNSHARDED, KeyedLog, LogRow, Shard, content_key
from earwise.engine.base import Engine, SamplingParams
from earwise.engine.clip_reader import ClipReader
from earwise.engine.request_pipeline import AudioRequest, RequestResult, run_requests
from earwise.errors import AudioError
from earwise.types import AudioClip, Completion, Text, Turn, Waveform


@dataclass(frozen=True, slots=True)
class AudioQuery:
    """One conversation about clips, whose answer becomes a row of a log."""

    id: str
    """Name of the row; not part of its key, so that renamed items keep their answers."""
    turns: tuple[Turn, ...]
    """The conversation, ending with the user."""
    clips: tuple[AudioClip, ...]
    """The file, or segment of a file, of each audio part, in order."""
    settings: Mapping[str, Any]
    """Everything else that decides the row, beside engine, sampling parameters, text and sound."""


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """How queries are sent to the engine."""

    n: int = 1
    """Completions of each query."""
    batch: int = 16
    """Queries handed to the engine at a time; changes nothing but speed."""
    long_audio: LongAudio = "error"
    """What to do with a clip longer than the engine accepts: `error` writes an error row, `truncate` asks about the
    beginning, `chunk` asks about consecutive pieces, one audio part each, for engines that take several."""
    channel: Channel = "mean"
    """What the channels of a clip become: their `mean`, or the `first`."""
    silence: bool = False
    """Whether the engine receives silence of the same length in place of every clip."""
    description: str = "questions"
    """What the queries are, where their progress is shown."""


ReadCompletions = Callable[[AudioQuery, list[Completion]], dict[str, Any]]
"""Turns the completions of a query into the fields of its row; `status` is "ok" unless the fields say otherwise."""


def run_audio_queries(
    engine: Engine,
    queries: Sequence[AudioQuery],
    folder: Path,
    *,
    read: ReadCompletions,
    sampling_params: SamplingParams,
    options: QueryOptions | None = None,
    shard: Shard = UNSHARDED,
) -> list[LogRow]:
    """Answer every query that the log in `folder` does not hold yet.

    Args:
        engine: The engine that answers.
        queries: The queries; every one gets a row. Queries about one clip should follow each other.
        folder: Folder of the log.
        read: Turns completions into the fields of a row.
        sampling_params: Sampling parameters. An engine's draws depend on the seed and the row's key alone.
        options: Number of completions, batch size and the handling of long clips; None takes the defaults.
        shard: The part of the queries that this process answers; it names the log's file that is written.
    Returns:
        A row for each query, in order. `status` is "error" where the clip cannot be read or the engine fails on this
        query alone; `long_clips` counts the clips that are longer than the engine accepts.
    Raises:
        EngineError: if the engine fails on everything; finished rows are kept.
        DataError: if the log cannot be written.
    """
    options = options or QueryOptions()
    reader = ClipReader.for_engine(engine, options.long_audio, options.channel)
    keys = [_query_key(engine, query, sampling_params, options, reader) for query in queries]
    alter = _silence if options.silence else None
    with KeyedLog(folder, shard) as log:
        missing = {key: query for key, query in zip(keys, queries, strict=True) if key not in log}

        with progress.task(options.description, len(queries), done=len(queries) - len(missing)) as task:

            def write_batch(results: list[RequestResult]) -> None:
                for result in results:
                    log.append(_row(engine, missing[result.request.key], result, read, reader))
                task.advance(len(results))

            run_requests(
                engine,
                [AudioRequest(key, query.turns, query.clips, alter) for key, query in missing.items()],
                sampling_params,
                on_batch=write_batch,
                n=options.n,
                batch=options.batch,
                clip_reader=reader,
            )
        return [_logged_row(log, key) for key in keys]


def _silence(number: int, waveform: Waveform) -> Waveform:
    """Silence of the same length as a clip."""
    return np.zeros_like(waveform)


def _query_key(
    engine: Engine, query: AudioQuery, sampling_params: SamplingParams, options: QueryOptions, reader: ClipReader
) -> str:
    """Hash of everything that decides a row. The layout of the hashed value must not change: old logs are read by
    it."""
    text = [[turn.role, *(part.text for part in turn.parts if isinstance(part, Text))] for turn in query.turns]
    clips = [_clip_key(clip, reader) for clip in query.clips]
    settings = dict(query.settings) | ({"silence": True} if options.silence else {})
    parts = [engine.name, engine.revision, sampling_params.as_dict(), options.n, settings, text, clips]
    return content_key(parts)


def _clip_key(clip: AudioClip, reader: ClipReader) -> str:
    """Name of a clip's content, and of its handling where the engine cannot receive all of it."""
    try:
        sha256 = reader.sha256(clip)
    except AudioError:
        return f"unreadable:{clip}"
    channel = "" if reader.channel == "mean" else f" {reader.channel} channel"
    return sha256 + channel + (f" {reader.long_audio} at {reader.max_s} s" if reader.is_long(clip) else "")


def _row(engine: Engine, query: AudioQuery, result: RequestResult, read: ReadCompletions, reader: ClipReader) -> LogRow:
    """The log's row of one answered query."""
    row: LogRow = {
        "key": result.request.key, "id": query.id, "model": engine.name, "revision": engine.revision, "error": "",
        "long_clips": sum(map(reader.is_long, query.clips)),
    }  # fmt: skip
    if result.error is not None:
        return row | {"status": "error", "error": str(result.error)}
    return row | {"status": "ok"} | read(query, list(result.completions))


def _logged_row(log: KeyedLog, key: str) -> LogRow:
    row = log.get(key)
    assert row is not None
    return row
