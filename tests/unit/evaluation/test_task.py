"""A task's scores, metrics, headline and submission file reach every result; a task of a user works like ours."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from earwise import cli
from earwise.apps.recipe_eval import headline_figures
from earwise.commands.evaluation import evaluate as evaluate_command
from earwise.engine.base import Prompt
from earwise.errors import ConfigError, DataError
from earwise.evaluation.compare import as_text as compare_as_text
from earwise.evaluation.compare import compare
from earwise.evaluation.metrics import mellow as mellow_metric
from earwise.evaluation.results import read_run
from earwise.evaluation.run import EvalOptions, evaluate, evaluate_with_controls
from earwise.evaluation.scores import blind_controls, headline, mean_scores, score_names, shared_headline
from earwise.evaluation.task import Task
from earwise.evaluation.task_table import load_task
from earwise.evaluation.tasks import manifest, mellow, mmau
from earwise.evaluation.terminal import as_text
from earwise.files import write_json
from earwise.report import write_report
from earwise.types import Audio, Example, Score, Text, Turn
from scripted_engine import ScriptedEngine, answer_by_pitch, tone_task, write_clip


def word_overlap(example: Example, completion: str) -> Score:
    """Share of the answer's words that the completion has: a score between 0 and 1."""
    words = example.answer[0].split()
    return Score({"overlap": sum(word in completion for word in words) / len(words)}, "ok", completion)


OVERLAP = Task("overlap", manifest.load, word_overlap, "overlap/1", {"overlap": "shared words"}, headline="overlap")


def say(text: str) -> Callable[[Prompt], str]:
    return lambda prompt: text


def question(number: int, text: str, answer: str, choices: tuple[str, ...] = (), **fields: Any) -> Example:
    return Example(f"q{number}", (Turn("user", (Audio("clip.wav"), Text(text))),), (answer,), choices, **fields)


def test_a_headline_must_be_one_of_the_scores() -> None:
    with pytest.raises(ConfigError, match=r"headline 'exact' is none of its scores \(overlap\)"):
        replace(OVERLAP, headline="exact")


def test_the_headline_follows_the_prompt_style() -> None:
    task = load_task("manifest")
    assert (task.headline_of("answer"), task.headline_of("think")) == ("official", "lenient")
    assert task.headline_of("adaptive") == task.headline_of("xs-cot") == "lenient", "they may reason aloud too"
    assert OVERLAP.headline_of("think") == "overlap"


def test_graded_scores_have_means_intervals_and_paired_differences(tmp_path: Path) -> None:
    examples = tone_task(tmp_path, 16)  # twelve answers of two words, four of one
    low = evaluate_with_controls(ScriptedEngine(say("low")), examples, tmp_path / "low", task=OVERLAP)
    tone = evaluate_with_controls(ScriptedEngine(say("a tone")), examples, tmp_path / "tone", task=OVERLAP)
    assert low["accuracy"]["overlap"]["accuracy"] == pytest.approx(4 * 0.5 / 16)
    assert tone["accuracy"]["overlap"]["accuracy"] == pytest.approx(12 * 0.5 / 16)
    assert 0 < tone["accuracy"]["overlap"]["low"] < 0.375 < tone["accuracy"]["overlap"]["high"] < 0.5
    comparison = compare(tmp_path / "low", tmp_path / "tone")
    assert comparison["headline"] == "overlap" and comparison["overlap"]["difference"] == pytest.approx(0.25)
    assert (comparison["overlap"]["wins"], comparison["overlap"]["losses"]) == (8, 0)
    assert "overlap scores" in compare_as_text(comparison)
    with pytest.raises(DataError, match="score 'official' is not in both runs; choose one of overlap"):
        compare_as_text(comparison, "official")
    assert "overlap" in as_text(tone) and tone["task"]["name"] == "overlap"
    assert headline_figures(tone)["accuracy"] == pytest.approx(0.375)
    text = write_report(tmp_path / "r.html", [tmp_path / "low", tmp_path / "tone"]).read_text()
    assert "37.5 %" in text and "shared words" in text


def test_an_item_without_a_completion_scores_0_in_every_task(tmp_path: Path) -> None:
    examples = tone_task(tmp_path, 4)
    (tmp_path / "clips" / "1.wav").unlink()
    metrics = evaluate(ScriptedEngine(say("tone low middle high hiss")), examples, tmp_path / "run", task=OVERLAP)
    assert metrics["n"] == 4 and metrics["error"]["count"] == 1
    assert metrics["accuracy"]["overlap"]["accuracy"] == 0.75


def test_one_headline_everywhere(tmp_path: Path) -> None:
    def aloud(prompt: Prompt) -> str:
        return f"<think>a hiss, a low tone or a high tone</think>{answer_by_pitch(prompt)}"

    examples = tone_task(tmp_path, 8)
    metrics = evaluate_with_controls(ScriptedEngine(aloud), examples, tmp_path / "run", EvalOptions(style="think"))
    score = headline(metrics)
    assert score is not None and (score.name, score.value, score.n) == ("lenient", 1.0, 8)
    figures = headline_figures(metrics)
    assert (figures["score"], figures["accuracy"]) == ("lenient", 1.0)
    blind = headline(metrics, control="silence")
    assert blind is not None and figures["blind_accuracy"] == blind.value < 1
    assert headline(metrics, control="noise") is None and set(blind_controls(metrics)) == {"silence", "shuffled"}
    assert "95 % interval (lenient)" in as_text(metrics)
    evaluate(ScriptedEngine(answer_by_pitch), examples, tmp_path / "plain")
    runs = [read_run(tmp_path / name) for name in ("plain", "run")]
    assert shared_headline(runs) == compare(*runs)["headline"] == "lenient"
    assert shared_headline(runs[:1]) == "official"


def test_runs_without_a_common_score_have_no_headline(tmp_path: Path) -> None:
    examples = tone_task(tmp_path, 4)
    evaluate(ScriptedEngine(answer_by_pitch), examples, tmp_path / "a")
    evaluate(ScriptedEngine(answer_by_pitch), examples, tmp_path / "b", task=OVERLAP)
    with pytest.raises(DataError, match=r"different headline scores \(official, overlap\)"):
        shared_headline([read_run(tmp_path / name) for name in "ab"])


def test_results_of_earlier_versions_are_compared_and_reported(tmp_path: Path) -> None:
    """Earlier versions wrote neither the task nor notes about its scores, and no number of items with options."""
    evaluate_with_controls(ScriptedEngine(answer_by_pitch), tone_task(tmp_path, 8), tmp_path / "old")
    evaluate(ScriptedEngine(say("")), tone_task(tmp_path, 8), tmp_path / "new")
    path = tmp_path / "old" / "metrics.json"
    metrics = json.loads(path.read_text())
    write_json(path, {k: v for k, v in metrics.items() if k not in ("task", "score_notes", "chance_n", "kinds")})
    comparison = compare(tmp_path / "old", tmp_path / "new")
    assert comparison["official"]["losses"] == 8 and "official scores" in compare_as_text(comparison)
    text = write_report(tmp_path / "r.html", [tmp_path / "old", tmp_path / "new"]).read_text()
    assert "the official matcher on the raw output" in text and "Dashed line: chance, 25.0 %" in text


def test_scores_of_rows() -> None:
    rows = [{"scores": {"a": 1.0, "b": 0.5}}, {"scores": None}, {"scores": {"a": 0.0}}]
    assert score_names(rows) == ["a"] and score_names([]) == [] and mean_scores([]) == {}


# Submission files ----------------------------------------------------------------------------------------------------


def test_the_command_writes_the_submission_file_and_the_official_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [
        {"id": f"m{number}", "audio_id": f"{number}.wav", "question": "Which?", "choices": ["low tone", "hiss"],
         "answer": "low tone", "dataset": "made up", "task": "sound", "category": "Recognition",
         "sub-category": "Pitch", "difficulty": "easy"}
        for number in range(3)
    ]  # fmt: skip
    for item in items:
        write_clip(tmp_path / item["audio_id"], "low tone", 1)
    source, out = tmp_path / "mini.json", tmp_path / "run"
    source.write_text(json.dumps(items))
    monkeypatch.setattr(evaluate_command, "open_engine", lambda name, compute: ScriptedEngine(say("low tone")))
    arguments = [
        "evaluate",
        "--task",
        "mmau",
        "--data",
        str(source),
        "--out",
        str(out),
        "--limit",
        "2",
        "--no-controls",
    ]
    assert cli.run([*arguments, "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["predictions"] == str(out / "predictions.json")
    assert "1 items of the benchmark were not asked" in output.err
    predictions = json.loads((out / "predictions.json").read_text())
    assert [row["model_output"] for row in predictions] == ["low tone", "low tone", ""]
    assert "Total Accuracy: 66.67% over 3 samples" in (out / "predictions.txt").read_text()


def test_a_reasoning_run_submits_the_extracted_answers_and_hidden_answers_have_no_summary(tmp_path: Path) -> None:
    write_clip(tmp_path / "0.wav", "low tone", 1)
    item = {"id": "m0", "audio_id": "0.wav", "question": "Which?", "choices": ["low tone", "hiss"]}
    source = tmp_path / "test.json"
    source.write_text(json.dumps([item]))
    engine = ScriptedEngine(say("<think>no hiss</think><answer>low tone</answer>"))
    evaluate(engine, mmau.load(source), tmp_path / "run", EvalOptions(style="think"), task=mmau.TASK)
    assert mmau.write_predictions(read_run(tmp_path / "run"), tmp_path / "p.json", source) == 0
    assert json.loads((tmp_path / "p.json").read_text()) == [{**item, "model_output": "low tone"}]
    assert not (tmp_path / "p.txt").exists()


# Mellow --------------------------------------------------------------------------------------------------------------


def test_mellow_words_questions_as_it_was_trained() -> None:
    reworded = mellow.reworded(question(1, "Which Sound?", "A Dog", ("Rain", "A Dog")))
    assert (reworded.question, reworded.answer, reworded.choices) == (
        "which sound? a) rain b) a dog",
        ("b) a dog",),
        (),
    )
    binary = mellow.reworded(question(2, "Is It Raining?", "Yes", ("yes", "no")))
    assert (binary.question, binary.answer) == ("is it raining?", ("yes",))


@pytest.mark.parametrize(
    ("gold", "completion", "score", "status"),
    [
        ("b) a dog", "B) a dog", 1.0, "ok"),
        ("b) a dog", "b", 1.0, "ok"),
        ("b) a dog", "a dog", 0.0, "unparsed"),
        ("a) rain", "a dog", 1.0, "unparsed"),
        ("yes", "Yes, it is.", 1.0, "ok"),
        ("no", "I know it", 1.0, "ok"),
    ],
)
def test_mellow_reads_answers_as_its_authors_do(gold: str, completion: str, score: float, status: str) -> None:
    result = mellow.score(question(1, "?", gold), completion)
    assert (result.values["mellow"], result.status) == (score, status)
    assert set(result.values) == set(mellow.TASK.score_notes)


def test_mellows_figures_are_those_of_the_released_program(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.wav", "hiss", 1)
    labels, gold = ("true", "false", "plausible"), ("true", "false", "plausible", "plausible")
    completions = ["a) true", "b) false", "hm", "c) plausible"]
    examples = [
        mellow.reworded(question(n, f"{n}?", answer, labels, task="entailment", root=clip.parent))
        for n, answer in enumerate(gold)
    ]
    engine = ScriptedEngine(lambda prompt: completions[int(prompt.key[1:])])
    metrics = evaluate(engine, examples, tmp_path / "run", EvalOptions(style="open"), task=mellow.TASK)
    expected = mellow_metric.entailment(completions, [example.answer[0] for example in examples])
    assert metrics["headline"] == "letter" and metrics["accuracy"]["mellow"]["accuracy"] == expected["ACC"] == 0.75
    for name in ("Precision", "Recall", "F1", "ACC_Neutral"):
        assert metrics["accuracy"][f"entailment_{name.lower()}"]["accuracy"] == expected[name]
    assert metrics["accuracy"]["unreadable"] == {"accuracy": 0.25, "n": 4}
    assert "entailment_f1" in as_text(metrics)
    assert "Entailment f1" in write_report(tmp_path / "r.html", [tmp_path / "run"]).read_text()


def test_mellows_reading_of_mmau_has_no_default_letter() -> None:
    rows = [
        {"scores": {"mellow": 1.0}, "task": "sound", "difficulty": "easy", "gold": ["a) rain"], "output": output}
        for output in ("a) rain", "rain")
    ]
    metrics = mellow.aggregate(rows)
    assert metrics["mellow"]["accuracy"] == 1.0 and metrics["mmau"] == {"accuracy": 0.5, "n": 2}
