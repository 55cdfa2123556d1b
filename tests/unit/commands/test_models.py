"""`earwise models`: quick, whole, and right about one model; `train --plan` without weights; `doctor` on a server."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from builders import tiny_qwen2_audio
from chat_server import Say, chooser, deaf, serving
from earwise import cli
from earwise.models.memory.published_sizes import FAMILIES, PUBLISHED

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


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.run([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_list_is_whole_and_quick(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "models")
    assert code == 0 and all(name in out for name in FAMILIES) and all(one.weights in out for one in PUBLISHED)
    assert max(len(line) for line in out.splitlines()) <= 120
    code, out, _ = told(capsys, "models", "--json")
    (seven,) = json.loads(out)["qwen2_audio"]["published"]
    assert seven["parameters"]["all"] == 8_397_094_912 and seven["audio_tokens_per_s"] == 25
    assert 16.8 < seven["memory_gb"]["answer"]["peak"] < seven["memory_gb"]["lora"]["peak"] < 40
    started = time.process_time()
    code_text = (
        "import sys, time; from earwise import cli; cli.run(['models']); "
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules), time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code_text], capture_output=True, text=True, check=True)
    heavy, seconds = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert heavy == "set()" and float(seconds) < 1.5
    assert time.process_time() - started < 1


def test_one_family_and_one_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = told(capsys, "models", "voxtral")
    assert code == 0 and "4.68B parameters" in out and "24.26B parameters" in out and "whole windows of 30 s" in out
    assert "this machine:" in out and "full, checkpointed" in out
    tiny_qwen2_audio(0).save(tmp_path / "tiny")
    code, out, _ = told(capsys, "models", tmp_path / "tiny", "--json")
    (row,) = json.loads(out)
    assert code == 0 and row["family"] == "qwen2_audio" and row["decoder"]["layers"] == 2
    halved = told(capsys, "models", "qwen2_audio", "--dtype", "float32", "--json")
    assert json.loads(halved[1])[0]["memory_gb"]["answer"]["weights"] == pytest.approx(33.588, abs=0.01)


@pytest.mark.parametrize(
    ("name", "message"),
    [("qwen9", "model 'qwen9' is none of embedded"), ("http://127.0.0.1:9/v1#m", "a server does not tell")],
)
def test_an_unknown_model_is_the_users_error(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = told(capsys, "models", name)
    assert code == 2 and message in err


@pytest.mark.parametrize(("name", "mode", "fits"), [("embedded", "lora", None), ("voxtral", "full", None)])
def test_a_plan_needs_no_weights(
    name: str, mode: str, fits: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("NAME", name).replace("MODE", mode))
    code, out, err = told(capsys, "train", path, "--plan", "--json")
    assert code == 0, err
    plan = json.loads(out)
    (stage,) = plan["stages"]
    assert stage["peak_gb"] == pytest.approx(sum(stage["memory_gb"].values()), abs=0.01)
    assert stage["dominates"] == max(stage["memory_gb"], key=lambda part: stage["memory_gb"][part])
    free = plan["machine"]["free_gb"]
    assert free is None or stage["fits"] == (stage["peak_gb"] * 1.4 <= free) or abs(stage["peak_gb"] - free) < 1
    if name == "voxtral":
        assert stage["trained"]["decoder"] == 4_014_136_320 and 30 < stage["peak_gb"] < 60
    text = told(capsys, "train", path, "--plan", "stages.0.checkpoint_activations=true")[1]
    assert "memory    about" in text and "hold most" in text


def test_too_large_is_said_with_what_to_change(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("NAME", "embedded").replace("MODE", "lora"))
    code, out, _ = told(capsys, "train", path, "--plan", "stages.0.pack_tokens=5000000")
    assert code == 0 and "TOO LARGE" in out and "try checkpoint_activations: true" in out


def test_the_doctor_looks_at_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(chooser) as chat:
        code, out, _ = told(capsys, "doctor", "--model", f"{chat.url}#m", "--json")
    rows = {row["name"]: row for row in json.loads(out)["checks"]}
    assert code == 0, rows
    assert rows["hears"]["verdict"] == "ok" and "8 of 8 answers" in rows["hears"]["detail"]
    assert rows["draws"]["verdict"] == rows["batch invariance"]["verdict"] == rows["speed"]["verdict"] == "ok"
    assert rows["likelihoods"]["verdict"] == "warn" and "prompt_logprobs" in rows["likelihoods"]["detail"]

    turn = iter(range(10_000))

    def moody(body: dict[str, Any], count: int) -> Say:
        said = f"{next(turn)} {chooser(body, count).text}"
        return Say(said, usage=chooser(body, count).usage)

    with serving(moody) as chat:
        code, out, _ = told(capsys, "doctor", "--model", f"{chat.url}#m", "--json")
    rows = {row["name"]: row for row in json.loads(out)["checks"]}
    assert code == 0 and rows["draws"]["verdict"] == rows["batch invariance"]["verdict"] == "warn"


def test_the_doctor_refuses_a_deaf_server(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(deaf) as chat:
        code, out, _ = told(capsys, "doctor", "--model", f"{chat.url}#m")
    assert code == 1 and "FAIL  model" in out and "not shown to hear" in out

    def half_deaf(body: dict[str, Any], count: int) -> Say:
        return Say("a dog", usage=chooser(body, count).usage)  # it counts the sound and never uses it

    with serving(half_deaf) as chat:
        code, out, _ = told(capsys, "doctor", "--model", f"{chat.url}#m")
    assert code == 1 and "FAIL  hears" in out and "0 of 8 answers" in out
