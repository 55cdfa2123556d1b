"""Models named as on a hub, from a hand-made cache in huggingface_hub's layout: opened, evaluated, trained from and
exported under their commit; and the one line that is printed where nothing can be reached.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from builders import tiny_qwen2_audio
from earwise.config.recipe import check_recipe
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.engine import loading
from earwise.errors import ModelError
from earwise.models import base, hub, lora_checkpoint
from earwise.models.detect import family_of, find_checkpoint
from earwise.models.export import ExportOptions, export
from earwise.models.memory.lookup import find_sizes
from earwise.training import run
from earwise.training.trainable import set_trainable

REPOSITORY = "listeners/tiny-audio"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "fedcba9876543210fedcba9876543210fedcba98"
PINNED = f"{REPOSITORY}@{COMMIT}"


def place(cache: Path, repository: str, commit: str, folder: Path, revision: str = "main") -> None:
    """Put a folder into a cache as huggingface_hub lays it out: blobs, links to them, and a reference."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "snapshots" / commit).mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in folder.iterdir() if path.is_file())):
        blob = root / "blobs" / f"{commit[:8]}{number}"
        blob.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, blob)
        (root / "snapshots" / commit / file.name).symlink_to(Path("../../blobs") / blob.name)
    (root / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(commit)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two commits of a tiny model as somebody else published it; no hub may be asked."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home" / "hub"
    for commit, seed, revision in ((COMMIT, 4, "main"), (OLDER, 5, "v1")):
        folder = tmp_path / commit
        tiny_qwen2_audio(seed).save(folder)
        (folder / "earwise.json").unlink()
        place(home, REPOSITORY, commit, folder, revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return home


def test_what_is_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_name("mispeech/r1-aqa") and hub.is_hub_name("a/b@refs/pr/70")
    for name in (
        "qwen2_audio",
        "/a/b",
        "./a",
        "../a",
        "a/b/c",
        "my_models:load",
        "http://h/v1#m",
        "a/b@",
        "a/../b",
        "~/a",
    ):
        assert not hub.is_hub_name(name), name
    (tmp_path / "runs").mkdir()
    assert not hub.is_hub_name("runs/r1-aqq"), "a mistyped folder is not looked up on a hub"


def test_a_hub_name_is_opened_under_its_commit(cache: Path, tmp_path: Path) -> None:
    newest, older = loading.open_engine(REPOSITORY), loading.open_engine(f"{REPOSITORY}@v1")
    assert (newest.name, older.name) == (PINNED, f"{REPOSITORY}@{OLDER}")
    assert newest.revision == base.load(str(tmp_path / COMMIT)).revision != older.revision
    assert loading.open_engine(PINNED).name == PINNED
    assert family_of(REPOSITORY) == "qwen2_audio" and hub.cached_name(hub.fetch(REPOSITORY).folder) == PINNED
    family, (sizes,) = find_sizes(REPOSITORY, base.load)
    assert (family, sizes.weights, sizes.decoder_shape.layers) == ("qwen2_audio", REPOSITORY, 2)
    assert find_sizes("Qwen/Qwen2-Audio-7B-Instruct", base.load)[1][0].decoder == 7_754_878_976  # declared, not fetched


def test_an_adapter_and_its_base_come_from_a_hub(cache: Path, tmp_path: Path) -> None:
    model = base.load("qwen2_audio", PINNED)
    set_trainable(model, TrainableConfig(connector="frozen", lora=LoraConfig(r=2)))
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    lora_checkpoint.write(tmp_path / "lora", lora_checkpoint.from_module(model.module, PINNED))
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (REPOSITORY, COMMIT)
    assert lora_checkpoint.read(tmp_path / "lora").base == PINNED
    place(cache, "listeners/lora", OLDER, tmp_path / "lora")
    engine = loading.open_engine("listeners/lora")
    assert engine.name == f"listeners/lora@{OLDER}"
    weights = dict(engine.model.module.named_parameters())
    merged = dict(base.load("qwen2_audio", "listeners/lora").module.named_parameters())
    before = dict(base.load(REPOSITORY).module.named_parameters())
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    changed = {key for key in weights if not torch.equal(weights[key], before[key])}
    assert name in changed and all(torch.equal(merged[key], value) for key, value in weights.items())


def test_a_run_records_the_commit_and_resumes_from_it(cache: Path, tmp_path: Path) -> None:
    stage = {"kind": "sft", "data": {"mixture": [{"manifest": "starter:train"}]}, "max_steps": 1, "clips_per_step": 1}
    stage |= {"trainable": {"connector": "frozen", "lora": {"r": 2}}}
    for number, model in enumerate(({"name": "qwen2_audio", "weights": REPOSITORY}, {"name": f"{REPOSITORY}@main"})):
        recipe = check_recipe({"recipe": "t", "model": model, "stages": [stage], "trackers": []}, "test")
        out = tmp_path / f"run{number}"
        run.start(recipe, out, Path())
        recorded: dict[str, Any] = json.loads((out / "recipe.json").read_text())["recipe"]["model"]
        assert recorded["weights" if number == 0 else "name"] == PINNED
        (adapter,) = out.glob("stage-0-sft/final/**/adapter_config.json")
        assert json.loads(adapter.read_text())["revision"] == COMMIT
        assert run.resume(out) == out / "final"


def test_an_export_names_the_commit(cache: Path, tmp_path: Path) -> None:
    export(REPOSITORY, tmp_path / "exported", ExportOptions())
    assert f"from `{PINNED}`" in (tmp_path / "exported" / "README.md").read_text()
    assert find_checkpoint(tmp_path / "exported")[0] == "qwen2_audio"


def test_what_is_not_in_the_cache(cache: Path) -> None:
    for name in ("listeners/other", f"{REPOSITORY}@v2"):
        with pytest.raises(
            ModelError, match=rf"^{name}: no such folder here, not in the cache .*HF_HUB_OFFLINE"
        ) as error:
            base.load(name)
        assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match="no such folder"):
        base.load("home/hob")  # below a folder that exists


def test_pickled_weights_of_a_hub_are_not_read(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tmp_path / COMMIT, folder)
    for file in folder.glob("*.safetensors"):
        file.rename(folder / "pytorch_model.bin")
    place(cache, "listeners/pickled", COMMIT, folder)
    with pytest.raises(ModelError, match="pickled weights can run code and are not read"):
        base.load("listeners/pickled")


def test_the_command_line_reads_the_cache_and_says_so_if_nothing_answers(cache: Path, tmp_path: Path) -> None:
    def earwise(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_HOME": str(cache.parent), "HF_ENDPOINT": "http://127.0.0.1:9"} | variables
        command = [sys.executable, "-m", "earwise", *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    evaluate = (
        "evaluate",
        "--data",
        "starter:val",
        "--limit",
        "2",
        "--max-new-tokens",
        "2",
        "--no-controls",
        "--long-audio",
        "truncate",
    )
    done = earwise(*evaluate, "--model", REPOSITORY, "--out", "eval", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "eval" / "samples.jsonl").read_text().splitlines()]
    assert {row["model"] for row in rows} == {PINNED}
    away = earwise("models", "listeners/nowhere")
    assert away.returncode == 2 and "cannot be fetched from a model hub" in away.stderr
    assert len(away.stderr.strip().splitlines()) == 1 and "HF_HOME" in away.stderr
