"""ReasonAQA is built from captions and read as published; its counts are held against the paper's table."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from earwise.cli import run
from earwise.data import manifest, sources
from earwise.data.sources import reasonaqa as published
from earwise.datasets.checks import check_examples
from earwise.datasets.published import avqa, open_to_choices, reasonaqa, reasonaqa_tasks
from earwise.datasets.teachers import request_runner
from earwise.datasets.teachers import teacher as teachers
from earwise.errors import ConfigError, DataError
from earwise.types import Audio, Example, Text, Turn


def caption_rows(count, per_clip=5):
    header = "file_name," + ",".join(f"caption_{number}" for number in range(1, 6))
    lines = [f"clip {n}.wav," + ",".join(f"sound {n} take {take}" for take in range(per_clip)) for n in range(count)]
    return "\n".join([header, *lines]) + "\n"


def items(tmp_path, count, name="clotho_captions_development.csv"):
    path = tmp_path / name
    path.write_text(caption_rows(count))
    return reasonaqa.captioned(sources.load("clotho", path, pytest.fail))


def answered(tasks):
    """Every task answered by the template, validated as the runner does, without a log."""
    teacher = teachers.TemplateTeacher(reasonaqa_tasks.TEMPLATE_REPLIES)
    for task in tasks:
        request = task.request
        value = request.schema.model_validate(teacher.template_replies[request.kind](request.facts))
        yield from task.make(value.model_dump(mode="json"))


def test_published_table_adds_up():
    sums = [sum(row[number] for row in reasonaqa.PUBLISHED.values()) for number in range(3)]
    assert sums == [968_071, 112_207, 161_800] and sum(sums) == 1_242_078


def test_counts_that_the_caption_files_determine(tmp_path):
    clips = items(tmp_path, 3_839)  # as many as Clotho's development split
    counts = reasonaqa.count(reasonaqa.caption_examples(clips))
    cell = next(cell for cell in reasonaqa.compare(counts) if (cell.subset, cell.split) == ("Clotho caption", "train"))
    assert (cell.found, cell.published, cell.same) == (19_195, 19_195, True)
    pairs = list(reasonaqa.pairs(reasonaqa.each_caption(clips), seed=3))
    assert 3 * len(pairs) == reasonaqa.PUBLISHED["CLD"][0]
    assert all(first.clip != second.clip for first, second in pairs)


def test_compare_shows_gaps_and_strangers():
    cells = reasonaqa.compare({("CLE", "train"): 11_510, ("unknown: X.json", "train"): 2, ("ACE", "train"): 0})
    found = {(cell.subset, cell.split): cell for cell in cells}
    assert len(cells) == 34 and not found["CLE", "train"].same and found["ACE", "train"].same
    assert found["unknown: X.json", "train"].published is None


def test_each_kind_of_question_comes_out(tmp_path):
    made = list(answered(reasonaqa.tasks(items(tmp_path, 5), seed=1)))
    assert len({example.id for example in made}) == len(made)
    assert reasonaqa.count(made) == {
        ("CLE", "train"): 5 * 3,
        ("CLD", "train"): 25 * 3,
        ("Clotho-MCQ", "train"): 25,
        ("Clotho-Detail", "train"): 25,
    }
    by_task = {example.task: example for example in made}
    assert len(by_task["difference"].audio_paths) == 2 and by_task["difference"].meta["tier"] == 3
    question = by_task["multiple_choice"]
    assert len(question.choices) == 4 and question.answer[0] == question.meta["caption1"]
    own = {option for option in question.choices if option.startswith(" ".join(question.answer[0].split()[:2]))}
    assert own == set(question.answer)  # wrong options come from other clips
    assert len({option.split()[1] for option in question.choices}) == 4  # each from another
    assert by_task["entailment"].choices == ("it is definitely true", "it is definitely false", "it is plausible")
    assert all(example.source == "Clotho" and example.licence for example in made)
    assert {tier.meta["tier"] for tier in made if tier.task == "difference"} == {1, 2, 3}


def uneven_captions(tmp_path):
    """Sixty clips of a few classes of very different size, all said in the same five ways, as from labels."""
    names = [name for name, count in {"dog": 14, "rain": 12, "cow": 10, "owl": 9, "siren": 8, "bell": 7}.items()
             for _ in range(count)]  # fmt: skip
    lines = ["file_name," + ",".join(f"caption_{number}" for number in range(1, 6))]
    ways = ("a {} is heard", "a recording of a {}", "only a {}", "{} sounds", "the {} in a place")
    lines += [f"clip{n}.wav," + ",".join(way.format(name) for way in ways) for n, name in enumerate(names)]
    (tmp_path / "clotho_captions_development.csv").write_text("\n".join(lines) + "\n")
    return reasonaqa.captioned(sources.load("clotho", tmp_path / "clotho_captions_development.csv", pytest.fail))


def test_captions_from_a_template_tell_a_deaf_model_nothing(tmp_path):
    made = list(answered(reasonaqa.tasks(uneven_captions(tmp_path), kinds=["multiple_choice", "entailment"], seed=4)))
    made = [replace(example, licence="CC0") for example in reasonaqa.balanced(made, seed=4)]
    asked = [example for example in made if example.task == "multiple_choice"]
    assert len(asked) > 200
    answers = Counter(example.answer[0] for example in asked)
    listed = Counter(option for example in asked for option in example.choices)
    assert listed == {text: 4 * count for text, count in answers.items()}, "a wrong option three times for each answer"
    for example in asked:
        sound = next(name for name in ("dog", "rain", "cow", "owl", "siren", "bell") if name in example.answer[0])
        assert sum(sound in option for option in example.choices) == 1, "no other wording of the same truth"
    relations = Counter(example.meta["relation"] for example in made if example.task == "entailment")
    assert len(set(relations.values())) == 1 and relations.total() > 100
    for task in ("multiple_choice", "entailment"):
        report = check_examples.check([one for one in made if one.task == task], listen=False)
        assert report["problems"] == [], report["problems"]
        assert {"blind", "options"} <= report["bias"].keys()


def test_hypotheses_are_true_open_or_false_by_what_is_heard(tmp_path):
    for example in answered(reasonaqa.tasks(items(tmp_path, 6), kinds=["entailment"], seed=2)):
        first, on_weekdays = (
            f"clip {part.split()[1]}.wav" for part in example.meta["hypothesis"].split("hears this: ")[1:]
        )
        heard = example.audio_paths[0].name
        truth = "entailment" if heard == first else "neutral" if heard == on_weekdays else "contradiction"
        assert example.meta["relation"] == truth


def test_tasks_are_the_same_again_and_differ_by_seed(tmp_path):
    clips = items(tmp_path, 6)

    def keys(seed):
        teacher = teachers.TemplateTeacher(reasonaqa_tasks.TEMPLATE_REPLIES)
        return [request_runner.request_key(teacher, task.request) for task in reasonaqa.tasks(clips, seed=seed)]

    assert keys(1) == keys(1) and keys(1) != keys(2)
    with pytest.raises(ConfigError, match="kind 'mcq' is none of"):
        list(reasonaqa.tasks(clips, kinds=["mcq"]))
    with pytest.raises(DataError, match="too few other clips"):
        list(reasonaqa.tasks(clips[:3], kinds=["multiple_choice"]))
    taught = list(reasonaqa.tasks(clips[:3], kinds=["multiple_choice"], template=False))
    assert len(taught) == 15 and not any(task.request.facts["others"] for task in taught), "a server needs none"


def test_prompts_hold_the_captions_and_nothing_of_other_clips(tmp_path):
    task = next(reasonaqa.tasks(items(tmp_path, 5), kinds=["multiple_choice"], seed=0, per_caption=7))
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
def test_malformed_questions_of_a_teacher_are_refused(change, complaint):
    good = {"topic": "objects", "question": "What barks?", "correct": "a dog", "wrong": ["a cat", "rain", "a car"]}
    reasonaqa_tasks.Choices.model_validate({"questions": [good]})
    with pytest.raises(ValidationError, match=complaint):
        reasonaqa_tasks.Choices.model_validate({"questions": [good | change]})
    with pytest.raises(ValidationError, match="two of them are equal"):
        reasonaqa_tasks.Choices.model_validate({"questions": [good, good | {"question": "what barks"}]})


def test_unanswered_requests_are_listed(tmp_path):
    tasks = list(reasonaqa.tasks(items(tmp_path, 4), kinds=["entailment"]))[:3]
    value = {"entailment": "Yes.", "neutral": "Perhaps.", "contradiction": "No."}
    rows = [{"status": "refusal", "error": "sorry"}, None, {"status": "ok", "value": value}]
    lines = []
    made = list(reasonaqa_tasks.learn(iter(tasks), lambda requests: zip(requests, rows, strict=True), lines.append))
    assert [example.meta["relation"] for example in made] == ["entailment", "contradiction", "neutral"]
    assert made[0].id.startswith(tasks[2].request.id)
    assert [line.split(": ", 2)[2] for line in lines] == ["refusal (sorry)", "not asked"]


def question(number, choices=("a", "b", "c", "d"), answer="a", **fields):
    turn = Turn("user", (Audio("a.wav"), Text("What?")))
    return Example(f"q{number}", (turn,), (answer,), choices, source="S", licence="L", **fields)


def test_keys_are_balanced_at_any_moment():
    skewed = [question(number, answer="b") for number in range(403)]
    done = list(reasonaqa.balanced(skewed, seed=5))
    places = [example.choices.index("b") for example in done]
    for upto in (4, 100, 403):
        counts = Counter(places[:upto])
        assert max(counts.values()) - min(counts[place] for place in range(4)) <= 1
    assert all(sorted(example.choices) == ["a", "b", "c", "d"] for example in done)
    assert done == list(reasonaqa.balanced(skewed, seed=5)) != list(reasonaqa.balanced(skewed, seed=6))
    others = Counter(example.choices for example in done)
    assert len(others) == 24  # the wrong options are shuffled too


ITEM = {
    "taskname": "audiocaps",
    "filepath1": "AudioCapsLarger/test/Y6BJ455B1aAs.wav",
    "filepath2": "",
    "caption1": "A rocket flies by",
    "caption2": "",
    "input": "what is heard? a) a dog b) a rocket (large) c) rain d) a car",
    "answer": "b) a rocket (large)",
    "subtype": "AudioCaps-MCQ.json",
}
TWO = {"filepath2": "AudioCapsLarger/test/YZsf2YvJfCKw.wav", "caption2": "Water trickling"}
CLOTHO = {"taskname": "clothov21", "filepath1": "ClothoV21/evaluation/a b.wav"}
HYPOTHESIS = (
    'what of "a dog"? a) It is definitely true b) It is definitely false c) It is plausible d) I cannot determine'
)


def read_published(tmp_path, *changes):
    path = tmp_path / "test.json"
    path.write_text(json.dumps([ITEM | change for change in changes], indent=2))
    lines = []
    return list(sources.load("reasonaqa", path, lines.append)), lines


def test_published_file_is_read(tmp_path):
    examples, lines = read_published(
        tmp_path,
        {},
        TWO | {"input": "explain the difference in few words", "answer": "One Booms.", "subtype": "ACD-1.json"},
        CLOTHO | {"input": HYPOTHESIS, "answer": "c) it is plausible", "subtype": "CLE.json"},
        CLOTHO | {"input": "is it loud? answer yes or no", "answer": "Yes", "subtype": "ClothoAQA.json"},
        {"input": "caption first audio", "answer": "", "subtype": "AudioCaps.json"},
        CLOTHO | {"input": "what do you feel?", "answer": "Fear.", "subtype": "Clotho-Detail.json"},
        {"input": "what now?", "answer": "That.", "subtype": "News.json"},
    )
    assert not lines
    assert reasonaqa.count(examples) == dict.fromkeys(
        (
            (subset, "test")
            for subset in ("AudioCaps-MCQ", "ACD", "CLE", "ClothoAQA", "AudioCaps caption", "Clotho-Detail")
        ),
        1,
    ) | {("unknown: News.json", "test"): 1}
    mcq, difference, entailment, binary, caption, detail, _ = examples
    assert mcq.question == "what is heard?" and mcq.choices == ("a dog", "a rocket (large)", "rain", "a car")
    assert mcq.answer == ("a rocket (large)",) and mcq.group == "youtube:6BJ455B1aAs"
    assert len(difference.audio_paths) == 2 and difference.answer == ("One Booms.",)
    assert difference.meta["tier"] == 1 and "few words" in difference.meta["input"]
    assert entailment.task == "entailment" and entailment.answer == ("It is plausible",)
    assert binary.choices == ("yes", "no") and binary.answer == ("yes",) and binary.group == "clotho:a b.wav"
    assert caption.answer == ("A rocket flies by",) and caption.task == "caption"
    assert detail.task == "detail" and not detail.choices
    for example in examples:
        assert manifest.from_row(manifest.to_row(example), root=example.root) == example


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"answer": "a) a rocket (large)"}, "is not one of the options by letter and text"),
        ({"answer": "e) a bus"}, "is not one of the options by letter and text"),
        ({"input": "what? a) rain b) rain c) car", "answer": "a) rain"}, "stands twice"),
        ({"answer": ""}, "answer is '' where a text is expected"),
        ({"filepath1": None}, "filepath1 is None"),
    ],
)
def test_published_items_that_contradict_themselves_are_listed(tmp_path, change, complaint):
    examples, lines = read_published(tmp_path, {}, change)
    assert len(examples) == 1 and len(lines) == 1
    assert lines[0].startswith(f"{tmp_path / 'test.json'}:item 2: ") and complaint in lines[0]


def test_options_are_found_in_order_only():
    assert published.split_options("is b) here? a) one b) two") == ("is b) here?", ("one", "two"))
    assert published.split_options("no options (a) here") == ("no options (a) here", ())


def test_missing_audio_is_skipped_kept_or_an_error(tmp_path):
    (tmp_path / "a.wav").touch()
    rows = [question(1, root=tmp_path), question(2, root=tmp_path / "none")]
    lines = []
    assert [row.id for row in reasonaqa.present(rows, "skip", lines.append)] == ["q1"]
    assert lines == [f"q2: audio {tmp_path / 'none/a.wav'} is missing"]
    assert len(list(reasonaqa.present(rows, "keep", pytest.fail))) == 2
    with pytest.raises(DataError, match="--missing skip"):
        list(reasonaqa.present(rows, "error", pytest.fail))


def test_avqa_filters_count_what_they_leave_out():
    def asked(text, relation):
        turn = Turn("user", (Audio("a.wav"), Text(text)))
        return Example(text, (turn,), meta={"question_relation": relation})

    rows = [
        asked("Where?", "View"),
        asked("What color is it?", "View"),
        asked("Which colour?", "Both"),
        asked("Who?", "Sound"),
    ]
    dropped = Counter()
    assert [row.id for row in avqa.kept(rows, ["visual", "colour"], dropped)] == ["Who?"]
    assert dropped == {"visual": 2, "colour": 1}
    assert len(list(avqa.kept(rows, [], dropped))) == 4
    with pytest.raises(ConfigError, match="filter 'color' is none of visual, colour"):
        list(avqa.kept(rows, ["color"], dropped))


def test_pooled_options_come_from_the_same_question():
    tempos = range(60, 200, 7)
    rows = [
        question(number, (), f"{tempos[number % 20]} BPM", meta={"field": "tempo"}, task="open")
        for number in range(160)
    ]
    rows.append(question(160, (), "Calm.", task="caption"))
    out, left = open_to_choices.with_choices(rows, 4, seed=2)
    assert out[-1].choices == () and len(out) + left == 161 and len(out) > 120
    for example in out[:-1]:
        speeds = [int(option.split()[0]) for option in example.choices]
        assert len(speeds) == 4 and example.answer[0] in example.choices
        assert all(low * 1.1 <= high for low, high in itertools.pairwise(sorted(speeds)))
        assert not any(abs(high / low - 2) < 0.07 for low in speeds for high in speeds)
    # without ears: taking the most frequent answer among the options must not help
    counts = Counter(example.answer[0] for example in out[:-1])
    right = sum(max(example.choices, key=lambda name: counts[name]) == example.answer[0] for example in out[:-1])
    assert right / (len(out) - 1) < 0.4
    assert open_to_choices.clashes("key", {"A minor", "C major", "C minor"})["A minor"] == {"C major"}


def cli(capsys, *arguments):
    code = run(["build", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_builds_with_the_template_teacher_and_asks_nothing_twice(tmp_path, capsys):
    (tmp_path / "clotho_captions_evaluation.csv").write_text(caption_rows(6) + "late.wav,a,b,c,,e\n")
    (tmp_path / "clotho_aqa_test.csv").write_text(
        "file_name,QuestionText,answer\n" + "".join(f"clip 0.wav,Loud?,{said}\n" for said in ("yes", "yes", "no"))
    )
    out = tmp_path / "out/test.jsonl"
    arguments = ["reasonaqa", f"clotho={tmp_path / 'clotho_captions_evaluation.csv'}"]
    arguments += [f"clothoaqa={tmp_path / 'clotho_aqa_test.csv'}", "--kinds", "all", "--out", out, "--json"]
    code, said, err = cli(capsys, *arguments, "--missing", "keep")
    assert code == 0, err
    result = json.loads(said)
    assert result["tasks"] == {
        "caption": 30, "entailment": 18, "difference": 90, "multiple_choice": 30, "detail": 30, "yes_no": 3,
    }  # fmt: skip
    assert result["skipped"] == 1 and "caption_4 is ''" in Path(f"{out}.skipped.txt").read_text()
    assert result["teacher"] == "template-1"
    rows = manifest.read(out, check_files=False)
    keys = Counter(row.choices.index(row.answer[0]) for row in rows if row.task == "multiple_choice")
    assert sorted(keys.values()) == [7, 7, 8, 8]
    code, said, err = cli(capsys, *arguments, "--missing", "keep")
    assert code == 0 and "0 asked" in err and manifest.read(out, check_files=False) == rows

    code, _, err = cli(capsys, *arguments)  # no audio there at all
    assert code == 2 and err.count("error:") == 1 and "--missing keep" in err


def test_command_shards_come_together_and_failures_are_asked_again(tmp_path, capsys):
    source = tmp_path / "clotho_captions_evaluation.csv"
    source.write_text(caption_rows(6))
    out, log = tmp_path / "test.jsonl", tmp_path / "test.answers"
    arguments = ["reasonaqa", f"clotho={source}", "--kinds", "all", "--out", out, "--json", "--missing", "keep"]
    parts = []
    for number in (1, 2):
        code, said, err = cli(capsys, *arguments, "--shard", f"{number}/2")
        assert code == 0 and not out.exists(), err
        parts.append(json.loads(said))
    assert sum(part["asked"] for part in parts) == 6 + 3 * 30 and all(part["asked"] for part in parts)
    assert sorted(path.name for path in log.glob("*.jsonl")) == ["rows-1-of-2.jsonl", "rows-2-of-2.jsonl"]
    failed = log / "rows-1-of-2.jsonl"
    failed.write_text(failed.read_text().replace('"status": "ok"', '"status": "refusal"', 1))
    code, said, err = cli(capsys, *arguments)
    assert code == 0 and "0 asked" in err
    short = json.loads(said)["rows"]
    code, said, err = cli(capsys, *arguments, "--retry-failed")
    assert code == 0 and "1 asked" in err and json.loads(said)["rows"] > short
    assert json.loads((tmp_path / "test.checks.json").read_text())["n"] == json.loads(said)["rows"]
    code, _, err = cli(capsys, *arguments[:3], "caption", "--out", out, "--shard", "1/2")
    assert code == 2 and "nothing of this is asked of a teacher" in err


def test_builders_end_with_their_checks_unless_told_not_to(tmp_path, capsys):
    rows = [{"id": n, "video_name": f"abcdefghij{n}_000030", "question_text": "What?", "multi_choice": ["a", "b"],
             "answer": 0, "question_relation": "Both"} for n in range(30)]  # fmt: skip
    (tmp_path / "train_qa.json").write_text(json.dumps(rows))
    out = tmp_path / "avqa.jsonl"
    arguments = ["avqa", tmp_path / "train_qa.json", "--out", out, "--missing", "keep", "--json"]
    code, said, _ = cli(capsys, *arguments, "--no-check")
    assert code == 0 and json.loads(said)["rows"] == 30 and not (tmp_path / "avqa.checks.html").exists()
    code, said, err = cli(capsys, *arguments)
    assert code == 0 and json.loads(said)["rows"] == 30, "the result stays one JSON object"
    assert (tmp_path / "avqa.checks.html").is_file() and "the position listener is right 1.000" in err
    assert "broken" not in err, "sounds that need not be there are not looked for"


def test_command_avqa_counts_what_it_drops(tmp_path, capsys):
    rows = [
        {"id": number, "video_name": f"abcdefghij{number}_000030", "question_text": text, "multi_choice": ["a", "b"]}
        | {"answer": 0, "question_relation": relation}
        for number, (text, relation) in enumerate([("In the video?", "Both"), ("Where?", "View"), ("Color?", "Both")])
    ]
    (tmp_path / "train_qa.json").write_text(json.dumps(rows))
    out = tmp_path / "avqa.jsonl"
    arguments = ["avqa", tmp_path / "train_qa.json", "--out", out, "--missing", "keep", "--json"]
    code, said, _ = cli(capsys, *arguments, "--drop", "visual", "--drop", "colour")
    assert code == 0 and json.loads(said)["dropped"] == {"visual": 1, "colour": 1}
    assert [row.question for row in manifest.read(out, check_files=False)] == ["In the audio?"]
    code, said, _ = cli(capsys, *arguments)
    assert code == 0 and json.loads(said)["rows"] == 3


def test_command_source_refuses_what_it_does_not_know(tmp_path, capsys):
    code, _, err = cli(capsys, "source", "nothing", tmp_path, "--out", tmp_path / "o.jsonl")
    assert code == 2 and "source 'nothing' is none of" in err
    code, _, err = cli(capsys, "reasonaqa", "clotho.csv", "--out", tmp_path / "o.jsonl")
    assert code == 2 and "is not SOURCE=PATH" in err
