"""Judges through the real command: what they are asked, what is kept, what becomes of replies that cannot be read."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import benchmark_files
from chat_server import ChatServer, ServerReply, describe_clips, request_texts, run_chat_server
from earwise.cli import run as run_earwise
from earwise.engine.local import LocalEngine
from earwise.evaluation.judge.models import open_judge
from earwise.evaluation.judge.panel import JudgePanel
from earwise.evaluation.tasks import airbench_chat
from earwise_server import running, tiny
from scripted_engine import ScriptedEngine

Reply = Callable[[str], str]
Run = Callable[..., "Result"]


def judge_server(reply: Reply) -> Any:
    """A server that answers a judge's prompt with `reply(prompt)`."""
    return run_chat_server(lambda body, count: ServerReply(reply(request_texts(body)[-1])))


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """Address of a model on a server, which answers with the length and loudness of the clips: `0.25s at 0.20`."""
    with run_chat_server(describe_clips) as chat:
        yield f"{chat.url}#m"


@dataclass(frozen=True)
class Result:
    """What a command printed, errors included, and its exit code."""

    exit_code: int
    stdout: str
    output: str


@pytest.fixture
def evaluate(model: str, own_home: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`earwise evaluate` without controls, into the folder `run`."""

    def run(task: str, *judges: ChatServer, more: Sequence[str] = (), options: str = "?tries=1&timeout=5") -> Result:
        data = benchmark_files.FILES[task](tmp_path / "data")
        arguments = ["evaluate", "--task", task, "--data", str(data), "--model", model, "--no-controls"]
        for letter, chat in zip("ab", judges, strict=False):
            arguments += ["--judge", f"{chat.url}{options}#judge-{letter}"]
        code = run_earwise([*arguments, "--out", str(tmp_path / "run"), *more])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.out + captured.err)

    return run


def metrics_of(folder: Path, out: str = "run") -> dict[str, Any]:
    return json.loads((folder / out / "metrics.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def judgements(folder: Path, out: str = "run") -> list[dict[str, Any]]:
    lines = (folder / out / "judgements.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_airbench_chat_in_both_orders(evaluate: Run, tmp_path: Path) -> None:
    """The judge prefers the answer that stands first by two points, which both orders together cancel out."""
    with judge_server(lambda prompt: "7 5") as chat:
        result = evaluate("airbench-chat", chat)
        assert result.exit_code == 0, result.output
        assert len(chat.bodies) == 10 and {body["temperature"] for body in chat.bodies} == {0}
        prompts = [request_texts(body)[-1] for body in chat.bodies]
        assert evaluate("airbench-chat", chat).exit_code == 0 and len(chat.bodies) == 10, "asked again"
    first = [prompt for prompt in prompts if "number 0" in prompt]
    places = sorted(prompt.index("Somebody plays number 0.") < prompt.index("0.25s at") for prompt in first)
    assert places == [False, True] and all("A made-up recording." in prompt for prompt in prompts)
    metrics = metrics_of(tmp_path)
    values = {name: metric["accuracy"] for name, metric in metrics["accuracy"].items()}
    assert values["judge"] == values["reference"] == values["overall"] == pytest.approx(0.6)
    assert values["win"] == 0.5 and values["speech_and_music"] == pytest.approx(0.6) and metrics["n"] == 5
    assert metrics["judges"]["judges"] == {"judge-a": {"mean": pytest.approx(0.6), "n": 5}}
    kept = judgements(tmp_path)
    assert len(kept) == 10 and {row["status"] for row in kept} == {"ok"} and kept[0]["prompt"] == "airbench-pair/1"
    samples = (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(samples[0])["scorer"] == "airbench-chat/1 | airbench-pair/1 by judge-a"


def test_without_a_judge_answers_are_kept_and_judged_later(evaluate: Run, tmp_path: Path) -> None:
    result = evaluate("airbench-chat")
    assert result.exit_code == 0 and "is scored by a judge" in result.output
    assert "without gold answers or a judge there is no score" in result.output
    assert metrics_of(tmp_path)["unlabelled"] == 5
    with judge_server(lambda prompt: "4 4") as chat:
        assert evaluate("airbench-chat", chat).exit_code == 0
    assert metrics_of(tmp_path)["n"] == 5 and metrics_of(tmp_path)["accuracy"]["judge"]["accuracy"] == pytest.approx(
        0.4
    )


def test_items_that_wait_for_a_judge_are_counted(evaluate: Run, tmp_path: Path) -> None:
    result = evaluate("voicebench")
    assert result.exit_code == 0 and "not scored: 4 items without a gold answer, or that wait" in result.output
    metrics = metrics_of(tmp_path)
    assert (metrics["n"], metrics["unlabelled"]) == (5, 4) and "overall" not in metrics["accuracy"]
    with judge_server(lambda prompt: "Yes" if "Goethe" in prompt else "5") as chat:
        assert evaluate("voicebench", chat).exit_code == 0
    metrics = metrics_of(tmp_path)
    assert (metrics["n"], metrics["unlabelled"]) == (9, 0)
    assert metrics["accuracy"]["sd-qa"]["accuracy"] == metrics["accuracy"]["commoneval"]["accuracy"] == 1.0
    assert metrics["accuracy"]["overall"]["n"] == 9


def test_nonsense_is_said_in_a_line_and_asked_again_later(evaluate: Run, tmp_path: Path) -> None:
    with judge_server(lambda prompt: "no idea" if "number 3" in prompt else "5 5") as chat:
        result = evaluate("airbench-chat", chat)
        assert result.exit_code == 2
        assert "2 of 10 judgements are missing (first: item 'airbench-chat-3': unreadable reply 'no idea')" in (
            result.output
        )
        assert len(chat.bodies) == 8 + 3 * 2, "each unreadable reply is asked for three times"
        assert sorted({body["seed"] for body in chat.bodies}) == [0, 1, 2]
    assert [row["status"] for row in judgements(tmp_path)].count("ok") == 8
    assert not (tmp_path / "run" / "metrics.json").exists()
    with judge_server(lambda prompt: "5 5") as chat:
        assert evaluate("airbench-chat", chat).exit_code == 0
        assert len(chat.bodies) == 2, "only what is missing"
    assert metrics_of(tmp_path)["accuracy"]["overall"]["accuracy"] == pytest.approx(0.5)


@pytest.mark.parametrize("trouble", ["timeout", "busy", "gone"])
def test_a_judge_that_does_not_answer(evaluate: Run, tmp_path: Path, trouble: str) -> None:
    def respond(body: dict[str, Any], count: int) -> ServerReply:
        if "number 1" not in request_texts(body)[-1]:
            return ServerReply("6 6")
        return ServerReply(status=503 if trouble == "busy" else 200, wait_s=1.0 if trouble == "timeout" else 0.0,
                           hang_up=trouble == "gone")  # fmt: skip

    with run_chat_server(respond) as chat:
        result = evaluate("airbench-chat", chat, options="?tries=1&timeout=0.4")
    assert result.exit_code == 2 and "2 of 10 judgements are missing" in result.output, result.output
    assert len(result.output.strip().splitlines()[-1]) > 0 and "Traceback" not in result.output
    assert [row["status"] for row in judgements(tmp_path)].count("ok") == 8
    with judge_server(lambda prompt: "6 6") as chat:
        assert evaluate("airbench-chat", chat).exit_code == 0 and len(chat.bodies) == 2


def test_a_judge_whose_key_is_refused_ends_the_run_at_once(evaluate: Run, tmp_path: Path) -> None:
    with run_chat_server(lambda body, count: ServerReply(status=401)) as chat:
        result = evaluate("airbench-chat", chat)
        assert result.exit_code == 2 and "status 401" in result.output and "check the address" in result.output
    assert (tmp_path / "run" / "samples.jsonl").read_text().count("\n") == 5


def test_two_judges_and_how_far_they_agree(evaluate: Run, tmp_path: Path) -> None:
    """The first gives every answer 5 points of 5, the second 5 to one and 1 to the others."""
    subset = ["--where", "task=alpacaeval"]
    with judge_server(lambda prompt: "5") as first, judge_server(lambda p: "5" if "rain" in p else "1") as second:
        result = evaluate("voicebench", first, second, more=subset)
        assert result.exit_code == 0, result.output
        same = evaluate("voicebench", first, more=[*subset, "--judge", f"{second.url}#judge-a"])
        assert same.exit_code == 2 and "two judges have one name" in same.output
    metrics = metrics_of(tmp_path)
    assert metrics["accuracy"]["score"]["accuracy"] == pytest.approx(1.0) and metrics["n"] == 1
    assert [entry["judges"] for entry in metrics["judges"]["agreement"]] == [["judge-a", "judge-b"]]
    assert "judge-a and judge-b agree in 100.0 % of answers" in result.output


def test_every_draw_is_judged(evaluate: Run, tmp_path: Path, own_home: None, capsys: Any) -> None:
    """Three completions of each item, two of them equal: the judge reads each text once and scores all three."""
    texts = ["Rain falls.", "Wind blows.", "Rain falls."]

    def answer(body: dict[str, Any], count: int) -> ServerReply:
        return replace(describe_clips(body, count), text=texts[count % 3])

    answers = run_chat_server(answer)
    grade = judge_server(lambda prompt: "5" if "Rain falls." in prompt else "2")
    with answers as chat, grade as judge:
        data = benchmark_files.FILES["voicebench"](tmp_path / "data")
        arguments = [
            "evaluate", "--task", "voicebench", "--data", str(data), "--model", f"{chat.url}#m", "--no-controls",
            "--where", "task=alpacaeval", "--samples", "3", "--temperature", "1", "--out", str(tmp_path / "run"),
            "--judge", f"{judge.url}#j",
        ]  # fmt: skip
        assert run_earwise(arguments) == 0
        printed = capsys.readouterr()
        assert len(judge.bodies) == 2, "equal completions are judged once"
    (line,) = (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(line)
    grades = {"Rain falls.": 1.0, "Wind blows.": 0.4}
    assert [draw["scores"]["score"] for draw in row["draws"]] == [grades[draw["output"]] for draw in row["draws"]]
    assert row["scores"]["score"] == grades[row["output"]]
    draws = metrics_of(tmp_path)["draws"]
    assert draws["k"] == 3 and draws["score"]["accuracy"] == pytest.approx(0.8)
    assert draws["mean"] == pytest.approx(2 / 3) and "80.0 over all completions" in printed.out


def test_the_cost_is_printed_before_anything_is_asked(evaluate: Run, tmp_path: Path) -> None:
    with judge_server(lambda prompt: "5 5") as chat:
        result = evaluate("airbench-chat", chat, more=["--judge-estimate", "--json"])
        assert result.exit_code == 0 and not chat.bodies and not (tmp_path / "run").exists()
        (cost,) = json.loads(result.stdout)["judges"]
        assert (cost["judge"], cost["requests"], cost["kept"], cost["reply_tokens"]) == ("judge-a", 10, 0, 160)
        evaluate("airbench-chat", chat)
        real = sum(len(request_texts(body)[-1].encode()) / 4 for body in chat.bodies)
    assert cost["prompt_tokens"] > real, "the estimate assumes longer answers than these"
    missing = evaluate("airbench-chat", more=["--judge-estimate"])
    assert missing.exit_code == 2 and "there is no judge" in missing.output


def test_a_rubric_of_ones_own_for_any_task(evaluate: Run, tmp_path: Path) -> None:
    rubric = tmp_path / "rubric.yaml"
    rubric.write_text('name: brevity/1\nscale: [1, 5]\nprompt: "How short is {response} for {question}?"\n')
    with judge_server(lambda prompt: '{"reason": "short", "score": 4}') as chat:
        result = evaluate("manifest", chat, more=["--rubric", str(rubric)])
        assert result.exit_code == 0, result.output
        assert "How short is 0.25s at" in request_texts(chat.bodies[0])[-1]
    metrics = metrics_of(tmp_path)
    assert metrics["headline"] == "rubric" and metrics["accuracy"]["rubric"]["accuracy"] == pytest.approx(0.75)
    assert "official" in metrics["accuracy"], "the task's own scores stand beside it"
    with judge_server(lambda prompt: "") as chat:
        alone = evaluate("manifest", chat, more=["--out", str(tmp_path / "other")])
    assert alone.exit_code == 2 and "needs no judge; give a rubric" in alone.output


def test_earwise_serve_as_the_judge(evaluate: Run, tmp_path: Path) -> None:
    """The real server with a tiny random model: it answers every request, and what it writes is no judgement."""
    with running(LocalEngine(tiny())) as client:
        result = evaluate("airbench-chat", more=["--judge", f"{client.url}?tries=1"])
    assert result.exit_code == 2 and "judge m: 10 of 10 judgements are missing" in result.output, result.output
    kept = judgements(tmp_path)
    assert {row["status"] for row in kept} == {"unreadable"} and {row["judge"] for row in kept} == {"m"}
    assert all(row["tokens"][0] > 100 for row in kept), "the server counted the prompt"


def test_a_judge_in_this_process(tmp_path: Path) -> None:
    """A model that earwise loads is asked in batches, without any sound, and its name holds its revision."""
    engine = ScriptedEngine(lambda prompt: "3 9" if not prompt.waveforms else "", name="local")
    panel = JudgePanel(airbench_chat.JUDGING, (open_judge("local", lambda name: engine),))
    examples = airbench_chat.load(benchmark_files.airbench_chat(tmp_path))
    rows = [
        {"id": example.id, "permutation": 0, "status": "ok", "output": "A tone.", "scores": None, "scorer": "s"}
        for example in examples
    ]
    rows[0]["output"] = " "
    judged_rows = panel.judge_rows(examples, rows, tmp_path)
    assert [row["scores"]["judge"] for row in judged_rows] == [0.0, *[pytest.approx(0.6)] * 4]
    assert engine.batches == [8] and {row["judge"] for row in judgements(tmp_path, ".")} == {"local@1"}


KILLED = "import sys; from earwise.cli import run; run(sys.argv[1:])"


def test_killed_while_judging_and_run_again(evaluate: Run, tmp_path: Path, model: str) -> None:
    """Judgements that were there before the kill are not asked for again."""

    def slow(body: dict[str, Any], count: int) -> ServerReply:
        return ServerReply("8 2", wait_s=0.15)

    evaluate("airbench-chat")
    data = tmp_path / "data" / "Chat_meta.json"
    log = tmp_path / "run" / "judgements.jsonl"
    with run_chat_server(slow) as chat:
        arguments = ["evaluate", "--task", "airbench-chat", "--data", str(data), "--model", model, "--no-controls"]
        arguments += ["--out", str(tmp_path / "run"), "--judge", f"{chat.url}?concurrency=1#judge-a"]
        tests = str(Path(__file__).parents[3])
        source = str(Path(sys.modules["earwise"].__file__ or "").parents[1])
        environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{tests}", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], env=environment)
        limit = time.monotonic() + 60
        while not (log.exists() and log.read_bytes().count(b"\n") >= 3) and time.monotonic() < limit:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        num_kept = log.read_bytes().count(b"\n")
        assert 3 <= num_kept < 10
        log.write_bytes(log.read_bytes() + b'{"key": "torn')
        time.sleep(0.3)
        before = len(chat.bodies)
        assert run_earwise(arguments) == 0
        assert len(chat.bodies) - before == 10 - num_kept
    assert len({row["key"] for row in judgements(tmp_path)}) == 10
    assert metrics_of(tmp_path)["accuracy"]["win"]["accuracy"] == 0.5
