"""Scores that count errors: less is better in gains, wins, best checkpoints and ablations; corpora are not means."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from earwise.apps.ablation_comparison import compare_arms
from earwise.apps.recipe_eval import answer_metrics, error_metrics, headline_figures
from earwise.config.recipe import check_recipe
from earwise.engine.base import Prompt
from earwise.evaluation.aggregates.corpus import bleu, corpus_difference, corpus_row, ratio
from earwise.evaluation.compare import as_text, compare
from earwise.evaluation.metrics.translation import corpus_bleu, sentence_score
from earwise.evaluation.results import read_run
from earwise.evaluation.run import evaluate, evaluate_with_controls
from earwise.evaluation.scores import headline
from earwise.evaluation.task_table import load_task
from earwise.evaluation.terminal import as_text as metrics_as_text
from earwise.types import Audio, Example, Text, Turn
from scripted_engine import PITCHES, ScriptedEngine, pitch_name, write_clip

TRANSCRIPTS = {"low tone": "a low tone", "middle tone": "one middle tone is heard here", "high tone": "high tone"}
"""Reference transcripts of 3, 6 and 2 words."""


def transcripts(folder: Path, n: int) -> list[Example]:
    examples = []
    for number in range(n):
        name = list(TRANSCRIPTS)[number % 3]
        clip = write_clip(folder / "clips" / f"{number}.wav", name, number)
        turns = (Turn("user", (Audio(str(clip)), Text("Transcribe the speech."))),)
        examples.append(Example(f"t{number:02}", turns, (TRANSCRIPTS[name],), language="en", task="asr"))
    return examples


def hears(prompt: Prompt) -> str:
    """The right words of a tone, some words of silence."""
    return TRANSCRIPTS.get(pitch_name(prompt.waveforms[0]) or "", "nothing at all")


def mishears(prompt: Prompt) -> str:
    """As `hears`, with the last word left out."""
    return " ".join(hears(prompt).split()[:-1])


def test_the_hearing_gain_of_an_error_rate_is_above_0_where_sound_helps(tmp_path: Path) -> None:
    task = load_task("transcription")
    metrics = evaluate_with_controls(
        ScriptedEngine(hears), transcripts(tmp_path, 12), tmp_path / "run", task=task, blind=("silence",)
    )
    score, blind = headline(metrics), headline(metrics, control="silence")
    assert score is not None and blind is not None and score.lower_is_better and score.value == 0
    # Three words of silence in place of 3, 6 and 2: 3 + 6 + 3 edits over 11 words, where the mean of rates is 1.17.
    assert blind.value == pytest.approx(12 / 11)
    gain = metrics["blind"]["silence"]["hearing_gain"]["wer"]
    assert gain["difference"] == pytest.approx(12 / 11) and 0 < gain["low"] <= gain["high"] and gain["wins"] == 12
    assert (gain["accuracy_a"], gain["accuracy_b"], gain["losses"]) == (pytest.approx(12 / 11), 0, 0)
    text = metrics_as_text(metrics)
    assert "(wer, less is better)" in text and "+109.1" in text


def test_fewer_errors_win_in_a_comparison(tmp_path: Path) -> None:
    task, examples = load_task("transcription"), transcripts(tmp_path, 12)
    evaluate(ScriptedEngine(mishears), examples, tmp_path / "before", task=task)
    evaluate(ScriptedEngine(hears), examples, tmp_path / "after", task=task)
    result = compare(tmp_path / "before", tmp_path / "after")
    row = result["wer"]
    assert result["headline"] == "wer" and result["lower_is_better"] == ["wer", "wer_whisper"]
    assert (row["accuracy_a"], row["accuracy_b"]) == (pytest.approx(3 / 11), 0), "edits over words, as the run says"
    assert row["difference"] == pytest.approx(3 / 11) and (row["wins"], row["losses"]) == (12, 0) and row["low"] > 0
    backwards = compare(tmp_path / "after", tmp_path / "before")["wer"]
    assert backwards["difference"] == pytest.approx(-3 / 11) and (backwards["wins"], backwards["losses"]) == (0, 12)
    assert "better by" in as_text(result) and "less is better" in as_text(result) and "+27.3" in as_text(result)


def test_right_and_wrong_transcripts_are_counted_the_right_way_round(tmp_path: Path) -> None:
    """Where every transcript is right or wholly wrong, the exact test is used, in the same direction."""
    task, examples = load_task("transcription"), transcripts(tmp_path, 6)
    evaluate(ScriptedEngine(lambda prompt: ""), examples, tmp_path / "before", task=task)
    evaluate(ScriptedEngine(hears), examples, tmp_path / "after", task=task)
    row = compare(tmp_path / "before", tmp_path / "after")["wer"]
    assert row["difference"] == 1 and (row["wins"], row["losses"]) == (6, 0)


def test_fewer_errors_are_the_better_checkpoint() -> None:
    dataset = {"manifest": "clips.jsonl", "task": "transcription", "style": "open"}
    stage = {"kind": "sft", "max_steps": 4, "eval_steps": 2, "data": {"mixture": [{"manifest": "starter:train"}]}}
    recipe = {"recipe": "small", "model": {"name": "embedded"}}
    settings = [stage | {"eval_dataset": dataset}, stage | {"eval_dataset": {"manifest": "starter:val"}}]
    transcripts, choices = check_recipe(recipe | {"stages": settings}, "small.yaml").stages
    assert error_metrics(transcripts) == {"accuracy", "wer", "wer_whisper"} and not error_metrics(choices)


def test_figures_before_and_after_training_name_the_score(tmp_path: Path) -> None:
    metrics = evaluate(
        ScriptedEngine(mishears), transcripts(tmp_path, 6), tmp_path / "run", task=load_task("transcription")
    )
    figures = headline_figures(metrics)
    assert (figures["score"], figures["lower_is_better"]) == ("wer", True)
    assert figures["accuracy"] == answer_metrics(metrics)["wer"] == pytest.approx(3 / 11)


def test_arms_are_compared_by_their_corpus_in_the_right_direction(tmp_path: Path) -> None:
    task, examples = load_task("transcription"), transcripts(tmp_path, 12)
    for name, respond in (("base", mishears), ("better", hears)):
        for seed in (0, 1):
            evaluate(ScriptedEngine(respond), examples, tmp_path / f"{name}-{seed}", task=task)
    arms = {name: {seed: read_run(tmp_path / f"{name}-{seed}") for seed in (0, 1)} for name in ("base", "better")}
    result = compare_arms(arms)
    base, better = result["arms"]
    assert (result["kind"], result["lower_is_better"]) == ("wer", True)
    assert base["accuracy"] == base["by_seed"]["1"] == pytest.approx(3 / 11) and better["accuracy"] == 0
    gap = better["against"]
    assert gap["difference"] == pytest.approx(3 / 11) and gap["low"] > 0 and (gap["wins"], gap["losses"]) == (12, 0)


# Formulas ------------------------------------------------------------------------------------------------------------


def test_an_error_rate_by_hand() -> None:
    assert ratio(np.array([[3.0, 12.0], [0.0, 0.0], [2.0, 0.0]])).tolist() == [0.25, 0.0, 1.0]
    row = corpus_row([(1, 2), (0, 8)], ["", ""], "ratio")
    assert row["accuracy"] == 0.1 and row["n"] == 2 and row["low"] == 0 and row["high"] == 0.5
    assert corpus_row([(1, 2), (0, 8)], ["en", "zh"], "ratio")["accuracy"] == 0.25, "mean over languages"
    gap = corpus_difference([(1, 2), (0, 8)], [(1, 2), (4, 8)], ["", ""], "ratio", seed=0)
    assert gap["difference"] == pytest.approx(-0.4) and (gap["after"], gap["before"]) == (0.1, 0.5)


SENTENCES = (
    ("the cat sat on the mat", "the cat is on the mat"),
    ("it rains in the city tonight", "it rains in the old city tonight"),
    ("good morning", "good evening to you"),
    ("", "nobody is here"),
    ("a dog barks twice at the gate", "a dog barks twice at the gate"),
)


@pytest.mark.parametrize("items", [(0, 1, 2, 3, 4), (0, 1), (2, 2, 3), (3,), (0, 0, 4)], ids=str)
def test_bleu_of_any_resample_is_sacrebleus(items: Sequence[int]) -> None:
    counts = np.array([sentence_score(reference, output, "de")[1] for output, reference in SENTENCES])
    outputs, references = zip(*(SENTENCES[item] for item in items), strict=True)
    official = BLEU(tokenize="13a").corpus_score(list(outputs), [list(references)]).score
    assert 100 * bleu(counts[list(items)].sum(axis=0)) == pytest.approx(official, abs=1e-9)
    assert corpus_bleu(references, outputs, "de")[0] == official


def test_the_headline_of_a_small_corpus_is_sacrebleus(tmp_path: Path) -> None:
    """Without a match of four words, sacreBLEU smooths; a comparison with the run itself has the same value."""
    task, outputs = load_task("translation"), {"t00": "the cat there sits", "t01": "rain"}
    turns = (Turn("user", (Audio(str(write_clip(tmp_path / "a.wav", "hiss", 1))), Text("Translate."))),)
    examples = [
        Example(name, turns, (gold,), language="de")
        for name, gold in (("t00", "the cat is on the mat"), ("t01", "it rains tonight, they say"))
    ]
    metrics = evaluate(ScriptedEngine(lambda prompt: outputs[prompt.key]), examples, tmp_path / "run", task=task)
    golds = [example.answer[0] for example in examples]
    official = BLEU(tokenize="13a").corpus_score(list(outputs.values()), [golds]).score
    assert 0 < 100 * metrics["accuracy"]["bleu"]["accuracy"] == pytest.approx(official, abs=1e-9)
    row = compare(tmp_path / "run", tmp_path / "run")["bleu"]
    assert row["accuracy_a"] == row["accuracy_b"] == metrics["accuracy"]["bleu"]["accuracy"]


def test_the_interval_of_bleu_resamples_the_corpus(tmp_path: Path) -> None:
    counts = [sentence_score(reference, output, "de")[1] for output, reference in SENTENCES]
    row = corpus_row(counts, ["de"] * 5, "bleu")
    rng = np.random.default_rng(1)
    official = BLEU(tokenize="13a")
    draws = []
    for _ in range(400):
        outputs, references = zip(*(SENTENCES[item] for item in rng.integers(0, 5, 5)), strict=True)
        draws.append(official.corpus_score(list(outputs), [list(references)]).score / 100)
    assert row["low"] == pytest.approx(np.quantile(draws, 0.025), abs=0.05)
    assert row["high"] == pytest.approx(np.quantile(draws, 0.975), abs=0.05)


def test_the_tones_of_these_tests_are_known() -> None:
    assert set(TRANSCRIPTS) < set(PITCHES)
