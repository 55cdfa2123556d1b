"""Trackers that show a run while it goes on: TensorBoard (the default), wandb, trackio, or one of your own.

`tracking.py` passes the rows of the logs on to them and makes sure that no tracker can stop a run. In a tracker, each
stage is a run of its own (its steps count from 1), grouped under the name of the run's folder. A logged prompt is shown
with its clip to play, its options, the completions and, where there are rewards, what each of them earned. The
libraries are used directly, because accelerate's trackers take only numbers and images.
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
    "tensorboard": "earwise.training.logging.trackers:TensorBoard",
    "wandb": "earwise.training.logging.trackers:Wandb",
    "trackio": "earwise.training.logging.trackers:Trackio",
}
PROJECT = "earwise"
# Logged clips are cut and resampled: 10 s take 320 kB in TensorBoard's files, whose checksum is computed in Python.
CLIP_SECONDS, CLIP_RATE = 10.0, 16000
GROUPS = {
    "lr": "optimizer", "grad_norm": "optimizer",
    "seconds": "speed", "data_seconds": "speed", "tokens_per_s": "speed", "audio_s_per_s": "speed",
    "mfu": "speed",
}  # fmt: skip
NOT_RESULTS = ("optimizer/", "speed/", "phase/", "run/")
"""Prefixes of metrics that do not say how well a stage trains, and so are not compared between hyperparameters."""
COLUMNS = ("sample", "question", "options", "answer", "completion", "reward", "count")

LogRow = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TrackedStage:
    """The stage that a tracker is opened for.

    Attributes:
        run: Folder of the run.
        stage: Name of the stage's folder.
        first_step: Number of the first step that will be logged.
        settings: The recipe without its other stages, as nested plain values.
        key: Identifier of twelve hexadecimal digits; it stays the same when the stage is resumed.
    """

    run: Path
    stage: str
    first_step: int
    settings: Mapping[str, Any]
    key: str


@dataclass(frozen=True, slots=True)
class LoggedSample:
    """A prompt with its completions.

    Attributes:
        row: The row of `rollouts.jsonl`.
        waveforms: The beginning of each clip, mono at `CLIP_RATE` Hz.
    """

    row: LogRow
    waveforms: Sequence[Waveform]

    @property
    def distinct_completions(self) -> list[tuple[float | None, str, int]]:
        """Reward, text and number of occurrences of each distinct completion, the highest reward first.

        The reward is None in stages without rewards.
        """
        texts = self.row["completions"]
        counts = Counter(zip(self.row["rewards"] or [None] * len(texts), texts, strict=True))
        return sorted(((*pair, count) for pair, count in counts.items()), key=lambda entry: -(entry[0] or 0.0))


class Tracker(Protocol):
    """A program that shows runs. It is made by calling its class with a `TrackedStage`; its exceptions are counted and
    reported, and never stop the run."""

    discards_later_steps: bool
    """Whether it discards steps from `TrackedStage.first_step` on when a stage is resumed, so that they may be logged
    again."""

    def log(self, step: int, metrics: Mapping[str, float], samples: Sequence[LoggedSample]) -> None:
        """Show one step."""

    def close(self) -> None:
        """Finish writing."""


def group_metrics(row: LogRow) -> dict[str, float]:
    """The numbers of a log row under names with a prefix, by which trackers group them.

    >>> group_metrics({"step": 3, "stage": "stage-0-sft", "lr": 0.1, "sft/loss": 2, "ids": ["a"]})
    {'optimizer/lr': 0.1, 'sft/loss': 2.0}
    """
    numbers = {
        name: float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {name if "/" in name else f"{GROUPS.get(name, 'run')}/{name}": value for name, value in numbers.items()}


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings as one dictionary with dotted names; lists become JSON, None is left out.

    >>> flatten_settings({"seed": 1, "optimizer": {"learning_rate": 0.1, "betas": [0.9, 0.99]}})
    {'seed': 1, 'optimizer.learning_rate': 0.1, 'optimizer.betas': '[0.9, 0.99]'}
    """
    flat: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten_settings(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat


def markdown(sample: LoggedSample) -> str:
    """A sample as Markdown: question, options (accepted answers in bold), clip names, and each completion with its
    reward, if it has one.

    Texts of models and data become indented code blocks, which nothing inside them can end.
    """
    row = sample.row
    options = [
        f"- **{option}**" if option in row["answer"] else f"- {option}" for option in row["choices"] or row["answer"]
    ]
    completions = [
        f"{'completion' if reward is None else f'reward {reward:g}'}{f' ×{count}' if count > 1 else ''}\n\n"
        f"{_indented(text or '(nothing)')}"
        for reward, text, count in sample.distinct_completions
    ]
    clip_names = ", ".join(Path(clip).name for clip in row["audio"])
    return "\n\n".join([_indented(row["question"]), "\n".join(options), f"clip: `{clip_names}`", *completions])


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def named_clips(number: int, sample: LoggedSample) -> dict[str, Waveform]:
    """The waveforms of sample number `number` (from 1) of a step, under the names that trackers show."""
    several = len(sample.waveforms) > 1
    return {
        f"samples/{number}/clip{index if several else ''}": waveform
        for index, waveform in enumerate(sample.waveforms, 1)
    }


def sample_table(samples: Sequence[LoggedSample]) -> list[list[Any]]:
    """Samples as table rows under `COLUMNS`, one row for each distinct completion."""
    table: list[list[Any]] = []
    for number, sample in enumerate(samples, 1):
        row = sample.row
        prompt = [f"samples/{number}", row["question"], " | ".join(row["choices"]), " | ".join(row["answer"])]
        table += [[*prompt, text, reward, count] for reward, text, count in sample.distinct_completions]
    return table


def media_payload(library: Any, metrics: Mapping[str, float], samples: Sequence[LoggedSample]) -> dict[str, Any]:
    """One step for wandb or trackio, whose classes have the same names: metrics, a table of completions, and clips.

    Clips stand beside the table, because trackio's tables cannot play audio, and wandb stores the audio of a table
    outside of an offline run's folder.
    """
    payload: dict[str, Any] = dict(metrics)
    if samples:
        payload["samples/table"] = library.Table(columns=list(COLUMNS), data=sample_table(samples))
    for number, sample in enumerate(samples, 1):
        for name, waveform in named_clips(number, sample).items():
            pcm = (np.clip(waveform, -1, 1) * np.iinfo(np.int16).max).astype(np.int16)  # trackio normalises floats
            payload[name] = library.Audio(pcm, sample_rate=CLIP_RATE, caption=sample.row["question"])
    return payload


class TensorBoard:
    """Event files under RUN/tensorboard/STAGE."""

    discards_later_steps = True

    def __init__(self, tracked: TrackedStage) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = tracked.run / "tensorboard" / tracked.stage
        purge_step = tracked.first_step if tracked.first_step > 1 or self._folder.exists() else None
        self._writer = SummaryWriter(str(self._folder), purge_step=purge_step, flush_secs=10)
        self._settings = tracked.settings if tracked.first_step == 1 else None

    def __str__(self) -> str:
        return f"tensorboard --logdir {self._folder.parent}"

    def log(self, step: int, metrics: Mapping[str, float], samples: Sequence[LoggedSample]) -> None:
        if self._settings is not None:
            self._log_settings(self._settings, metrics)
            self._settings = None
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        for number, sample in enumerate(samples, 1):
            self._writer.add_text(f"samples/{number}", markdown(sample), step)
            for tag, waveform in named_clips(number, sample).items():
                self._writer.add_audio(tag, np.clip(waveform, -1, 1), step, sample_rate=CLIP_RATE)

    def close(self) -> None:
        self._writer.close()

    def _log_settings(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Log the recipe as text, and as hyperparameters beside the stage's own metrics."""
        from torch.utils.tensorboard.summary import hparams

        results = {name: 0 for name in metrics if not name.startswith(NOT_RESULTS)}
        experiment, start, _ = hparams(flatten_settings(settings), results)  # the third would mark the run as finished
        for summary in (experiment, start):
            self._writer._get_file_writer().add_summary(summary)  # `add_hparams` would create a separate run
        self._writer.add_text("recipe", _indented(json.dumps(settings, indent=1, ensure_ascii=False)))


class Wandb:
    """One wandb run for each stage, grouped by the run's folder; offline if WANDB_MODE says so."""

    discards_later_steps = False

    def __init__(self, tracked: TrackedStage) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), group=tracked.run.name,
            name=f"{tracked.run.name}/{tracked.stage}", dir=tracked.run, id=tracked.key, resume="allow",
            reinit="create_new", config=dict(tracked.settings), settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip

    def __str__(self) -> str:
        return f"offline; wandb sync {Path(self._run.dir).parent}" if self._run.offline else str(self._run.url)

    def log(self, step: int, metrics: Mapping[str, float], samples: Sequence[LoggedSample]) -> None:
        self._run.log(media_payload(self._wandb, metrics, samples), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """One trackio run for each stage, grouped by the run's folder, in trackio's local database or wherever its own
    environment variables point."""

    discards_later_steps = False

    def __init__(self, tracked: TrackedStage) -> None:
        import trackio

        self._trackio = trackio
        with redirect_stdout(sys.stderr):  # trackio prints; standard output is for results
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT), group=tracked.run.name,
                name=f"{tracked.run.name}-{tracked.stage}-{tracked.key}", config=dict(tracked.settings),
                resume="allow", embed=False,
            )  # fmt: skip

    def __str__(self) -> str:
        return f"trackio show --project {self._run.project}"

    def log(self, step: int, metrics: Mapping[str, float], samples: Sequence[LoggedSample]) -> None:
        self._run.log(media_payload(self._trackio, metrics, samples), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._trackio.finish()
