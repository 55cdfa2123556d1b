"""The whole path through the command line, on real clips: ask, build, train, evaluate, report, export, doctor."""

import io
import json
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import soundfile
from safetensors.torch import load_file

from e2e.shell import STARTER, Cli, Done, started
from earwise.data import manifest
from earwise.evaluation.results import read_run
from earwise.files import read_log

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def evaluated(cli: Cli, model: str, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    out = tmp_path_factory.mktemp("evaluated") / "run"
    done = cli("evaluate", "--data", questions, "--model", model, "--out", out, "--max-new-tokens", 4, "--json")
    return out, done


def test_ask_prints_the_answer_and_what_it_loads(cli: Cli, model: str, clips: list[Path]) -> None:
    done = cli("ask", clips[0], "What do you hear?", "--model", model, "--max-new-tokens", 4)
    assert done.code == 0, done.err
    assert done.out.strip()
    line, *precision = done.err.splitlines()
    assert line == f"loading {model}"
    assert all(line.startswith("products with frozen weights: ") for line in precision) and len(precision) <= 1


def test_ask_with_choices_as_json(cli: Cli, model: str, clips: list[Path]) -> None:
    done = cli("ask", clips[0], "What is it?", "--choices", "a dog, a cat,rain", "--model", model, "--json")
    assert done.code == 0, done.err
    row = done.json
    assert list(row["likelihood"]) == ["a dog", "a cat", "rain"]
    assert sum(row["likelihood"].values()) == pytest.approx(1, abs=1e-5)
    assert row["answer"] is None or row["answer"] == ["a dog", "a cat", "rain"][row["choice"]]
    assert row["audio_seconds"] == pytest.approx(soundfile.info(clips[0]).duration, abs=0.01)
    assert row["seconds"] > 0
    assert row["revision"]


def test_ask_about_two_files_and_about_chunks(cli: Cli, model: str, clips: list[Path], tmp_path: Path) -> None:
    two = cli("ask", clips[0], clips[1], "Which is louder?", "--model", model, "--json", "--max-new-tokens", 2)
    assert two.code == 0, two.err
    assert len(two.json["files"]) == 2
    waveform, rate = soundfile.read(clips[0])
    long = tmp_path / "long.wav"
    soundfile.write(long, list(waveform) * (int(40 * rate / len(waveform)) + 1), rate)
    refused = cli("ask", long, "What?", "--model", model)
    assert refused.code == 2
    assert "--long-audio" in refused.err or "long_audio" in refused.err
    chunks = cli("ask", long, "What?", "--model", model, "--long-audio", "chunk", "--json", "--max-new-tokens", 2)
    assert chunks.code == 0, chunks.err
    first, second = chunks.json["pieces"]
    assert first["from_s"] == 0 and first["to_s"] == second["from_s"] < 30
    assert second["to_s"] == pytest.approx(2 * first["to_s"], abs=0.01), "as few chunks as possible, of equal length"


def test_chat_remembers_sounds_and_survives_a_bad_path(
    cli: Cli, model: str, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"/audio {clips[0]}", "What is it?", "/audio nowhere.wav", "And how loud?", "/quit"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    done = cli("chat", "--model", model, "--max-new-tokens", 3)
    assert done.code == 0, done.err
    assert "nowhere.wav: no such file" in done.err
    assert done.out.count("\n") == 2


def test_build_labels_from_class_folders_and_check(cli: Cli, tmp_path: Path) -> None:
    labels = [json.loads(line) for line in (STARTER / "labels.jsonl").read_text().splitlines()]
    sounds = [row for row in labels if row["category"] == "sound"]
    kinds = sorted({row["labels"][0] for row in sounds})[:3]
    for row in sounds:
        if row["labels"][0] in kinds:
            folder = tmp_path / "collection" / row["labels"][0].replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(STARTER / row["path"], folder)
    out = tmp_path / "collection" / "questions.jsonl"
    done = cli("build", "labels", tmp_path / "collection", "--out", out, "--tasks", "recognition,open", "--json")
    assert done.code == 0, done.err
    examples = manifest.read(out)
    assert done.json["questions"] == len(examples)
    assert {example.task for example in examples} <= {"recognition", "open"}
    again = tmp_path / "collection" / "again.jsonl"
    assert cli("build", "labels", tmp_path / "collection", "--out", again, "--tasks", "recognition,open").code == 0
    assert again.read_bytes() == out.read_bytes(), "the same seed gives the same questions"
    checked = cli("build", "check", out, "--json")
    assert checked.code == 0, checked.err
    assert checked.json["n"] == len(examples)


def test_plan_reports_what_would_be_trained_and_trains_nothing(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    done = cli("train", recipe, "--profile", "short", "--plan", "--json", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    first, second = done.json["stages"]
    assert first["rows"] == second["rows"] == {"questions.jsonl": 6}
    assert first["steps"] == 1
    assert first["trained"]["encoder"] == 0
    assert 0 < first["trained"]["decoder"] < first["trained"]["connector"]
    assert 1 < sum(first["memory_gb"].values()) < 8
    assert not (tmp_path / "run").exists()


def test_train_runs_both_stages_and_measures(trained: tuple[Path, Done]) -> None:
    out, done = trained
    assert done.code == 0, done.err
    assert Path(done.json["final"]) == out / "final"
    assert (out / "final" / "trained.safetensors").exists()
    rows = read_log(out / "metrics.jsonl")
    assert ["sft" if "sft/loss" in row else "grpo" for row in rows] == ["sft"] * 2 + ["grpo"] * 4
    assert any(row["grpo/flat_groups"] < 1 for row in rows[2:]), "no group has different rewards, so nothing is learnt"
    (measured,) = done.json["eval"]
    assert measured["before"]["n"] == measured["after"]["n"] == 2
    assert read_run(out / "eval" / "after-0").metrics["model"].endswith(f"({out.parent.name}/{out.name})")


def test_a_finished_run_says_so_when_it_is_resumed(trained: tuple[Path, Done], cli: Cli) -> None:
    out, _ = trained
    before = (out / "metrics.jsonl").read_bytes()
    done = cli("train", "--resume", out, "--no-eval")
    assert done.code == 0 and "is finished, nothing is left to train" in done.err and "model.name=" in done.err
    assert (out / "metrics.jsonl").read_bytes() == before


def test_killed_and_interrupted_training_ends_in_the_same_bits(
    trained: tuple[Path, Done], recipe: Path, cli: Cli, tmp_path: Path
) -> None:
    whole, _ = trained
    out = tmp_path / "run"

    def stopped(arguments: list[object], how: int, after: int) -> tuple[int, str]:
        """Run until `after` steps are logged, then send the signal `how`."""
        process = started(arguments)
        deadline = time.monotonic() + 600
        log = out / "metrics.jsonl"
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_bytes().count(b"\n") >= after:
                process.send_signal(how)
                break
            time.sleep(0.02)
        _, err = process.communicate(timeout=600)
        return process.returncode, err

    code, err = stopped(["train", recipe, "--out", out, "--no-eval"], signal.SIGINT, 1)
    assert code == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == f"interrupted; finished work is kept, continue with earwise train --resume {out}"
    code, _ = stopped(["train", "--resume", out], signal.SIGKILL, 4)
    assert code == -signal.SIGKILL
    done = cli("train", "--resume", out)
    assert done.code == 0, done.err
    assert "measuring" not in done.err, "begun without measuring, so it goes on"
    first, second = (load_file(run / "final" / "trained.safetensors") for run in (whole, out))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.equal(second[name]), name
    steps = [(row["stage"], row["step"]) for row in read_log(out / "metrics.jsonl")]
    assert steps == [(row["stage"], row["step"]) for row in read_log(whole / "metrics.jsonl")], "no step twice"


def test_evaluate_writes_results_and_controls(evaluated: tuple[Path, Done]) -> None:
    out, done = evaluated
    assert done.code == 0, done.err
    assert done.json["n"] == 6
    assert set(done.json["blind"]) == {"silence", "shuffled"}
    rows = read_log(out / "samples.jsonl")
    fields = {"id", "prompt", "output", "answer", "status", "scores", "audio_sha256", "decoding", "scorer"}
    assert all(fields <= set(row) for row in rows)


def test_interrupted_evaluation_continues(
    evaluated: tuple[Path, Done], cli: Cli, model: str, questions: Path, tmp_path: Path
) -> None:
    whole, _ = evaluated
    out = tmp_path / "run"
    arguments = ["evaluate", "--data", questions, "--model", model, "--out", out, "--max-new-tokens", 4, "--batch", 1]
    process = started(arguments)
    samples = out / "samples.jsonl"
    while process.poll() is None and not (samples.exists() and samples.read_bytes().count(b"\n")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert str(out) in err.splitlines()[-1]
    lines_before = samples.read_text().splitlines()
    assert lines_before
    assert cli(*arguments).code == 0
    assert samples.read_text().splitlines()[: len(lines_before)] == lines_before
    outputs = [[(row["id"], row["output"]) for row in read_log(run / "samples.jsonl")] for run in (whole, out)]
    assert outputs[0] == outputs[1], "batches of 1 and of 16 give the same answers"


def test_compare_and_report(
    evaluated: tuple[Path, Done], trained: tuple[Path, Done], cli: Cli, model: str, questions: Path, tmp_path: Path
) -> None:
    before, _ = evaluated
    run, _ = trained
    after = tmp_path / "after"
    common = ["--data", questions, "--max-new-tokens", 4, "--no-controls"]
    assert cli("evaluate", "--model", run, "--out", after, *common).code == 0
    name = json.loads((after / "metrics.json").read_text())["model"]
    assert name.endswith(f"({run.parent.name}/{run.name})"), "two checkpoints of a family are told apart"
    compared = cli("compare", before, after, "--json")
    assert compared.code == 0, compared.err
    assert compared.json["n"] == 6
    assert "difference" in cli("compare", before, after).out
    page = tmp_path / "report.html"
    done = cli("report", before, after, "--training", run, "--out", page)
    assert done.code == 0, done.err
    assert done.out.strip() == str(page)
    assert "<html" in page.read_text(encoding="utf-8")


def test_an_exported_model_gives_the_same_answers(
    trained: tuple[Path, Done], cli: Cli, clips: list[Path], tmp_path: Path
) -> None:
    run, _ = trained
    out = tmp_path / "model"
    done = cli("export", "--model", run / "final", "--out", out, "--dtype", "bfloat16", "--json")
    assert done.code == 0, done.err
    assert {"trained.safetensors", "earwise.json", "merged.safetensors", "README.md", "tokenizer.json"} <= set(
        done.json["files"]
    )
    asks = [
        cli("ask", clips[0], "What is it?", "--choices", "dog,rain", "--model", folder, "--max-new-tokens", 4, "--json")
        for folder in (run / "final", out)
    ]
    first, second = (done.json for done in asks)
    assert first["output"] == second["output"]
    assert first["likelihood"] == second["likelihood"]
    merged = load_file(out / "merged.safetensors")
    assert {name.split(".")[0] for name in merged} - {"speech_gate"} == {"encoder", "connector", "decoder"}
    refused = cli("export", "--model", run / "final", "--out", out)
    assert refused.code == 2
    assert "already exists" in refused.err


def test_doctor_finds_nothing(cli: Cli, model: str) -> None:
    done = cli("doctor", "--model", model, "--json")
    assert done.code == 0, done.out
    assert done.json["ok"]
    assert {"hears", "batch invariance", "forest", "draws", "base weights"} <= {
        row["name"] for row in done.json["checks"]
    }


def test_models_lists_every_family(cli: Cli) -> None:
    assert "embedded-blank" in cli("models").out


def test_a_closed_pipe_is_not_an_error(model: str) -> None:
    process = started(["models"])
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=120) == 0
