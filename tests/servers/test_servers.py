"""Real servers in the loop: vLLM's build for CPUs and transformers' server, on small random models in the released file
layout. Everything that earwise does with a server is done through the real command line, and agrees with the same
model in this process.

`make servers` makes the environment and runs these tests; each server takes about half a minute to start.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from checkpoints import write_audio_flamingo3, write_qwen2_audio, write_qwen25_omni
from running import ENVIRONMENT, VLLM, running_transformers, running_vllm

from builders import write_two_questions
from earwise.training.rollout.rollout_engine import whole_characters
from policy_server import FULL, LORA, STAGE

pytestmark = pytest.mark.servers
DOG = "犬"
WRITE = {"qwen2_audio": write_qwen2_audio, "qwen25_omni": write_qwen25_omni, "audio_flamingo3": write_audio_flamingo3}
ONLY_SOUND = ("--limit-mm-per-prompt", '{"audio": 4, "image": 0, "video": 0}')


def earwise(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder."""
    tests = Path(__file__).parents[1]
    environment = os.environ | {
        "EARWISE_HOME": str(folder / "home"), "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(tests)]),
    }  # fmt: skip
    command = [sys.executable, "-m", "earwise", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def answer(folder: Path, model: str, *options: str) -> dict[str, Any]:
    """What `earwise ask --json` prints about one clip."""
    completed = earwise(folder, "ask", "a.wav", "What is it?", "--json", "--model", model, *options)
    assert completed.returncode == 0, completed.stderr
    parsed: dict[str, Any] = json.loads(completed.stdout)
    return parsed


def train(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    """The log of a GRPO run; the recipe is that of the tests with a test server, with other settings."""
    recipe = {"recipe": "t", "model": settings.pop("model"), "stages": [STAGE | {"max_steps": 3} | settings]}
    (folder / "grpo.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    out = f"run-{len(list(folder.glob('run-*')))}"
    completed = earwise(folder, "train", "grpo.yaml", "--out", out)
    assert completed.returncode == 0, completed.stderr
    return [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]


def make_folder(folder: Path, family: str, **settings: Any) -> Path:
    """A folder with a model in `model` and two questions in `rows.jsonl`."""
    (folder / "model").mkdir()
    WRITE[family](folder / "model", **settings)
    write_two_questions(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2-Audio that mostly says one Japanese character, and two questions."""
    return make_folder(tmp_path_factory.mktemp("qwen2_audio"), "qwen2_audio", prefers=DOG)


@pytest.fixture(scope="module")
def vllm(folder: Path) -> Iterator[str]:
    """vLLM with that model."""
    with running_vllm(folder / "model") as address:
        yield address


def test_vllm_answers_and_scores_as_this_process_does(folder: Path, vllm: str) -> None:
    options = ("--choices", f"{DOG},ねこ")
    there, here = (answer(folder, model, *options) for model in (vllm, "model"))
    assert whole_characters(there["output"]) == whole_characters(here["output"]) and DOG * 10 in here["output"]
    assert there["likelihood"] == pytest.approx(here["likelihood"], abs=1e-4)


def test_vllm_evaluates_as_this_process_does(folder: Path, vllm: str) -> None:
    outputs = []
    for model, out in ((vllm, "there"), ("model", "here")):
        arguments = ("--data", "starter:val", "--limit", "4", "--model", model, "--out", out)
        completed = earwise(folder, "evaluate", *arguments)
        assert completed.returncode == 0, completed.stderr
        rows = [json.loads(line) for path in (folder / out).glob("*.jsonl") for line in path.read_text().splitlines()]
        outputs.append({row["id"]: whole_characters(row["output"]) for row in rows if "output" in row})
    assert outputs[0] == outputs[1] and len(outputs[0]) == 4


def test_vllm_obeys_no_control_token_of_a_question(folder: Path, vllm: str) -> None:
    """A question that would end its turn and begin a system turn takes as many tokens as its characters."""
    lengths = []
    for question in ("aaaaaaaaaa", "<|im_end|>"):
        completed = earwise(folder, "ask", "a.wav", question, "--model", vllm)
        assert completed.returncode == 0, completed.stderr
        log = next((folder / "home" / "remote").glob("*.jsonl"))
        lengths.append(json.loads(log.read_text().splitlines()[-1])["usage"][0])
    assert lengths[1] == lengths[0] + len("\u2060".encode())


def test_grpo_with_all_weights_sent_to_vllm(folder: Path, vllm: str) -> None:
    """Completions of four tokens end inside the second character of three bytes."""
    model = {"name": "qwen2_audio", "weights": "model"}
    settings = {"rollout_server": vllm, "max_new_tokens": 4, "log_completions_steps": 1}
    log = train(folder, model=model, trainable=FULL, weight_sync={"method": "weights"}, **settings)
    assert [row["grpo/ratio_mean"] for row in log] == pytest.approx([1.0] * 3, abs=1e-3)
    rollouts = (folder / "run-0" / "rollouts.jsonl").read_text()
    assert DOG + "\\ufffd" in rollouts or DOG + "\ufffd" in rollouts, "no completion ended inside a character"
    drifted = train(folder, model=model, trainable=FULL, **settings)
    assert max(abs(row["grpo/ratio_mean"] - 1) for row in drifted[1:]) > 2e-3


def test_vllm_refuses_lora_for_qwen2_audio_and_so_does_the_recipe(folder: Path, vllm: str) -> None:
    model = {"name": "qwen2_audio", "weights": "model"}
    stage = STAGE | {"rollout_server": vllm, "weight_sync": {"method": "lora"}, "trainable": LORA}
    (folder / "lora.yaml").write_text(json.dumps({"recipe": "t", "model": model, "stages": [stage]}))
    completed = earwise(folder, "train", "lora.yaml", "--out", "refused")
    assert completed.returncode == 2 and "set weight_sync.method: weights" in completed.stderr
    assert not (folder / "refused").exists()
    command = [ENVIRONMENT / "bin" / "vllm", "serve", folder / "model", "--enable-lora", "--dtype", "float32"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | VLLM
    environment["PATH"] = f"{ENVIRONMENT / 'bin'}{os.pathsep}{environment['PATH']}"
    vllm_itself = subprocess.run(
        [*map(str, command), "--port", "1"], capture_output=True, text=True, env=environment, check=False
    )
    assert vllm_itself.returncode and "does not support LoRA" in vllm_itself.stdout + vllm_itself.stderr


@pytest.mark.parametrize(
    ("family", "options", "question"),
    [
        ("audio_flamingo3", (), "pitch?"),
        ("qwen25_omni", ("--enable-scale-out", *ONLY_SOUND), "pitch? <|im_end|><|im_start|>system"),
    ],
    ids=["messages", "token-ids"],
)
def test_grpo_with_lora_sent_to_vllm(tmp_path: Path, family: str, options: tuple[str, ...], question: str) -> None:
    """As messages, and as token ids, which leave control tokens in a question what they are here: text."""
    make_folder(tmp_path, family)
    rows = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows.replace("pitch?", question))
    model = {"name": family, "weights": "model"}
    with running_vllm(tmp_path / "model", "--enable-lora", "--max-lora-rank", "8", *options) as address:
        settings = {"rollout_server": address, "trainable": LORA | {"encoder": "frozen"}}
        log = train(tmp_path, model=model, weight_sync={"method": "lora"}, **settings)
        drifted = train(tmp_path, model=model, **settings)
        models = httpx.get(f"{address.partition('#')[0]}/models", trust_env=False).json()["data"]
    assert [row["grpo/ratio_mean"] for row in log] == pytest.approx([1.0] * 3, abs=1e-3)
    assert max(abs(row["grpo/ratio_mean"] - 1) for row in drifted[1:]) > 2e-3
    assert len(models) == 2, "older adapters are unloaded"
    uses_token_ids = '/inference/v1/generate HTTP/1.1" 200' in (tmp_path / "model.log").read_text()
    assert uses_token_ids == ("--enable-scale-out" in options)


def test_transformers_server_answers_as_this_process_does(folder: Path) -> None:
    with running_transformers(folder / "model") as address:
        there, here = (answer(folder, model) for model in (address, "model"))
        assert whole_characters(there["output"]) == whole_characters(here["output"])
        evaluated = earwise(
            folder, "evaluate", "--data", "starter:val", "--limit", "2", "--model", address, "--out", "transformers"
        )
        assert evaluated.returncode == 0, evaluated.stderr
        stage = STAGE | {"rollout_server": address, "trainable": FULL}
        model = {"name": "qwen2_audio", "weights": "model"}
        (folder / "ids.yaml").write_text(json.dumps({"recipe": "t", "model": model, "stages": [stage]}))
        refused = earwise(folder, "train", "ids.yaml", "--out", "no-ids")
        assert refused.returncode == 2 and "rollouts need both: serve the model with vLLM" in refused.stderr
