"""What TensorBoard, wandb and trackio hold after a run is read back from their own files; a run is never stopped by
them, and a resumed one shows no step twice."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile

from child_process import python_path
from earwise.errors import ConfigError
from earwise.training.logging.trackers import (
    CLIP_RATE,
    CLIP_SECONDS,
    LoggedSample,
    TrackedStage,
    flatten_settings,
    group_metrics,
    markdown,
    sample_table,
)
from earwise.training.logging.tracking import MAX_FAILURES, SAMPLES_PER_STEP, Tracking, check_trackers

SETTINGS = {
    "recipe": "t",
    "seed": 3,
    "stage": {"kind": "grpo", "optimizer": {"learning_rate": 1e-3, "betas": [0.9, 0.99]}},
}


def metrics(step: int) -> dict[str, Any]:
    """A row of metrics.jsonl."""
    return {"step": step, "stage": "stage-0-grpo", "lr": 0.1, "seconds": 1.5, "ids": ["a"], "grpo/reward": step / 10}


def rollout(step: int, clip: Path, name: str = "a") -> dict[str, Any]:
    """A row of rollouts.jsonl."""
    return {
        "step": step, "id": name, "audio": [str(clip)], "question": "Which | sound?", "choices": ["dog", "cat"],
        "answer": ["dog"], "completions": ["<answer>cat</answer>", "<answer>dog</answer>"], "rewards": [0.0, 1.0],
    }  # fmt: skip


def tone(path: Path, duration_s: float) -> Path:
    """A tone of a quarter of full scale, at 22.05 kHz."""
    soundfile.write(path, 0.25 * np.sin(2 * np.pi * 440 * np.arange(round(duration_s * 22050)) / 22050), 22050)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Half a second of a tone."""
    return tone(tmp_path / "tone.wav", 0.5)


def log_steps(tracking: Tracking, steps: Sequence[int], clip: Path | None = None) -> None:
    """Log some steps, with more samples of a clip than are shown, and close the trackers."""
    for step in steps:
        if clip:
            for number in range(SAMPLES_PER_STEP + 1):
                tracking.log_sample(rollout(step, clip, f"p{number}"))
        tracking.log_step(metrics(step))
    tracking.close()


class RecordingTracker:
    """A tracker of the user that records what it receives, and fails at the steps `failing_steps` (0: when opened)."""

    discards_later_steps = False
    logged: ClassVar[list[tuple[int, Mapping[str, float], list[str]]]] = []
    opened: ClassVar[list[TrackedStage]] = []
    failing_steps: ClassVar[set[int]] = set()
    clip_lengths: ClassVar[list[int]] = []

    def __init__(self, tracked: TrackedStage) -> None:
        if 0 in self.failing_steps:
            raise RuntimeError("no room")
        self.opened.append(tracked)

    def __str__(self) -> str:
        return "in memory"

    def log(self, step: int, values: Mapping[str, float], samples: Sequence[LoggedSample]) -> None:
        if step in self.failing_steps:
            raise ConnectionError("server\nis away")
        self.clip_lengths.extend(len(waveform) for sample in samples for waveform in sample.waveforms)
        self.logged.append((step, values, [sample.row["id"] for sample in samples]))

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def recorder() -> type[RecordingTracker]:
    RecordingTracker.logged, RecordingTracker.opened = [], []
    RecordingTracker.failing_steps, RecordingTracker.clip_lengths = set(), []
    return RecordingTracker


def test_names_are_grouped_and_settings_are_flat() -> None:
    assert group_metrics(metrics(3)) == {"optimizer/lr": 0.1, "speed/seconds": 1.5, "grpo/reward": 0.3}
    assert group_metrics({"step": 1, "new": 2, "stuck": True, "phase/hear": 0.5}) == {"run/new": 2.0, "phase/hear": 0.5}
    assert flatten_settings(SETTINGS | {"none": None}) == {
        "recipe": "t", "seed": 3, "stage.kind": "grpo", "stage.optimizer.learning_rate": 1e-3,
        "stage.optimizer.betas": "[0.9, 0.99]",
    }  # fmt: skip


def test_sample_has_question_completions_and_rewards(tmp_path: Path) -> None:
    fields = {"completions": ["a\n```\nb", "", "a\n```\nb"], "rewards": [0.0, 1.0, 0.0]}
    sample = LoggedSample(rollout(1, tmp_path / "tone.wav") | fields, ())
    assert markdown(sample).split("\n\n") == [
        "    Which | sound?", "- **dog**\n- cat", "clip: `tone.wav`", "reward 1", "    (nothing)", "reward 0 ×2",
        "    a\n    ```\n    b",
    ]  # fmt: skip
    assert sample_table([sample])[0] == ["samples/1", "Which | sound?", "dog | cat", "dog", "", 1.0, 1]


def test_samples_go_with_their_step(tmp_path: Path, clip: Path, recorder: type[RecordingTracker]) -> None:
    tracking = Tracking([f"{__name__}:RecordingTracker"], tmp_path, "stage-0-grpo", SETTINGS, lambda _: None)
    tracking.log_sample(rollout(1, clip, "of a step that was never finished"))
    for number in range(SAMPLES_PER_STEP + 2):
        tracking.log_sample(rollout(2, clip, f"p{number}"))
    tracking.log_step(metrics(2))
    tracking.log_step(metrics(3))
    assert [(step, ids) for step, _, ids in recorder.logged] == [(2, ["p0", "p1"]), (3, [])] and SAMPLES_PER_STEP == 2
    assert recorder.opened[0].first_step == 2 and recorder.opened[0].settings == SETTINGS


def test_steps_that_cannot_be_discarded_are_logged_once(tmp_path: Path, recorder: type[RecordingTracker]) -> None:
    """Stopped at step 5, resumed from a checkpoint at 2, stopped at 4, resumed from 2 again."""
    for steps in ((1, 2, 3, 4, 5), (3, 4), (3, 4, 5, 6)):
        log_steps(Tracking([f"{__name__}:RecordingTracker"], tmp_path, "stage-0-grpo", SETTINGS, lambda _: None), steps)
    assert [step for step, _, _ in recorder.logged] == [1, 2, 3, 4, 5, 6]
    assert len({tracked.key for tracked in recorder.opened}) == 1


def test_failing_tracker_is_reported_counted_and_disabled(tmp_path: Path, recorder: type[RecordingTracker]) -> None:
    recorder.failing_steps = {2, 5, 6, 7}
    messages: list[str] = []
    log_steps(
        Tracking([f"{__name__}:RecordingTracker"], tmp_path, "stage-0-grpo", SETTINGS, messages.append), range(1, 10)
    )
    assert [step for step, _, _ in recorder.logged] == [1, 3, 4]  # not 8: it is disabled after three failures in a row
    assert MAX_FAILURES == 3 and len(messages) == 4
    assert messages[1].startswith(
        f"tracker {__name__}:RecordingTracker failed (ConnectionError: server is away); training goes on"
    )
    assert messages[2].endswith("is given up; metrics.jsonl has everything")
    assert "6 steps of stage-0-grpo are not shown" in messages[3]


def test_tracker_that_cannot_be_opened_is_tried_once(tmp_path: Path, recorder: type[RecordingTracker]) -> None:
    recorder.failing_steps = {0}
    messages: list[str] = []
    log_steps(Tracking([f"{__name__}:RecordingTracker"], tmp_path, "stage-0-grpo", SETTINGS, messages.append), [1, 2])
    assert ["RuntimeError: no room" in messages[0], "given up" in messages[0], "2 steps" in messages[1]] == [True] * 3


def test_long_clip_is_cut_and_its_path_is_relative_to_the_run(tmp_path: Path, recorder: type[RecordingTracker]) -> None:
    tone(tmp_path / "long.wav", CLIP_SECONDS + 2)
    tracking = Tracking([f"{__name__}:RecordingTracker"], tmp_path, "stage-0-grpo", SETTINGS, lambda _: None)
    tracking.log_sample(rollout(1, Path("long.wav")))
    tracking.log_step(metrics(1))
    assert recorder.clip_lengths == [CLIP_SECONDS * CLIP_RATE]


def test_sample_of_a_missing_clip_is_logged_without_audio(tmp_path: Path, recorder: type[RecordingTracker]) -> None:
    tracking = Tracking([f"{__name__}:RecordingTracker"], tmp_path, "stage-0-grpo", SETTINGS, lambda _: None)
    tracking.log_sample(rollout(1, tmp_path / "gone.wav"))
    tracking.log_step(metrics(1))
    assert recorder.logged[0][2] == ["a"]


def test_unknown_and_missing_trackers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"tracker 'tensorbord' is none of .*did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    monkeypatch.setattr("earwise.config.resolve.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"trackers: \[wandb\] need wandb.*pip install 'earwise\[track\]'"):
        check_trackers(["wandb"])


def read_events(folder: Path) -> Any:
    """The events of a TensorBoard folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "audio": 0, "tensors": 0})
    events.Reload()
    return events


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_has_each_step_once_with_its_clips(tmp_path: Path, clip: Path) -> None:
    for steps in ((1, 2, 3, 4, 5), (3, 4), (3, 4, 5, 6)):
        log_steps(Tracking(["tensorboard"], tmp_path, "stage-0-grpo", SETTINGS, lambda _: None), steps, clip)
        # TensorBoard reads files in the order of their names: the second of their start, then a counter as text, of
        # which 10 comes before 9. Runs that are resumed start in different seconds.
        time.sleep(1 - time.time() % 1)
    events = read_events(tmp_path / "tensorboard" / "stage-0-grpo")
    rewards = events.Scalars("grpo/reward")
    assert [event.step for event in rewards] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in rewards] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert set(events.Tags()["scalars"]) == {"grpo/reward", "optimizer/lr", "speed/seconds"}
    assert events.Tags()["audio"] == [f"samples/{number}/clip" for number in range(1, SAMPLES_PER_STEP + 1)]
    clips = events.Audio("samples/1/clip")
    assert [event.step for event in clips] == [1, 2, 3, 4, 5, 6]
    assert (clips[0].sample_rate, clips[0].length_frames) == (CLIP_RATE, CLIP_RATE // 2)
    text = events.Tensors("samples/1/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "<answer>dog</answer>" in text and "reward 1" in text
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    start = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    assert start.session_start_info.hparams["stage.optimizer.learning_rate"].number_value == 1e-3


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed: pip install 'earwise[track]'")
def test_wandb_offline_writes_a_run_that_can_be_read_back(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(["wandb"])
    messages: list[str] = []
    for steps in ((1, 2), (2, 3)):
        log_steps(Tracking(["wandb"], tmp_path, "stage-0-grpo", SETTINGS, messages.append), steps, clip)
    wandb.teardown()  # the file is complete when wandb's own process has ended
    assert [line.split(";")[0] for line in messages] == ["tracker wandb: offline"] * 2
    rows = [row for log in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")) for row in history(log)]
    assert [(row["_step"], row["grpo/reward"]) for row in rows] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    tables = sorted(tmp_path.glob("wandb/offline-run-*/files/media/table/samples/*.table.json"))
    assert len(tables) == 3
    table = json.loads(tables[0].read_text())
    assert table["columns"] == ["sample", "question", "options", "answer", "completion", "reward", "count"]
    assert table["data"][0][3:] == ["dog", "<answer>dog</answer>", 1, 1] and len(table["data"]) == 2 * SAMPLES_PER_STEP
    clips = sorted(tmp_path.glob("wandb/offline-run-*/files/media/audio/samples/1/clip_*.wav"))
    assert len(clips) == 3
    waveform, rate = soundfile.read(clips[0])
    assert rate == CLIP_RATE and len(waveform) == CLIP_RATE // 2 and 0.24 < waveform.max() < 0.26


def history(log: Path) -> list[dict[str, Any]]:
    """The rows of an offline run's transaction log: protocol buffers in LevelDB's log format behind 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, content = log.read_bytes(), 7, b""
    rows = []
    while position + 7 <= len(data):
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        if kind not in (1, 2, 3, 4) or 32768 - position % 32768 < 7:  # the rest of a block
            position += 32768 - position % 32768
            continue
        content, position = content + data[position + 7 : position + 7 + size], position + 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            record = wandb_internal_pb2.Record.FromString(content)
            content = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed: pip install 'earwise[track]'")
def test_trackio_keeps_a_local_database(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3
    import subprocess

    program = (
        "import sys; from pathlib import Path; import test_trackers as t\n"
        "for steps in ((1, 2), (2, 3)):\n"
        "    tracking = t.Tracking(['trackio'], Path(sys.argv[1]), 'stage-0-grpo', t.SETTINGS, print)\n"
        "    t.log_steps(tracking, steps, Path(sys.argv[2]))"
    )
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    monkeypatch.setenv("PYTHONPATH", python_path(Path(__file__).parent))
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(clip)], capture_output=True, text=True, check=True
    )
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        "tracker trackio"
    ] * 2  # and no lines of trackio itself
    with sqlite3.connect(tmp_path / "trackio" / "earwise.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [step for _, step, _ in rows] == [1, 2, 3] and len({name for name, _, _ in rows}) == 1
    values = json.loads(rows[2][2])
    assert values["grpo/reward"] == 0.3
    assert values["samples/table"]["_value"][0]["completion"] == "<answer>dog</answer>"
    waveform, rate = soundfile.read(tmp_path / "trackio" / "media" / values["samples/1/clip"]["file_path"])
    assert rate == CLIP_RATE and 0.24 < waveform.max() < 0.26
