"""Questions about labelled clips require the audio; collections in four formats are read."""

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import earwise
from earwise import cli
from earwise.data import manifest
from earwise.datasets.checks.text_baselines import bias
from earwise.datasets.labels import clip_questions, collection, distractors, label_names, question_templates
from earwise.datasets.labels.clip_questions import ClipQuestionOptions
from earwise.errors import ConfigError, DataError

ROOT = Path("collection")
STARTER = Path(earwise.__file__).parent / "assets" / "starter"
SOUNDS = {"dog": 40, "rain": 30, "siren": 12, "gun_shot": 9, "street_music": 5, "cow": 3, "owl": 1}


def row(number, **fields):
    base = {
        "path": f"c/{number:03}.ogg",
        "labels": ["dog"],
        "category": "sound",
        "group": f"g{number}",
        "split": "train",
    }
    return base | fields


def sounds():
    names = [name for name, count in SOUNDS.items() for _ in range(count)]
    return [row(number, labels=[name], licence="CC0", source="S") for number, name in enumerate(names)]


def build(rows, **settings):
    """Questions with the given options; `excluded` is the counter of what is not asked."""
    excluded = settings.pop("excluded", None)
    return clip_questions.build_clip_questions(rows, ROOT, ClipQuestionOptions(**settings), excluded)


def voices(count=40):
    people = [("angry", "female", "en"), ("happy", "male", "de"), ("sad", "female", "fr"), ("disgust", "male", "es")]
    rows = []
    for number in range(count):
        emotion, gender, language = people[number % 4]
        fields = {
            "emotion": emotion,
            "gender": gender,
            "language": language,
            "text": f"Words {'abcdefghij'[number // 4]}.",
        }
        rows.append(row(number, labels=[emotion], category="speech", **fields))
    return rows


def test_an_example_is_complete():
    examples = build(sounds(), tasks=("recognition",), fields=("sound",))
    example = next(example for example in examples if example.meta["label"] == "gunshot")
    assert example.answer == ("gunshot",) and len(example.choices) == 4 and "gunshot" in example.choices
    assert example.task == "recognition" and example.category == "sound" and example.meta["field"] == "sound"
    assert (example.licence, example.source, example.split, example.root) == ("CC0", "S", "train", ROOT)
    assert example.group.startswith("g") and example.question in question_templates.QUESTIONS["sound"]


def test_everything_follows_from_rows_and_seed_not_from_their_order():
    rows = sounds() + voices()
    shuffled = random.Random(1).sample(rows, len(rows))
    rows = [item | {"path": f"{item['category']}/{item['path']}"} for item in rows]
    shuffled = [item | {"path": f"{item['category']}/{item['path']}"} for item in shuffled]
    assert build(rows) == build(shuffled) != build(rows, seed=1)
    ids = [example.id for example in build(rows)]
    assert len(set(ids)) == len(ids)


def test_ids_follow_from_the_content():
    first = {example.id: example for example in build(sounds(), tasks=("open",))}
    second = {example.id: example for example in build(sounds()[10:], tasks=("open",))}
    common = first.keys() & second.keys()
    assert common and all(first[name] == second[name] for name in common)


def test_distractors_are_drawn_as_often_as_they_are_answers():
    examples = build(sounds(), tasks=("recognition",), fields=("sound",))
    answers = Counter(example.answer[0] for example in examples)
    choices = Counter(choice for example in examples for choice in example.choices)
    assert choices == {name: 4 * count for name, count in answers.items()}
    assert max(answers.values()) <= len(examples) / 4
    positions = Counter(example.choices.index(example.answer[0]) for example in examples)
    assert max(positions.values()) - min(positions.values()) <= 1


def test_a_model_without_audio_is_at_chance_whatever_it_prefers():
    """For random preferences among names, and for a preference for the most frequent classes; over several seeds."""
    random_hits = total = 0
    frequency_hits = 0
    for seed in range(12):
        rng = random.Random(seed)
        preference = {label_names.display_name(name): rng.random() for name in SOUNDS}
        for example in build(sounds(), seed=seed, tasks=("recognition",), fields=("sound",)):
            random_hits += max(example.choices, key=preference.__getitem__) == example.answer[0]
            frequency_hits += (
                max(example.choices, key=lambda choice: -list(SOUNDS).index(label_of_name(choice))) == example.answer[0]
            )
            total += 1
    spread = 3 * (0.25 * 0.75 / total) ** 0.5
    assert total > 500 and abs(random_hits / total - 0.25) < spread and abs(frequency_hits / total - 0.25) < spread


def label_of_name(name):
    return next(label for label in SOUNDS if label_names.display_name(label) == name)


def test_drawing_evenly_would_have_given_the_answers_away():
    """The checks detect the bias that balancing removes: distractors drawn evenly, answers as frequent as classes."""
    rng = random.Random(0)
    names = [label_names.display_name(name) for name in SOUNDS]
    biased = []
    for example in build(sounds(), tasks=("open",), fields=("sound",)):
        others = rng.sample([name for name in names if name != example.answer[0]], 3)
        choices = [example.answer[0], *others]
        rng.shuffle(choices)
        biased.append(replace(example, choices=tuple(choices)))
    assert bias(biased)["blind"]["low"] > 0.25
    assert bias(build(sounds(), tasks=("recognition",), fields=("sound",)))["blind"]["low"] <= 0.25


def test_yes_and_no_are_balanced_for_every_name():
    examples = build(sounds(), tasks=("yes_no",), fields=("sound",))
    counts = Counter((example.meta["asked"], example.answer[0]) for example in examples)
    for name in {name for name, _ in counts}:
        assert counts[name, "yes"] == counts[name, "no"], name
    for example in examples:
        assert (example.meta["asked"] == example.meta["label"]) == (example.answer == ("yes",))
        assert sorted(example.choices) == ["no", "yes"]


def test_options_come_from_the_same_field_and_split():
    rows = voices() + [item | {"path": f"s/{item['path']}"} for item in sounds()]
    rows += [item | {"path": f"v/{item['path']}", "split": "val", "labels": ["frog" if n % 2 else "cat"]}
             for n, item in enumerate(sounds()[:8])]  # fmt: skip
    kinds = {
        "emotion": {"angry", "happy", "sad", "disgusted"},
        "language": {"English", "German", "French", "Spanish"},
        "gender": {"man", "woman"},
    }
    fields = Counter()
    for example in build(rows, tasks=("recognition",)):
        fields[example.meta["field"]] += 1
        if example.meta["field"] in kinds:
            assert set(example.choices) <= kinds[example.meta["field"]]
        if example.meta["field"] == "sound":
            assert ({"frog", "cat"} == set(example.choices)) == (example.split == "val")
    assert set(fields) == {"emotion", "language", "gender", "sound", "kind", "words"}


def test_words_are_asked_among_words_of_the_language():
    for example in build(voices(), tasks=("recognition",), fields=("words",)):
        assert len(example.choices) == 4 and all(choice.startswith("Words ") for choice in example.choices)
    rows = [item | {"text": f"{item['language']} {item['text']}"} for item in voices()]
    for example in build(rows, tasks=("recognition",), fields=("words",)):
        assert len({choice[:2] for choice in example.choices}) == 1


def test_labels_beside_the_first_are_never_wrong_options():
    rows = [row(n, labels=["flute", "drum_kit"], category="music") for n in range(10)]
    rows += [row(10 + n, labels=["oboe"], category="music") for n in range(10)]
    rows += [row(20 + n, labels=["drum_kit"], category="music") for n in range(20)]
    for example in build(rows, tasks=("recognition", "yes_no"), fields=("instrument",), n_choices=2):
        wrong = set(example.choices) - set(example.answer) if example.task == "recognition" else set()
        wrong |= {example.meta["asked"]} if example.answer == ("no",) else set()
        if example.meta["label"] == "flute":
            assert "drum kit" not in wrong


def test_confusable_names_never_meet():
    rows = [row(n, labels=[("sheep", "goat", "rain", "siren", "owl", "lamb")[n % 6]]) for n in range(60)]
    for example in build(rows, tasks=("recognition",), fields=("sound",), n_choices=3):
        assert len({"sheep", "goat", "lamb"} & set(example.choices)) <= 1
    assert all(a in label_names.CONFUSABLE[b] for a, others in label_names.CONFUSABLE.items() for b in others)


def test_labels_that_say_nothing_are_not_asked():
    rows = [row(0, labels=["notification_bell"]), row(1, labels=["spoken_letter_or_syllable"], category="speech")]
    with pytest.raises(DataError, match="2 label rows gave no question"):
        build(rows)
    assert clip_questions.label_facts(row(2, labels=["snare_drum"], category="music"), ("kind",)) == []


def test_what_gives_no_question_is_counted_with_the_reason():
    rows = [*sounds()[:40], row(900, labels=["rain"], split="val"), row(901, labels=["unknown"], category="speech")]
    excluded = Counter()
    examples = build(rows, tasks=("recognition", "open"), fields=("sound",), excluded=excluded)
    assert excluded == {
        "clips of category speech: none of sound is known or can be asked": 1,
        "recognition questions about sound in train: all of one class (dog), two are needed": 40,
        "recognition questions about sound in val: all of one class (rain), two are needed": 1,
    }
    assert len(examples) == 41, "all are open questions"
    excluded = Counter()
    questions = build(sounds(), tasks=("recognition",), fields=("sound",), excluded=excluded)
    assert excluded.total() == len(sounds()) - len(questions) > 0 and "left out to balance" in next(iter(excluded))
    with pytest.raises(DataError, match=r"40 recognition questions about sound in train: all of one class \(dog\)"):
        build(sounds()[:40], tasks=("recognition",), fields=("sound",))


def test_the_command_says_what_it_excluded_and_fills_in_the_licence(tmp_path, capsys):
    clips = sorted((STARTER / "clips").glob("*.ogg"))[:6]
    label_rows = [
        {"path": f"{number}.ogg", "label": ("flute", "rain")[number % 2], "license": "CC0", "split": "train"}
        for number in range(6)
    ]
    for label_row, clip in zip(label_rows, clips, strict=True):
        shutil.copy(clip, tmp_path / label_row["path"])
    label_rows[0] |= {"licence": "MIT"}
    label_rows[5] |= {"label": "unknown"}
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, label_rows)))
    out = tmp_path / "questions.jsonl"
    settings = ["--tasks", "recognition,open", "--licence", "CC BY 4.0", "--no-check", "--json"]
    assert cli.run(["build", "labels", str(tmp_path), "--out", str(out), *settings]) == 0
    captured = capsys.readouterr()
    assert "field 'license' (6 rows) is not used; did you mean 'licence'?" in captured.err
    assert "no question: 1 clips of category sound: none of sound, instrument" in captured.err
    reasons = json.loads(captured.out)["left_out"]
    assert reasons["recognition questions about sound in train: left out to balance the answers"] == 1
    assert {example.licence for example in manifest.read(out)} == {"MIT", "CC BY 4.0"}


def test_captions_and_open_questions():
    examples = build([row(0, labels=["spoken_digit_7"], category="speech", language="ja"), row(1)])
    by_task = {(example.task, example.meta["field"]): example for example in examples}
    assert by_task["open", "digit"].answer == ("seven",) and by_task["open", "digit"].choices == ()
    assert set(by_task["caption", "sound"].answer) == set(question_templates.captions("sound", "dog"))
    assert "A dog is barking." in by_task["caption", "sound"].answer
    assert all(len(question_templates.captions(field, "x")) >= 2 for field in clip_questions.FIELDS)


def test_every_field_has_wordings_and_they_differ():
    assert (
        set(clip_questions.FIELDS)
        == set(question_templates.QUESTIONS)
        == set(question_templates.YES_NO)
        == set(question_templates.CAPTIONS)
    )
    assert all(len(set(texts)) == len(texts) >= 2 for texts in question_templates.QUESTIONS.values())
    questions = Counter(example.question for example in build(sounds(), tasks=("open",), fields=("sound",)))
    assert len(questions) == len(question_templates.QUESTIONS["sound"])


def test_settings():
    assert max(Counter(e.audio_paths for e in build(voices(), per_clip=2)).values()) == 2
    assert {example.split for example in build([*sounds(), row(900, split="val")], split="train")} == {"train"}
    assert {len(e.choices) for e in build(sounds(), tasks=("recognition",), fields=("sound",), n_choices=3)} == {3}
    for settings, message in [
        ({"tasks": ("quiz",)}, "task 'quiz' is none of recognition"),
        ({"fields": ("smell",)}, "field 'smell' is none of sound"),
        ({"tasks": ()}, "no task is named"),
        ({"n_choices": 1}, "n_choices is 1; a question needs 2"),
        ({"per_clip": 0}, "per_clip is 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            build(sounds(), **settings)


def test_options_of_two_classes_of_unequal_size():
    drawn = distractors.balanced_distractors(
        ["a"] * 9 + ["b"] * 3, 4, random.Random(0), confusable={}, also_true=[set()] * 12
    )
    assert len(drawn) == 6 and all(drawn[index] == ("b" if index < 9 else "a",) for index in drawn)
    assert distractors.balanced_distractors(["a"] * 3, 4, random.Random(0), confusable={}, also_true=[set()] * 3) == {}
    assert distractors.balanced_yes_no(["a"] * 3, random.Random(0), confusable={}, also_true=[set()] * 3) == {}


def test_collections_as_lists_tables_and_folders(tmp_path):
    complete = [
        {"path": "a.wav", "labels": ["dog"], "category": "sound", "group": "1", "split": "val", "licence": "CC0"}
    ]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, complete)) + "\n\n")
    assert collection.load(tmp_path) == (complete, tmp_path) == collection.load(tmp_path / "manifest.jsonl")
    (tmp_path / "t.csv").write_text("path,label,split\nb.wav,cat,train\na.wav,dog,\n")
    rows, root = collection.load(tmp_path / "t.csv")
    assert [(item["path"], item["labels"]) for item in rows] == [("a.wav", ["dog"]), ("b.wav", ["cat"])]
    assert root == tmp_path and rows[1] == {
        "path": "b.wav", "labels": ["cat"], "category": "sound", "category_assumed": True, "group": "b.wav",
        "split": "train",
    }  # fmt: skip
    assert not clip_questions.label_facts(rows[1], ("kind",)), (
        "the collection does not say that it is neither speech nor music"
    )
    folder = tmp_path / "folders"
    for number in range(200):
        file = folder / ("dog", "cat")[number % 2] / "deep" / f"{number}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    rows, _ = collection.load(folder)
    assert Counter(item["labels"][0] for item in rows) == {"dog": 100, "cat": 100}
    assert 20 < Counter(item["split"] for item in rows)["val"] < 60
    assert rows == collection.load(folder)[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.jsonl", "{", r"m\.jsonl:row 1: not JSON"),
        ("m.jsonl", "[]", r"m\.jsonl:row 1: '\[\]' is no object"),
        ("m.jsonl", '{"labels": ["x"]}', "row 1: path is None"),
        ("m.jsonl", '{"path": "a"}', r"row 1: labels is \[None\]"),
        ("m.jsonl", '{"path": "a", "labels": "x"}', "row 1: labels is 'x'"),
        ("m.jsonl", '{"path": "a", "label": "x"}\n{"path": "a", "label": "y"}', "row 2: path 'a' occurs twice"),
        ("m.jsonl", "", "lists no clips"),
        ("t.csv", "file,label\n", r"t\.csv: column 'path' is missing"),
        (
            "m.jsonl",
            '{"path": "a", "label": "x", "group": "g", "split": "val"}\n'
            '{"path": "b", "label": "x", "group": "g", "split": "train"}',
            "row 2: group 'g' is in val and train",
        ),
    ],
)
def test_bad_collections(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        collection.load(tmp_path / name)


def test_missing_collections(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        collection.load(tmp_path / "none")
    with pytest.raises(DataError, match="class folders"):
        collection.load(tmp_path)
