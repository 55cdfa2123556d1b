"""Compression on a tiny random Qwen2-Audio: the answer stays, chains only shrink, resets and resume are exact, token
delay is counted token by token."""

import itertools
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from builders import tone, tiny_qwen2_audio
from earwise.answers import answer_start
from earwise.audio import encode_ogg
from earwise.config.recipe import Recipe, check_recipe
from earwise.config.stages import CompressConfig
from earwise.data import manifest
from earwise.engine.token_delay import token_delay
from earwise.errors import ConfigError
from earwise.evaluate.results import EvalRun
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.prompts import target_text, xs_cot_chain
from earwise.report import result_tables
from earwise.train import run
from earwise.train.stages import compress
from earwise.types import Audio, Example, Text, Turn
from resumed import log, stopped_and_whole

GERMAN = Example(
    "de", (Turn("user", (Audio("0.ogg"),)),), ("Ja, er bellt sehr laut im Garten.",), language="de",
    reasoning=xs_cot_chain("de", "Bellt der kleine Hund heute wieder? Sag es.", "Does the little dog bark again today?",
                           "Yes, it barks very loudly in the garden. It does."),
)  # fmt: skip
JAPANESE = Example(
    "ja", (Turn("user", (Audio("1.ogg"),)),), ("はい、庭で大きな声で吠えています。",), language="ja",
    reasoning=xs_cot_chain("ja", "小さな犬は今日もまた庭で吠えていますか。", "Is the little dog barking in the garden?",
                           "Yes, it is barking loudly."),
)  # fmt: skip
THINKS = Example(
    "en", (Turn("user", (Audio("2.ogg"), Text("What is it?"))),), ("dog",), ("dog", "cat"),
    reasoning="A short bark comes first and then another one. Cats do not bark at all, ever.",
)  # fmt: skip


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """Named in recipes below as `test_compress:load`."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three rows with chains, a clip each."""
    from dataclasses import replace

    monkeypatch.setitem(sys.modules, "test_compress", sys.modules[__name__])
    for number in range(3):
        (tmp_path / f"{number}.ogg").write_bytes(encode_ogg(tone(0.5, 300 * (number + 1)), 16000))
    manifest.write(tmp_path / "rows.jsonl", [replace(one, root=tmp_path) for one in (GERMAN, JAPANESE)])
    manifest.write(tmp_path / "thinks.jsonl", [replace(THINKS, root=tmp_path)])
    return tmp_path / "rows.jsonl"


def stage(**settings: object) -> CompressConfig:
    made = recipe(**settings).stages[0]
    assert isinstance(made, CompressConfig)
    return made


def recipe(**settings: object) -> Recipe:
    common = {
        "kind": "compress",
        "max_steps": 8,
        "clips_per_step": 2,
        "steps_per_unit": 2,
        "save_steps": 3,
        "pack_tokens": 800,
        "trainable": {"encoder": "frozen", "connector": "full", "decoder": "full"},
        "optimizer": {"learning_rate": 3e-3, "lr_scheduler_type": "constant"},
        "data": {"mixture": [{"manifest": "rows.jsonl"}], "styles": {"xs-cot": 1.0}},
    }
    top = {"recipe": "t", "model": {"name": "test_compress:load"}, "seed": 5}
    return check_recipe(top | {"stages": [common | settings]}, "t")


@pytest.mark.parametrize(("example", "style"), [(GERMAN, "xs-cot"), (JAPANESE, "xs-cot"), (THINKS, "think")])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"order": "right"},
        {"order": "random"},
        {"stub_groups": 0, "ellipsis": ""},
        {"stub_groups": 1, "words_per_group": 2, "cutover": 2},
        {"unit": "tokens", "steps_per_unit": 1},
        {"unit": "tokens", "order": "right", "cutover": 5},
    ],
    ids=str,
)
def test_the_answer_stays_and_the_chain_only_shrinks(example: Example, style: str, settings: dict[str, Any]) -> None:
    model = load()
    plan = compress.plan(stage(**settings), [example], 2, seed=3)
    head, chain, tail = compress.parts(example, style)
    assert head + chain + tail == target_text(example, style)
    assert tail.endswith(example.answer[0] + ("</answer>" if style == "think" else ""))
    said = [plan.chain(example, chain, step, model) for step in range(40)]
    assert model.tokenizer.decode(said[0]) == chain, "progress 0 is the row's own chain"
    sizes = [len(ids) for ids in said]
    assert all(later <= earlier for earlier, later in itertools.pairwise(sizes))
    assert sizes[-1] < sizes[0]
    if settings.get("unit") != "tokens" and style == "xs-cot":
        marks = ["[de] ", "[en] ", "[en-response] "] if example.language == "de" else ["[ja] ", "[en] "]
        for ids in said:
            text = model.tokenizer.decode(ids)
            places = [text.find(mark) for mark in marks]
            assert places == sorted(places) and places[0] == 0, "markers stay, in their order"


def test_schedule_by_hand() -> None:
    """Four clips, two a step: two steps an epoch. The German chain has 5 sentences, the English thought 2."""
    by_epoch = compress.plan(stage(steps_per_unit=None, cutover=3), [], 4, seed=0)
    assert [by_epoch.progress(step) for step in range(9)] == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    faster = compress.plan(stage(steps_per_unit=None, cutover=9, units_per_epoch=2.0), [], 4, seed=0)
    assert [faster.progress(step) for step in range(4)] == [0, 1, 2, 3]
    by_steps = compress.plan(stage(steps_per_unit=3), [GERMAN, THINKS], 4, seed=0)
    assert by_steps.cutover == 5
    assert [by_steps.progress(step) for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    tokens = compress.plan(stage(unit="tokens", steps_per_unit=None, units_per_epoch=4.0, cutover=None), [GERMAN], 16, seed=0)
    assert tokens.cutover == math.inf
    assert [tokens.progress(step) for step in range(6)] == [0, 0, 1, 1, 2, 2], "eight steps an epoch, four tokens"


def test_resets_come_with_growth_only() -> None:
    plan = compress.plan(stage(reset_optimizer=True, steps_per_unit=2, cutover=2), [], 4, seed=0)
    assert [step for step in range(12) if plan.fresh(step)] == [2, 4]
    assert not any(compress.plan(stage(), [GERMAN], 4, seed=0).fresh(step) for step in range(12))


def test_offsets_take_out_more_and_are_the_same_again() -> None:
    model, chain = load(), compress.parts(GERMAN, "xs-cot")[1]
    plain = compress.plan(stage(cutover=5), [], 2, seed=3)
    more = compress.plan(stage(cutover=5, smoothing=0.3), [], 2, seed=3)
    sizes = [(len(plain.chain(GERMAN, chain, s, model)), len(more.chain(GERMAN, chain, s, model))) for s in range(14)]
    assert all(offset <= without for without, offset in sizes)
    assert any(offset < without for without, offset in sizes)
    again = compress.plan(stage(cutover=5, smoothing=0.3), [], 2, seed=3)
    assert [len(again.chain(GERMAN, chain, s, model)) for s in range(14)] == [offset for _, offset in sizes]


def test_training_logs_stage_chain_and_delay(rows: Path) -> None:
    out = rows.parent / "run"
    held_out = {"held_out": {"manifest": "rows.jsonl"}, "eval_steps": 4, "max_new_tokens": 12}
    run.start(recipe(**held_out), out, rows.parent)
    logged = log(out)
    assert [row["compress/progress"] for row in logged] == [0, 0, 1, 1, 2, 2, 3, 3]
    sizes = [row["compress/chain_tokens"] for row in logged]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.8 * sizes[0]
    assert logged[0]["compress/chain_share"] == 1
    assert [row["step"] for row in logged if "compress/delay" in row] == [1, 5, 8]
    assert [row["compress/delay"] for row in logged if "compress/delay" in row] == [12, 12, 12], "never answered"
    assert logged[0]["compress/answered"] == 0
    assert logged[-1]["compress/nll"] < logged[0]["compress/nll"]


@pytest.mark.parametrize("settings", [{"reset_optimizer": True, "smoothing": 1.0}, {"unit": "tokens"}], ids=str)
def test_an_interrupted_run_ends_bit_for_bit_where_the_other_ends(rows: Path, settings: dict[str, Any]) -> None:
    stopped_and_whole(recipe(**settings), rows.parent, after=5)


def test_a_reset_forgets_the_optimizer(rows: Path) -> None:
    """Two runs that differ in the reset alone part at the step of the reset, not before."""
    kept, reset = rows.parent / "kept", rows.parent / "reset"
    run.start(recipe(), kept, rows.parent)
    run.start(recipe(reset_optimizer=True), reset, rows.parent)
    losses = [[row["compress/loss"] for row in log(out)] for out in (kept, reset)]
    same = [one == other for one, other in zip(*losses, strict=True)]
    assert same[:3] == [True, True, True], "the update of step 3 is the first that differs"
    assert not any(same[3:])


def test_marks_before_the_answer() -> None:
    assert compress.answer_mark(GERMAN, "xs-cot") == "[de-response]"
    assert compress.answer_mark(JAPANESE, "xs-cot") == "[ja-response]"
    assert compress.answer_mark(THINKS, "think") == "<answer>"


def test_what_has_no_chain_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'answer' has no chain to shorten"):
        recipe(data={"mixture": [{"manifest": "rows.jsonl"}], "styles": {"answer": 1.0}})
    with pytest.raises(ConfigError, match="order random"):
        recipe(unit="tokens", order="random")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("dog", 0),
        ("<answer>dog</answer>", 0),
        ("<think>It barks.</think>\n<answer>dog</answer>", 33),
        ("<think>It barks.</think> dog", 24),
        ("<think>It barks", None),
        ("[de] Ja?\n[en] Yes?\n[en-response] Yes.\n[de-response] Ja.", 52),
        ("[de] Ja?\n[en] Yes?", None),
    ],
)
def test_where_the_answer_starts(text: str, start: int | None) -> None:
    assert answer_start(text) == start


def test_token_delay_by_hand() -> None:
    """The byte tokenizer has one token a byte, three for a Japanese character."""
    model = load()
    chain, answer = "[ja] 犬？\n[en] Dog?\n[en-response] Dog.\n[ja-response]", " 犬です。"
    ids = model.tokenizer.encode(chain + answer)
    assert token_delay(chain + answer, ids, model.tokenizer.decode) == len(model.tokenizer.encode(chain))
    assert token_delay("dog", model.tokenizer.encode("dog"), model.tokenizer.decode) == 0
    cut = model.tokenizer.encode("<think>It")
    assert token_delay("<think>It", cut, model.tokenizer.decode) == len(cut)


def finished(name: str, delays: list[int | None], right: float) -> EvalRun:
    rows = tuple({"status": "ok", "reasoning_tokens": delay} for delay in delays)
    accuracy = {"accuracy": right, "low": right - 0.1, "high": right + 0.1, "n": len(rows)}
    return EvalRun(name, Path(name), rows, {"accuracy": {"lenient": accuracy}}, {})


def test_the_report_plots_score_against_delay() -> None:
    whole, short = finished("whole <chain>", [40, 60], 0.6), finished("short", [10, 20], 0.5)
    page = result_tables.delay_table([(whole, 1), (short, 2)], "lenient")
    assert "50.0" in page and "15.0" in page and page.count("<circle") == 2
    assert "whole &lt;chain&gt;: 60.0 % at 50.0" in page
    places = [float(found) for found in re.findall(r'<circle cx="([\d.]+)"', page)]
    assert places[0] > places[1], "more tokens, further to the right"
    assert result_tables.delay_table([(whole, 1)], "lenient") == "", "one run is no comparison"
    assert result_tables.delay_table([(whole, 1), (finished("old", [None, 3], 0.5), 2)], "lenient") == ""
    assert result_tables.delay_table([(finished("a", [0], 0.5), 1), (finished("b", [0], 0.6), 2)], "lenient") == ""
