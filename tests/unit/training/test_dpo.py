"""DPO on a tiny random Qwen2-Audio: preference pairs, one tree per clip, agreement with TRL, exact resume."""

import json
import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from builders import tiny_qwen2_audio, tone, user_question
from earwise import cli
from earwise.algorithms.losses import dpo_loss
from earwise.audio import encode_ogg
from earwise.config.recipe import Recipe, check_recipe
from earwise.config.stages import DpoConfig
from earwise.data import manifest
from earwise.data.index import open_rows
from earwise.errors import ConfigError, DataError
from earwise.models.encoder_cache import EncoderCache
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.training import run
from earwise.training.clip_loader import ClipLoader
from earwise.training.policy import Policy
from earwise.training.stages.dpo import LOSSES, DpoStage, preference_pair
from earwise.training.stages.stage import StageContext, StageData
from earwise.training.trainable import set_trainable
from earwise.types import Example
from resumed import metrics_rows, run_interrupted_and_whole

CHOICES = ("low", "mid", "high")


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """The model of the recipes below, which name it."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Four clips; of each a question with options, and one with whole replies to compare."""
    examples = []
    for number in range(4):
        (tmp_path / f"{number}.ogg").write_bytes(encode_ogg(tone(0.5 + 0.1 * number, 200 * (number + 1)), 16000))
        turns = [(turn,) for question in ("pitch?", "say more") for turn in user_question(question)]
        turns = [tuple(_with_clip(turn, number) for turn in question_turns) for question_turns in turns]
        examples.append(Example(f"{number}a", turns[0], ("low",), CHOICES, rejected=("mid", "high"), root=tmp_path))
        examples.append(
            Example(f"{number}b", turns[1], chosen=("A low tone.",), rejected=("No.", "I cannot hear."), root=tmp_path)
        )
    manifest.write(tmp_path / "rows.jsonl", examples)
    return tmp_path / "rows.jsonl"


def _with_clip(turn: Any, number: int) -> Any:
    """The turn with the given clip as its audio."""
    from earwise.types import Audio

    return replace(turn, parts=tuple(Audio(f"{number}.ogg") if isinstance(p, Audio) else p for p in turn.parts))


STAGE = {
    "kind": "dpo",
    "max_steps": 6,
    "clips_per_step": 2,
    "questions_per_clip": 2,
    "save_steps": 2,
    "pack_tokens": 400,
    "trainable": {"encoder": "frozen", "connector": "full", "decoder": "full"},
    "optimizer": {"learning_rate": 3e-3, "lr_scheduler_type": "constant"},
    "data": {"mixture": [{"manifest": "rows.jsonl"}], "styles": {"answer": 1.0}},
}


def recipe(**stage: object) -> Recipe:
    return check_recipe(
        {"recipe": "t", "model": {"name": f"{__name__}:load"}, "seed": 5, "stages": [STAGE | stage]}, "t"
    )


def test_preference_pairs() -> None:
    rng = random.Random(0)
    short = Example("a", (), ("low",), CHOICES, rejected=("high",))
    assert preference_pair(short, "answer", "rows", rng) == ("<answer>low</answer>", "<answer>high</answer>")
    assert preference_pair(short, "plain", "rows", rng) == ("low", "high")
    rejected = {preference_pair(short, "answer", "options", rng)[1] for _ in range(30)}
    assert rejected == {"<answer>mid</answer>", "<answer>high</answer>"}
    with_replies = Example("b", (), ("low",), CHOICES, chosen=("It is low.",), rejected=("It is ",))
    assert preference_pair(with_replies, "answer", "rows", rng) == ("It is low.", "It is ")
    with pytest.raises(DataError, match="'c' holds no preference"):
        preference_pair(Example("c", (), ("low",), CHOICES), "answer", "rows", rng)
    with pytest.raises(DataError, match="'d' has no wrong option"):
        preference_pair(Example("d", (), ("low",)), "answer", "options", rng)


def test_one_tree_per_clip_with_the_loss_of_paths_run_one_by_one(rows: Path) -> None:
    """The loss of a step equals TRL's formula on the sums of log-probabilities of each path run by itself."""
    model = load()
    config = recipe(clips_per_step=3).stages[0]
    assert isinstance(config, DpoConfig)
    set_trainable(model, config.trainable)
    context = StageContext(
        model=model,
        data=StageData([(manifest.read(rows), 1.0)]),
        encoder_cache=EncoderCache(model, batch_size=1),
        clip_loader=ClipLoader(model, long_audio="error", on_bad_row="stop"),
        seed=7,
        folder=rows.parent,
    )
    stage = DpoStage(context, config)
    batches = stage.batches(0)
    assert sum(len(micro_batch.paths) for micro_batch in batches.micro_batches) == 3, "one tree per clip"
    assert batches.metrics["pairs"] == 6
    assert batches.metrics["distinct_share"] < 0.6, "four replies share their audio"
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    policy = Policy(model)
    total = 0.0
    for micro_batch in batches.micro_batches:
        logprobs = policy(micro_batch.forest, micro_batch.encoder_states, micro_batch.waveforms)
        total += float(stage.loss(logprobs, micro_batch).loss.detach())

    reference = load()
    margins = []
    for micro_batch in batches.micro_batches:
        paths = [path for tree in micro_batch.paths for path in tree]
        log_ratios = [
            _path_logprob(model, path, micro_batch.waveforms) - _path_logprob(reference, path, micro_batch.waveforms)
            for path in paths
        ]
        margins += [log_ratios[i] - log_ratios[i + 1] for i in range(0, len(log_ratios), 2)]
    expected = -torch.nn.functional.logsigmoid(0.1 * torch.tensor(margins)).mean()
    assert total == pytest.approx(float(expected), abs=1e-5)
    assert abs(total - 0.6931) > 1e-3, "the weights have changed, otherwise the test proves nothing"


def _path_logprob(model: Qwen2Audio, path: Any, waveforms: Any) -> float:
    """Log-probability of the trained tokens of a path that is run by itself."""
    from earwise.forest import build_tree, pack

    encoder_states = {
        clip: model.encode_audio([waveform])[0] for clip, waveform in waveforms.items() if clip in path.clips
    }
    with torch.no_grad():
        return float(Policy(model)(pack([build_tree([path])]), encoder_states, waveforms).sum())


@pytest.mark.parametrize("loss_type", ["sigmoid", "sigmoid_norm", "robust", "ipo"])
def test_training_raises_the_chosen_replies(rows: Path, loss_type: str) -> None:
    out = rows.parent / "run"
    run.start(recipe(loss_type=loss_type, label_smoothing=0.1 if loss_type == "robust" else 0.0), out, rows.parent)
    logged = metrics_rows(out)
    assert logged[0]["dpo/margin"] == pytest.approx(0, abs=1e-4), "the policy starts as the reference"
    assert logged[-1]["dpo/margin"] > 0.1
    assert logged[-1]["dpo/accuracy"] > 0.6


@pytest.mark.parametrize("decoder", ["full", "lora"])
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(rows: Path, decoder: str) -> None:
    settings = {"trainable": {"decoder": decoder}, "negatives": "options", "data": STAGE["data"] | {
        "mixture": [{"manifest": "rows.jsonl", "where": {"task": "choice"}}]}}  # fmt: skip
    examples = [example for example in manifest.read(rows) if example.choices]
    manifest.write(rows, [replace(example, task="choice", rejected=()) for example in examples])
    run_interrupted_and_whole(recipe(**settings), rows.parent, after=3)


def test_rows_without_a_preference_are_left_out_or_refused(rows: Path) -> None:
    manifest.write(rows, [replace(example, chosen=(), rejected=()) for example in manifest.read(rows)])
    with pytest.raises(DataError, match=r"none of 8 rows has `rejected`; build some: earwise build preferences"):
        run.start(recipe(), rows.parent / "run", rows.parent)


@pytest.mark.parametrize(("smoothing", "kind"), [(0.5, "sigmoid"), (0.1, "ipo"), (-0.1, "robust")])
def test_invalid_label_smoothing_is_refused(smoothing: float, kind: str) -> None:
    logprobs, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ConfigError, match="label_smoothing"):
        dpo_loss(logprobs, logprobs, logprobs, logprobs, mask, mask, loss_type=kind, label_smoothing=smoothing)
    with pytest.raises(ConfigError, match="label_smoothing"):
        recipe(loss_type=kind, label_smoothing=smoothing)


def test_label_smoothing_by_hand() -> None:
    """Margin 2, beta 0.5: -log sigmoid(1) is 0.313262, -log sigmoid(-1) is 1.313262."""
    chosen, rejected, mask = torch.tensor([[-1.0]]), torch.tensor([[-3.0]]), torch.ones(1, 1, dtype=torch.bool)
    reference = torch.tensor([[-1.0]])
    arguments = (chosen, rejected, reference, reference, mask, mask)
    values = [
        float(dpo_loss(*arguments, beta=0.5, loss_type=kind, label_smoothing=0.1).loss)
        for kind in ("sigmoid", "robust")
    ]
    assert values == pytest.approx([0.9 * 0.313262 + 0.1 * 1.313262, (0.9 * 0.313262 - 0.1 * 1.313262) / 0.8], abs=1e-5)


@pytest.mark.parametrize("loss_type", ["sigmoid", "sigmoid_norm", "robust", "ipo"])
def test_losses_and_gradients_equal_those_of_trl(loss_type: str) -> None:
    pytest.importorskip("trl")
    from accelerate import Accelerator
    from trl.trainer.dpo_trainer import DPOTrainer

    generator = torch.Generator().manual_seed(4)
    lengths = torch.tensor([3, 5, 1, 2])  # two chosen, two rejected
    mask = torch.arange(5) < lengths[:, None]
    logprobs = ((torch.randn(4, 5, generator=generator) - 2) * mask).requires_grad_(True)
    reference = (torch.randn(4, 5, generator=generator) - 2) * mask
    blank = torch.zeros(4, 5)

    def fake_model(**_: Any) -> SimpleNamespace:
        return SimpleNamespace(log_probs=logprobs * mask, entropy=blank, mean_logits=blank, is_top1=blank.bool())

    trainer = object.__new__(DPOTrainer)
    trainer.__dict__.update(
        {
            "model": SimpleNamespace(training=True), "accelerator": Accelerator(cpu=True), "aux_loss_enabled": False,
            "ld_alpha": None, "precompute_ref_logps": True, "f_divergence_type": "reverse_kl",
            "loss_types": [loss_type], "loss_weights": [1.0], "beta": 0.3, "label_smoothing": 0.15,
            "use_weighting": False, "_total_train_tokens": 0, "_tp_size": 1, "_metrics": {"train": defaultdict(list)},
        }
    )  # fmt: skip
    sums = reference.sum(dim=1)
    inputs = {
        "input_ids": torch.zeros(4, 6, dtype=torch.long),
        "attention_mask": torch.ones(4, 6, dtype=torch.long),
        "completion_mask": torch.cat([torch.zeros(4, 1), mask], dim=1).long(),
        "ref_chosen_logps": sums[:2],
        "ref_rejected_logps": sums[2:],
    }
    trl_loss = trainer._compute_loss(fake_model, inputs, return_outputs=False)
    kind, normalised = LOSSES[loss_type]
    tensors = [part for tensor in (logprobs, reference, mask) for part in (tensor[:2], tensor[2:])]
    output = dpo_loss(
        *tensors, beta=0.3, loss_type=kind, length_normalised=normalised,
        label_smoothing=0.15 if kind == "robust" else 0.0,
    )  # fmt: skip
    torch.testing.assert_close(output.loss, trl_loss, atol=1e-6, rtol=1e-5)
    gradient, trl_gradient = (torch.autograd.grad(loss, logprobs)[0] for loss in (output.loss, trl_loss))
    torch.testing.assert_close(gradient, trl_gradient, atol=1e-6, rtol=1e-5)


# Preference data -----------------------------------------------------------------------------------------------------


def write_log(path: Path, *rows: dict[str, Any]) -> Path:
    """Write rows as a JSON-lines log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluation_row(identifier: str, output: str, score: float, status: str = "ok") -> dict[str, Any]:
    """A row of an evaluation's samples.jsonl."""
    return {"id": identifier, "output": output, "status": status, "scores": {"lenient": score, "official": 0.0}}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Manifest of five questions without audio."""
    rows = [
        Example(f"q{number}", user_question("pitch?", clips=0), ("low",), CHOICES, text_only=True, root=tmp_path)
        for number in range(5)
    ]
    manifest.write(tmp_path / "questions.jsonl", rows)
    return tmp_path / "questions.jsonl"


def test_preferences_from_evaluations_and_rollouts(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = questions.parent
    first = write_log(
        folder / "one" / "samples.jsonl",
        evaluation_row("q0", "<answer>low</answer>", 1), evaluation_row("q1", "mid", 0), evaluation_row("q2", "low", 1),
        evaluation_row("q3", "", 0, "error"),
    )  # fmt: skip
    write_log(folder / "two" / "samples.jsonl", evaluation_row("q0", "high", 0), evaluation_row("q2", "It is low.", 1))
    with_rewards = {"step": 1, "id": "q4", "completions": ["low", "lo", "high", "low"], "rewards": [2.0, 0.0, 1.5, 2.0]}
    without_rewards = {"step": 1, "id": "q1", "completions": ["low"], "rewards": None}  # of a supervised stage
    write_log(folder / "run" / "rollouts.jsonl", without_rewards, with_rewards)
    out = folder / "preferences.jsonl"
    command = [
        "build",
        "preferences",
        str(first.parent),
        str(folder / "two"),
        str(folder / "run"),
        "--rows",
        str(questions),
    ]
    assert cli.run([*command, "--out", str(out), "--gold", "answer", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["counts"] == {"written": 3, "true answer chosen": 1, "no difference": 1, "not asked": 1}
    preferences = {row.id: (row.chosen, row.rejected) for row in manifest.read(out)}
    assert preferences == {
        "q0": (("<answer>low</answer>",), ("high",)),
        "q1": (("<answer>low</answer>",), ("mid",)),
        "q4": (("low",), ("lo",)),
    }
    assert cli.run([*command, "--out", str(out), "--margin", "0.5", "--each", "1"]) == 0
    assert {row.id: row.rejected for row in manifest.read(out)} == {"q0": ("high",), "q4": ("lo",)}
    capsys.readouterr()
    assert cli.run(["build", "preferences", str(folder / "two"), "--rows", str(questions), "--out", str(out)]) == 2
    assert "no row has a better and a worse completion" in capsys.readouterr().err
    assert cli.run(["build", "preferences", str(folder), "--rows", str(questions), "--out", str(out)]) == 2
    assert "holds neither samples.jsonl nor rollouts.jsonl" in capsys.readouterr().err


def test_manifest_stores_preferences(tmp_path: Path) -> None:
    rows = [
        Example(
            "a", user_question("?", clips=0), chosen=("Yes.",), rejected=("No.", "Hm."), text_only=True, root=tmp_path
        ),
        Example("b", user_question("?", clips=0), ("low",), CHOICES, rejected=("mid",), text_only=True, root=tmp_path),
        Example("c", user_question("?", clips=0), ("low",), text_only=True, root=tmp_path),
    ]
    manifest.write(tmp_path / "m.jsonl", rows)
    assert manifest.read(tmp_path / "m.jsonl") == rows
    assert "rejected" not in (tmp_path / "m.jsonl").read_text().splitlines()[2]
    assert [row.id for row in open_rows(tmp_path / "m.jsonl").select({}, require_preference=True)] == ["a", "b"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chosen": "Yes."}, "chosen without rejected"),
        ({"answer": "low", "rejected": "low"}, "rejected 'low' is the answer too"),
        ({"chosen": ["x"], "rejected": ["y", "x"]}, "rejected 'x' is chosen too"),
        ({"answer": "low", "choices": ["low", "mid"], "rejected": ["hihg"]}, "'hihg' is none of the choices"),
        ({"rejected": [True]}, "rejected is True"),
        ({"answer": "low", "rejectd": ["mid"]}, "did you mean 'rejected'"),
    ],
)
def test_invalid_preferences_are_refused(fields: dict[str, Any], message: str) -> None:
    row = {"id": "a", "messages": [{"role": "user", "content": "?"}]}
    with pytest.raises(DataError, match=message):
        manifest.from_row(row | fields)
