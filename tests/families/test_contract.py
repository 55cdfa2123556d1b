"""The shared suite: what every family must do, on a tiny random model, float32, on the CPU.

Each case goes through the contract alone (`models/base.py`) and the code that users run: `set_trainable`, the trainer,
the local engine, `load`. Only the reference of `Tiny` depends on the family.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from builders import max_abs
from earwise.algorithms.losses import LossOutput
from earwise.algorithms.policy_loss import group_advantages, grpo_loss
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import AudioError, DataError
from earwise.forest import build_tree, pack
from earwise.models.base import load
from earwise.models.encoder_cache import EncoderCache
from earwise.models.prompt_encoding import answer_path, completion_path, conversation_path
from earwise.training.batches import build_micro_batches
from earwise.training.policy import MicroBatch, Policy
from earwise.types import Waveform
from families.forests import (
    FULL,
    PLACEHOLDERS,
    base_weights_of,
    conversation,
    lengths,
    lora,
    make_clip,
    one_by_one,
    ready,
    scores,
    trees,
    turn,
    valid_lengths,
)
from families.tiny import Tiny
from families.training import train, train_sft

LOGITS = 1e-4
LOGPROBS = 2e-5  # float32 rounding reaches 1.05e-5 on some processors (Mellow with LoRA)
GRADIENTS = 1e-4


def two_clips(tiny: Tiny) -> dict[int, Waveform]:
    """Two clips of different length."""
    long, short = lengths(tiny)
    return {0: make_clip(tiny.model, long), 1: make_clip(tiny.model, short, 900.0, 1)}


@torch.no_grad()
def test_forward_equals_the_reference(family: Tiny) -> None:
    """One clip, and both in a conversation of several turns."""
    waveforms = two_clips(family)
    one_clip = [
        turn("user", "What is it?", 0), turn("assistant", "A bell."), turn("user", "And this one, is it louder?")
    ]  # fmt: skip
    both = [*one_clip[:2], turn("user", "And this one?", 1), turn("assistant", "Louder."), turn("user", "Sure?")]
    for turns, generate in (([turn("user", "Which?", 1)], True), (one_clip, True), (both, True), (both[:4], False)):
        path = conversation(family.model, turns, waveforms, generate=generate)
        clips = [clip for clip in waveforms if clip in path.clips]
        expected = family.reference(path.ids, [waveforms[clip] for clip in clips])
        ours = scores(family.model, path, waveforms)
        assert ours.shape == expected.shape
        assert float(ours.std()) > 1e-3, "a model with the same scores everywhere tests nothing"
        assert max_abs([ours - expected]) < LOGITS


@pytest.mark.parametrize("trained", ["full", "lora"])
def test_forest_equals_one_by_one(fresh: Tiny, trained: str) -> None:
    model = ready(fresh.model, FULL if trained == "full" else lora(fresh.model))
    waveforms = two_clips(fresh)
    trees_of_paths = trees(model, waveforms)
    forest = pack([build_tree(paths) for paths in trees_of_paths])
    paths = [path for tree_paths in trees_of_paths for path in tree_paths]
    assert len(forest) < 0.8 * sum(len(path.ids) for path in paths), "nothing is shared"
    parameters = {name: value for name, value in model.module.named_parameters() if value.requires_grad}

    def gradients(total: Tensor) -> dict[str, Tensor]:
        values = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        return {name: value for name, value in zip(parameters, values, strict=True) if value is not None}

    shared = Policy(model)(forest, {}, waveforms)
    weights = torch.randn(shared.shape, generator=torch.Generator().manual_seed(2))
    packed = gradients((shared * weights).sum())
    single = one_by_one(model, paths, waveforms)
    assert max_abs([shared[row, : len(logprobs)] - logprobs for row, logprobs in enumerate(single)]) < LOGPROBS
    weighted = [(logprobs * weights[row, : len(logprobs)]).sum() for row, logprobs in enumerate(single)]
    separate = gradients(torch.stack(weighted).sum())
    assert packed.keys() == separate.keys() and len(separate) > 3
    scale = max(float(value.norm()) for value in separate.values())
    for name, value in separate.items():
        # A parameter whose gradient is zero except for rounding (a bias under a softmax) has no relative error.
        assert float((packed[name] - value).norm()) < GRADIENTS * max(float(value.norm()), 1e-3 * scale), name


def test_generate_is_batch_invariant(family: Tiny) -> None:
    waveforms = two_clips(family)
    questions = [
        ("What is it?", (0,)), ("Is it loud?", (0,)), ("Which of them is it?", (1,)), ("No sound. What now?", ())
    ]  # fmt: skip
    prompts = [
        Prompt((turn("user", text, *clips),), tuple(waveforms[clip] for clip in clips), key=text)
        for text, clips in questions
    ]
    engine = LocalEngine(family.model)
    for sampling_params in (SamplingParams(6, temperature=1.0, seed=3), SamplingParams(6)):
        batch = engine.generate(prompts, sampling_params, 3)
        for prompt, group in zip(prompts, batch, strict=True):
            (alone,) = engine.generate([prompt], sampling_params, 3)
            assert [c.token_ids for c in alone] == [c.token_ids for c in group]
            sampled = [torch.tensor(c.logprobs) for c in group]
            assert max_abs([torch.tensor(c.logprobs) - t for c, t in zip(alone, sampled, strict=True)]) < LOGPROBS
            clips = range(len(prompt.waveforms))
            samples = [len(waveform) for waveform in prompt.waveforms]
            trunk = conversation_path(family.model, prompt.turns, clips, samples, generate=True)
            paths = [trunk + completion_path(c.token_ids) for c in group]
            with torch.no_grad():
                scored = one_by_one(family.model, paths, dict(enumerate(prompt.waveforms)))
            differences = [rescored - drawn for rescored, drawn in zip(scored, sampled, strict=True)]
            assert max_abs(differences) < LOGPROBS, "sampling and scoring give different log-probabilities"


def test_the_same_clip_twice_in_one_prompt(family: Tiny) -> None:
    """Also with nothing between the two, and beside a prompt that has the clip once."""
    waveforms = two_clips(family)
    question = turn("user", "Which is louder?", 0, 1)
    once = Prompt((turn("user", "What is it?", 0),), (waveforms[0],), key="once")
    for waveform in (waveforms[0], waveforms[0] * 0):
        twice = Prompt((question,), (waveform, waveform), key="twice")
        _, (drawn,) = LocalEngine(family.model).generate([once, twice], SamplingParams(3))
        trunk = conversation_path(family.model, (question,), (0, 1), [len(waveform)] * 2, generate=True)
        with torch.no_grad():
            paths = [trunk + completion_path(drawn.token_ids)]
            (scored,) = one_by_one(family.model, paths, {0: waveform, 1: waveform})
        assert max_abs([scored - torch.tensor(drawn.logprobs)]) < LOGPROBS


@torch.no_grad()
def test_uses_audio(family: Tiny) -> None:
    waveforms = two_clips(family)
    path = conversation(family.model, [turn("user", "What is it?", 0, 1)], waveforms)
    with_audio = scores(family.model, path, waveforms)[-1]
    for clip in waveforms:
        silenced = scores(family.model, path, waveforms | {clip: waveforms[clip] * 0})[-1]
        assert max_abs([with_audio - silenced]) > 10 * LOGITS


@torch.no_grad()
def test_clips_do_not_depend_on_the_batch(family: Tiny) -> None:
    """Each clip has the embeddings that it has by itself, and as many as `audio_tokens` says."""
    model = family.model
    counts = valid_lengths(model, family.max_s)
    assert len(counts) >= 6
    waveforms = [make_clip(model, 1.0 + family.max_s, 200.0 + 50 * n, n)[:count] for n, count in enumerate(counts)]
    together = model.project_audio(model.encode_audio(waveforms))
    assert [len(rows) for rows in together] == [model.audio_tokens(count) for count in counts]
    for number in (0, len(counts) // 2, len(counts) - 1):
        (alone,) = model.project_audio(model.encode_audio([waveforms[number]]))
        assert max_abs([alone - together[number]]) < LOGITS
    assert model.encode_audio([]) == [] and list(model.project_audio([])) == []


@torch.no_grad()
def test_training_mode_computes_the_same(fresh: Tiny) -> None:
    """No dropout and no running statistics: a policy in training is the policy that was sampled."""
    waveforms = two_clips(fresh)
    path = conversation(fresh.model, [turn("user", "What is it?", 0, 1)], waveforms)
    before = scores(fresh.model, path, waveforms)
    buffers = {name: value.clone() for name, value in fresh.model.module.named_buffers()}
    fresh.model.module.train()
    assert max_abs([scores(fresh.model, path, waveforms) - before]) < LOGITS
    assert all(torch.equal(value, buffers[name]) for name, value in fresh.model.module.named_buffers())


@torch.no_grad()
def test_loaded_in_bfloat16_it_runs(family: Tiny, tmp_path: Path) -> None:
    waveforms = two_clips(family)
    path = conversation(family.model, [turn("user", "What is it?", 0, 1)], waveforms)
    exact = scores(family.model, path, waveforms)
    family.reload(family.model, tmp_path / "saved")
    with base_weights_of(tmp_path / "saved"):
        model = load(str(tmp_path / "saved"), device="cpu", dtype="bfloat16")
    assert torch.bfloat16 in {parameter.dtype for parameter in model.module.parameters()}
    rounded = scores(model, path, waveforms).float()
    assert float((rounded - exact).norm() / exact.norm()) < 0.2
    prompt = Prompt((turn("user", "What is it?", 0),), (waveforms[0],))
    assert LocalEngine(model).generate([prompt], SamplingParams(3))[0][0].token_ids


def test_clips_of_impossible_length(family: Tiny) -> None:
    model = family.model
    beyond = int((model.spec.max_s + 0.5) * model.spec.sample_rate)
    for samples, remedy in ((0, "hears|takes|needs|longer"), (beyond, "truncate|chunk")):
        with pytest.raises(AudioError, match=remedy) as error:
            model.audio_tokens(samples)
        assert "\n" not in str(error.value)
    model.audio_tokens(int(model.spec.max_s * model.spec.sample_rate))


def test_text_and_clips_that_do_not_fit(family: Tiny) -> None:
    model, waveforms = family.model, two_clips(family)
    question = (turn("user", "What is it?", 0),)
    for clips in ((), (0, 1)):
        with pytest.raises(DataError, match=rf"1 audio parts but {len(clips)} sounds"):
            conversation_path(model, question, clips, [len(waveforms[clip]) for clip in clips], generate=True)
    texts = (text for text in PLACEHOLDERS if model.tokenizer.encode_template(text) == [model.placeholder_id])
    placeholder = next(texts, None)
    if placeholder is not None:
        plain, typed = (
            conversation(model, (turn("user", text, 0),), waveforms) for text in ("Why?", f"What is {placeholder}?")
        )
        assert typed.ids.count(model.placeholder_id) == plain.ids.count(model.placeholder_id), "it stands for no clip"


def test_every_parameter_belongs_to_one_part(family: Tiny) -> None:
    for name, _ in family.model.module.named_parameters():
        assert sum(name.startswith(prefixes) for prefixes in family.model.parameter_prefixes.values()) == 1, name
    assert set(family.model.parameter_prefixes) == {"encoder", "connector", "decoder"}
    assert not any(parameter.requires_grad for parameter in family.model.module.parameters())
    assert not family.model.module.training


def test_save_and_load_bit_for_bit(family: Tiny, tmp_path: Path) -> None:
    ours = family.model.module.state_dict()
    loaded = family.reload(family.model, tmp_path / "saved")
    again = loaded.module.state_dict()
    assert ours.keys() == again.keys()
    assert all(torch.equal(value, again[name]) and value.dtype == again[name].dtype for name, value in ours.items())
    waveforms = two_clips(family)
    path = conversation(family.model, [turn("user", "What is it?", 0)], waveforms)
    with torch.no_grad():
        assert torch.equal(scores(loaded, path, waveforms), scores(family.model, path, waveforms))
    assert (loaded.template, loaded.eos_ids, loaded.spec) == (
        family.model.template, family.model.eos_ids, family.model.spec,
    )  # fmt: skip
    assert loaded.revision not in ("", "unsaved")


@torch.no_grad()
@pytest.mark.parametrize("part", ["decoder", "encoder", "everything in full", "decoder, then in full"])
def test_what_was_trained_is_saved(fresh: Tiny, tmp_path: Path, part: str) -> None:
    """LoRA, merged or beside the weights; weights trained in full."""
    waveforms = two_clips(fresh)
    path = conversation(fresh.model, [turn("user", "What is it?", 0)], waveforms)
    untrained = scores(fresh.model, path, waveforms)
    model = ready(fresh.model, FULL if part == "everything in full" else lora(fresh.model, part.partition(",")[0]))
    if part == "everything in full":
        for parameter in model.module.parameters():
            parameter.mul_(1.03)
    if "then" in part:
        model = fresh.reload(model, tmp_path / "first")
        for parameter in ready(model, FULL).module.parameters():
            parameter.mul_(1.01)
    changed = scores(model, path, waveforms)
    assert max_abs([changed - untrained]) > 10 * LOGITS
    loaded = fresh.reload(model, tmp_path / "saved")
    assert max_abs([scores(loaded, path, waveforms) - changed]) < LOGITS
    assert torch.equal(scores(model, path, waveforms), changed), "saving changed the model"


def test_sft_lowers_the_loss(fresh: Tiny, tmp_path: Path) -> None:
    model = ready(fresh.model, lora(fresh.model), moved=False)
    waveforms = two_clips(fresh)
    losses = train_sft(model, waveforms, tmp_path, 4)
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.05
    assert losses == sorted(losses, reverse=True)


def test_grpo_raises_the_likelihood_of_the_rewarded_completion(fresh: Tiny, tmp_path: Path) -> None:
    model = ready(fresh.model, lora(fresh.model), moved=False)
    waveforms = {0: two_clips(fresh)[0]}
    trunk = conversation(model, [turn("user", "What is it?", 0)], waveforms)
    answers = ("a dog", "a door", "the sea", "a dog barks")
    rewards = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    paths = [trunk + answer_path(model, text) for text in answers]
    (micro_batch,) = build_micro_batches(model, EncoderCache(model), [paths], waveforms, 4096)
    advantages = group_advantages(rewards, len(answers)).float()

    def loss(logprobs: Tensor, micro_batch: MicroBatch) -> LossOutput:
        return grpo_loss(logprobs, None, None, advantages, micro_batch.forest.loss_mask, beta=0.0)

    def likelihoods() -> Tensor:
        with torch.no_grad():
            return Policy(model)(micro_batch.forest, micro_batch.encoder_states, micro_batch.waveforms).sum(1)

    before = likelihoods()
    train(model, [micro_batch], loss, tmp_path, 2)
    moved = likelihoods() - before
    assert float(moved[1]) > 0
    assert float(moved[1]) > float(moved[[0, 2, 3]].max())
