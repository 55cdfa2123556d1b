"""Rewards, prompts and losses equal those of R1-AQA's released code; the golden files say how they were recorded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from earwise import prompts
from earwise.algorithms import rewards
from earwise.algorithms.losses import completion_mask
from earwise.algorithms.policy_loss import group_advantages, grpo_loss, kl_k3
from earwise.answers import extract_answer_r1aqa
from earwise.types import Audio, Example, Text, Turn

Golden = Callable[[str], dict[str, Any]]


def test_rewards(golden: Golden) -> None:
    cases = golden("r1aqa_rewards.json")["cases"]
    assert cases
    for case in cases:
        example = Example("x", (), answer=(case["solution"],))
        assert rewards.accuracy_r1aqa(example, case["completion"]) == case["accuracy_string_only"], case
        assert rewards.format_r1aqa(example, case["completion"]) == case["format"], case


def test_extraction(golden: Golden) -> None:
    cases = golden("benchmark-items/r1aqa_prompts_and_extraction.json")["extraction"]
    assert cases
    for case in cases:
        assert extract_answer_r1aqa(case["completion"]) == case["extracted"], case


def test_prompts_and_solutions(golden: Golden) -> None:
    cases = golden("benchmark-items/r1aqa_prompts_and_extraction.json")["cases"]
    assert cases
    for case in cases:
        choices = tuple(case["choices"])
        assert prompts.question_text(case["question"], choices, "answer") == case["mmau_user_text"]
        # The released conversion of AVQA replaces the word in every question.
        avqa_question = case["avqa_question_text"].replace("video", "audio")
        assert prompts.question_text(avqa_question, choices, "answer") == case["avqa_user_text"]
        turns = (Turn("user", (Audio("a.wav"), Text(case["question"]))),)
        example = Example("x", turns, answer=(choices[case["avqa_answer_index"]],), choices=choices)
        assert prompts.target_text(example, "answer") == case["avqa_solution"]
        kinds = [type(part).__name__.lower() for part in prompts.prompt_turns(example, "answer")[-1].parts]
        assert kinds == case["mmau_content_types"]


def test_grpo_objective(golden: Golden) -> None:
    cases = golden("r1aqa_grpo_objective.json")["cases"]
    assert cases
    for case in cases:
        mask = completion_mask(torch.tensor(case["completion_ids"]), case["eos_token_id"])
        assert mask.int().tolist() == case["completion_mask"]

        rewards_sum = torch.tensor(case["rewards_per_func"], dtype=torch.float64).sum(dim=1)
        advantages = group_advantages(rewards_sum, case["num_generations"])
        assert advantages.tolist() == pytest.approx(case["advantages"], abs=1e-9)

        policy = torch.tensor(case["policy_logps"], dtype=torch.float64, requires_grad=True)
        reference = torch.tensor(case["ref_logps"], dtype=torch.float64)
        torch.testing.assert_close(
            kl_k3(policy, reference).detach(),
            torch.tensor(case["per_token_kl"], dtype=torch.float64),
            atol=1e-9,
            rtol=0,
        )
        output = grpo_loss(policy, None, reference, advantages, mask, beta=case["beta"])
        assert output.loss.item() == pytest.approx(case["loss"], abs=1e-9)
        output.loss.backward()
        expected = torch.tensor(case["grad_wrt_policy_logps"], dtype=torch.float64)
        torch.testing.assert_close(policy.grad, expected, atol=1e-9, rtol=0)


def test_grpo_objective_in_float32(golden: Golden) -> None:
    for case in golden("r1aqa_grpo_objective.json")["cases"]:
        recorded = case["float32_reward_run"]
        advantages = group_advantages(torch.tensor(case["rewards_per_func"]).sum(dim=1), case["num_generations"])
        assert advantages.dtype == torch.float32
        assert advantages.tolist() == pytest.approx(recorded["advantages"], abs=1e-6)
        mask = completion_mask(torch.tensor(case["completion_ids"]), case["eos_token_id"])
        policy, reference = torch.tensor(case["policy_logps"]), torch.tensor(case["ref_logps"])
        loss = grpo_loss(policy, None, reference, advantages, mask, beta=case["beta"]).loss
        assert loss.item() == pytest.approx(recorded["loss"], abs=1e-6)


def test_rows_of_a_group_belong_to_one_prompt(golden: Golden) -> None:
    """Our advantages assume the order of the official masks, not that of the official tiled audio features."""
    for case in golden("r1aqa_grpo_objective.json")["cases"]:
        size, prompts_in_batch = case["num_generations"], case["batch_prompts"]
        prompt_of_row = torch.arange(prompts_in_batch).repeat_interleave(size)
        assert prompt_of_row.tolist() == case["completion_row_prompt_order"]
        rewards_sum = torch.tensor(case["rewards_per_func"]).sum(dim=1)
        assert torch.equal(group_advantages(rewards_sum, size), group_advantages(rewards_sum, prompt_of_row))
