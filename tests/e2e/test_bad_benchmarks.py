"""Wrong benchmark files, runs and judges: one line with the remedy, exit code 2, and nothing that was done is lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import benchmark_files
from chat_server import ServerReply, choose_by_loudness, run_chat_server
from e2e.shell import Cli, Done
from e2e.test_bad_input import refused

REAL = Path(__file__).parents[2].parent / "shared" / "benchmarks"


@pytest.fixture
def mmau(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MMAU's form with three items, relative to the working folder."""
    monkeypatch.chdir(tmp_path)
    benchmark_files.mmau(Path())
    return Path("mmau.json")


def items_of(path: Path) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return items


def rewrite(path: Path, items: object, encoding: str = "utf-8") -> None:
    path.write_bytes(json.dumps(items, ensure_ascii=False).encode(encoding))


def asked(cli: Cli, task: str, path: Path, *more: object) -> Done:
    return cli("evaluate", "--task", task, "--data", path, "--no-controls", "--out", "run", *more)


def withdrawn(items: list[dict[str, Any]]) -> object:
    """A file of the published size in which one answer in ten is not among the options."""
    many = [items[0] | {"id": f"m{n}", "choices": ["Rain", "Wind"]} for n in range(1000)]
    return [item | {"answer": "Hail"} if number % 10 == 0 else item for number, item in enumerate(many)]


BAD_ITEMS: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "withdrawn-edition": (withdrawn, "100 of 1000 answers are not among their options"),
    "twice": (lambda items: [*items, items[0]], "item 4: id 'm0' stands twice"),
    "other-benchmark": (lambda items: [{"uniq_id": 1, "question": "What?", "answer_gt": "x"}], "another benchmark?"),
    "no-items": (lambda items: [], "holds no"),
    "no-clips": (lambda items: [item | {"audio_id": "gone.wav"} for item in items], "--audio-root"),
    "one-clip-missing": (
        lambda items: [items[0] | {"audio_id": "gone.wav"}, *items[1:]],
        "gone.wav; fetch them, name their folder with --audio-root, or say --allow-missing",
    ),
}


@pytest.mark.parametrize("fault", BAD_ITEMS)
def test_a_wrong_file_is_refused_before_a_model_is_loaded(cli: Cli, mmau: Path, fault: str) -> None:
    change, message = BAD_ITEMS[fault]
    rewrite(mmau, change(items_of(mmau)))
    refused(asked(cli, "mmau", mmau, "--model", "no-such-model"), "mmau.json" if "answers" not in message else message)
    assert message in asked(cli, "mmau", mmau, "--model", "no-such-model").err and not Path("run").exists()


@pytest.mark.skipif(not REAL.is_dir(), reason="the published files are not part of the repository")
def test_two_editions_of_mmau_in_one_file_are_refused(cli: Cli, mmau: Path) -> None:
    old, new = (items_of(REAL / f"mmau-test-mini.{name}.json") for name in ("old", "v05.15.25"))
    rewrite(mmau, [*old[:500], *new[500:]])
    refused(asked(cli, "mmau", mmau, "--model", "no-such-model"), "two editions are mixed")


@pytest.mark.parametrize("encoding", ["utf-16", "gb18030"])
@pytest.mark.parametrize("task", ["mmau", "muchomusic", "dcase2025", "transcription"])
def test_other_encodings_are_named(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, encoding: str
) -> None:
    """JSON, CSV, a folder of JSON files and JSON lines, with a few Chinese words."""
    monkeypatch.chdir(tmp_path)
    path = benchmark_files.FILES[task](Path())
    for file in [path] if path.is_file() else sorted(path.glob("*.json")):
        text = file.read_text(encoding="utf-8").replace("What", "听听什么").replace("Recognise", "听听什么")
        file.write_bytes(text.encode(encoding))
    refused(asked(cli, task, path, "--model", "no-such-model"), "UTF-16" if encoding == "utf-16" else "not UTF-8")


def test_missing_clips_can_be_allowed_and_count_as_wrong(cli: Cli, mmau: Path) -> None:
    first, *others = items_of(mmau)
    rewrite(mmau, [first | {"audio_id": "gone.wav"}, *others])
    with run_chat_server(choose_by_loudness) as server:
        done = asked(cli, "mmau", mmau, "--model", f"{server.url}/m", "--allow-missing", "--json")
    assert done.code == 0 and (done.json["n"], done.json["error"]["count"]) == (3, 1), done.err


def test_the_folder_of_another_file_is_refused_and_kept(cli: Cli, mmau: Path) -> None:
    """Rows of unknown items in the folder of a run."""
    with run_chat_server(choose_by_loudness) as server:
        arguments = ["--model", f"{server.url}/m"]
        assert asked(cli, "mmau", mmau, *arguments).code == 0
        rows = Path("run/samples.jsonl").read_bytes()
        rewrite(mmau, [item | {"id": f"other-{item['id']}"} for item in items_of(mmau)])
        refused(asked(cli, "mmau", mmau, *arguments), "run", "items")
    assert Path("run/samples.jsonl").read_bytes() == rows


@pytest.mark.parametrize("fault", ["nonsense", "timeout", "away"])
def test_a_judge_that_fails_keeps_all_answers(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The answers and the judgements so far stay; the same command with a judge that works finishes the run."""
    monkeypatch.chdir(tmp_path)
    path = benchmark_files.airbench_chat(Path())
    replies = {
        "nonsense": ServerReply("I like both."),
        "timeout": ServerReply("7 8", wait_s=1.5),
        "away": ServerReply("busy", status=503, headers={"retry-after": "0"}),
    }

    def judge(body: dict[str, Any], count: int) -> ServerReply:
        return replies[fault]

    with run_chat_server(choose_by_loudness) as model:
        answering = ["--model", f"{model.url}/m"]
        with run_chat_server(judge) as server:
            limits = "?timeout=0.5&tries=2&concurrency=1"
            failed = asked(cli, "airbench-chat", path, *answering, "--judge", f"{server.url}/v1{limits}#m")
            refused(failed, "judge")
        num_asked = len(model.bodies)
        rows = Path("run/samples.jsonl").read_text().splitlines()
        assert len(rows) == 5 and not Path("run/metrics.json").exists()
        with run_chat_server(lambda body, count: ServerReply("7 8")) as server:
            done = asked(cli, "airbench-chat", path, *answering, "--judge", f"{server.url}/v1#m", "--json")
        assert done.code == 0 and done.json["accuracy"]["judge"]["n"] == 5, done.err
        assert len(model.bodies) - num_asked < 5, "the server is looked at again, and no item asked again"
