"""Rows that are answered without their sound, and rows that need it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from earwise import cli
from earwise.data import manifest
from earwise.datasets.contribution import ContributionOptions, divide
from earwise.datasets.difficulty import AttemptSettings
from earwise.engine.base import Prompt, SamplingParams
from earwise.errors import ConfigError, DataError
from earwise.types import Audio, Completion, Example, Text, Turn

CHOICES = ("dog", "cat")


@dataclass
class GuessingEngine:
    """An engine that answers every question about odd numbers rightly, whatever it hears, and others `dog`."""

    name: str = "guessing"
    revision: str = "1"
    sample_rate: int = 16000
    max_audio_s: float = 30.0
    heard: list[float] = field(default_factory=list)

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, n: int = 1) -> list[list[Completion]]:
        self.heard += [float(np.abs(waveform).max()) for prompt in prompts for waveform in prompt.waveforms]
        texts = [prompt.turns[-1].parts[-1].text for prompt in prompts]
        right = ["cat" if any(digit in text for digit in "13579") else "dog" for text in texts]
        return [[Completion(f"<answer>{answer}</answer>", (1,), (0.0,)) for _ in range(n)] for answer in right]

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        raise NotImplementedError


@pytest.fixture
def rows(tmp_path: Path) -> list[Example]:
    """Eight questions about one loud clip, all answered `cat`."""
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(np.arange(8000)), 16000)
    turns = [(Turn("user", (Audio("a.wav"), Text(f"question {number}"))),) for number in range(8)]
    return [Example(str(number), turn, ("cat",), CHOICES, root=tmp_path) for number, turn in enumerate(turns)]


OPTIONS = ContributionOptions(AttemptSettings(count=2))


def test_rows_are_divided_by_blind_answers(rows: list[Example], tmp_path: Path) -> None:
    engine = GuessingEngine()
    divided = divide([engine], rows, tmp_path / "out", OPTIONS)
    assert divided.rows == {"weak": 4, "strong": 4} and divided.blind_accuracy == 0.5 and divided.errors == 0
    assert engine.heard and max(engine.heard) == 0, "the engine hears silence"
    weak = manifest.read(tmp_path / "out" / "weak.jsonl")
    assert [row.id for row in weak] == ["1", "3", "5", "7"]
    assert weak[0].meta["blind_pass_count"] == weak[0].meta["blind_attempts"] == 2
    assert weak[0].meta["blind_models"] == ["guessing@1"]
    again = GuessingEngine()
    assert divide([again], rows, tmp_path / "out", OPTIONS) == divided and not again.heard, "what is logged stays"


def test_several_models_are_counted_together(rows: list[Example], tmp_path: Path) -> None:
    @dataclass
    class AlwaysWrong(GuessingEngine):
        name: str = "wrong"

        def generate(self, prompts: Sequence[Prompt], params: SamplingParams, n: int = 1) -> list[list[Completion]]:
            return [[Completion("<answer>dog</answer>", (1,), (0.0,)) for _ in range(n)] for _ in prompts]

    engines = [GuessingEngine(), AlwaysWrong()]
    assert divide(engines, rows, tmp_path / "half", OPTIONS).rows == {"weak": 4, "strong": 4}
    with pytest.raises(DataError, match="none of 8 rows is weak; lower --weak-at"):
        divide(engines, rows, tmp_path / "most", replace(OPTIONS, weak_at=0.75))
    assert not (tmp_path / "most" / "strong.jsonl").exists()


def test_published_rows_say_it_themselves(
    rows: list[Example], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = ("weak", "strong")
    marked = [replace(row, meta={"audio-contribution": parts[number % 2]}) for number, row in enumerate(rows)]
    manifest.write(tmp_path / "all.jsonl", marked)
    command = ["build", "contribution", str(tmp_path / "all.jsonl"), "--out", str(tmp_path / "out"), "--no-check"]
    assert cli.run([*command, "--json"]) == 0
    summary = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (summary["weak"], summary["strong"], summary["blind_accuracy"]) == (4, 4, None)
    assert [row.id for row in manifest.read(tmp_path / "out" / "strong.jsonl")] == ["1", "3", "5", "7"]
    manifest.write(tmp_path / "all.jsonl", rows)
    assert cli.run(command) == 2
    assert "does not say its audio-contribution (weak or strong); give a model" in capfd.readouterr().err
    with pytest.raises(ConfigError, match="--weak-at 0 is not a share"):
        ContributionOptions(weak_at=0)
