"""Our losses and their gradients equal those of TRL on text, with the same tiny random model.

TRL's trainers are created without their constructors (which need data sets and reward functions). The methods under
test are called unchanged: `GRPOTrainer._compute_loss` with TRL's own log-probabilities, and
`DPOTrainer._compute_loss`.
"""

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from earwise.algorithms.losses import completion_mask, dpo_loss
from earwise.algorithms.policy_loss import group_advantages, grpo_loss, kl_estimate
from earwise.forest import TokenPath, branch_logprobs, build_tree, pack, target_scores

pytest.importorskip("trl")
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head, nanstd

PROMPT, LENGTH, ROWS, GROUP, VOCAB, EOS = 4, 6, 8, 4, 23, 2
TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return random_llama()


def random_llama(temperature: float = 1.0) -> LlamaForCausalLM:
    """A tiny random model with TRL's head, which divides logits by a temperature."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    llama = LlamaForCausalLM(config)
    add_fused_lm_head(llama, temperature=temperature, outputs=("log_probs", "entropy"))
    return llama.train()


@pytest.fixture(scope="module")
def batch(model: LlamaForCausalLM) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB, (ROWS, LENGTH), generator=generator)
    for row, end in enumerate((0, 2, 5, 3, 1, 4, 2)):  # the last row never ends
        ids[row, end] = EOS
    prompt = torch.randint(3, VOCAB, (ROWS, PROMPT), generator=generator)
    rewards = torch.randint(0, 3, (ROWS,), generator=generator).float()
    mask = completion_mask(ids, EOS)
    with torch.no_grad():
        current = completion_logprobs(model, prompt, ids, mask)
    return {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": ids,
        "completion_mask": mask.int(),
        "advantages": group_advantages(rewards, GROUP),
        "old_per_token_logps": current + 0.4 * torch.randn(ROWS, LENGTH, generator=generator),
        "ref_per_token_logps": current + 0.4 * torch.randn(ROWS, LENGTH, generator=generator),
        "num_items_in_batch": mask.sum(),
    }


def completion_logprobs(model: LlamaForCausalLM, prompt: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of every completion token from a plain forward pass: logits at t - 1 predict token t."""
    attention = torch.cat([torch.ones_like(prompt), mask.int()], dim=1)
    logits = model(input_ids=torch.cat([prompt, ids], dim=1), attention_mask=attention).logits
    return logits[:, PROMPT - 1 : -1].log_softmax(dim=-1).gather(2, ids[..., None])[..., 0]


def trl_trainer(model: LlamaForCausalLM, **options: Any) -> GRPOTrainer:
    trainer = object.__new__(GRPOTrainer)
    settings = {
        "model": model,
        "accelerator": Accelerator(cpu=True),
        "args": SimpleNamespace(
            use_bias_correction_kl=False,
            delta=options.pop("delta", None),
            steps_per_generation=options.pop("steps_per_generation", 1),
        ),
        "loss_type": "grpo",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "importance_sampling_level": "token",
        "max_completion_length": 11,
        "current_gradient_accumulation_steps": 1,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
    }
    trainer.__dict__.update(settings | options)
    return trainer


def gradients(loss: Tensor, model: LlamaForCausalLM) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


CASES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "grpo with kl": {"loss_type": "grpo", "beta": 0.04},
    "grpo clipped higher": {"loss_type": "grpo", "epsilon_high": 0.28},
    "grpo two-sided": {"loss_type": "grpo", "delta": 1.3, "beta": 0.1},
    "dr_grpo": {"loss_type": "dr_grpo", "beta": 0.04},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.04},
    "bnpo": {"loss_type": "bnpo", "beta": 0.04},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.2, "beta": 0.04},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.04},
    "gspo, dapo's mean": {"loss_type": "dapo", "importance_sampling_level": "sequence"},
}


@pytest.mark.parametrize("sampled_earlier", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("name", CASES)
def test_grpo_family(model: LlamaForCausalLM, batch: dict[str, Tensor], name: str, sampled_earlier: bool) -> None:
    options = CASES[name]
    inputs = (
        dict(batch) if sampled_earlier else {key: value for key, value in batch.items() if key != "old_per_token_logps"}
    )
    trainer = trl_trainer(model, **options)
    trl_loss = trainer._compute_loss(model, inputs)

    mask = batch["completion_mask"].bool()
    output = grpo_loss(
        completion_logprobs(model, batch["prompt_ids"], batch["completion_ids"], mask),
        inputs.get("old_per_token_logps"),
        batch["ref_per_token_logps"] if options.get("beta") else None,
        batch["advantages"],
        mask,
        max_completion_length=11,
        **options,
    )
    torch.testing.assert_close(output.loss, trl_loss, **TOLERANCE)
    for gradient, trl_gradient in zip(gradients(output.loss, model), gradients(trl_loss, model), strict=True):
        torch.testing.assert_close(gradient, trl_gradient, **TOLERANCE)

    logged = {key: values[0] for key, values in trainer._metrics["train"].items()}
    if options.get("beta"):
        assert output.metrics["kl"] == pytest.approx(logged["kl"], abs=1e-6)
    if options.get("importance_sampling_level") != "sequence":  # TRL counts sequences there, we count tokens
        clipped = logged["cispo_clip_ratio" if name == "cispo" else "clip_ratio/region_mean"]
        assert output.metrics["clip_frac"] == pytest.approx(clipped, abs=1e-6)
        if sampled_earlier and "two-sided" not in name:
            assert output.metrics["clip_frac"] > 0, "otherwise the case tests no clipping"


@pytest.mark.parametrize("mask_truncated", [False, True], ids=["all", "truncated masked"])
@pytest.mark.parametrize("temperature", [0.6, 1.5])
@pytest.mark.parametrize("name", ["grpo with kl", "dr_grpo", "dapo", "bnpo", "cispo", "gspo"])
def test_temperature_and_truncated_completions(
    batch: dict[str, Tensor], name: str, temperature: float, mask_truncated: bool
) -> None:
    """TRL divides the logits by the sampling temperature, and masks completions without an end token as a whole."""
    model = random_llama(temperature)
    mask = batch["completion_mask"].bool()
    if mask_truncated:
        mask = mask & (batch["completion_ids"] == EOS).any(1, keepdim=True)
        assert int(mask.any(1).sum()) == ROWS - 1
    inputs = dict(batch) | {"completion_mask": mask.int(), "num_items_in_batch": mask.sum()}
    trainer = trl_trainer(model, temperature=temperature, **CASES[name])
    trl_loss = trainer._compute_loss(model, inputs)

    forest = pack(
        [
            build_tree([TokenPath((*prompt, *ids), (False,) * PROMPT + tuple(keep), (-1,) * (PROMPT + LENGTH))])
            for prompt, ids, keep in zip(
                batch["prompt_ids"].tolist(), batch["completion_ids"].tolist(), mask.tolist(), strict=True
            )
        ]
    )
    hidden = model.model(torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)).last_hidden_state
    flat, entropies = target_scores(
        hidden.flatten(0, 1), forest, model.lm_head, temperature=temperature, with_entropy=True
    )
    width = forest.loss_mask.shape[1]
    ours = branch_logprobs(flat, forest)
    output = grpo_loss(
        ours,
        batch["old_per_token_logps"][:, :width],
        batch["ref_per_token_logps"][:, :width] if CASES[name].get("beta") else None,
        batch["advantages"],
        forest.loss_mask,
        max_completion_length=11,
        **CASES[name],
    )
    torch.testing.assert_close(output.loss, trl_loss, **TOLERANCE)
    for gradient, trl_gradient in zip(gradients(output.loss, model), gradients(trl_loss, model), strict=True):
        torch.testing.assert_close(gradient, trl_gradient, **TOLERANCE)
    assert entropies is not None
    mean_entropy = float(branch_logprobs(entropies, forest).sum() / forest.loss_mask.sum())
    assert mean_entropy == pytest.approx(trainer._metrics["train"]["entropy"][0], abs=1e-5)


def test_kl_estimators_by_hand() -> None:
    """log 2 and log 4 under the policy and the reference, up to sign."""
    policy, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -2.0]])
    assert kl_estimate(policy, reference, "k1").tolist() == [[1.0, 0.0]]
    assert kl_estimate(policy, reference, "k2").tolist() == [[0.5, 0.0]]
    assert kl_estimate(policy, reference, "k3")[0].tolist() == pytest.approx([math.exp(-1), 0.0])


def test_gspo_equals_grpo_with_sequence_level_ratios(model: LlamaForCausalLM, batch: dict[str, Tensor]) -> None:
    mask = batch["completion_mask"].bool()
    policy = completion_logprobs(model, batch["prompt_ids"], batch["completion_ids"], mask)
    arguments = (policy, batch["old_per_token_logps"], None, batch["advantages"], mask)
    gspo_loss = grpo_loss(*arguments, loss_type="gspo").loss
    assert torch.equal(gspo_loss, grpo_loss(*arguments, importance_sampling_level="sequence").loss)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo", "cispo"])
def test_accumulation(model: LlamaForCausalLM, batch: dict[str, Tensor], loss_type: str) -> None:
    """The losses of two micro-batches of TRL's accumulation window equal ours with the counts of the whole window."""
    options = {"loss_type": loss_type, "beta": 0.04, "epsilon_high": 1.2}
    trainer = trl_trainer(model, current_gradient_accumulation_steps=2, steps_per_generation=2, **options)
    mask = batch["completion_mask"].bool()
    for part in (slice(0, 4), slice(4, 8)):
        inputs = {key: value if value.ndim == 0 else value[part] for key, value in batch.items()}
        trl_loss = trainer._compute_loss(model, inputs)
        output = grpo_loss(
            completion_logprobs(model, batch["prompt_ids"][part], batch["completion_ids"][part], mask[part]),
            inputs["old_per_token_logps"],
            inputs["ref_per_token_logps"],
            inputs["advantages"],
            mask[part],
            max_completion_length=11,
            num_items=float(mask.sum()),
            num_sequences=float(ROWS),
            **options,
        )
        torch.testing.assert_close(output.loss, trl_loss, **TOLERANCE)
        for gradient, trl_gradient in zip(gradients(output.loss, model), gradients(trl_loss, model), strict=True):
            torch.testing.assert_close(gradient, trl_gradient, **TOLERANCE)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages(scale: str) -> None:
    """TRL computes advantages inside its sampling method; this repeats the computation with TRL's `nanstd`."""
    rewards = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 0.0, 0.0, 0.0])
    groups = rewards.view(-1, 4)
    spread = {
        "group": nanstd(groups, dim=1).repeat_interleave(4),
        "batch": nanstd(rewards).expand_as(rewards),
        "none": torch.ones(12) - 1e-4,
    }[scale]
    expected = (rewards - groups.mean(dim=1).repeat_interleave(4)) / (spread + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, 4, scale_rewards=scale), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("loss_type", "options"),
    [
        ("sigmoid", {}),
        ("sigmoid_norm", {"length_normalised": True}),
        ("ipo", {"loss_type": "ipo", "length_normalised": True}),
    ],
)
def test_dpo(loss_type: str, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(3)
    pairs, length = 3, 5
    lengths = torch.tensor([4, 2, 5, 1, 3, 5])  # chosen, then rejected
    mask = torch.arange(length) < lengths[:, None]
    logprobs = (torch.randn(2 * pairs, length, generator=generator) - 2) * mask
    reference = (torch.randn(2 * pairs, length, generator=generator) - 2) * mask
    logprobs.requires_grad_(True)
    blank = torch.zeros_like(logprobs)

    def fake_model(**_: Any) -> SimpleNamespace:
        return SimpleNamespace(log_probs=logprobs * mask, entropy=blank, mean_logits=blank, is_top1=blank.bool())

    trainer = object.__new__(DPOTrainer)
    settings = {
        "model": SimpleNamespace(training=True),
        "accelerator": Accelerator(cpu=True),
        "aux_loss_enabled": False,
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "f_divergence_type": "reverse_kl",
        "loss_types": [loss_type],
        "loss_weights": [1.0],
        "beta": 0.3,
        "use_weighting": False,
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "_metrics": {"train": defaultdict(list)},
    }
    trainer.__dict__.update(settings)
    sums = reference.sum(dim=1)
    inputs = {
        "input_ids": torch.zeros(2 * pairs, length + 1, dtype=torch.long),
        "attention_mask": torch.ones(2 * pairs, length + 1, dtype=torch.long),
        "completion_mask": torch.cat([torch.zeros(2 * pairs, 1), mask], dim=1).long(),
        "ref_chosen_logps": sums[:pairs],
        "ref_rejected_logps": sums[pairs:],
    }
    trl_loss = trainer._compute_loss(fake_model, inputs, return_outputs=False)

    tensors = [part for tensor in (logprobs, reference, mask) for part in (tensor[:pairs], tensor[pairs:])]
    output = dpo_loss(*tensors, beta=0.3, **options)
    torch.testing.assert_close(output.loss, trl_loss, **TOLERANCE)
    gradient, trl_gradient = (torch.autograd.grad(loss, logprobs)[0] for loss in (output.loss, trl_loss))
    torch.testing.assert_close(gradient, trl_gradient, **TOLERANCE)
    if loss_type == "sigmoid":
        logged = {key: values[0] for key, values in trainer._metrics["train"].items()}
        assert output.metrics["chosen_reward"] == pytest.approx(logged["rewards/chosen"], abs=1e-6)
        assert output.metrics["accuracy"] == pytest.approx(logged["rewards/accuracies"])
