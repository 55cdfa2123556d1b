"""Distillation on tiny random models: one tree per clip for both sides, the loss of paths run one by one, exact resume.

The reference is a computation that knows nothing of trees: each completion behind its own prompt, run alone by each
model, compared by TRL's formula.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from builders import tiny_qwen2_audio, tone
from earwise import cli
from earwise.algorithms.distillation import generalized_jsd
from earwise.audio import encode_ogg
from earwise.config.kinds.gkd import GkdConfig
from earwise.config.recipe import Recipe, check_recipe
from earwise.data import manifest
from earwise.errors import ConfigError, DataError
from earwise.forest import TokenPath, build_tree, pack
from earwise.models.encoder_cache import EncoderCache
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.training import run
from earwise.training.check_recipe import check_training
from earwise.training.clip_loader import ClipLoader
from earwise.training.distillation.teacher import Teacher, check_same_vocabulary, with_answer
from earwise.training.policy import Policy
from earwise.training.stages.gkd import GkdStage
from earwise.training.stages.stage import StageContext, StageData
from earwise.training.trainable import set_trainable
from earwise.types import Audio, Example, Text, Turn
from resumed import final_weights, metrics_rows, run_interrupted_and_whole


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """The student of the recipes below, which name it."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


def load_teacher(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """Their teacher: the same family with other weights."""
    assert device == "cpu"
    return tiny_qwen2_audio(11)


TEACHER = {"name": f"{__name__}:load_teacher"}
FULL = {"encoder": "frozen", "connector": "full", "decoder": "full"}
STAGE: dict[str, Any] = {
    "kind": "gkd",
    "teacher": TEACHER,
    "max_steps": 6,
    "clips_per_step": 2,
    "questions_per_clip": 2,
    "group_size": 2,
    "max_new_tokens": 5,
    "lmbda": 1.0,
    "save_steps": 2,
    "pack_tokens": 400,
    "trainable": FULL,
    "optimizer": {"learning_rate": 3e-3, "lr_scheduler_type": "constant"},
    "data": {"mixture": [{"manifest": "rows.jsonl"}], "styles": {"answer": 1.0}},
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Four clips with two questions each."""
    examples = []
    for number in range(4):
        (tmp_path / f"{number}.ogg").write_bytes(encode_ogg(tone(0.5 + 0.1 * number, 200 * (number + 1)), 16000))
        for letter, question in (("a", "pitch?"), ("b", "is it high?")):
            turns = (Turn("user", (Audio(f"{number}.ogg"), Text(question))),)
            examples.append(Example(f"{number}{letter}", turns, ("low",), ("low", "high"), root=tmp_path))
    manifest.write(tmp_path / "rows.jsonl", examples)
    return tmp_path / "rows.jsonl"


def recipe(**stage: object) -> Recipe:
    return check_recipe(
        {"recipe": "t", "model": {"name": f"{__name__}:load"}, "seed": 5, "stages": [STAGE | stage]}, "t"
    )


def stage_of(rows: Path, model: Qwen2Audio, **settings: object) -> GkdStage:
    """A stage at work on the rows."""
    config = recipe(**settings).stages[0]
    assert isinstance(config, GkdConfig)
    set_trainable(model, config.trainable)
    context = StageContext(
        model=model,
        data=StageData([(manifest.read(rows), 1.0)]),
        encoder_cache=EncoderCache(model, batch_size=1),
        clip_loader=ClipLoader(model, long_audio="error", on_bad_row="stop"),
        seed=7,
        folder=rows.parent,
    )
    return GkdStage(context, config)


LORA = {"encoder": "frozen", "connector": "full", "decoder": "lora", "lora": {"r": 2, "lora_alpha": 4}}


@pytest.mark.parametrize(
    ("settings", "is_hinted"),
    [
        ({}, False),
        ({"teacher_context": "answer", "beta": 0.0}, True),
        ({"teacher": None, "teacher_context": "answer", "trainable": LORA, "loss_temperature": 1.5}, True),
        ({"teacher": None, "teacher_context": "answer", "beta": 1.0}, True),
    ],
    ids=["other-model", "other-model-hinted", "itself-lora", "itself-full"],
)
def test_loss_and_gradients_are_those_of_completions_run_one_by_one(
    rows: Path, settings: dict[str, Any], is_hinted: bool
) -> None:
    model = load()
    stage = stage_of(rows, model, **settings)
    batches = stage.batches(0)
    assert sum(len(micro_batch.paths) for micro_batch in batches.micro_batches) == 2, "one tree per clip"
    assert batches.metrics["on_policy"] == 1 and batches.metrics["distinct_share"] < 0.75
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # what the reference must not follow
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    trained = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    policy = Policy(model)
    losses = []
    for micro_batch in batches.micro_batches:
        divergences = policy(*micro_batch.policy_inputs, teacher_targets=micro_batch.teacher_targets)
        losses.append(stage.loss(divergences, micro_batch).loss)
    gradients = torch.autograd.grad(torch.stack(losses).sum(), trained, allow_unused=True)

    teacher = load_teacher() if settings.get("teacher", TEACHER) else load()
    expected, items = torch.tensor(0.0), 0
    for micro_batch in batches.micro_batches:
        for paths in micro_batch.paths:
            for path in paths:
                ids = [token for token, flag in zip(path.ids, path.trained, strict=True) if flag]
                student_logits = logits_behind(policy, path, micro_batch.encoder_states, len(ids))
                hint = b" (The right answer is: low)" if is_hinted else b""
                teacher_path = with_hint(teacher, path, hint)
                with torch.no_grad():
                    states = {clip: teacher.encode_audio([wave])[0] for clip, wave in micro_batch.waveforms.items()}
                    teacher_logits = logits_behind(Policy(teacher), teacher_path, states, len(ids))
                beta, temperature = settings.get("beta", 0.5), settings.get("loss_temperature", 1.0)
                divergence = generalized_jsd(student_logits, teacher_logits, beta=beta, temperature=temperature)
                expected, items = expected + divergence.sum(), items + len(ids)
    torch.testing.assert_close(torch.stack(losses).sum(), expected / items, atol=1e-5, rtol=1e-4)
    for gradient, other in zip(
        gradients, torch.autograd.grad(expected / items, trained, allow_unused=True), strict=True
    ):
        if gradient is not None:
            torch.testing.assert_close(gradient, other, atol=2e-5, rtol=1e-3)
    assert float(expected.detach()) > 0


def logits_behind(policy: Policy, path: Any, states: dict[int, torch.Tensor], count: int) -> torch.Tensor:
    """Scores over the vocabulary where the last `count` tokens of a path, run alone, are predicted."""
    forest = pack([build_tree([path])])
    hidden = policy.hidden_states(forest, states, {})
    return policy._model.logits(hidden[len(path.ids) - count - 1 : -1]).float()


def with_hint(teacher: Qwen2Audio, path: Any, hint: bytes) -> Any:
    """A path with a text put before the tokens that end the user's turn; the tokenizer has a token for each byte."""
    if not hint:
        return path
    ids, first = list(path.ids), list(path.trained).index(True)
    hint_ids = teacher.tokenizer.encode(hint.decode())
    marker = teacher.tokenizer.encode(" Output the final answer in <answer> </answer>.")
    place = next(start + len(marker) for start in range(first) if ids[start : start + len(marker)] == marker)
    added = len(hint_ids)
    return TokenPath(
        (*ids[:place], *hint_ids, *ids[place:]),
        (*path.trained[:place], *(False,) * added, *path.trained[place:]),
        (*path.clips[:place], *(-1,) * added, *path.clips[place:]),
    )


def test_a_teacher_is_reached_at_last(rows: Path) -> None:
    run.start(recipe(max_steps=20, group_size=4), rows.parent / "run", rows.parent)
    losses = [row["gkd/loss"] for row in metrics_rows(rows.parent / "run")]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


@pytest.mark.parametrize(
    "settings",
    [
        {"lmbda": 0.5},
        {"lmbda": 0.0, "seq_kd": True},
        {"teacher": None, "teacher_context": "answer", "lmbda": 0.7},
        {"teacher": None, "teacher_context": "answer", "trainable": LORA},
    ],
    ids=["half", "teacher-samples", "itself", "itself-lora"],
)
def test_a_stopped_run_goes_on_bit_for_bit(rows: Path, settings: dict[str, Any]) -> None:
    stopped, whole = run_interrupted_and_whole(recipe(**settings, log_completions_steps=1), rows.parent, after=3)
    on_policy = [row["gkd/on_policy"] for row in metrics_rows(whole)]
    assert len(on_policy) == 6 and set(on_policy) <= {0.0, 1.0}
    expected = {0.5: {0.0, 1.0}, 0.0: {0.0}}.get(settings.get("lmbda", 1.0))
    assert expected is None or set(on_policy) == expected
    assert [json.loads(line)["id"] for line in (stopped / "rollouts.jsonl").read_text().splitlines()] == [
        json.loads(line)["id"] for line in (whole / "rollouts.jsonl").read_text().splitlines()
    ]
    before = dict(load().module.named_parameters())
    changed = [name for name, value in final_weights(whole).items() if not torch.equal(value, before[name])]
    assert changed and not any("audio_tower" in name for name in changed)


def test_completions_are_logged_and_depend_on_the_question_alone(rows: Path) -> None:
    run.start(recipe(max_steps=1, clips_per_step=4), rows.parent / "all", rows.parent)
    run.start(recipe(max_steps=1, clips_per_step=4, pack_tokens=4000), rows.parent / "packed", rows.parent)
    logged = [
        {row["id"]: row["completions"] for row in map(json.loads, (rows.parent / name / "rollouts.jsonl").open())}
        for name in ("all", "packed")
    ]
    assert logged[0] == logged[1] and len(logged[0]) == 8 and all(len(texts) == 2 for texts in logged[0].values())


def test_rows_without_an_answer_are_used_unless_their_answer_is_needed(rows: Path) -> None:
    """A teacher can judge answers about sounds that nobody has labelled."""
    unlabelled = [Example(row.id, row.turns, choices=row.choices, root=row.root) for row in manifest.read(rows)]
    manifest.write(rows, unlabelled)
    checked = check_training(recipe(max_steps=1), rows.parent)
    assert checked.row_counts == [{"rows.jsonl": 8}]
    run.start(recipe(max_steps=1), rows.parent / "run", rows.parent)
    for settings in ({"lmbda": 0.5}, {"teacher_context": "answer"}):
        with pytest.raises(DataError, match="none of 8 rows has an answer to train on"):
            check_training(recipe(max_steps=1, **settings), rows.parent)


def test_a_teacher_that_changed_is_refused(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(line: str) -> None:
        if "step 3/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.start(recipe(), rows.parent / "run", rows.parent, notify=interrupt)
    original = Teacher.from_config

    def changed(config: Any, student: Any) -> Teacher:
        teacher = original(config, student)
        teacher.model.revision = "other"
        return teacher

    monkeypatch.setattr(Teacher, "from_config", changed)
    with pytest.raises(ConfigError, match=r"has the weights other, the run began with .*; put those back"):
        run.resume(rows.parent / "run")


def test_another_vocabulary_is_refused_in_one_line(rows: Path, capfd: pytest.CaptureFixture[str]) -> None:
    student, teacher = load(), load_teacher()
    check_same_vocabulary(student, teacher)
    swapped = json.loads(teacher.tokenizer.backend.to_str())
    vocabulary = swapped["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    teacher.tokenizer.backend = Tokenizer.from_str(json.dumps(swapped))
    with pytest.raises(ConfigError, match=r"another vocabulary than .* \(2 of \d+ token ids differ\): token 40 is"):
        check_same_vocabulary(student, teacher)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": None}, "without a teacher the policy would be compared with itself"),
        ({"teacher": None, "teacher_context": "answer", "lmbda": 0.5, "seq_kd": True}, "seq_kd lets the teacher"),
        ({"seq_kd": True}, "lmbda 1 leaves no step to the teacher"),
        ({"lmbda": 0.0}, "group_size 2 does nothing here; lmbda 0 samples nothing"),
        ({"beta": 1.5}, "beta"),
        ({"curriculum": {"order": "online"}}, "order online needs rewards"),
        ({"teacher": {"name": "embedded", "quantization": "int3"}}, "quantization"),
    ],
    ids=["no-teacher", "self-seq-kd", "idle-seq-kd", "idle-group", "beta", "online", "quantization"],
)
def test_settings_that_cannot_act_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(**settings)


def test_answer_is_told_to_the_teacher_at_the_end_of_its_prompt() -> None:
    turns = (Turn("user", (Text("Listen."), Audio("a.wav"))),)
    assert with_answer(turns, "rain")[0].parts == (Text("Listen."), Audio("a.wav"), Text("(The right answer is: rain)"))


def test_command_line_ends_with_two_for_a_bad_teacher(rows: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stage = STAGE | {"teacher": {"name": "no-such-model"}, "max_steps": 1}
    path = rows.parent / "r.yaml"
    path.write_text(json.dumps({"recipe": "t", "model": {"name": f"{__name__}:load"}, "stages": [stage]}))
    assert cli.run(["train", str(path), "--out", str(rows.parent / "out")]) == 2
    assert "no-such-model" in capfd.readouterr().err
