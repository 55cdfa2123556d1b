"""A task as a task of lmms-eval (0.7), with our prompts, our order of the options and our scorer.

`write_task` makes the two files that lmms-eval's `--include_path` reads: a YAML and a module of a few lines, whose
functions are those of `LmmsTask`. The program that runs lmms-eval must have earwise installed: questions are read from
the benchmark's own file, clips are decoded, and answers are scored here, so that an unreadable answer is wrong and no
letter is drawn at random.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from earwise.audio import decode
from earwise.errors import ConfigError, DataError
from earwise.evaluation.items import EvalItem, build_items
from earwise.evaluation.options import EvalOptions
from earwise.evaluation.task_table import load_task
from earwise.files import write_jsonl, write_text

SAMPLE_RATE = 16_000
"""Rate in Hz of the sounds that lmms-eval's models receive."""
MODULE = '''"""Functions of the task {name}, for lmms-eval; written by `earwise export-task`."""

from pathlib import Path

from earwise.evaluation.interop.lmms_tasks import LmmsTask

TASK = LmmsTask({task!r}, Path({data!r}), {audio_root}, {style!r}, {seed})
doc_to_text, doc_to_visual, doc_to_target = TASK.text, TASK.sounds, TASK.target
process_results = TASK.scores
'''


class LmmsTask:
    """The functions that a YAML of lmms-eval names; a document is a row of the JSONL beside it."""

    def __init__(self, task: str, data: Path, audio_root: Path | None, style: str, seed: int) -> None:
        """Reads nothing yet.

        Args:
            task: Key of `task_table.TASKS`, or `module:object`.
            data: The benchmark's file.
            audio_root: Folder of the clips; None: that of the file.
            style: Prompt style; empty: the task's own.
            seed: Seed of the order of the options.
        """
        self.task = load_task(task)
        self.data, self.audio_root, self.style, self.seed = data, audio_root, style, seed

    @cached_property
    def items(self) -> dict[str, EvalItem]:
        """The items by id, with the options in the order that the model reads."""
        examples = self.task.load(self.data, self.audio_root)
        options = EvalOptions(style=self.style, seed=self.seed)
        return {item.example.id: item for item in build_items(examples, options, None, self.task)}

    def text(self, document: Mapping[str, Any], lmms_eval_specific_kwargs: object = None) -> str:
        """The prompt. lmms-eval's own additions to prompts (`lmms_eval_specific_kwargs`) are not used."""
        return self._item(document).prompt_text

    def sounds(self, document: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The clips, decoded, as lmms-eval's models take them.

        Raises:
            AudioError: if a clip cannot be read.
        """
        clips = self._item(document).clips
        return [{"array": decode(clip, SAMPLE_RATE), "sampling_rate": SAMPLE_RATE} for clip in clips]

    def target(self, document: Mapping[str, Any]) -> str:
        """The accepted answers, one a line."""
        return "\n".join(self._item(document).example.answer)

    def scores(self, document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
        """The value of every score for the first completion."""
        return dict(self.task.score(self._item(document).example, results[0]).values)

    def _item(self, document: Mapping[str, Any]) -> EvalItem:
        item = self.items.get(str(document["id"]))
        if item is None:
            raise DataError(f"{self.data}: has no item {document['id']!r}; export the task again from this file")
        return item


def write_task(
    task: str, data: Path, folder: Path, *, audio_root: Path | None = None, style: str = "", seed: int = 0
) -> list[Path]:
    """Write the files of a task for lmms-eval's `--include_path`.

    Args:
        task: Key of `task_table.TASKS`, or `module:object`.
        data: The benchmark's file.
        folder: Folder to write into; created where it is missing.
        audio_root: Folder of the clips; None: that of the file.
        style: Prompt style; empty: the task's own.
        seed: Seed of the order of the options.
    Returns:
        The YAML, the module and the list of items.
    Raises:
        ConfigError: if the task's scores need all answers at once (BLEU, error rates, CIDEr-D), which lmms-eval's means
            would get wrong, or the style is unknown.
        DataError: if the file cannot be read.
    """
    exported = LmmsTask(task, data.absolute(), audio_root and audio_root.absolute(), style, seed)
    if exported.task.corpus or exported.task.add_scores is not None:
        raise ConfigError(
            f"task {exported.task.name!r} has scores of the whole corpus, which a mean over samples would get wrong; "
            "evaluate it with `earwise evaluate` and export the results"
        )
    name = "earwise_" + "".join(letter if letter.isalnum() else "_" for letter in exported.task.name)
    root = None if exported.audio_root is None else f"Path({str(exported.audio_root)!r})"
    module = MODULE.format(name=name, task=task, data=str(exported.data), audio_root=root, style=style, seed=seed)
    rows = [{"id": item, "answer": list(entry.example.answer)} for item, entry in exported.items.items()]
    paths = [folder / f"{name}.yaml", folder / f"{name}_functions.py", folder / f"{name}.jsonl"]
    write_jsonl(paths[2], rows)
    write_text(paths[1], module)
    write_text(paths[0], _yaml(exported, name, paths[2].absolute()))
    return paths


def _yaml(exported: LmmsTask, name: str, items: Path) -> str:
    """The task's YAML; functions are named by lmms-eval's tag `!function`, which a YAML library would quote."""
    task = exported.task
    scores = task.score(next(iter(exported.items.values())).example, "").values
    metrics = [
        {"metric": score, "aggregation": "mean", "higher_is_better": score not in task.lower_is_better}
        for score in sorted(scores, key=lambda score: score != task.headline)
    ]
    values = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(items)}},
        "test_split": "test",
        "output_type": "generate_until",
        "generation_kwargs": {"max_new_tokens": task.max_new_tokens, "temperature": 0, "do_sample": False},
        "metric_list": metrics,
        "metadata": [{"version": json.dumps(task.scorer)}],
    }
    functions = ("doc_to_text", "doc_to_visual", "doc_to_target", "process_results")
    lines = "".join(f"{function}: !function {name}_functions.{function}\n" for function in functions)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True) + lines
