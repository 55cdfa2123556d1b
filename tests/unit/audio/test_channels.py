"""Several channels: their mean, the loudest where they cancel each other, or the first, wherever sound comes in."""

import base64
import io
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from builders import tiny_qwen2_audio
from earwise import audio
from earwise.audio import mixing
from earwise.audio_model import AudioModel
from earwise.commands import loading
from earwise.config.recipe import check_recipe
from earwise.engine.base import Prompt
from earwise.engine.clip_reader import ClipReader
from earwise.errors import AudioError
from earwise.evaluation.options import EvalOptions
from earwise.evaluation.run import evaluate
from earwise.serve.audio_inputs import decode_inputs
from earwise.serve.chat_request import AudioSource
from earwise.serve.http.limits import AudioAccess
from earwise.training.clip_loader import ClipLoader
from earwise.types import Audio, AudioClip, Example, Text, Turn
from scripted_engine import RATE, ScriptedEngine

TONE = (0.4 * np.sin(np.arange(RATE // 2) / 7)).astype(np.float32)
NOISE = np.random.default_rng(0).uniform(-0.4, 0.4, len(TONE)).astype(np.float32)


def wav(*channels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack(channels, axis=1), RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def serve(data: bytes, channel: audio.Channel = "mean") -> list[np.ndarray]:
    """What a server hears of a request with one clip."""
    source = AudioSource("clip 1", base64.b64encode(data).decode())
    return decode_inputs(
        [source], {}, AudioAccess(), sample_rate=RATE, max_clip_s=30.0, max_total_s=60.0, channel=channel
    )


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ((TONE, NOISE), (TONE + NOISE) / 2),  # independent
        ((TONE, 0 * TONE), TONE / 2),  # one silent
        ((TONE, -TONE), TONE),  # antiphase
        ((0.5 * TONE, -0.52 * TONE), -0.52 * TONE),  # nearly antiphase: the louder one
        ((TONE, -0.5 * TONE), TONE / 4),  # a quarter is left: no cancellation
        ((TONE, NOISE, -TONE, -NOISE), NOISE),  # four channels; noise is the louder
        ((0 * TONE, 0 * TONE), 0 * TONE),
    ],
)
def test_mean_unless_the_channels_cancel_each_other(channels: tuple[np.ndarray, ...], expected: np.ndarray) -> None:
    if len(channels) == 4:
        channels = (TONE, 1.5 * NOISE, -TONE, -1.5 * NOISE)
        expected = channels[int(np.argmax([np.square(channel).sum() for channel in channels]))]
    np.testing.assert_allclose(audio.decode_bytes(wav(*channels), sample_rate=RATE), expected, atol=1e-6)
    np.testing.assert_array_equal(audio.decode_bytes(wav(*channels), sample_rate=RATE, channel="first"), channels[0])
    for samples in (np.stack(channels, axis=1), np.stack(channels)):
        np.testing.assert_allclose(audio.to_waveform(samples, RATE, RATE), expected, atol=1e-6)
        np.testing.assert_array_equal(audio.to_waveform(samples, RATE, RATE, channel="first"), channels[0])


def test_cancelling_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(mixing, "_CANCELLING", [])
    with caplog.at_level(logging.WARNING):
        for name in ("a.wav", "b.wav"):
            assert not audio.is_silent(audio.decode_bytes(wav(TONE, -TONE), name, RATE))
    (message,) = caplog.messages
    assert message.startswith("a.wav: its channels cancel each other")


def test_training_evaluation_serving_and_questions_hear_the_same(tmp_path: Path) -> None:
    """A tone on the first channel and its opposite, louder, on the second."""
    (tmp_path / "a.wav").write_bytes(wav(TONE, -0.99 * TONE))
    row = Example("a", (Turn("user", (Audio("a.wav"), Text("What?"))),), ("x",), ("x", "y"), root=tmp_path)
    model = tiny_qwen2_audio()
    for channel in audio.CHANNELS:
        expected = audio.decode(tmp_path / "a.wav", RATE, channel=channel)
        received: list[Prompt] = []

        def complete(prompt: Prompt, received: list[Prompt] = received) -> str:
            received.append(prompt)
            return "<answer>x</answer>"

        engine = ScriptedEngine(complete)
        evaluate(engine, [row], tmp_path / channel, EvalOptions(channel=channel))
        AudioModel(engine, channel=channel).ask(tmp_path / "a.wav", "What?")
        served = serve((tmp_path / "a.wav").read_bytes(), channel)
        for waveform in (*(prompt.waveforms[0] for prompt in received), served[0]):
            np.testing.assert_array_equal(waveform, expected)
        (trained,) = ClipLoader(model, long_audio="error", on_bad_row="stop", channel=channel).load(row) or ()
        np.testing.assert_array_equal(trained, audio.decode(tmp_path / "a.wav", channel=channel))
    clip = AudioClip(tmp_path / "a.wav")
    reader = ClipReader(RATE, 30.0, channel="first")
    np.testing.assert_array_equal(reader.read(clip).waveform, TONE)


def test_recipes_and_commands_know_the_same_values() -> None:
    stage = {"kind": "sft", "data": {"mixture": [{"manifest": "starter:train"}], "channel": "first"}, "max_steps": 1}
    recipe = check_recipe({"recipe": "t", "stages": [stage]}, "t")
    assert recipe.stages[0].data.channel == "first"
    option = loading.channel_option(lambda: None).__click_params__[0]  # type: ignore[attr-defined]
    assert tuple(option.type.choices) == audio.CHANNELS


def test_a_clip_that_is_a_sample_too_long_is_told_as_such_and_a_client_is_told_what_it_can_do() -> None:
    samples = np.tile(TONE, 70)[: 30 * RATE + 1]
    with pytest.raises(AudioError, match=r"clip 1: lasts 30\.0001\d* s, .* is 30 s; send a shorter"):
        serve(wav(samples))
    assert len(audio.decode_bytes(wav(samples[:-1]), sample_rate=RATE, max_s=30)) == 30 * RATE
