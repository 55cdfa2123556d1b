"""`earwise models` is quick, complete, and right about one model; `train --plan` needs no weights; `doctor` on a
server."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from builders import tiny_qwen2_audio
from chat_server import ServerReply, choose_by_loudness, run_chat_server, text_only_reply
from earwise import cli
from earwise.models import registry

pytestmark = pytest.mark.usefixtures("own_home")

RECIPE = """
recipe: small
model: {name: NAME}
stages:
  - kind: grpo
    data: {mixture: [{manifest: "starter:train"}]}
    max_steps: 3
    trainable: {decoder: MODE}
"""


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_list_is_complete_and_quick(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_cli(capsys, "models")
    assert code == 0 and all(family.name in out for family in registry.FAMILIES)
    assert all(sizes.weights in out for family in registry.FAMILIES for sizes in family.sizes)
    assert max(len(line) for line in out.splitlines()) <= 120
    code, out, _ = run_cli(capsys, "models", "--json")
    (qwen,) = json.loads(out)["qwen2_audio"]["published"]
    assert qwen["parameters"]["all"] == 8_397_094_912 and qwen["audio_tokens_per_s"] == 25
    assert 16.8 < qwen["memory_gb"]["answer"]["peak"] < qwen["memory_gb"]["lora"]["peak"] < 40
    started = time.process_time()
    code_text = (
        "import sys, time; from earwise import cli; cli.run(['models']); "
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules), time.process_time())"
    )
    process = subprocess.run([sys.executable, "-c", code_text], capture_output=True, text=True, check=True)
    imported, seconds = process.stdout.splitlines()[-1].rsplit(" ", 1)
    assert imported == "set()" and float(seconds) < 1.5
    assert time.process_time() - started < 1


def test_one_family_and_one_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run_cli(capsys, "models", "voxtral")
    assert code == 0 and "4.68B parameters" in out and "24.26B parameters" in out and "whole windows of 30 s" in out
    assert "this machine:" in out and "full, checkpointed" in out
    tiny_qwen2_audio(0).save(tmp_path / "tiny")
    code, out, _ = run_cli(capsys, "models", tmp_path / "tiny", "--json")
    (row,) = json.loads(out)
    assert code == 0 and row["family"] == "qwen2_audio" and row["decoder"]["layers"] == 2
    _, out, _ = run_cli(capsys, "models", "qwen2_audio", "--dtype", "float32", "--json")
    assert json.loads(out)[0]["memory_gb"]["answer"]["weights"] == pytest.approx(33.588, abs=0.01)


@pytest.mark.parametrize(
    ("name", "message"),
    [("qwen9", "model 'qwen9' is none of embedded"), ("http://127.0.0.1:9/v1#m", "a server does not tell")],
)
def test_an_unknown_model_is_the_users_error(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_cli(capsys, "models", name)
    assert code == 2 and message in err


@pytest.mark.parametrize(("name", "mode", "fits"), [("embedded", "lora", None), ("voxtral", "full", None)])
def test_a_plan_needs_no_weights(
    name: str, mode: str, fits: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("NAME", name).replace("MODE", mode))
    code, out, err = run_cli(capsys, "train", path, "--plan", "--json")
    plan = json.loads(out)
    (stage,) = plan["stages"]
    assert code == (2 if stage["fits"] is False else 0), err
    assert stage["peak_gb"] == pytest.approx(sum(stage["memory_gb"].values()), abs=0.01)
    assert stage["dominates"] == max(stage["memory_gb"], key=lambda part: stage["memory_gb"][part])
    free = plan["machine"]["free_gb"]
    assert free is None or stage["fits"] == (stage["peak_gb"] * 1.4 <= free) or abs(stage["peak_gb"] - free) < 1
    if name == "voxtral":
        masters_gb = 18 * 4.014  # bfloat16 weights; float32 masters, gradients and two moments
        assert stage["trained"]["decoder"] == 4_014_136_320 and masters_gb < stage["peak_gb"] < 100
    text = run_cli(capsys, "train", path, "--plan", "stages.0.gradient_checkpointing=true")[1]
    assert "memory    about" in text and "hold most" in text


def test_a_stage_that_does_not_fit_comes_with_advice(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("NAME", "embedded").replace("MODE", "lora"))
    code, out, err = run_cli(capsys, "train", path, "--plan", "stages.0.pack_tokens=5000000")
    assert code == 2 and "TOO LARGE" in out and "set gradient_checkpointing: true" in out
    assert "stage 0 grpo does not fit into" in err and len(err.strip().splitlines()) == 1


def test_the_doctor_checks_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    with run_chat_server(choose_by_loudness) as chat:
        code, out, _ = run_cli(capsys, "doctor", "--model", f"{chat.url}#m", "--json")
    rows = {row["name"]: row for row in json.loads(out)["checks"]}
    assert code == 0, rows
    assert rows["hears"]["verdict"] == "ok" and "8 of 8 answers" in rows["hears"]["detail"]
    assert rows["draws"]["verdict"] == rows["batch invariance"]["verdict"] == rows["speed"]["verdict"] == "ok"
    assert rows["likelihoods"]["verdict"] == "warn" and "prompt_logprobs" in rows["likelihoods"]["detail"]

    request = iter(range(10_000))

    def inconsistent(body: dict[str, Any], count: int) -> ServerReply:
        text = f"{next(request)} {choose_by_loudness(body, count).text}"
        return ServerReply(text, usage=choose_by_loudness(body, count).usage)

    with run_chat_server(inconsistent) as chat:
        code, out, _ = run_cli(capsys, "doctor", "--model", f"{chat.url}#m", "--json")
    rows = {row["name"]: row for row in json.loads(out)["checks"]}
    assert code == 0 and rows["draws"]["verdict"] == rows["batch invariance"]["verdict"] == "warn"


def test_the_doctor_refuses_a_text_only_server(capsys: pytest.CaptureFixture[str]) -> None:
    with run_chat_server(text_only_reply) as chat:
        code, out, _ = run_cli(capsys, "doctor", "--model", f"{chat.url}#m")
    assert code == 1 and "FAIL  model" in out and "not show that it uses audio" in out

    def ignores_audio(body: dict[str, Any], count: int) -> ServerReply:
        # it counts the audio tokens but never uses them
        return ServerReply("a dog", usage=choose_by_loudness(body, count).usage)

    with run_chat_server(ignores_audio) as chat:
        code, out, _ = run_cli(capsys, "doctor", "--model", f"{chat.url}#m")
    assert code == 1 and "FAIL  hears" in out and "0 of 8 answers" in out
