"""SARI's corpus: offline on the bundled clips, with a teacher on a real HTTP server, with a policy, in shards."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from chat_server import ServerReply, run_chat_server
from earwise.algorithms.rewards import accuracy, consistency, format_think, structured
from earwise.cli import run
from earwise.data import manifest
from earwise.datasets.sari import chains, multiple_choice
from earwise.datasets.sari.builder import TEMPLATE_REPLIES, build_sari, plan_sari
from earwise.datasets.sari.captions import row_caption
from earwise.datasets.sari.chains import Structured, Unstructured, chain_request, render_chain, template_chain
from earwise.datasets.sari.inputs import SariInputs, load_inputs
from earwise.datasets.sari.options import SariModels, SariOptions
from earwise.datasets.teachers.teacher import RemoteTeacher, TemplateTeacher
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.remote.openai_http import RequestLimits
from earwise.errors import ConfigError, DataError
from earwise.prompts import target_text
from earwise.types import Audio, Completion, Example, Text, Turn
from scripted_engine import PITCHES, RATE, ScriptedEngine, pitch_name, prompt_options, tone_task, write_clip

TEMPLATE = TemplateTeacher(TEMPLATE_REPLIES)
SFT = ("sft-structured.jsonl", "sft-unstructured.jsonl")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command on the bundled clips, with the template teacher."""
    out = tmp_path_factory.mktemp("sari")
    assert run(["build", "sari", "starter", "--out", str(out), "--sft", "30", "--rl", "150"]) == 0
    return out


def test_offline_rows_are_valid_and_name_their_authors(offline: Path) -> None:
    for name, style in zip(SFT, ("structured", "think"), strict=True):
        rows = manifest.read(offline / name)  # every clip is there, every answer is a choice
        assert len(rows) == 30
        for row in rows:
            completion = target_text(row, style)
            rewards = [reward(row, completion) for reward in (format_think, accuracy, consistency)]
            assert rewards == [1.0, 1.0, 1.0]
            assert structured(row, completion) == float(style == "structured")
            assert {row.meta[name] for name in ("caption_by", "question_by", "reasoning_by")} == {"template-1"}
            assert row.split == "train" and row.group and row.licence
    assert json.loads((offline / "sft-structured.checks.json").read_text())["splits"] == {"train": 210}
    summary = json.loads((offline / "summary.json").read_text())
    assert summary["template"] is True and summary["failed"] == {} and summary["difficulty"] is None
    assert summary["pool"] == summary["clips"] - summary["clips_unasked"] > 200


def test_offline_sets_with_chains_are_equal_and_disjoint_from_the_rl_set(offline: Path) -> None:
    ids = {name: [row.id for row in manifest.read(offline / name)] for name in (*SFT, "rl.jsonl")}
    assert ids[SFT[0]] == ids[SFT[1]] and len(ids["rl.jsonl"]) == 150
    assert not set(ids[SFT[0]]) & set(ids["rl.jsonl"])
    rl = manifest.read(offline / "rl.jsonl")
    assert all(row.reasoning is None and len(row.choices) >= 2 for row in rl)
    places = Counter(row.choices.index(row.answer[0]) for row in rl if len(row.choices) == 4)
    assert max(places.values()) < 1.6 * min(places[place] for place in range(4))


def test_a_second_offline_build_sends_nothing_and_writes_the_same(
    offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in offline.glob("*.jsonl")}
    capsys.readouterr()
    assert run(["build", "sari", "starter", "--out", str(offline), "--sft", "30", "--rl", "150", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert all(step["asked"] == 0 for step in summary["steps"].values())
    assert {path.name: path.read_bytes() for path in offline.glob("*.jsonl")} == before


class Policy:
    """A policy that always answers right for tones and never for hiss."""

    name, revision, sample_rate, max_audio_s = "policy", "1", RATE, 30.0

    def generate(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int = 1
    ) -> list[list[Completion]]:
        completions = []
        for prompt in prompts:
            pitch = pitch_name(prompt.waveforms[0])
            wrong = next(option for option in prompt_options(prompt) if option != pitch)
            completions.append([Completion(f"<answer>{wrong if pitch == 'hiss' else pitch}</answer>")] * n)
        return completions

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        raise NotImplementedError


def tones(folder: Path, n: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(n):
        name = list(PITCHES)[number % 4]
        write_clip(folder / f"{number}.wav", name, number)
        about = {"labels": [name], "category": "sound", "group": f"g{number}", "split": "train"}
        rows.append({"path": f"{number}.wav", **about})
    return rows


def test_unsolved_questions_are_dropped_and_listed(tmp_path: Path) -> None:
    rows, options = tones(tmp_path, 16), SariOptions(n_sft=3, n_rl=100)
    summary = build_sari(SariInputs(rows, tmp_path), tmp_path / "out", SariModels(TEMPLATE, policy=Policy()), options)
    assert summary["difficulty"] == {"unsolved": 4, "hard": 0, "medium": 0, "easy": 0, "solved": 12, "unmeasured": 0}
    unsolved = manifest.read(tmp_path / "out" / "unsolved.jsonl")
    assert {row.answer for row in unsolved} == {("hiss",)} and {row.meta["pass_count"] for row in unsolved} == {0}
    rows_kept = [row for name in ("sft-structured.jsonl", "rl.jsonl") for row in manifest.read(tmp_path / "out" / name)]
    assert len(rows_kept) == 12 and {row.difficulty for row in rows_kept} == {"solved"}
    assert {(row.meta["attempts"], row.meta["policy"]) for row in rows_kept} == {(16, "policy")}
    keep_unsolved = SariOptions(n_sft=3, n_rl=100, keep_unsolved=True)
    again = build_sari(
        SariInputs(rows, tmp_path), tmp_path / "out", SariModels(TEMPLATE, policy=Policy()), keep_unsolved
    )
    assert again["written"]["rl.jsonl"] == 13 and again["written"]["unsolved.jsonl"] == 0


def test_shards_together_build_what_a_single_run_builds(tmp_path: Path) -> None:
    inputs = SariInputs(tones(tmp_path, 16), tmp_path, tone_task(tmp_path / "items", 8))
    models, options = SariModels(TEMPLATE, policy=Policy()), SariOptions(n_sft=3, n_rl=100)
    whole = build_sari(inputs, tmp_path / "a", models, options)
    parts = [build_sari(inputs, tmp_path / "b", models, options, shard=(i, 3)) for i in (1, 2, 3)]
    assert sum(part["pool"] for part in parts) == whole["pool"] and all("written" not in part for part in parts)
    together = build_sari(inputs, tmp_path / "b", models, options)
    assert together["steps"]["question"]["asked"] == 0 and together["written"] == whole["written"]
    for name in (*SFT, "rl.jsonl", "unsolved.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_captioner_describes_clips_and_given_captions_are_kept(tmp_path: Path) -> None:
    rows = tones(tmp_path, 8)
    rows[0]["caption"] = "A very low hum."
    (tmp_path / "5.wav").write_bytes(b"broken")
    engine = ScriptedEngine(lambda prompt: f"I hear a {pitch_name(prompt.waveforms[0])}.", name="captioner")
    options = SariOptions(n_sft=8, n_rl=0)
    summary = build_sari(SariInputs(rows, tmp_path), tmp_path / "out", SariModels(TEMPLATE, captioner=engine), options)
    assert summary["captions_by"] == {"given": 1, "captioner": 6} and summary["failed"] == {"caption": {"error": 1}}
    meta_by_name = {row.audio_paths[0].name: row.meta for row in manifest.read(tmp_path / "out" / SFT[0])}
    assert meta_by_name["0.wav"]["caption"] == "A very low hum." and meta_by_name["0.wav"]["caption_by"] == "given"
    assert meta_by_name["1.wav"]["caption"] == "I hear a middle tone." and "5.wav" not in meta_by_name
    failed = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert failed[0]["step"] == "caption" and failed[0]["id"].endswith("5.wav")
    with pytest.raises(ConfigError, match=r"7 clips have no caption .*--captioner"):
        build_sari(
            SariInputs(rows, tmp_path), tmp_path / "other", SariModels(RemoteTeacher("http://x/v1", "m")), options
        )


def test_a_language_model_writes_questions_and_chains_and_its_failures_are_replaced(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"path": f"{n}.wav", "labels": ["x"], "category": "sound", "split": "train", "caption": f"Bell {n} rings."}
        for n in range(12)
    ]

    def teacher(body: dict[str, Any], count: int) -> ServerReply:
        text = body["messages"][1]["content"]
        number = int(re.findall(r"Bell (\d+)", text)[0])
        if "multiple-choice" in text:
            if number == 3:
                return ServerReply("I'm sorry, but I can't help with that request.")
            question = {"question": "Which bell?", "choices": [f"bell {number}", "a gong", "a drum", "a horn"],
                        "answer": f"bell {number}"}  # fmt: skip
            return ServerReply(json.dumps({"questions": [question]}))
        good = f"It is bell {number} for sure."
        if number % 4 == 0:
            good = "According to the caption it rings."
        names = ("planning", "caption", "reasoning", "summary") if "four parts" in text else ("thought",)
        return ServerReply(json.dumps(dict.fromkeys(names, good)))

    with run_chat_server(teacher) as chat:
        remote = RemoteTeacher(chat.url, "big", price=(1.0, 1.0))
        models = SariModels(remote, limits=RequestLimits(concurrency=4, repairs=1))
        options = SariOptions(n_sft=6, n_rl=4)
        plan = plan_sari(SariInputs(rows, tmp_path), tmp_path / "out", models, options)
        assert chat.bodies == [] and plan["estimates"]["questions"]["requests"] == 12
        assert plan["estimates"]["chains"]["requests"] == 12 and plan["estimates"]["chains"]["cost"] > 0
        summary = build_sari(SariInputs(rows, tmp_path), tmp_path / "out", models, options)
    assert summary["pool"] == 11 and summary["failed"]["question"] == {"refusal": 1}
    assert summary["written"] == {SFT[0]: 6, SFT[1]: 6, "rl.jsonl": 4, "unsolved.jsonl": 0}
    rows_of = {name: [json.loads(line) for line in (tmp_path / "out" / name).open()] for name in (*SFT, "rl.jsonl")}
    numbers = {name: {int(row["caption"].split()[1]) for row in rows} for name, rows in rows_of.items()}
    assert not any(number % 4 == 0 for number in numbers[SFT[0]]) and numbers[SFT[0]] == numbers[SFT[1]]
    assert not numbers["rl.jsonl"] & numbers[SFT[0]]
    assert summary["failed"]["chain"]["invalid"] in (2, 4, 6)  # both styles of each failing question that was tried
    assert {row["reasoning_by"] for row in rows_of[SFT[0]]} == {"big"}
    assert {row["choices"].index(row["answer"]) for row in rows_of[SFT[0]] + rows_of["rl.jsonl"]} != {0}
    complaint = next(body for body in chat.bodies if len(body["messages"]) > 3)["messages"][-1]["content"]
    assert "could not be used" in complaint


def source_row(number: int, clip: str, field: str, answer: str, **fields: Any) -> Example:
    """A row as the readers of `build source` write it."""
    turns = (Turn("user", (Audio(clip), Text("What is it?"))),)
    fields = {"task": "open", "meta": {"field": field}, "group": clip, "licence": "CC0"} | fields
    return Example(f"{clip}-{field}-{number}", turns, (answer,), **fields)


def test_clips_come_from_manifests_and_from_several_collections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("first", "second", "labelled"):
        (tmp_path / folder).mkdir()
    rows = tones(tmp_path / "labelled", 8)
    (tmp_path / "labelled" / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in range(8):
        write_clip(tmp_path / "first" / f"{number}.wav", list(PITCHES)[number % 4], number)
        write_clip(tmp_path / "second" / f"{number}.wav", list(PITCHES)[number % 4], number)
    emotions = [
        source_row(number, f"{number}.wav", "emotion", "joy", category="speech", root=tmp_path / "first")
        for number in range(8)
    ]
    captioned = [
        source_row(number, f"{number}.wav", "sound", f"Tone {number}.", task="caption", root=tmp_path / "second")
        for number in range(8)
    ]
    manifest.write(tmp_path / "first" / "meld.jsonl", emotions)
    manifest.write(tmp_path / "second" / "captions.jsonl", captioned)
    names = [str(tmp_path / name) for name in ("labelled", "first/meld.jsonl", "second/captions.jsonl")]
    inputs = load_inputs(names)
    assert len(inputs.rows) == 24
    by_path = {row["path"]: row for row in inputs.rows}
    assert by_path[f"{tmp_path}/first/3.wav"]["emotion"] == "joy"
    assert by_path[f"{tmp_path}/second/3.wav"]["caption"] == "Tone 3."
    assert by_path[f"{tmp_path}/labelled/3.wav"]["labels"] == [list(PITCHES)[3]]
    line = ["build", "sari", *names, "--sft", "2", "--rl", "50", "--out", str(tmp_path / "out"), "--no-check"]
    assert run([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["captions_by"] == {"given": 8, "template-1": 16}
    rows_built = manifest.read(tmp_path / "out" / "rl.jsonl")
    assert {row.meta["caption_by"] for row in rows_built} == {"template-1"}, (
        "only labels make questions without a teacher"
    )
    assert {path.parent.name for row in rows_built for path in row.audio_paths} == {"labelled"}


def test_unusable_questions_are_counted(tmp_path: Path) -> None:
    items = tone_task(tmp_path, 6)
    unusable = [
        Example("open", items[0].turns, ("x",)),
        Example("two", (Turn("user", (*items[0].turns[0].parts, Audio("b.wav"))),), ("a",), ("a", "b")),
        Example("val", items[0].turns, ("a",), ("a", "b"), split="val"),
    ]
    captioned = [replace(item, meta={"caption": f"A {item.answer[0]}."}) for item in items]
    inputs = SariInputs((), Path(), [*captioned, *unusable, captioned[0]])
    summary = build_sari(inputs, tmp_path / "out", SariModels(TEMPLATE), SariOptions(n_sft=4))
    assert summary["left_out"] == {"no choices or no answer": 1, "not one clip": 1, "other split": 1}
    assert summary["twice"] == 1 and summary["pool"] == 6 and summary["written"]["rl.jsonl"] == 2
    with pytest.raises(DataError, match="gave no question"):
        build_sari(SariInputs((), Path(), unusable), tmp_path / "none", SariModels(TEMPLATE), SariOptions())


def example(answer: str = "dog", choices: tuple[str, ...] = ("dog", "cat", "rain")) -> Example:
    return Example("e", (Turn("user", (Audio("a.wav"), Text("What is it?"))),), (answer,), choices)


def test_invalid_chains_raise_with_a_reason() -> None:
    context = {"answer": "dog"}
    good = {"planning": "p", "caption": "c", "reasoning": "r", "summary": " It is\na dog. "}
    value = Structured.model_validate(good, context=context).model_dump()
    assert render_chain(value, "structured").endswith("<summary>It is a dog.</summary>")
    for change, reason in (
        ({"planning": " "}, "is empty"),
        ({"reasoning": "so <answer>dog</answer>"}, "holds the tag <answer>"),
        ({"caption": "The description says a dog barks."}, "speaks of 'The description'"),
        ({"summary": "It is a hotdog."}, "does not state the right answer 'dog'"),
        ({"extra": "x"}, "Extra inputs"),
    ):
        with pytest.raises(ValidationError, match=reason):
            Structured.model_validate(good | change, context=context)
    with pytest.raises(ValidationError, match="does not state"):
        Unstructured.model_validate({"thought": "A cat."}, context=context)
    with pytest.raises(ConfigError, match="chain 'free' is none of"):
        SariOptions(chains=("free",))


@pytest.mark.parametrize("style", chains.CHAIN_STYLES)
@pytest.mark.parametrize(("answer", "choices"), [("dog", ("dog", "cat", "rain")), ("no", ("yes", "no")), ("a dog", ())])
def test_template_chains_pass_the_checks(style: str, answer: str, choices: tuple[str, ...]) -> None:
    request = chain_request(example(answer, choices), "A dog is barking.", style)
    assert request.schema is not None
    chain = template_chain(request.facts)
    assert request.schema.model_validate(chain, context=dict(request.facts)).model_dump() == chain
    assert ("Options:" in request.messages[1]["content"]) == bool(choices)


def test_invalid_questions_raise_with_a_reason() -> None:
    good = {"question": "What rings?", "choices": ["a bell", "a horn", "a gong", "a cup"], "answer": "a bell"}
    context = {"count": 1, "n_choices": 4}
    multiple_choice.Questions.model_validate({"questions": [good]}, context=context)
    for change, reason in (
        ({"choices": ["a bell", "a horn"]}, "has 2 options, 4 are wanted"),
        ({"choices": ["a bell", "A bell.", "x", "y"]}, "two options that are the same"),
        ({"choices": ["a bell", "x", "y", "All of the above"]}, "must stand for itself"),
        ({"answer": "bell"}, "not one of the choices"),
        ({"question": "Is a bell rung?"}, "gives its answer 'a bell' away"),
        ({"question": "What does the caption say?"}, "speaks of 'the caption'"),
    ):
        with pytest.raises(ValidationError, match=reason):
            multiple_choice.Questions.model_validate({"questions": [good | change]}, context=context)
    for number in (0, 2):
        with pytest.raises(ValidationError, match=f"holds {number} questions, 1 are wanted"):
            multiple_choice.Questions.model_validate({"questions": [good] * number}, context=context)


def test_clips_with_equal_captions_get_different_samples() -> None:
    first, second = (
        multiple_choice.question_request(path, path, "Rain.", count=1, n_choices=4) for path in ("a.wav", "b.wav")
    )
    assert first.messages == second.messages and first.sample_index != second.sample_index
    assert row_caption({"captions": []}) is None


def test_invalid_options_end_with_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, message in (
        ([], "nothing to build from"),
        (["starter", "--chains", "free"], "chain 'free' is none of"),
        (["starter", "--teacher", "http://x/v1"], "needs --teacher-model"),
        (["starter", "--teacher", "gpt", "--teacher-model", "m"], "neither 'template' nor the address"),
        (["starter", "--teacher", "http://x/v1", "--teacher-model", "m", "--price", "cheap"], "not two numbers"),
        (["starter", "--shard", "9/8"], "is not i/n"),
    ):
        assert run(["build", "sari", *arguments, "--out", str(tmp_path / "x")]) == 2
        assert message in capsys.readouterr().err
