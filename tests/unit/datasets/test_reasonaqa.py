"""ReasonAQA built from captions: every part, its balance, its counts beside the paper's, and the command."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from earwise.cli import run
from earwise.data import manifest, sources
from earwise.datasets.checks.check_examples import check_examples
from earwise.datasets.reasonaqa import schemas, task_list
from earwise.datasets.reasonaqa.balance import balance_positions
from earwise.datasets.reasonaqa.clips import caption_examples, captioned_clips, one_per_caption
from earwise.datasets.reasonaqa.counts import PUBLISHED, compare_counts, count_subsets
from earwise.datasets.reasonaqa.tasks import collect_examples
from earwise.datasets.reasonaqa.template_replies import TEMPLATE_REPLIES
from earwise.datasets.teachers import request_runner
from earwise.datasets.teachers.teacher import TemplateTeacher
from earwise.errors import ConfigError, DataError
from earwise.types import Audio, Example, Text, Turn


def caption_csv(count, per_clip=5):
    """A caption file in Clotho's form."""
    header = "file_name," + ",".join(f"caption_{number}" for number in range(1, 6))
    lines = [f"clip {n}.wav," + ",".join(f"sound {n} take {take}" for take in range(per_clip)) for n in range(count)]
    return "\n".join([header, *lines]) + "\n"


def clotho_clips(tmp_path, count, name="clotho_captions_development.csv"):
    path = tmp_path / name
    path.write_text(caption_csv(count))
    return captioned_clips(sources.load("clotho", path, pytest.fail))


def answered_by_template(tasks):
    """The examples of all tasks, answered by the template teacher and validated, without a log."""
    teacher = TemplateTeacher(TEMPLATE_REPLIES)
    for task in tasks:
        request = task.request
        value = request.schema.model_validate(teacher.template_replies[request.kind](request.facts))
        yield from task.make_examples(value.model_dump(mode="json"))


def test_published_counts_add_up():
    sums = [sum(row[number] for row in PUBLISHED.values()) for number in range(3)]
    assert sums == [968_071, 112_207, 161_800] and sum(sums) == 1_242_078


def test_counts_agree_with_the_paper_where_caption_files_decide_them(tmp_path):
    clips = clotho_clips(tmp_path, 3_839)  # as many as Clotho's development split
    counts = count_subsets(caption_examples(clips))
    cell = next(cell for cell in compare_counts(counts) if (cell.subset, cell.split) == ("Clotho caption", "train"))
    assert (cell.num_built, cell.published, cell.same) == (19_195, 19_195, True)
    pairs = list(task_list.draw_pairs(one_per_caption(clips), seed=3))
    assert 3 * len(pairs) == PUBLISHED["CLD"][0]
    assert all(first.clip != second.clip for first, second in pairs)


def test_compare_counts_shows_gaps_and_unpublished_parts():
    cells = compare_counts({("CLE", "train"): 11_510, ("unknown: X.json", "train"): 2, ("ACE", "train"): 0})
    by_subset = {(cell.subset, cell.split): cell for cell in cells}
    assert len(cells) == 34 and not by_subset["CLE", "train"].same and by_subset["ACE", "train"].same
    assert by_subset["unknown: X.json", "train"].published is None


def test_every_part_is_built(tmp_path):
    examples = list(answered_by_template(task_list.list_tasks(clotho_clips(tmp_path, 5), seed=1)))
    assert len({example.id for example in examples}) == len(examples)
    assert count_subsets(examples) == {
        ("CLE", "train"): 5 * 3,
        ("CLD", "train"): 25 * 3,
        ("Clotho-MCQ", "train"): 25,
        ("Clotho-Detail", "train"): 25,
    }
    by_task = {example.task: example for example in examples}
    assert len(by_task["difference"].audio_paths) == 2 and by_task["difference"].meta["tier"] == 3
    question = by_task["multiple_choice"]
    assert len(question.choices) == 4 and question.answer[0] == question.meta["caption1"]
    same_clip = {option for option in question.choices if option.startswith(" ".join(question.answer[0].split()[:2]))}
    assert same_clip == set(question.answer)  # wrong options come from other clips
    assert len({option.split()[1] for option in question.choices}) == 4  # each from a clip of its own
    assert by_task["entailment"].choices == ("it is definitely true", "it is definitely false", "it is plausible")
    assert all(example.source == "Clotho" and example.licence for example in examples)
    assert {tier.meta["tier"] for tier in examples if tier.task == "difference"} == {1, 2, 3}


def uneven_captions(tmp_path):
    """Sixty clips of a few classes of very different size, all described in the same five ways, as from labels."""
    names = [name for name, count in {"dog": 14, "rain": 12, "cow": 10, "owl": 9, "siren": 8, "bell": 7}.items()
             for _ in range(count)]  # fmt: skip
    lines = ["file_name," + ",".join(f"caption_{number}" for number in range(1, 6))]
    phrases = ("a {} is heard", "a recording of a {}", "only a {}", "{} sounds", "the {} in a place")
    lines += [f"clip{n}.wav," + ",".join(phrase.format(name) for phrase in phrases) for n, name in enumerate(names)]
    (tmp_path / "clotho_captions_development.csv").write_text("\n".join(lines) + "\n")
    return captioned_clips(sources.load("clotho", tmp_path / "clotho_captions_development.csv", pytest.fail))


def test_questions_of_a_template_cannot_be_answered_without_audio(tmp_path):
    examples = list(
        answered_by_template(
            task_list.list_tasks(uneven_captions(tmp_path), kinds=["multiple_choice", "entailment"], seed=4)
        )
    )
    examples = [replace(example, licence="CC0") for example in balance_positions(examples, seed=4)]
    questions = [example for example in examples if example.task == "multiple_choice"]
    assert len(questions) > 200
    answers = Counter(example.answer[0] for example in questions)
    options = Counter(option for example in questions for option in example.choices)
    assert options == {text: 4 * count for text, count in answers.items()}, "a wrong option three times for each answer"
    for example in questions:
        sound = next(name for name in ("dog", "rain", "cow", "owl", "siren", "bell") if name in example.answer[0])
        assert sum(sound in option for option in example.choices) == 1, "no other wording of the same truth"
    relations = Counter(example.meta["relation"] for example in examples if example.task == "entailment")
    assert len(set(relations.values())) == 1 and relations.total() > 100
    for task in ("multiple_choice", "entailment"):
        report = check_examples([example for example in examples if example.task == task], read_audio=False)
        assert report["problems"] == [], report["problems"]
        assert {"blind", "options"} <= report["bias"].keys()


def test_hypotheses_are_true_open_or_false_depending_on_the_clip(tmp_path):
    for example in answered_by_template(task_list.list_tasks(clotho_clips(tmp_path, 6), kinds=["entailment"], seed=2)):
        first, on_weekdays = (
            f"clip {part.split()[1]}.wav" for part in example.meta["hypothesis"].split("hears this: ")[1:]
        )
        clip = example.audio_paths[0].name
        truth = "entailment" if clip == first else "neutral" if clip == on_weekdays else "contradiction"
        assert example.meta["relation"] == truth


def test_tasks_depend_on_the_seed_alone(tmp_path):
    clips = clotho_clips(tmp_path, 6)

    def keys(seed):
        teacher = TemplateTeacher(TEMPLATE_REPLIES)
        return [request_runner.request_key(teacher, task.request) for task in task_list.list_tasks(clips, seed=seed)]

    assert keys(1) == keys(1) and keys(1) != keys(2)
    with pytest.raises(ConfigError, match="kind 'mcq' is none of"):
        list(task_list.list_tasks(clips, kinds=["mcq"]))
    with pytest.raises(DataError, match="too few other clips"):
        list(task_list.list_tasks(clips[:3], kinds=["multiple_choice"]))
    server_tasks = list(task_list.list_tasks(clips[:3], kinds=["multiple_choice"], for_template=False))
    assert len(server_tasks) == 15 and not any(task.request.facts["others"] for task in server_tasks), (
        "a server needs none"
    )


def test_prompts_contain_the_captions_and_nothing_about_other_clips(tmp_path):
    task = next(task_list.list_tasks(clotho_clips(tmp_path, 5), kinds=["multiple_choice"], seed=0, per_caption=7))
    system, user = task.request.messages
    assert "Write 7 different" in user["content"] and user["content"].endswith("The recording:\n- sound 0 take 0")
    assert system["role"] == "system" and "sound 1" not in user["content"]
    for topic in ("events", "objects", "scenes", "signal properties", "semantics", "emotions"):
        assert topic in user["content"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"wrong": ["a cat", "A dog!", "rain"]}, "two options are equal"),
        ({"wrong": ["a cat", "rain"]}, "at least 3"),
        ({"question": "What does the caption say?"}, "speaks of a text"),
        ({"question": " "}, "is empty"),
        ({"topic": "weather"}, "Input should be"),
        ({"letter": "b"}, "Extra inputs"),
    ],
)
def test_malformed_questions_of_a_teacher_raise(change, complaint):
    good = {"topic": "objects", "question": "What barks?", "correct": "a dog", "wrong": ["a cat", "rain", "a car"]}
    schemas.Choices.model_validate({"questions": [good]})
    with pytest.raises(ValidationError, match=complaint):
        schemas.Choices.model_validate({"questions": [good | change]})
    with pytest.raises(ValidationError, match="two of them are equal"):
        schemas.Choices.model_validate({"questions": [good, good | {"question": "what barks"}]})


def test_requests_without_an_answer_are_reported(tmp_path):
    tasks = list(task_list.list_tasks(clotho_clips(tmp_path, 4), kinds=["entailment"]))[:3]
    value = {"entailment": "Yes.", "neutral": "Perhaps.", "contradiction": "No."}
    rows = [{"status": "refusal", "error": "sorry"}, None, {"status": "ok", "value": value}]
    lines = []
    examples = list(collect_examples(iter(tasks), lambda requests: zip(requests, rows, strict=True), lines.append))
    assert [example.meta["relation"] for example in examples] == ["entailment", "contradiction", "neutral"]
    assert examples[0].id.startswith(tasks[2].request.id)
    assert [line.split(": ", 2)[2] for line in lines] == ["refusal (sorry)", "not asked"]


def question(number, choices=("a", "b", "c", "d"), answer="a", **fields):
    turn = Turn("user", (Audio("a.wav"), Text("What?")))
    return Example(f"q{number}", (turn,), (answer,), choices, source="S", licence="L", **fields)


def test_positions_are_balanced_at_any_moment():
    skewed = [question(number, answer="b") for number in range(403)]
    balanced = list(balance_positions(skewed, seed=5))
    places = [example.choices.index("b") for example in balanced]
    for upto in (4, 100, 403):
        counts = Counter(places[:upto])
        assert max(counts.values()) - min(counts[place] for place in range(4)) <= 1
    assert all(sorted(example.choices) == ["a", "b", "c", "d"] for example in balanced)
    assert balanced == list(balance_positions(skewed, seed=5)) != list(balance_positions(skewed, seed=6))
    orders = Counter(example.choices for example in balanced)
    assert len(orders) == 24  # the wrong options are shuffled too


def run_build(capsys, *arguments):
    code = run(["build", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_with_the_template_teacher_asks_nothing_twice(tmp_path, capsys):
    (tmp_path / "clotho_captions_evaluation.csv").write_text(caption_csv(6) + "late.wav,a,b,c,,e\n")
    (tmp_path / "clotho_aqa_test.csv").write_text(
        "file_name,QuestionText,answer\n" + "".join(f"clip 0.wav,Loud?,{answer}\n" for answer in ("yes", "yes", "no"))
    )
    out = tmp_path / "out/test.jsonl"
    arguments = ["reasonaqa", f"clotho={tmp_path / 'clotho_captions_evaluation.csv'}"]
    arguments += [f"clothoaqa={tmp_path / 'clotho_aqa_test.csv'}", "--kinds", "all", "--out", out, "--json"]
    code, out_text, err = run_build(capsys, *arguments, "--missing", "keep")
    assert code == 0, err
    result = json.loads(out_text)
    assert result["tasks"] == {
        "caption": 30, "entailment": 18, "difference": 90, "multiple_choice": 30, "detail": 30, "yes_no": 3,
    }  # fmt: skip
    assert result["skipped"] == 1 and "caption_4 is ''" in Path(f"{out}.skipped.txt").read_text()
    assert result["teacher"] == "template-1"
    rows = manifest.read(out, check_files=False)
    keys = Counter(row.choices.index(row.answer[0]) for row in rows if row.task == "multiple_choice")
    assert sorted(keys.values()) == [7, 7, 8, 8]
    code, out_text, err = run_build(capsys, *arguments, "--missing", "keep")
    assert code == 0 and "0 requests sent" in err and manifest.read(out, check_files=False) == rows

    code, _, err = run_build(capsys, *arguments)  # no audio there at all
    assert code == 2 and err.count("error:") == 1 and "--missing keep" in err


def test_command_reads_all_shards_and_asks_failures_again(tmp_path, capsys):
    source = tmp_path / "clotho_captions_evaluation.csv"
    source.write_text(caption_csv(6))
    out, log = tmp_path / "test.jsonl", tmp_path / "test.answers"
    arguments = ["reasonaqa", f"clotho={source}", "--kinds", "all", "--out", out, "--json", "--missing", "keep"]
    parts = []
    for number in (1, 2):
        code, out_text, err = run_build(capsys, *arguments, "--shard", f"{number}/2")
        assert code == 0 and not out.exists(), err
        parts.append(json.loads(out_text))
    assert sum(part["asked"] for part in parts) == 6 + 3 * 30 and all(part["asked"] for part in parts)
    assert sorted(path.name for path in log.glob("*.jsonl")) == ["rows-1-of-2.jsonl", "rows-2-of-2.jsonl"]
    failed = log / "rows-1-of-2.jsonl"
    failed.write_text(failed.read_text().replace('"status": "ok"', '"status": "refusal"', 1))
    code, out_text, err = run_build(capsys, *arguments)
    assert code == 0 and "0 requests sent" in err
    short = json.loads(out_text)["rows"]
    code, out_text, err = run_build(capsys, *arguments, "--retry-failed")
    assert code == 0 and "1 requests sent" in err and json.loads(out_text)["rows"] > short
    assert json.loads((tmp_path / "test.checks.json").read_text())["n"] == json.loads(out_text)["rows"]
    code, _, err = run_build(capsys, *arguments[:3], "caption", "--out", out, "--shard", "1/2")
    assert code == 2 and "nothing of this is asked of a teacher" in err
