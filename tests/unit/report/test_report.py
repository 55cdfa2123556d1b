"""The report is one file that loads nothing else, shows the numbers of the runs, and escapes all text of models."""

import base64
import hashlib
import html
import json
import math
import os
import re
import shutil
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from earwise import cli
from earwise.engine.base import Prompt
from earwise.errors import DataError
from earwise.evaluation.metrics.stats import wilson
from earwise.evaluation.results import read_run
from earwise.evaluation.run import EvalOptions, evaluate, evaluate_with_controls
from earwise.evaluation.task_table import load_task
from earwise.evaluation.terminal import as_text
from earwise.files import write_json, write_jsonl
from earwise.report import write_report
from earwise.report.plots import Series, curves, heat_map, nice_ticks, smoothed
from earwise.report.samples.clips import page_clips
from earwise.report.samples.outcomes import draw_items, outcomes
from earwise.report.table_files import page_tables
from earwise.types import AudioClip, Completion
from scripted_engine import ScriptedEngine, answer_by_pitch, answer_first_option, pitch_name, tone_task

VOID = {"meta", "input", "br", "circle", "line", "polyline"}


class PageParser(HTMLParser):
    """Checks that tags close in order; keeps attributes that fetch something, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(path: Path) -> PageParser:
    page = PageParser()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def data_of(path: Path) -> dict[str, Any]:
    """What the page's list of samples holds."""
    (block,) = re.findall(r'<script type="application/json" id="sample-data">(.*?)</script>', path.read_text("utf-8"))
    return dict(json.loads(block))


def answer_half(prompt: Prompt) -> str:
    """Answers every other item by its pitch, the others without tags or not at all."""
    number = int(prompt.key.split("#")[0][-3:])
    return answer_by_pitch(prompt) if number % 2 else ("" if number % 4 else answer_first_option(prompt)[8:-9])


def write_log(path: Path, steps: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "step": step,
            "grpo/reward": step / steps,
            "grpo/kl": 1e-5 * step,
            "train/lr": 1e-6,
            "note": "x",
            "grpo/length": None,
        }
        for step in range(1, steps + 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    task = tone_task(tmp_path, 24)
    evaluate_with_controls(ScriptedEngine(answer_half), task, tmp_path / "before")
    evaluate_with_controls(ScriptedEngine(answer_by_pitch), task, tmp_path / "after")
    return [tmp_path / "before", tmp_path / "after"]


def test_before_and_after_in_one_file(tmp_path: Path, runs: list[Path]) -> None:
    log = write_log(tmp_path / "grpo" / "metrics.jsonl")
    out = write_report(tmp_path / "report.html", runs, [log], title="Tones <now>")
    page = parsed(out)
    text = " ".join(page.words)
    assert "Tones <now>" in text and "100.0 %" in text
    after = read_run(runs[1]).metrics
    silent = after["blind"]["silence"]["accuracy"]["official"]["accuracy"]
    assert f"{100 * silent:.1f} %" in text and "n = 24" in text
    for section in (
        "Result",
        "Does it hear?",
        "Format and accuracy, apart",
        "By task",
        "Training",
        "Confusions",
        "Samples",
    ):
        assert section in text
    assert "Reward" in text and "KL to the reference" in text and "Completion length" not in text
    samples = data_of(out)
    assert len(samples["samples"]) == 24 and sum("url" in clip for clip in samples["clips"]) == 24
    assert page.tags.count("script") == 3 and "link" not in page.tags and "img" not in page.tags


def test_nothing_is_fetched(tmp_path: Path, runs: list[Path]) -> None:
    out = write_report(tmp_path / "report.html", runs)
    page, text = parsed(out), out.read_text()
    assert page.fetched and all(value.startswith("#") for value in page.fetched)
    assert all(clip["url"].startswith("data:audio/wav;base64,") for clip in data_of(out)["clips"])
    assert not re.search(r"https?://|@import|[ :]url\(", text)
    policy = html.unescape(re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[0])
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_one_run_without_controls(tmp_path: Path) -> None:
    evaluate(ScriptedEngine(answer_half), tone_task(tmp_path, 8), tmp_path / "run")
    text = " ".join(parsed(write_report(tmp_path / "r.html", [tmp_path / "run"])).words)
    assert "No blind control was run" in text and "apart" not in text and "Training" not in text


def test_chance_stands_beside_the_items_it_is_of(tmp_path: Path) -> None:
    task = tone_task(tmp_path, 8)
    evaluate(ScriptedEngine(answer_half), task, tmp_path / "options")
    text = " ".join(parsed(write_report(tmp_path / "o.html", [tmp_path / "options"])).words)
    assert "Dashed line: chance, 25.0 %" in text and "By kind of question" not in text
    mixed = [*task[:4], *(replace(example, choices=()) for example in task[4:])]
    evaluate(ScriptedEngine(lambda prompt: "<answer>hiss</answer>"), mixed, tmp_path / "mixed")
    text = " ".join(parsed(write_report(tmp_path / "m.html", [tmp_path / "mixed"])).words)
    assert "Dashed line" not in text and "of the 4 of 8 with options" in text and "By kind of question" in text


def test_three_runs_and_a_run_on_other_items(tmp_path: Path, runs: list[Path]) -> None:
    evaluate(ScriptedEngine(answer_first_option), tone_task(tmp_path / "other", 6), tmp_path / "elsewhere")
    parsed(write_report(tmp_path / "r.html", [*runs, runs[0]]))
    new_task = tone_task(tmp_path / "more", 4)
    new_task = [replace(example, id=f"new-{number}") for number, example in enumerate(new_task)]
    evaluate(ScriptedEngine(answer_first_option), new_task, tmp_path / "new")
    parsed(write_report(tmp_path / "r.html", [runs[0], tmp_path / "new"]))


def test_text_of_models_and_data_is_escaped(tmp_path: Path) -> None:
    markup = "<script>alert(1)</script>\"'&"
    task = [
        replace(example, id=f"{markup}{example.id}", task=markup, category=markup) for example in tone_task(tmp_path, 4)
    ]
    task = [replace(example, choices=(*example.choices, markup), answer=(markup,)) for example in task]
    engine = ScriptedEngine(lambda prompt: f"<think>{markup}</think><answer>{markup}</answer>", name=markup)
    evaluate(engine, task, tmp_path / "run", EvalOptions(style="think"))
    out = write_report(tmp_path / "r.html", [replace(read_run(tmp_path / "run"), name=markup)], title=markup)
    page = parsed(out)
    assert page.tags.count("script") == 3 and "<script>alert" not in out.read_text()
    assert '</script>"' not in out.read_text() and markup in " ".join(page.words)
    (sample, *_) = data_of(out)["samples"]
    (answer,) = sample["answers"]
    assert sample["task"] == sample["gold"][0] == markup and answer["output"].startswith(f"<think>{markup}</think>")
    assert answer["output"][slice(*answer["reasoning"])] == markup


def test_what_was_won_and_lost_is_counted_and_linked(tmp_path: Path, runs: list[Path]) -> None:
    text = write_report(tmp_path / "r.html", runs).read_text()
    before, after = (read_run(run).first for run in runs)
    gained = sum(after[item]["scores"]["official"] > row["scores"]["official"] for item, row in before.items())
    assert gained and f'<a href="#samples?outcome=gained">{gained}</a>' in text
    assert '<a href="#samples?task=pitch">pitch</a>' in text


def test_runs_on_other_items_stand_side_by_side_with_a_caveat(tmp_path: Path, runs: list[Path]) -> None:
    task = [replace(example, id=f"new-{number}") for number, example in enumerate(tone_task(tmp_path / "new", 4))]
    evaluate(ScriptedEngine(answer_first_option), task, tmp_path / "elsewhere")
    text = " ".join(parsed(write_report(tmp_path / "r.html", [runs[0], tmp_path / "elsewhere"])).words)
    assert "have no item in common" in text
    evaluate(ScriptedEngine(answer_first_option), tone_task(tmp_path / "part", 6), tmp_path / "part")
    text = " ".join(parsed(write_report(tmp_path / "r.html", [tmp_path / "part", runs[0]])).words)
    assert "share 6 items of 6 and 24" in text
    assert "items of" not in " ".join(parsed(write_report(tmp_path / "r.html", runs)).words)


def test_answers_in_the_right_form_that_cannot_be_read_are_explained(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda prompt: "<answer>something else</answer>")
    evaluate(engine, tone_task(tmp_path, 8), tmp_path / "run")
    text = " ".join(" ".join(parsed(write_report(tmp_path / "r.html", [tmp_path / "run"])).words).split())
    assert "8 of 8 answers in the requested form could still not be read" in text


def test_questions_on_one_clip_are_not_independent(tmp_path: Path) -> None:
    task = tone_task(tmp_path, 8)
    task = [replace(example, id=f"{example.id}-{copy}") for example in task for copy in range(5)]

    def hears_low_tones(prompt: Prompt) -> str:
        return "<answer>low tone</answer>" if pitch_name(prompt.waveforms[0]) == "low tone" else "<answer>hiss</answer>"

    metrics = evaluate(ScriptedEngine(hears_low_tones), task, tmp_path / "run")
    row = metrics["accuracy"]["official"]
    assert row["clips"] == 8 and row["n"] == 40 and row["low"] < wilson(round(40 * row["accuracy"]), 40)[0]
    text = " ".join(parsed(write_report(tmp_path / "r.html", [tmp_path / "run"])).words)
    assert "40 questions share 8 clips" in text and "clustered by clip" in as_text(metrics)


def test_orders_and_calibration_have_their_sections(tmp_path: Path) -> None:
    class SureEngine(ScriptedEngine):
        def generate(self, prompts: Any, sampling_params: Any, n: int = 1) -> list[list[Completion]]:
            return [[replace(completion, logprobs=(math.log(0.9), 0.0)) for completion in completions]
                    for completions in super().generate(prompts, sampling_params, n)]  # fmt: skip

    options = EvalOptions(permutations=2)
    evaluate(SureEngine(answer_by_pitch), tone_task(tmp_path, 24), tmp_path / "run", options)
    evaluate(ScriptedEngine(answer_first_option), tone_task(tmp_path, 24), tmp_path / "first", options)
    out = write_report(tmp_path / "r.html", [tmp_path / "first", tmp_path / "run"])
    text = " ".join(" ".join(parsed(out).words).split())
    assert "Right in every order" in text and "Mean confidence" in text
    tables = {table.section: table for table in page_tables(out.read_text())}
    (head, line) = [[cell.text for cell in row] for row in tables["Calibration"].rows]
    assert dict(zip(head, line, strict=True)) == {
        "Run": "run", "Answers": "24", "Mean confidence": "90.0 %", "Right": "100.0 %", "ECE, points": "10.0",
        "Largest gap, points": "10.0", "Brier score": "0.010",
    }  # fmt: skip
    by_run = {row[0].text: [cell.text for cell in row[1:]] for row in tables["Orders of the options"].rows}
    assert by_run["run"][-2:] == ["100.0 %", "100.0 %"] and by_run["first"][-2] == "0.0 %"
    (sample, *_) = data_of(out)["samples"]
    assert len(sample["answers"][1]["orders"]) == 2 and sample["answers"][1]["confidence"] == 0.9


def test_the_time_of_a_page_grows_with_its_samples_and_not_with_their_square(tmp_path: Path, runs: list[Path]) -> None:
    read = [read_run(run) for run in runs]

    def seconds(copies: int) -> float:
        many = [
            replace(run, rows=tuple({**row, "id": f"{row['id']}-{n}"} for row in run.rows for n in range(copies)))
            for run in read
        ]
        started = time.process_time()
        write_report(tmp_path / "r.html", many)
        return time.process_time() - started

    assert seconds(200) < 4 + 20 * seconds(20)


def test_thinking_styles_are_summed_up_by_the_extracted_answer(tmp_path: Path) -> None:
    def aloud(prompt: Prompt) -> str:
        return f"<think>not a hiss, not a low tone, maybe a high tone or middle tone</think>{answer_by_pitch(prompt)}"

    metrics = evaluate(ScriptedEngine(aloud), tone_task(tmp_path, 8), tmp_path / "run", EvalOptions(style="think"))
    assert metrics["headline"] == "lenient"
    assert metrics["accuracy"]["lenient"]["accuracy"] == 1 and metrics["accuracy"]["official"]["accuracy"] == 0
    assert "100.0 %" in " ".join(parsed(write_report(tmp_path / "r.html", [tmp_path / "run"])).words)


def test_clips_stay_within_the_budget_and_the_others_are_linked(tmp_path: Path, runs: list[Path]) -> None:
    (tmp_path / "clips" / "3.wav").unlink()
    (tmp_path / "pages").mkdir()
    out = write_report(tmp_path / "pages" / "r.html", runs, audio_budget=60_000)
    parsed(out)
    clips = {clip["name"]: clip for clip in data_of(out)["clips"]}
    embedded = [clip["url"] for clip in clips.values() if "url" in clip]
    linked = [clip["href"] for clip in clips.values() if "href" in clip]
    assert 0 < sum(map(len, embedded)) <= 60_000 and len(embedded) + len(linked) == 23
    assert clips["3.wav"] == {"name": "3.wav"}
    assert all((out.parent / href).is_file() and href.startswith("../clips/") for href in linked)
    assert str(tmp_path) not in out.read_text()


def test_a_link_is_never_read_as_a_scheme_or_a_fragment(tmp_path: Path) -> None:
    clip = AudioClip(tmp_path / "javascript:alert(1)#?%41 .wav", 0.5, 1.5)
    clip.path.write_bytes(b"x")
    (entry,) = page_clips([clip, clip], tmp_path, 0).values()
    assert entry["href"] == "./javascript%3Aalert%281%29%23%3F%2541%20.wav"
    assert (entry["start"], entry["end"]) == (0.5, 1.5)


def test_cards_are_drawn_by_seed_from_every_outcome(runs: list[Path]) -> None:
    read = [read_run(run) for run in runs]
    first = draw_items(read, "official", 0, 8)
    assert first == draw_items(read, "official", 0, 8) != draw_items(read, "official", 1, 8)
    assert {name for _, name in first} == {"gained", "right"}
    assert all(outcomes(read, "official")[item] == name for item, name in first)
    assert {name for _, name in draw_items(read[::-1], "official", 0)} == {"lost", "right"}


def test_the_lead_of_a_score_that_is_no_share_says_what_it_is(tmp_path: Path) -> None:
    task = [replace(example, choices=(), answer=("the old cat sat",)) for example in tone_task(tmp_path, 4)]
    transcription = load_task("transcription")
    evaluate(ScriptedEngine(lambda prompt: "the old cat"), task, tmp_path / "a", task=transcription)
    evaluate(ScriptedEngine(lambda prompt: "the old cat sat"), task, tmp_path / "b", task=transcription)
    text = " ".join(" ".join(parsed(write_report(tmp_path / "r.html", [tmp_path / "a"])).words).split())
    assert "a scores 25.0 in WER on 4 items, times 100" in text and "less is better" in text
    out = write_report(tmp_path / "r.html", [tmp_path / "a", tmp_path / "b"])
    assert "+25.0 points against a (25.0; interval" in " ".join(" ".join(parsed(out).words).split())
    assert {sample["outcome"] for sample in data_of(out)["samples"]} == {"gained"}


def test_answers_without_gold_can_be_read_but_not_beside_scores(tmp_path: Path, runs: list[Path]) -> None:
    task = [replace(example, answer=()) for example in tone_task(tmp_path / "hidden", 6)]
    evaluate(ScriptedEngine(answer_first_option), task, tmp_path / "hidden")
    out = write_report(tmp_path / "r.html", [tmp_path / "hidden"])
    assert "was asked 6 items without gold answers" in " ".join(" ".join(parsed(out).words).split())
    assert {sample["outcome"] for sample in data_of(out)["samples"]} == {"unlabelled"}
    with pytest.raises(DataError, match="page of its own"):
        write_report(tmp_path / "other.html", [tmp_path / "hidden", runs[0]])


def test_an_unfinished_run_and_a_wrong_log_are_refused(tmp_path: Path, runs: list[Path]) -> None:
    with pytest.raises(DataError, match="at least one run"):
        write_report(tmp_path / "r.html", [])
    with pytest.raises(DataError, match="no such training log"):
        write_report(tmp_path / "r.html", runs, [tmp_path / "none.jsonl"])
    (tmp_path / "empty.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(DataError, match="no row with a step"):
        write_report(tmp_path / "r.html", runs, [tmp_path / "empty.jsonl"])
    (runs[1] / "metrics.json").unlink()
    with pytest.raises(DataError, match="not finished"):
        write_report(tmp_path / "r.html", runs)
    assert not (tmp_path / "r.html").exists()


def training_folder(folder: Path, clip: Path, stages: tuple[str, ...] = ("stage-0-sft", "stage-1-grpo")) -> Path:
    """The folder of a training run: twenty steps per stage, prompts logged at every second GRPO step."""
    rows, rollouts = [], []
    for stage in stages:
        kind = stage.rpartition("-")[2]
        for step in range(1, 21):
            value = {"grpo/reward": step / 20} if kind == "grpo" else {"sft/loss": 2 - step / 10, "sft/hearing": 0.25}
            rows.append({"step": step, "stage": stage, "lr": 1e-4, "seconds": 3.0, "ids": ["a"], **value})
            if kind == "grpo" and step % 2:
                rollouts.append(
                    {
                        "stage": stage, "step": step, "id": f"<q{step}>", "audio": [os.path.relpath(clip, folder)],
                        "question": "Which <sound>?", "choices": ["dog", "cat"], "answer": ["dog"],
                        "completions": ["<answer>dog</answer>"] * 3 + ["a </div> cat"], "rewards": [1.0] * 3 + [0.0],
                    }
                )  # fmt: skip
    write_jsonl(folder / "metrics.jsonl", rows)
    write_jsonl(folder / "rollouts.jsonl", rollouts)
    recipe = {"recipe": "mine", "seed": 7, "stages": [{"kind": "sft", "optimizer": {"learning_rate": 0.5}}]}
    write_json(folder / "recipe.json", {"recipe": recipe, "earwise": "0.1.0", "torch": "2"})
    return folder


def test_a_training_run_alone_shows_curves_samples_and_recipe(tmp_path: Path, runs: list[Path]) -> None:
    folder = training_folder(tmp_path / "mine", tmp_path / "clips" / "3.wav")
    assert cli.run(["report", str(folder)]) == 0
    page = parsed(folder / "report.html")
    text = " ".join(" ".join(page.words).split())
    assert "stage-0-sft : 20 steps in 1.0 minutes, loss 1.85 → 0.05" in text
    assert "stage-1-grpo : 20 steps in 1.0 minutes, reward 0.075 → 0.975" in text
    assert "optimizer/lr" in text and "speed/seconds" in text and "stages.0.optimizer.learning_rate" in text
    assert page.tags.count("audio") == 10 and "×3" in text and "a </div> cat" in text and "Which <sound>?" in text
    assert "step 1" in text and "step 19" in text


def test_a_training_run_with_what_it_measured(tmp_path: Path, runs: list[Path]) -> None:
    folder = training_folder(tmp_path / "mine", tmp_path / "clips" / "3.wav")
    for run in runs:
        shutil.copytree(run, folder / "eval" / f"{run.name}-0")
    assert cli.run(["report", str(folder), "--out", str(tmp_path / "both.html")]) == 0
    text = " ".join(parsed(tmp_path / "both.html").words)
    assert "Does it hear?" in text and "Sampled on the way" in text and "before" in text and "after" in text
    second_run = training_folder(tmp_path / "other", tmp_path / "clips" / "3.wav", ("stage-0-grpo",))
    shutil.copytree(runs[0], second_run / "eval" / "after-0")
    assert cli.run(["report", str(second_run), str(folder), "--out", str(tmp_path / "two.html")]) == 0
    text = " ".join(parsed(tmp_path / "two.html").words)
    assert "other, mine" in text and "mine · stage-1-grpo" in text


def test_rows_of_older_runs_have_no_cards(tmp_path: Path) -> None:
    log = write_log(tmp_path / "old" / "metrics.jsonl")
    (tmp_path / "old" / "rollouts.jsonl").write_text('{"step": 1, "id": "a", "completions": ["x"], "rewards": [1.0]}\n')
    text = " ".join(parsed(write_report(tmp_path / "r.html", [], [log])).words)
    assert "Reward" in text and "Sampled on the way" not in text


def test_curves_lie_where_their_values_are() -> None:
    svg = curves([Series("a", ((0, 0.0), (10, 1.0)), 1)], "T")
    assert 'points="44.0,164.0 310.0,12.0"' in svg
    assert "<circle" in curves([Series("a", ((5, 0.5),), 1)], "T")
    assert "raw" in curves([Series("a", tuple((x, float(x)) for x in range(30)), 1)], "T")


def test_smoothing_keeps_constants_and_lengths() -> None:
    dots = [(float(x), 2.0) for x in range(50)]
    assert smoothed(dots) == dots
    assert smoothed([(0, 0.0), (1, 3.0), (2, 0.0)]) == [(0, 1.5), (1, 1.0), (2, 1.5)]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (1e-6, 2e-6), (5, 5), (0.49, 0.51)])
def test_ticks_cover_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-12 and ticks[-1] >= high - 1e-12 and 2 <= len(ticks) <= 8


def test_heat_map_marks_the_diagonal() -> None:
    table = heat_map([[3, 1], [0, 0]], ["a", "b"], ["a", "b"])
    assert '--s:75%;--h:var(--good)" title="3 of 4">3' in table and '--s:25%;--h:var(--bad)" title="1 of 4">1' in table
