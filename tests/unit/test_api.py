"""The Python front door: questions in every form, what an answer shows, and one call each to train and evaluate."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import earwise
from builders import tone
from earwise.audio_model import AudioModel
from earwise.engine.base import Prompt
from earwise.errors import AudioError, ConfigError
from scripted_engine import ScriptedEngine

RATE = 16000
QUESTION, CHOICES = "Which sound is this?", ("a dog", "rain", "a bell")


def words_of(prompt: Prompt) -> str:
    """The text of a prompt's last turn."""
    return " ".join(part.text for part in prompt.turns[-1].parts if isinstance(part, earwise.types.Text))


def describe(prompt: Prompt) -> str:
    """Answers `rain` where that is an option, else the number of clips; reasons if it is asked to think."""
    answer = "rain" if "rain" in words_of(prompt) else f"{len(prompt.waveforms)} clips"
    return f"<think>It drips.</think><answer>{answer}</answer>" if "<think>" in words_of(prompt) else answer


@pytest.fixture
def model() -> AudioModel:
    return AudioModel(ScriptedEngine(describe, max_audio_s=2.0))  # type: ignore[arg-type]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", tone(0.5), RATE)
    return tmp_path / "a.wav"


def test_importing_the_package_imports_nothing_large() -> None:
    code = "import sys, earwise; large = {'torch', 'numpy', 'pydantic', 'yaml', 'click'} & set(sys.modules); "
    code += "sys.exit(f'imported {large}' if large else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_front_door_has_a_dozen_names_and_each_is_importable() -> None:
    assert len(earwise.__all__) <= 12 and earwise.__all__ == sorted(earwise.__all__)
    for name in earwise.__all__:
        assert getattr(earwise, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'listen'"):
        earwise.listen  # noqa: B018


def test_functions_of_the_front_door_stay_functions_when_modules_are_imported() -> None:
    """No module of the package may have the name of a function that the package exports."""
    code = "import importlib, pkgutil, earwise\n"
    code += "for module in pkgutil.walk_packages(earwise.__path__, 'earwise.'):\n"
    code += "    if module.name.count('.') == 1 and not module.name.endswith('__main__'):\n"
    code += "        importlib.import_module(module.name)\n"
    code += "assert all(callable(getattr(earwise, name)) for name in earwise.__all__)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_question_about_a_file_an_array_and_several_clips(model: AudioModel, clip: Path) -> None:
    waveform, rate = soundfile.read(clip)
    for sound in (clip, str(clip), (waveform, rate), (np.stack([waveform] * 2), rate)):
        answer = model.ask(sound, QUESTION, choices=CHOICES)
        assert (str(answer), answer.choice, answer.status) == ("rain", 1, "ok")
        assert answer.reasoning is None and answer.probabilities is None
        assert answer.duration_s == pytest.approx(0.5, abs=0.01)
    assert model.ask([clip, (waveform, rate)], "How many?").answer == "2 clips"
    thought = model.ask(clip, QUESTION, choices=CHOICES, think=True)
    assert thought.reasoning == "It drips." and thought.answer == "rain" and thought.text.startswith("<think>")


def test_a_batch_and_an_async_call_give_the_answers_of_single_calls(model: AudioModel, clip: Path) -> None:
    single = model.ask(clip, QUESTION, choices=CHOICES)
    batch = model.ask_batch(
        [clip, [clip, clip], clip], [QUESTION, "How many?", QUESTION], choices=[CHOICES, (), CHOICES]
    )
    assert [answer.answer for answer in batch] == ["rain", "2 clips", "rain"]
    assert [a.answer for a in model.ask_batch([clip] * 2, QUESTION, choices=CHOICES)] == [single.answer] * 2
    assert model.ask_batch([], QUESTION) == []

    async def ask_twice() -> list[earwise.Answer]:
        return await asyncio.gather(*(model.aask(clip, QUESTION, choices=CHOICES) for _ in range(2)))

    assert [answer.text for answer in asyncio.run(ask_twice())] == [single.text] * 2
    with pytest.raises(ConfigError, match="3 sounds, 2 questions and 3 lists of options do not match"):
        model.ask_batch([clip] * 3, ["a", "b"])


def test_probabilities_are_those_of_the_options_the_most_probable_first(
    model: AudioModel, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.engine, "score", lambda prompts, texts: [[np.log(0.1), np.log(0.3), np.log(0.2)]])
    answer = model.ask(clip, QUESTION, choices=CHOICES, probabilities=True)
    assert answer.probabilities is not None and list(answer.probabilities) == ["rain", "a bell", "a dog"]
    assert list(answer.probabilities.values()) == pytest.approx([3 / 6, 2 / 6, 1 / 6])


def test_long_and_silent_clips(model: AudioModel, tmp_path: Path) -> None:
    lines: list[str] = []
    model = AudioModel(model.engine, lines.append)
    soundfile.write(tmp_path / "long.wav", tone(5.0), RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE, np.float32), RATE)
    with pytest.raises(AudioError, match=r"lasts 5\.00 s"):
        model.ask(tmp_path / "long.wav", QUESTION)
    assert model.ask(tmp_path / "long.wav", QUESTION, long_audio="truncate").duration_s == pytest.approx(2.0)
    assert lines == [f"{tmp_path / 'long.wav'}: only the first 2 of 5.0 s are used"]
    with pytest.raises(ConfigError, match="ask_chunks"):
        model.ask(tmp_path / "long.wav", QUESTION, long_audio="chunk")
    chunks = model.ask_chunks(tmp_path / "long.wav", QUESTION)
    assert [round(chunk.start_s, 2) for chunk in chunks] == [0.0, 1.67, 3.33]
    with pytest.raises(AudioError, match="is silent"):
        model.ask(tmp_path / "silent.wav", QUESTION)
    assert model.ask(tmp_path / "silent.wav", QUESTION, allow_silent=True).answer == "1 clips"


def test_a_notebook_shows_a_player_and_escapes_text(model: AudioModel, clip: Path) -> None:
    page = model.ask([clip, clip], "<b>How many?</b>")._repr_html_()
    assert page.count('<audio controls src="data:audio/wav;base64,UklGR') == 2
    assert "&lt;b&gt;How many?" in page and "2 clips" in page


def test_evaluate_is_one_call(model: AudioModel, tmp_path: Path) -> None:
    starter: Any = earwise.evaluate(
        model, "starter:val", tmp_path / "run", where={"task": "recognition"}, limit=4,
        options=earwise.EvalOptions(long_audio="truncate"),
    )  # fmt: skip
    assert starter["n"] == 4 and set(starter["blind"]) == {"silence", "shuffled"}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["n"] == 4
    with pytest.raises(earwise.errors.DataError, match="no item has"):
        earwise.evaluate(model, "starter:val", tmp_path / "none", where={"task": "juggling"})
