"""What people watch while a run goes on: TensorBoard (the default), wandb, trackio, or a tracker of one's own.

Behind `train/mirror.py`, which hands the rows of the logs on and sees to it that no tracker stops a run. Each stage is
a run of its own in a tracker (its steps count from 1), grouped under the run's folder. A sampled prompt is shown with
its clip to listen to, its options, and what was said and (where something is rewarded) earned. Directly on the
libraries: accelerate's trackers take numbers and pictures only.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from earwise.types import Waveform

TRACKERS = {
    "tensorboard": "earwise.train.logging.trackers:TensorBoard",
    "wandb": "earwise.train.logging.trackers:Wandb",
    "trackio": "earwise.train.logging.trackers:Trackio",
}
PROJECT = "earwise"
# What is kept of a clip: 320 kB in TensorBoard's files, whose checksums, in Python, take a quarter of a second for it.
LISTEN_S, LISTEN_RATE = 10.0, 16000
GROUPS = {
    "lr": "optimizer", "grad_norm": "optimizer",
    "seconds": "speed", "data_seconds": "speed", "tokens_per_s": "speed", "audio_s_per_s": "speed",
}  # fmt: skip
PLUMBING = ("optimizer/", "speed/", "phase/", "run/")  # what a stage's settings are not judged by
COLUMNS = ("sample", "question", "options", "right", "completion", "reward", "times")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Watched:
    """What a tracker is opened for.

    Attributes:
        run: Folder of the run.
        stage: Name of the stage's folder.
        first: Step of the first row that it will be given.
        settings: The recipe without its other stages; nested plain values.
        key: Twelve hexadecimal digits; the same when the stage is resumed.
    """

    run: Path
    stage: str
    first: int
    settings: Mapping[str, Any]
    key: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with what was sampled for it: a row of `rollouts.jsonl`, and its clips as mono `LISTEN_RATE` Hz."""

    row: Row
    waveforms: Sequence[Waveform]

    @property
    def said(self) -> list[tuple[float | None, str, int]]:
        """Reward (None where nothing is rewarded: greedy answers) and text of each distinct completion and how often it
        was sampled, the best first."""
        said = self.row["completions"]
        counts = Counter(zip(self.row["rewards"] or [None] * len(said), said, strict=True))
        return sorted(((*pair, times) for pair, times in counts.items()), key=lambda one: -(one[0] or 0.0))


class Tracker(Protocol):
    """A place that shows runs; made by calling it with a `Watched`. Whatever it raises is counted, not raised."""

    takes_back: bool
    """Whether steps may be given again after a resume, since it forgets those from `Watched.first` on."""

    def log(self, step: int, values: Mapping[str, float], samples: Sequence[Sample]) -> None:
        """Show one step."""

    def close(self) -> None:
        """Finish writing."""


def grouped(row: Row) -> dict[str, float]:
    """The numbers of a log row under names that trackers group by what stands before the slash.

    >>> grouped({"step": 3, "stage": "stage-0-sft", "lr": 0.1, "sft/loss": 2, "ids": ["a"]})
    {'optimizer/lr': 0.1, 'sft/loss': 2.0}
    """
    numbers = {
        name: float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {name if "/" in name else f"{GROUPS.get(name, 'run')}/{name}": value for name, value in numbers.items()}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings under dotted names, lists as JSON; None is left out.

    >>> flat({"seed": 1, "optimizer": {"learning_rate": 0.1, "betas": [0.9, 0.99]}})
    {'seed': 1, 'optimizer.learning_rate': 0.1, 'optimizer.betas': '[0.9, 0.99]'}
    """
    out: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            out[prefix + name] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return out


def markdown(sample: Sample) -> str:
    """A sample to read: question, options (the right one in bold), clips, and every completion under its reward, if it
    has one.

    What models and data say stands in code blocks by indentation, which nothing in it can end.
    """
    row = sample.row
    options = [f"- **{one}**" if one in row["answer"] else f"- {one}" for one in row["choices"] or row["answer"]]
    said = [
        f"{'said' if reward is None else f'reward {reward:g}'}{f' ×{times}' if times > 1 else ''}\n\n"
        f"{_indented(text or '(nothing)')}"
        for reward, text, times in sample.said
    ]
    clips = ", ".join(Path(clip).name for clip in row["audio"])
    return "\n\n".join([_indented(row["question"]), "\n".join(options), f"clip: `{clips}`", *said])


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def clips(number: int, sample: Sample) -> dict[str, Waveform]:
    """The sounds of a step's sample number `number` (from 1) under names that trackers show."""
    several = len(sample.waveforms) > 1
    return {f"samples/{number}/clip{place if several else ''}": wave for place, wave in enumerate(sample.waveforms, 1)}


def table(samples: Sequence[Sample]) -> list[list[Any]]:
    """Samples as rows under `COLUMNS`, a distinct completion a row."""
    rows: list[list[Any]] = []
    for number, sample in enumerate(samples, 1):
        row = sample.row
        about = [f"samples/{number}", row["question"], " | ".join(row["choices"]), " | ".join(row["answer"])]
        rows += [[*about, text, reward, times] for reward, text, times in sample.said]
    return rows


def media(library: Any, values: Mapping[str, float], samples: Sequence[Sample]) -> dict[str, Any]:
    """A step for wandb or trackio, whose classes have the same names: numbers, a table of words, and the clips beside
    it (trackio's tables play none, and wandb keeps those of a table outside an offline run's folder)."""
    shown: dict[str, Any] = dict(values)
    if samples:
        shown["samples/table"] = library.Table(columns=list(COLUMNS), data=table(samples))
    for number, sample in enumerate(samples, 1):
        for name, wave in clips(number, sample).items():
            pcm = (np.clip(wave, -1, 1) * np.iinfo(np.int16).max).astype(np.int16)  # trackio makes floats equally loud
            shown[name] = library.Audio(pcm, sample_rate=LISTEN_RATE, caption=sample.row["question"])
    return shown


class TensorBoard:
    """Event files under RUN/tensorboard/STAGE."""

    takes_back = True

    def __init__(self, watched: Watched) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = watched.run / "tensorboard" / watched.stage
        again = watched.first if watched.first > 1 or self._folder.exists() else None
        self._writer = SummaryWriter(str(self._folder), purge_step=again, flush_secs=10)
        self._settings = watched.settings if watched.first == 1 else None

    def __str__(self) -> str:
        return f"tensorboard --logdir {self._folder.parent}"

    def log(self, step: int, values: Mapping[str, float], samples: Sequence[Sample]) -> None:
        if self._settings is not None:
            self._describe(self._settings, values)
            self._settings = None
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        for number, sample in enumerate(samples, 1):
            self._writer.add_text(f"samples/{number}", markdown(sample), step)
            for tag, wave in clips(number, sample).items():
                self._writer.add_audio(tag, np.clip(wave, -1, 1), step, sample_rate=LISTEN_RATE)

    def close(self) -> None:
        self._writer.close()

    def _describe(self, settings: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """The recipe to read, and as hyperparameters beside the stage's own metrics."""
        from torch.utils.tensorboard.summary import hparams

        metrics = {name: 0 for name in values if not name.startswith(PLUMBING)}
        experiment, start, _ = hparams(flat(settings), metrics)  # the third would say that the run has ended well
        for summary in (experiment, start):
            self._writer._get_file_writer().add_summary(summary)  # `add_hparams` would make a run of its own
        self._writer.add_text("recipe", _indented(json.dumps(settings, indent=1, ensure_ascii=False)))


class Wandb:
    """A run of wandb for each stage, grouped by the run's folder; offline where WANDB_MODE says so."""

    takes_back = False

    def __init__(self, watched: Watched) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), group=watched.run.name,
            name=f"{watched.run.name}/{watched.stage}", dir=watched.run, id=watched.key, resume="allow",
            reinit="create_new", config=dict(watched.settings), settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip

    def __str__(self) -> str:
        return f"offline; wandb sync {Path(self._run.dir).parent}" if self._run.offline else str(self._run.url)

    def log(self, step: int, values: Mapping[str, float], samples: Sequence[Sample]) -> None:
        self._run.log(media(self._wandb, values, samples), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio for each stage, grouped by the run's folder, in its local database or where its own environment
    variables say."""

    takes_back = False

    def __init__(self, watched: Watched) -> None:
        import trackio

        self._trackio = trackio
        with redirect_stdout(sys.stderr):  # it prints; our standard output is for results
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT), group=watched.run.name,
                name=f"{watched.run.name}-{watched.stage}-{watched.key}", config=dict(watched.settings),
                resume="allow", embed=False,
            )  # fmt: skip

    def __str__(self) -> str:
        return f"trackio show --project {self._run.project}"

    def log(self, step: int, values: Mapping[str, float], samples: Sequence[Sample]) -> None:
        self._run.log(media(self._trackio, values, samples), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._trackio.finish()
