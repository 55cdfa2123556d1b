"""Compression on a tiny random Qwen2-Audio: the answer is unchanged, chains only shrink, optimizer resets and resumed
runs are exact, token delay is counted token by token."""

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from builders import byte_tokenizer, tiny_qwen2_audio, tone
from earwise.answers import answer_start
from earwise.audio import encode_ogg
from earwise.config.kinds.compress import CompressConfig
from earwise.config.recipe import Recipe, check_recipe
from earwise.data import manifest
from earwise.engine.token_delay import token_delay
from earwise.errors import ConfigError
from earwise.evaluation.results import EvalRun
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.models.tokenizer import TextTokenizer
from earwise.prompts import QWEN2_AUDIO, target_text, xs_cot_chain
from earwise.report import result_tables
from earwise.training import run
from earwise.training.stages.compression_schedule import answer_marker, plan_schedule, split_reply
from earwise.types import Audio, Example, Text, Turn
from resumed import metrics_rows, run_interrupted_and_whole

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
    """The model of the recipes below, which name it."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Three rows with chains, each with its own clip."""
    for number in range(3):
        (tmp_path / f"{number}.ogg").write_bytes(encode_ogg(tone(0.5, 300 * (number + 1)), 16000))
    manifest.write(tmp_path / "rows.jsonl", [replace(row, root=tmp_path) for row in (GERMAN, JAPANESE)])
    manifest.write(tmp_path / "thinks.jsonl", [replace(THINKS, root=tmp_path)])
    return tmp_path / "rows.jsonl"


def stage(**settings: object) -> CompressConfig:
    config = recipe(**settings).stages[0]
    assert isinstance(config, CompressConfig)
    return config


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
    top = {"recipe": "t", "model": {"name": f"{__name__}:load"}, "seed": 5}
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
def test_answer_is_unchanged_and_chain_only_shrinks(example: Example, style: str, settings: dict[str, Any]) -> None:
    model = load()
    schedule = plan_schedule(stage(**settings), [example], 2, seed=3)
    head, chain, tail = split_reply(example, style)
    assert head + chain + tail == target_text(example, style)
    assert tail.endswith(example.answer[0] + ("</answer>" if style == "think" else ""))
    replies = [schedule.reply(example, style, step, model) for step in range(40)]
    assert replies[0].ids == model.tokenizer.encode(target_text(example, style)), "the first step is plain SFT"
    texts = [model.tokenizer.decode(reply.ids) for reply in replies]
    assert all(text.startswith(head) and text.endswith(tail) for text in texts)
    chains = [text.removeprefix(head).removesuffix(tail) for text in texts]
    outside = len(model.tokenizer.encode(head + tail))
    assert all(reply.num_chain_tokens == len(reply.ids) - outside for reply in replies), "one token per byte"
    lengths = [len(reply.ids) for reply in replies]
    assert all(later <= earlier for earlier, later in itertools.pairwise(lengths))
    assert lengths[-1] < lengths[0]
    if settings.get("unit") != "tokens" and style == "xs-cot":
        markers = ["[de] ", "[en] ", "[en-response] "] if example.language == "de" else ["[ja] ", "[en] "]
        for text in chains:
            positions = [text.find(marker) for marker in markers]
            assert positions == sorted(positions) and positions[0] == 0, "the markers remain, in their order"


def test_schedule_by_hand() -> None:
    """Four clips, two per step, are two steps per epoch. The German chain has 5 sentences, the English one 2."""
    by_epoch = plan_schedule(stage(steps_per_unit=None, cutover=3, units_per_epoch=1.0), [], 4, seed=0)
    assert [by_epoch.removed_units(step) for step in range(9)] == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    faster = plan_schedule(stage(steps_per_unit=None, cutover=9, units_per_epoch=2.0), [], 4, seed=0)
    assert [faster.removed_units(step) for step in range(4)] == [0, 1, 2, 3]
    by_steps = plan_schedule(stage(steps_per_unit=3), [GERMAN, THINKS], 4, seed=0)
    assert by_steps.cutover == 5
    assert [by_steps.removed_units(step) for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    tokens = plan_schedule(
        stage(unit="tokens", steps_per_unit=None, units_per_epoch=4.0, cutover=None), [GERMAN], 16, seed=0
    )
    assert tokens.cutover == math.inf
    over_the_run = plan_schedule(stage(steps_per_unit=None, cutover=3, max_steps=10), [], 4, seed=0)
    assert [over_the_run.removed_units(step) for step in range(10)] == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3], "3 at 0.8 * 10"
    assert [tokens.removed_units(step) for step in range(6)] == [0, 0, 1, 1, 2, 2], (
        "four tokens per epoch of eight steps"
    )


def test_optimizer_is_reset_only_where_more_is_removed() -> None:
    schedule = plan_schedule(stage(reset_optimizer=True, steps_per_unit=2, cutover=2), [], 4, seed=0)
    assert [step for step in range(12) if schedule.resets_optimizer(step)] == [2, 4]
    assert not any(plan_schedule(stage(), [GERMAN], 4, seed=0).resets_optimizer(step) for step in range(12))


def test_random_offsets_remove_more_and_are_reproducible() -> None:
    model = load()

    def lengths(**settings: Any) -> list[int]:
        schedule = plan_schedule(stage(cutover=5, **settings), [], 2, seed=3)
        return [schedule.reply(GERMAN, "xs-cot", step, model).num_chain_tokens for step in range(14)]

    exact, with_offsets = lengths(), lengths(smoothing=0.3)
    assert all(offset <= without for without, offset in zip(exact, with_offsets, strict=True))
    assert any(offset < without for without, offset in zip(exact, with_offsets, strict=True))
    assert lengths(smoothing=0.3) == with_offsets


def test_training_logs_progress_chain_length_and_delay(rows: Path) -> None:
    out = rows.parent / "run"
    held_out = {"held_out": {"manifest": "rows.jsonl"}, "eval_steps": 4, "max_new_tokens": 12}
    run.start(recipe(**held_out), out, rows.parent)
    logged = metrics_rows(out)
    assert [row["compress/progress"] for row in logged] == [0, 0, 1, 1, 2, 2, 3, 3]
    lengths = [row["compress/chain_tokens"] for row in logged]
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] < 0.8 * lengths[0]
    assert logged[0]["compress/chain_share"] == 1
    assert [row["step"] for row in logged if "compress/delay" in row] == [1, 5, 8]
    assert [row["compress/delay"] for row in logged if "compress/delay" in row] == [12, 12, 12], (
        "no reply has an answer"
    )
    assert logged[0]["compress/answered"] == 0
    assert logged[-1]["compress/nll"] < logged[0]["compress/nll"]


@pytest.mark.parametrize("settings", [{"reset_optimizer": True, "smoothing": 1.0}, {"unit": "tokens"}], ids=str)
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(rows: Path, settings: dict[str, Any]) -> None:
    run_interrupted_and_whole(recipe(**settings), rows.parent, after=5)


def test_reset_clears_the_optimizer_state(rows: Path) -> None:
    """Two runs that differ only in `reset_optimizer` have equal losses until the first reset."""
    without_reset, with_reset = rows.parent / "without", rows.parent / "with"
    run.start(recipe(), without_reset, rows.parent)
    run.start(recipe(reset_optimizer=True), with_reset, rows.parent)
    losses = [[row["compress/loss"] for row in metrics_rows(out)] for out in (without_reset, with_reset)]
    equal = [first == second for first, second in zip(*losses, strict=True)]
    assert equal[:3] == [True, True, True], "the update of step 3 is the first that differs"
    assert not any(equal[3:])


def test_answer_markers() -> None:
    assert answer_marker(GERMAN, "xs-cot") == "[de-response]"
    assert answer_marker(JAPANESE, "xs-cot") == "[ja-response]"
    assert answer_marker(THINKS, "think") == "<answer>"


def test_settings_without_a_chain_are_refused() -> None:
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
    """The byte tokenizer has one token per byte, and three bytes per Japanese character."""
    model = load()
    chain, answer = "[ja] 犬？\n[en] Dog?\n[en-response] Dog.\n[ja-response]", " 犬です。"
    ids = model.tokenizer.encode(chain + answer)
    assert token_delay(chain + answer, ids, model.tokenizer.decode) == len(model.tokenizer.encode(chain))
    assert token_delay("dog", model.tokenizer.encode("dog"), model.tokenizer.decode) == 0
    unfinished = model.tokenizer.encode("<think>It")
    assert token_delay("<think>It", unfinished, model.tokenizer.decode) == len(unfinished)


def finished_run(name: str, delays: list[int | None], accuracy_value: float) -> EvalRun:
    """An evaluation whose replies had these token delays."""
    rows = tuple({"status": "ok", "reasoning_tokens": delay} for delay in delays)
    accuracy = {"accuracy": accuracy_value, "low": accuracy_value - 0.1, "high": accuracy_value + 0.1, "n": len(rows)}
    return EvalRun(name, Path(name), rows, {"accuracy": {"lenient": accuracy}}, {})


def test_the_report_plots_score_against_delay() -> None:
    full, short = finished_run("whole <chain>", [40, 60], 0.6), finished_run("short", [10, 20], 0.5)
    page = result_tables.delay_table([(full, 1), (short, 2)], "lenient")
    assert "50.0" in page and "15.0" in page and page.count("<circle") == 2
    assert "whole &lt;chain&gt;: 60.0 % at 50.0" in page
    positions = [float(cx) for cx in re.findall(r'<circle cx="([\d.]+)"', page)]
    assert positions[0] > positions[1], "more tokens are further to the right"
    assert result_tables.delay_table([(full, 1)], "lenient") == "", "a single run gives no comparison"
    assert result_tables.delay_table([(full, 1), (finished_run("old", [None, 3], 0.5), 2)], "lenient") == ""
    assert (
        result_tables.delay_table([(finished_run("a", [0], 0.5), 1), (finished_run("b", [0], 0.6), 2)], "lenient") == ""
    )


# A tokenizer that joins across head, chain and tail ------------------------------------------------------------------


def joining_tokenizer() -> Tokenizer:
    """A byte tokenizer with one more token: a full stop and the line break after it, as Qwen's has."""
    backend = byte_tokenizer()
    vocab = backend.get_vocab(with_added_tokens=False) | {".Ċ": backend.get_vocab_size()}
    joining = Tokenizer(models.BPE(vocab=vocab, merges=[(".", "Ċ")]))
    joining.pre_tokenizer, joining.decoder = backend.pre_tokenizer, backend.decoder
    return joining


@pytest.mark.parametrize("settings", [{}, {"unit": "tokens", "units_per_epoch": 1.0, "steps_per_unit": None}], ids=str)
def test_first_step_is_plain_sft_where_tokens_cross_the_joints(settings: dict[str, Any]) -> None:
    model = load()
    ids = model.tokenizer
    model.tokenizer = TextTokenizer(joining_tokenizer(), ids.placeholder_id, ids.eos_ids, QWEN2_AUDIO)
    schedule = plan_schedule(stage(**settings), [GERMAN], 2, seed=3)
    whole = model.tokenizer.encode(target_text(GERMAN, "xs-cot"))
    joined = model.tokenizer.backend.token_to_id(".Ċ")
    assert whole.count(joined) == 2, "at the end of the German part, and between chain and answer"
    parts = split_reply(GERMAN, "xs-cot")
    assert [token for part in parts for token in model.tokenizer.encode(part)] != whole, "the parts alone differ"
    first = schedule.reply(GERMAN, "xs-cot", 0, model)
    assert first.ids == whole
    later = schedule.reply(GERMAN, "xs-cot", 6, model)
    assert len(later.ids) < len(whole)
    assert later.ids[-1 - len(GERMAN.answer[0]) :] == whole[-1 - len(GERMAN.answer[0]) :], "the answer's tokens stay"


def test_description_says_whether_the_end_is_reached() -> None:
    rows = [GERMAN]
    reached = plan_schedule(stage(steps_per_unit=None, cutover=3, max_steps=10), rows, 4, seed=0)
    assert reached.describe().endswith("from 3 removed sentences, reached at step 9 of 10")
    short = plan_schedule(stage(steps_per_unit=4, cutover=3, max_steps=10), rows, 4, seed=0)
    assert "which this run does not reach: it ends at 2; set more max_steps" in short.describe()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"units_per_epoch": 2.0}, "units_per_epoch and steps_per_unit exclude each other"),
        ({"schedule_ratio": 0.5}, "schedule_ratio 0.5 does nothing here"),
        ({"unit": "tokens", "stub_groups": 1}, "stub_groups 1 does nothing here; unit tokens leaves no stub"),
        ({"unit": "tokens", "steps_per_unit": None}, "unit tokens needs cutover"),
        ({"held_out_limit": 3}, "held_out_limit 3 does nothing here; set held_out"),
    ],
)
def test_settings_that_cannot_act_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(**settings)
