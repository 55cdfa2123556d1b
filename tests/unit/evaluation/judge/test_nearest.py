"""The option nearest to an output: the official rule on the same vectors, and MMAU-Pro's figure by it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

import benchmark_files
from earwise.engine.embeddings.embedders import unit_length
from earwise.evaluation.judge.nearest import nearest_options
from earwise.evaluation.run import evaluate
from earwise.evaluation.task_table import load_task
from scripted_engine import ScriptedEngine

WORDS = ["dog", "cat", "rain", "wind", "piano", "a", "the"]


def word_counts(text: str) -> list[float]:
    """A vector that a reader can check: how often each of `WORDS` stands in a text, and a constant."""
    words = text.lower().replace(".", "").split()
    return [float(words.count(word)) for word in WORDS] + [0.01]


class Counts:
    """An embedder of word counts."""

    name = "word-counts"

    def embed(self, texts: Any) -> Any:
        return unit_length(np.array([word_counts(text) for text in texts]))


def test_the_rule_is_the_authors() -> None:
    """Their lines on the same vectors: both normalised, product times 100, the largest."""
    rng = np.random.default_rng(0)
    texts = [f"text {number}" for number in range(60)]
    vectors = dict(zip(texts, rng.normal(size=(60, 8)), strict=True))

    class Fixed:
        name = "fixed"

        def embed(self, asked: Any) -> Any:
            return unit_length(np.array([vectors[text] for text in asked]))

    outputs, options = texts[:10], [texts[10 + 4 * number : 14 + 4 * number] for number in range(10)]
    for output, item, chosen in zip(outputs, options, nearest_options(Fixed(), outputs, options), strict=True):
        prediction = normalize(torch.tensor(vectors[output])[None], p=2, dim=1)
        choices = normalize(torch.tensor(np.array([vectors[option] for option in item])), p=2, dim=1)
        assert chosen == int(torch.argmax(((prediction @ choices.T) * 100).squeeze()))
    assert nearest_options(Counts(), ["It is the dog."], [["A cat", "A dog"]]) == [1]


def test_mmau_pro_with_and_without_embeddings(tmp_path: Path) -> None:
    task = load_task("mmau-pro")
    assert task.with_embeddings is not None
    examples = task.load(benchmark_files.FILES["mmau-pro"](tmp_path / "data"), None)
    closed = [example for example in examples if example.choices]
    engine = ScriptedEngine(lambda prompt: "something that names no option")
    plain = evaluate(engine, examples, tmp_path / "plain", task=task)
    assert "official" not in plain["accuracy"] and "add --embeddings MODEL" in plain["remarks"][0]

    class Gold:
        """Puts every output on the gold options."""

        name = "gold"

        def embed(self, texts: Any) -> Any:
            golds = {example.answer[0] for example in closed}
            return np.array([[1.0, 0.0] if text in golds or "something" in text else [0.0, 1.0] for text in texts])

    metrics = evaluate(engine, examples, tmp_path / "run", task=task.with_embeddings(task, Gold()))
    assert "remarks" not in metrics and metrics["headline"] == "score"
    labelled = [example for example in examples if task.is_scored(example)]
    assert metrics["accuracy"]["official"]["accuracy"] >= len(closed) / len(labelled) > 0
    empty = evaluate(
        ScriptedEngine(lambda prompt: ""), examples, tmp_path / "empty", task=task.with_embeddings(task, Gold())
    )
    assert empty["accuracy"]["official"]["accuracy"] == 0, "an empty output is near nothing"
