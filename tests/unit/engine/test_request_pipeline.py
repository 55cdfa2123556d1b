"""Requests are answered in order, each clip is decoded once, and failures concern only the request that causes them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from builders import tiny_qwen2_audio
from earwise.audio import DecodedSound, DecodeOptions
from earwise.engine import clip_reader
from earwise.engine.base import Engine, Prompt, SamplingParams
from earwise.engine.clip_reader import ClipReader
from earwise.engine.local import LocalEngine
from earwise.engine.request_pipeline import AudioRequest, RequestResult, generate_each, run_requests
from earwise.errors import AudioError, EarwiseError, EngineError
from earwise.models.tokenizer import SpanEncoder
from earwise.prompts import Piece
from earwise.types import Audio, AudioClip, Completion, Text, Turn
from scripted_engine import RATE, ScriptedEngine, pitch_name, write_clip

TURNS = (Turn("user", (Audio("clip"), Text("Which sound is this?"))),)
GREEDY = SamplingParams()


def name_pitch(prompt: Prompt) -> str:
    return " ".join(str(pitch_name(waveform)) for waveform in prompt.waveforms)


def run(engine: Engine, requests: Sequence[AudioRequest], **options: object) -> list[RequestResult]:
    results: list[RequestResult] = []
    run_requests(engine, requests, GREEDY, on_batch=results.extend, **options)  # type: ignore[arg-type]
    return results


@pytest.fixture
def clips(tmp_path: Path) -> list[AudioClip]:
    names = ["low tone", "high tone", "hiss"]
    return [AudioClip(write_clip(tmp_path / f"{number}.wav", name, number)) for number, name in enumerate(names)]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[AudioClip]:
    """The clips that were decoded, in order."""
    decoded_clips: list[AudioClip] = []
    decode_clip = clip_reader.decode_clip

    def counting(clip: AudioClip, options: DecodeOptions) -> DecodedSound:
        decoded_clips.append(clip)
        return decode_clip(clip, options)

    monkeypatch.setattr(clip_reader, "decode_clip", counting)
    return decoded_clips


def test_results_are_in_order_and_describe_the_audio(clips: list[AudioClip]) -> None:
    engine = ScriptedEngine(name_pitch)
    results = run(engine, [AudioRequest(str(n), TURNS, (clip,)) for n, clip in enumerate(clips)], batch=2, n=3)
    assert [result.request.key for result in results] == ["0", "1", "2"] and engine.batches == [2, 1]
    assert [[c.text for c in result.completions] for result in results] == [
        ["low tone"] * 3, ["high tone"] * 3, ["hiss"] * 3,
    ]  # fmt: skip
    first = results[0].audio
    assert first is not None and first.chunk_samples == ((RATE // 4,),) and first.num_chunks == 1
    assert len(first.sha256[0]) == 64 and not first.is_silent and results[0].error is None


def test_a_clip_of_many_requests_is_decoded_once(clips: list[AudioClip], decoded: list[AudioClip]) -> None:
    requests = [AudioRequest(str(number), TURNS, (clips[number // 20],)) for number in range(60)]
    assert len(run(ScriptedEngine(name_pitch), requests, batch=7)) == 60
    assert sorted(map(str, decoded)) == sorted(map(str, clips))


def test_threads_that_want_one_clip_share_its_decoding(clips: list[AudioClip], decoded: list[AudioClip]) -> None:
    reader = ClipReader.for_engine(ScriptedEngine(name_pitch))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(reader.read, [clips[0]] * 64))
    assert decoded == [clips[0]] and all(clip is read[0] for clip in read)


def test_the_cache_forgets_the_oldest_clip(tmp_path: Path, decoded: list[AudioClip]) -> None:
    paths = [write_clip(tmp_path / f"{n}.wav", "hiss", n) for n in range(clip_reader.CACHED_CLIPS + 1)]
    reader = ClipReader.for_engine(ScriptedEngine(name_pitch))
    for path in (*paths, paths[-1], paths[0]):
        reader.read(path)
    assert decoded == [*paths, paths[0]]


def test_a_failed_clip_is_an_error_of_its_requests_and_is_read_again(clips: list[AudioClip]) -> None:
    data = clips[1].path.read_bytes()
    clips[1].path.write_bytes(b"no audio")
    engine = ScriptedEngine(name_pitch)
    reader = ClipReader.for_engine(engine)
    requests = [AudioRequest(str(number), TURNS, (clip,)) for number, clip in enumerate(clips)]
    results = run(engine, requests, clip_reader=reader)
    assert [type(result.error) for result in results] == [type(None), AudioError, type(None)]
    assert results[1].completions == () and results[1].audio is None and engine.batches == [2]
    clips[1].path.write_bytes(data)
    assert reader.read(clips[1]).waveform.size


def test_waveforms_alterations_and_chunks(clips: list[AudioClip]) -> None:
    engine = ScriptedEngine(name_pitch, max_audio_s=0.125)
    silence = AudioRequest("silent", TURNS, (clips[0],), lambda number, waveform: waveform * 0)
    given = AudioRequest("given", TURNS, (np.zeros(100, np.float32),))
    chunked, empty = run(engine, [silence, given], clip_reader=ClipReader.for_engine(engine, "chunk"))
    assert chunked.completions[0].text == "None None" and empty.completions[0].text == "None"
    assert chunked.audio is not None and chunked.audio.num_chunks == 2 and not chunked.audio.is_silent
    assert empty.audio is not None and empty.audio.is_silent and empty.audio.sha256 == ("",)


def test_is_long_reads_the_header_and_never_raises(clips: list[AudioClip], tmp_path: Path) -> None:
    reader = ClipReader.for_engine(ScriptedEngine(name_pitch, max_audio_s=0.2), "truncate")
    assert reader.is_long(clips[0]) and not reader.is_long(AudioClip(tmp_path / "missing.wav"))
    assert len(reader.read(clips[0]).waveform) == RATE // 5
    assert not ClipReader.for_engine(ScriptedEngine(name_pitch, max_audio_s=float("inf"))).is_long(clips[0])


def failing(keys: set[str]) -> ScriptedEngine:
    """An engine that fails on the prompts with these keys."""

    def answer(prompt: Prompt) -> str:
        if prompt.key in keys:
            raise EngineError(f"cannot answer {prompt.key}")
        return "fine"

    return ScriptedEngine(answer)


def prompts(*keys: str) -> list[Prompt]:
    return [Prompt(TURNS, (), key) for key in keys]


def outcomes(results: Sequence[list[Completion] | EarwiseError]) -> list[str]:
    return [str(outcome) if isinstance(outcome, EarwiseError) else outcome[0].text for outcome in results]


def test_failures_are_isolated_to_their_prompt() -> None:
    results = generate_each(failing({"b"}), prompts("a", "b", "c"), GREEDY)
    assert outcomes(results) == ["fine", "cannot answer b", "fine"]
    (alone,) = generate_each(failing({"b"}), prompts("b"), GREEDY, answered_before=prompts("a")[0])
    assert outcomes([alone]) == ["cannot answer b"]


def test_an_engine_that_is_down_raises() -> None:
    with pytest.raises(EngineError, match="cannot answer a"):
        generate_each(failing({"a", "b"}), prompts("a", "b"), GREEDY)
    with pytest.raises(EngineError, match="cannot answer b"):
        generate_each(failing({"a", "b"}), prompts("b"), GREEDY, answered_before=prompts("a")[0])
    assert generate_each(failing(set()), [], GREEDY) == []


def test_a_fault_of_the_program_passes_through(clips: list[AudioClip]) -> None:
    def broken(prompt: Prompt) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(ScriptedEngine(broken), [AudioRequest("a", TURNS, (clips[0],))])


def test_a_prompt_is_tokenised_once_for_all_its_completions(
    clips: list[AudioClip], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, texts = tiny_qwen2_audio(), []
    encode = SpanEncoder.encode

    def counting_encode(self: SpanEncoder, pieces: Sequence[Piece]) -> list[int]:
        texts.append("".join(piece.text for piece in pieces))
        return encode(self, pieces)

    monkeypatch.setattr(SpanEncoder, "encode", counting_encode)
    questions = [f"Which sound is number {number}?" for number in range(4)]
    requests = [
        AudioRequest(question, (Turn("user", (Audio("clip"), Text(question))),), (clips[0],)) for question in questions
    ]
    results: list[RequestResult] = []
    sampling_params = SamplingParams(max_new_tokens=2, temperature=1.0)
    run_requests(LocalEngine(model), requests, sampling_params, on_batch=results.extend, n=3, batch=2)
    assert [len(result.completions) for result in results] == [3] * 4
    assert [sum(question in text for text in texts) for question in questions] == [1] * 4
