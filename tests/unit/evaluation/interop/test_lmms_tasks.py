"""A task as a task of lmms-eval: its functions give our prompts, sounds and scores; its YAML names them."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from earwise import cli
from earwise.errors import ConfigError, DataError
from earwise.evaluation.interop.lmms_tasks import SAMPLE_RATE, write_task
from earwise.evaluation.items import permuted
from earwise.evaluation.tasks.manifest import TASK as MANIFEST
from earwise.files import write_jsonl
from scripted_engine import PITCHES, write_clip


class FunctionLoader(yaml.SafeLoader):
    """Reads lmms-eval's tag `!function` as text."""


FunctionLoader.add_constructor("!function", lambda loader, node: f"function {node.value}")


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four questions about four tones, named by a relative path."""
    rows = []
    for number, name in enumerate(PITCHES):
        write_clip(tmp_path / "clips" / f"{number}.wav", name, number)
        rows.append({"id": f"q{number}", "audio": [f"clips/{number}.wav"], "question": "Which sound is this?",
                     "choices": list(PITCHES), "answer": name})  # fmt: skip
    write_jsonl(tmp_path / "questions.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    return Path("questions.jsonl")


def test_the_functions_are_our_prompt_sound_and_scorer(manifest: Path, tmp_path: Path) -> None:
    assert cli.run(["export-task", "manifest", "--data", str(manifest), "--out", "lmms", "--seed", "3"]) == 0
    config: dict[str, Any] = yaml.load(Path("lmms/earwise_manifest.yaml").read_text(), FunctionLoader)
    assert config["process_results"] == "function earwise_manifest_functions.process_results"
    assert config["metric_list"][0] == {"metric": "official", "aggregation": "mean", "higher_is_better": True}
    (items,) = config["dataset_kwargs"]["data_files"].values()
    documents = [json.loads(line) for line in Path(items).read_text().splitlines()]
    assert Path(items).is_absolute() and [document["id"] for document in documents] == ["q0", "q1", "q2", "q3"]

    spec = importlib.util.spec_from_file_location("functions", "lmms/earwise_manifest_functions.py")
    assert spec is not None and spec.loader is not None
    functions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(functions)
    example = permuted(MANIFEST.load(manifest.absolute(), None)[0], 3)
    assert str(list(example.choices)) in functions.doc_to_text(documents[0])
    (sound,) = functions.doc_to_visual(documents[0])
    assert sound["sampling_rate"] == SAMPLE_RATE and sound["array"].shape == (SAMPLE_RATE // 4,)
    assert functions.doc_to_target(documents[0]) == "low tone"
    right = functions.process_results(documents[0], ["<answer>low tone</answer>"])
    assert right == {"official": 1.0, "strict": 1.0, "lenient": 1.0}
    assert set(functions.process_results(documents[0], ["I cannot tell"]).values()) == {0.0}, "nothing is guessed"
    with pytest.raises(DataError, match="has no item 'q9'"):
        functions.doc_to_text({"id": "q9"})


def test_scores_of_a_corpus_are_refused_before_anything_is_written(manifest: Path, tmp_path: Path) -> None:
    rows = [{"id": "a", "audio": ["clips/0.wav"], "question": "?", "answer": "a tone"}]
    write_jsonl(tmp_path / "open.jsonl", rows)
    for task in ("transcription", "captions"):
        with pytest.raises(ConfigError, match="whole corpus"):
            write_task(task, tmp_path / "open.jsonl", tmp_path / "out")
    with pytest.raises(ConfigError, match="style"):
        write_task("manifest", manifest, tmp_path / "out", style="none")
    assert not (tmp_path / "out").exists()
