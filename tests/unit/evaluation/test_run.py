"""No item leaves the denominator, a killed run is continued, batches change nothing, and a model that ignores the audio
is recognised."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from child_process import python_path
from earwise.engine.base import Prompt, SamplingParams
from earwise.errors import ConfigError, DataError, EngineError
from earwise.evaluation.items import permuted
from earwise.evaluation.rows import is_formatted
from earwise.evaluation.run import EvalOptions, EvalProgress, evaluate, evaluate_with_controls
from earwise.evaluation.terminal import as_text
from earwise.types import Audio, Example, Text, Turn
from scripted_engine import (
    PITCHES,
    ScriptedEngine,
    answer_by_pitch,
    answer_first_option,
    prompt_options,
    tone_task,
    write_clip,
)

FIELDS = {
    "id", "prompt", "output", "reasoning", "answer", "status", "scores", "task", "category", "audio_sha256", "decoding",
    "scorer",
}  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def timeless(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(folder)]


def test_a_model_that_hears_is_right_and_every_field_is_there(tmp_path: Path) -> None:
    metrics = evaluate(ScriptedEngine(answer_by_pitch), tone_task(tmp_path), tmp_path / "run")
    assert {kind: row["accuracy"] for kind, row in metrics["accuracy"].items()} == {
        "official": 1,
        "strict": 1,
        "lenient": 1,
    }
    assert metrics["n"] == metrics["accuracy"]["official"]["n"] == 16
    assert metrics["accuracy"]["official"]["low"] < 1
    assert metrics["format"]["accuracy"] == 1 and metrics["chance"] == 0.25 and metrics["chance_n"] == metrics["n"]
    assert (
        set(metrics["by"]["task"]) == {"recognition", "pitch"}
        and metrics["by"]["difficulty"]["easy"]["official"]["n"] == 6
    )
    row = rows(tmp_path / "run")[0]
    assert row.keys() >= FIELDS
    assert row["scores"] == {"official": 1.0, "strict": 1.0, "lenient": 1.0} and row["gold"] == ["low tone"]
    assert len(row["audio_sha256"]) == 64 and (tmp_path / "run" / row["audio"][0]).is_file()
    assert row["prompt"].startswith("Which sound is this? Please choose") and row["decoding"]["temperature"] == 0.0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics


def test_chance_is_said_of_the_items_it_covers(tmp_path: Path) -> None:
    task = tone_task(tmp_path, 12)
    mixed = [
        *task[:4],
        *(replace(example, choices=(example.answer[0], "a bell")) for example in task[4:6]),
        *(replace(example, choices=()) for example in task[6:]),
    ]
    metrics = evaluate(ScriptedEngine(deaf_of_all), mixed, tmp_path / "run", EvalOptions(seed=3))
    assert metrics["n"] == 12 and metrics["chance_n"] == 6
    assert metrics["chance"] == pytest.approx((4 * 0.25 + 2 * 0.5) / 6)
    kinds = {name: (row["chance"], row["official"]["n"]) for name, row in metrics["kinds"].items()}
    assert kinds == {"open": (None, 6), "4 options": (0.25, 4), "2 options": (0.5, 2)}
    assert metrics["kinds"]["open"]["official"]["accuracy"] == 0
    text = as_text(metrics | {"blind": {}})
    assert "n = 12, chance 33.3 % of the 6 with options (6 are open)" in text and "4 options, 4" in text


def deaf_of_all(prompt: Prompt) -> str:
    return answer_first_option(prompt) if prompt_options(prompt) else "<answer>something</answer>"


def test_measuring_needs_nothing_of_training() -> None:
    code = "import sys, earwise.apps.recipe_eval\n"
    code += "print([m for m in sys.modules if m.startswith(('earwise.training', 'accelerate'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("say", "status", "right"),
    [
        (lambda prompt: "", "unparsed", 0),
        (lambda prompt: "qwxz 17 &&", "unparsed", 0),
        (lambda prompt: f"either {prompt_options(prompt)[0]} or {prompt_options(prompt)[1]}", "ambiguous", 0),
        (answer_by_pitch, "ok", 16),
    ],
)
def test_n_never_shrinks(tmp_path: Path, say: Any, status: str, right: int) -> None:
    metrics = evaluate(ScriptedEngine(say), tone_task(tmp_path), tmp_path / "run")
    assert metrics["n"] == 16 and metrics["status"] == {status: 16}
    for kind in ("strict", "lenient"):
        assert metrics["accuracy"][kind]["accuracy"] * 16 == right
        assert metrics["accuracy"][kind]["n"] == 16
    if status != "ok":
        assert metrics[status] == {"count": 16, "n": 16, "share": 1.0}


def test_unreadable_clips_are_error_rows_counted_as_wrong(tmp_path: Path) -> None:
    task = tone_task(tmp_path, 8)
    (tmp_path / "clips" / "1.wav").unlink()
    (tmp_path / "clips" / "2.wav").write_bytes(b"no sound at all, but long enough to be looked at")
    write_clip(tmp_path / "clips" / "3.wav", "hiss", 3, seconds=3.0)
    metrics = evaluate(ScriptedEngine(answer_by_pitch, max_audio_s=2.0), task, tmp_path / "run")
    assert metrics["n"] == 8 and metrics["error"]["count"] == 3 and metrics["accuracy"]["official"]["accuracy"] == 5 / 8
    assert "1.wav" in metrics["first_error"]
    error_rows = [row for row in rows(tmp_path / "run") if row["status"] == "error"]
    assert [row["id"] for row in error_rows] == ["item-001", "item-002", "item-003"]
    assert all(row["scores"] == {"official": 0.0, "strict": 0.0, "lenient": 0.0} for row in error_rows)
    again = evaluate(
        ScriptedEngine(answer_by_pitch, max_audio_s=2.0), task, tmp_path / "cut", EvalOptions(long_audio="truncate")
    )
    assert again["error"]["count"] == 2 and again["truncated"] == 1


def test_batches_change_nothing(tmp_path: Path) -> None:
    task = tone_task(tmp_path)
    engines = {batch: ScriptedEngine(answer_first_option) for batch in (1, 5, 16)}
    for batch, engine in engines.items():
        evaluate(engine, task, tmp_path / str(batch), EvalOptions(batch=batch))
    assert timeless(tmp_path / "1") == timeless(tmp_path / "5") == timeless(tmp_path / "16")
    assert engines[5].batches == [5, 5, 5, 1]


def test_options_are_permuted_by_seed_and_id_alone(tmp_path: Path) -> None:
    example, second_example = tone_task(tmp_path, 2)
    assert permuted(example, 1) == permuted(example, 1)
    assert sorted(permuted(example, 1).choices) == sorted(example.choices)
    orders = {permuted(replace(example, id=str(number)), 0).choices for number in range(100)}
    assert len(orders) > 15
    turns = [permuted(example, 0, turn).choices for turn in range(4)]
    assert {order.index("low tone") for order in turns} == {0, 1, 2, 3}
    evaluate(
        ScriptedEngine(answer_first_option),
        [example, second_example],
        tmp_path / "a",
        EvalOptions(shuffle_options=False),
    )
    assert [row["choices"] for row in rows(tmp_path / "a")] == [list(PITCHES)] * 2


def test_permutations_average_out_a_position_habit(tmp_path: Path) -> None:
    metrics = evaluate(
        ScriptedEngine(answer_first_option), tone_task(tmp_path), tmp_path / "run", EvalOptions(permutations=4)
    )
    assert metrics["n"] == 16 and len(rows(tmp_path / "run")) == 64
    assert metrics["permutations"]["mean_accuracy"] == 0.25 and metrics["permutations"]["always_right"] == 0
    assert all(0 <= accuracy <= 1 for accuracy in metrics["permutations"]["accuracy"]), "shares, not counts"
    assert sum(metrics["permutations"]["accuracy"]) / 4 == 0.25
    assert (
        evaluate(ScriptedEngine(answer_by_pitch), tone_task(tmp_path), tmp_path / "l", EvalOptions(permutations=4))[
            "permutations"
        ]["always_right"]
        == 1
    )


def test_other_settings_are_refused_by_name_and_the_same_go_on(tmp_path: Path) -> None:
    task, out = tone_task(tmp_path, 4), tmp_path / "run"
    evaluate(ScriptedEngine(answer_by_pitch), task, out)
    before = (out / "samples.jsonl").read_bytes()
    silent = ScriptedEngine(answer_by_pitch)
    evaluate(silent, task, out, EvalOptions(batch=1))
    assert silent.batches == [] and (out / "samples.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match=r"seed: 0 there, 1 now.*new --out"):
        evaluate(ScriptedEngine(answer_by_pitch), task, out, EvalOptions(seed=1))
    with pytest.raises(ConfigError, match="model: scripted there, other now"):
        evaluate(ScriptedEngine(answer_by_pitch, "other"), task, out)
    with pytest.raises(ConfigError, match="other items or another edition"):
        evaluate(ScriptedEngine(answer_by_pitch), task[:3], out)
    with pytest.raises(ConfigError, match="decoding: "):
        evaluate(
            ScriptedEngine(answer_by_pitch), task, out, EvalOptions(sampling_params=SamplingParams(temperature=1.0))
        )
    assert (out / "samples.jsonl").read_bytes() == before


def test_a_torn_last_line_is_cut_and_asked_again(tmp_path: Path) -> None:
    task, out = tone_task(tmp_path), tmp_path / "run"
    evaluate(ScriptedEngine(answer_by_pitch), task, tmp_path / "whole")
    evaluate(ScriptedEngine(answer_by_pitch), task, out)
    log = out / "samples.jsonl"
    log.write_bytes(log.read_bytes()[:-40])
    engine = ScriptedEngine(answer_by_pitch)
    evaluate(engine, task, out)
    assert engine.batches == [1] and timeless(out) == timeless(tmp_path / "whole")


KILLED = """
import sys, time
from pathlib import Path
from scripted_engine import ScriptedEngine, answer_first_option, tone_task
from earwise.evaluation.run import EvalOptions, evaluate

def slow(prompt):
    time.sleep(0.02)
    return answer_first_option(prompt)

evaluate(ScriptedEngine(slow), tone_task(Path(sys.argv[1]), 60), Path(sys.argv[2]), EvalOptions(batch=3))
"""


def test_killed_and_run_again_equals_uninterrupted(tmp_path: Path) -> None:
    out = tmp_path / "killed"
    environment = {
        **os.environ,
        "PYTHONPATH": python_path(),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), str(out)], env=environment)
    log, limit = out / "samples.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= 6) and time.monotonic() < limit:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    num_kept = log.read_bytes().count(b"\n")
    assert 6 <= num_kept < 60 and not (out / "metrics.json").exists()
    engine = ScriptedEngine(answer_first_option)
    task = tone_task(tmp_path, 60)
    metrics = evaluate(engine, task, out, EvalOptions(batch=3))
    assert sum(engine.batches) == 60 - num_kept
    whole = evaluate(ScriptedEngine(answer_first_option), task, tmp_path / "whole")
    assert timeless(out) == timeless(tmp_path / "whole")
    assert {**metrics, "seconds": 0} == {**whole, "seconds": 0}


def test_ctrl_c_keeps_the_finished_rows(tmp_path: Path) -> None:
    num_prompts = 0

    def tired(prompt: Prompt) -> str:
        nonlocal num_prompts
        num_prompts += 1
        if num_prompts > 8:
            raise KeyboardInterrupt
        return answer_by_pitch(prompt)

    task = tone_task(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        evaluate(ScriptedEngine(tired), task, tmp_path / "run", EvalOptions(batch=4))
    assert len(rows(tmp_path / "run")) == 8
    assert evaluate(ScriptedEngine(answer_by_pitch), task, tmp_path / "run")["n"] == 16


def test_one_prompt_that_breaks_the_engine_is_an_error_row_a_dead_engine_stops(tmp_path: Path) -> None:
    def picky(prompt: Prompt) -> str:
        if prompt.key == "item-005":
            raise EngineError("prompt too long: 9000 tokens, the limit is 8192; shorten it")
        return answer_by_pitch(prompt)

    def dead(prompt: Prompt) -> str:
        raise EngineError("server does not answer; start it")

    task = tone_task(tmp_path)
    metrics = evaluate(ScriptedEngine(picky), task, tmp_path / "picky", EvalOptions(batch=4))
    assert metrics["n"] == 16 and metrics["error"]["count"] == 1 and "too long" in metrics["first_error"]
    assert evaluate(ScriptedEngine(picky), task, tmp_path / "single", EvalOptions(batch=1))["error"]["count"] == 1
    for batch in (1, 4):
        with pytest.raises(EngineError, match="does not answer"):
            evaluate(ScriptedEngine(dead), task, tmp_path / f"dead{batch}", EvalOptions(batch=batch))
        assert not (tmp_path / f"dead{batch}" / "samples.jsonl").exists()


def test_a_server_that_dies_in_the_middle_stops_the_run(tmp_path: Path) -> None:
    num_prompts = 0

    def dying(prompt: Prompt) -> str:
        nonlocal num_prompts
        num_prompts += 1
        if num_prompts > 4:
            raise EngineError("connection refused")
        return answer_by_pitch(prompt)

    for batch, num_finished in ((1, 4), (4, 4), (3, 3)):
        num_prompts = 0
        with pytest.raises(EngineError, match="connection refused"):
            evaluate(ScriptedEngine(dying), tone_task(tmp_path), tmp_path / f"run{batch}", EvalOptions(batch=batch))
        assert [row["status"] for row in rows(tmp_path / f"run{batch}")] == ["ok"] * num_finished


def test_controls_catch_the_deaf_and_clear_the_hearing(tmp_path: Path) -> None:
    task = tone_task(tmp_path, 40)
    hears = evaluate_with_controls(ScriptedEngine(answer_by_pitch), task, tmp_path / "hears")
    guesses = evaluate_with_controls(ScriptedEngine(answer_first_option), task, tmp_path / "deaf")
    assert hears["accuracy"]["official"]["accuracy"] == 1
    assert hears["blind"]["shuffled"]["accuracy"]["official"]["accuracy"] == 0
    gain = hears["blind"]["silence"]["hearing_gain"]["official"]
    assert gain["difference"] > 0.5 and gain["low"] > 0.3
    for control in ("silence", "shuffled"):
        nothing = guesses["blind"][control]["hearing_gain"]["official"]
        assert nothing["difference"] == 0 and -0.1 < nothing["low"] < 0 < nothing["high"] < 0.1 and nothing["p"] == 1
        assert (tmp_path / "deaf" / control / "samples.jsonl").is_file()
    assert json.loads((tmp_path / "hears" / "metrics.json").read_text()) == hears
    assert {row["control"] for row in rows(tmp_path / "hears" / "silence")} == {"silence"}
    real, shuffled = rows(tmp_path / "hears"), rows(tmp_path / "hears" / "shuffled")
    assert all(
        a["audio_sha256"] != b["audio_sha256"] and a["choices"] == b["choices"]
        for a, b in zip(real, shuffled, strict=True)
    )
    assert sorted(row["audio_sha256"] for row in real) == sorted(row["audio_sha256"] for row in shuffled)


def test_a_control_that_the_items_do_not_allow_is_left_out_with_the_reason(tmp_path: Path) -> None:
    metrics = evaluate_with_controls(ScriptedEngine(answer_by_pitch), tone_task(tmp_path, 1), tmp_path / "run")
    assert "two clips" in metrics["blind"]["shuffled"]["left_out"] and "accuracy" in metrics["blind"]["silence"]


def test_noise_control_gives_noise(tmp_path: Path) -> None:
    metrics = evaluate(ScriptedEngine(answer_by_pitch), tone_task(tmp_path), tmp_path / "run", control="noise")
    assert {row["answer"] for row in rows(tmp_path / "run")} == {"hiss"} and metrics["accuracy"]["official"][
        "accuracy"
    ] == 0.25


def test_two_clips_text_only_and_free_answers(tmp_path: Path) -> None:
    first, second = (write_clip(tmp_path / f"{name}.wav", name, 1) for name in ("low tone", "hiss"))
    task = [
        Example(
            "two",
            (Turn("user", (Audio(str(first)), Audio(str(second)), Text("Which is the second?"))),),
            ("hiss",),
            tuple(PITCHES),
        ),
        Example("one", (Turn("user", (Audio(str(first)), Text("Which?"))),), ("low tone",), tuple(PITCHES)),
        Example("none", (Turn("user", (Text("Say hiss."),)),), ("hiss", "a hiss"), text_only=True),
        Example("unlabelled", (Turn("user", (Audio(str(second)), Text("What?"))),)),
    ]
    engine = ScriptedEngine(lambda prompt: f"<answer>{'hiss' if len(prompt.waveforms) != 1 else 'low tone'}</answer>")
    metrics = evaluate_with_controls(engine, task, tmp_path / "run")
    assert metrics["n"] == 3 and metrics["unlabelled"] == 1
    assert metrics["accuracy"]["official"]["accuracy"] == 1
    rows_by_id = {row["id"]: row for row in rows(tmp_path / "run")}
    assert len(rows_by_id["two"]["audio_sha256"].split()) == 2 and rows_by_id["none"]["audio_sha256"] == ""
    assert rows_by_id["unlabelled"]["scores"] is None and rows_by_id["unlabelled"]["output"]


def test_silent_clips_are_counted(tmp_path: Path) -> None:
    task = tone_task(tmp_path, 4)
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "clips" / "0.wav", np.zeros(4000, dtype=np.float32), 8000)
    assert evaluate(ScriptedEngine(answer_by_pitch), task, tmp_path / "run")["silent"] == 1


def test_progress_counts(tmp_path: Path) -> None:
    reports: list[EvalProgress] = []
    evaluate(
        ScriptedEngine(answer_by_pitch),
        tone_task(tmp_path, 6),
        tmp_path / "run",
        EvalOptions(batch=4),
        on_progress=reports.append,
    )
    assert [(p.done, p.total, p.correct, p.errors) for p in reports] == [(0, 6, 0, 0), (4, 6, 4, 0), (6, 6, 6, 0)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"control": "dark"}, ConfigError, "'dark'"),
        ({"batch": 0}, ConfigError, "at least 1"),
        ({"style": "poem"}, ConfigError, "'poem'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    tmp_path: Path, change: Any, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        options = EvalOptions(**{name: value for name, value in change.items() if name != "control"})
        engine, control = ScriptedEngine(answer_by_pitch), change.get("control")
        evaluate(engine, tone_task(tmp_path, 2), tmp_path / "run", options, control=control)
    assert not (tmp_path / "run").exists()


def test_no_items_and_equal_ids_are_refused(tmp_path: Path) -> None:
    (example,) = tone_task(tmp_path, 1)
    with pytest.raises(DataError, match="no examples"):
        evaluate(ScriptedEngine(answer_by_pitch), [], tmp_path / "run")
    with pytest.raises(DataError, match="'item-000' stands twice"):
        evaluate(ScriptedEngine(answer_by_pitch), [example, example], tmp_path / "run")


def test_format_rule() -> None:
    assert is_formatted("<think>it hums</think>\n<answer>dog</answer>", "think") is True
    assert is_formatted("<answer>dog</answer>", "think") is False
    assert is_formatted("so <answer>dog</answer>", "answer") is False
    assert is_formatted("dog", "plain") is None
