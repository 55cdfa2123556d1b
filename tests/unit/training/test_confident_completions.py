"""Completions that a policy samples with pauses, and that are selected and weighted by its confidence."""

import math
from dataclasses import replace

import pytest
import torch

from earwise.config.kinds.completions import ConfidenceConfig, PauseConfig
from earwise.config.stages import GrpoConfig
from earwise.engine.base import PauseParams, SamplingParams
from earwise.training.rollout.batching import TrainedTokens
from earwise.training.rollout.pausing import PauseThreshold
from earwise.training.rollout.selection import select_completions
from earwise.types import Completion


def completion(*probabilities: float) -> Completion:
    return Completion("", tuple(range(len(probabilities))), tuple(math.log(value) for value in probabilities))


def config(**settings: object) -> ConfidenceConfig:
    return ConfidenceConfig.model_validate(settings)


GROUPS = [
    [completion(0.9, 0.1, 0.8), completion(0.5, 0.5, 0.5), completion(0.6, 0.6, 0.6), completion(0.4)],
    [completion(0.2), completion(0.2), completion(0.1), completion(0.1)],
]


def test_the_completions_with_the_surest_least_sure_group_are_kept() -> None:
    """Lowest groups of two tokens: .45, .5, .6, .4; a quarter of four is one, and equal ones are kept together."""
    selection = select_completions(GROUPS, config(top_p_keep=0.25, window_size=2, stride=1))
    assert selection.kept == [[False, False, True, False], [True, True, False, False]]
    assert selection.weights == [[1.0] * 4] * 2 and selection.bonuses == [[0.0] * 4] * 2
    assert selection.confidence == pytest.approx((0.45 + 0.5 + 0.6 + 0.4 + 0.2 + 0.2 + 0.1 + 0.1) / 8)
    by_mean = select_completions(GROUPS, config(top_p_keep=0.5, measure="mean"))
    assert by_mean.kept[0] == [True, False, True, False], ".6 and .6 of .6, .5, .6, .4"
    everything = select_completions(GROUPS, None)
    assert everything.kept == [[True] * 4] * 2 and everything.confidence is None


@pytest.mark.parametrize("over", ["batch", "group"])
def test_weights_are_half_plus_the_sigmoid_of_the_standardised_confidence(over: str) -> None:
    """Computed with torch, as the released code does."""
    settings = config(weight_advantages=True, measure="mean", standardize_over=over, weight_clip_max=1.2)
    selection = select_completions(GROUPS, settings)
    means = torch.tensor([[0.6, 0.5, 0.6, 0.4], [0.2, 0.2, 0.1, 0.1]], dtype=torch.float64)
    if over == "batch":
        standardised = (means - means.mean()) / means.std()
    else:
        standardised = (means - means.mean(1, keepdim=True)) / means.std(1, keepdim=True)
    expected = (0.5 + torch.sigmoid(standardised)).clamp(0.5, 1.2)
    assert torch.tensor(selection.weights, dtype=torch.float64).allclose(expected)
    assert selection.kept == [[True] * 4] * 2


def test_the_bonus_is_the_rise_of_the_mean_probability_from_the_beginning_to_the_end() -> None:
    rising = completion(*[0.25] * 64, *[0.75] * 64)
    selection = select_completions([[rising, completion(0.9, 0.1)]], config(recovery_bonus=0.08))
    assert selection.bonuses[0] == pytest.approx([0.08 * 0.5, 0.0])


def test_pause_tokens_are_left_out_of_the_loss_where_that_is_asked_for() -> None:
    row = replace(completion(0.5, 0.5, 0.5), token_ids=(7, 9, 8))
    assert TrainedTokens([[True]], 9).path(row).trained == (True, False, True)
    assert TrainedTokens([[True]], None).path(row).trained == (True, True, True)


def test_the_threshold_is_a_quantile_of_the_latest_entropies() -> None:
    threshold = PauseThreshold(PauseConfig(token="x", entropy_quantile=0.5, entropy_history=40, max_pauses=2))
    params = SamplingParams(8, 1.0)
    assert threshold.sampling_params(params) == replace(params, pause=PauseParams(math.inf, "x", 2, 1)), "no tokens yet"
    threshold.observe([Completion("", entropies=tuple(map(float, range(31))))])
    assert math.isinf(threshold.entropy)
    threshold.observe([Completion("", entropies=tuple(map(float, range(31, 61))))])
    assert threshold.entropy == 40.5, "the median of 21 to 60, the last forty"
    continued = PauseThreshold(PauseConfig(token="x", entropy_history=40))
    continued.load_state_dict(threshold.state_dict())
    assert continued.entropy == 40.5


STAGE = {"kind": "grpo", "data": {"mixture": [{"manifest": "rows.jsonl"}]}, "max_new_tokens": 8, "max_steps": 1}
REFUSED = {
    "nothing": ({"confidence": {}}, "confidence does nothing: set top_p_keep"),
    "clip": ({"confidence": {"top_p_keep": 0.5, "weight_clip_min": 0.1}}, "weight_clip_min 0.1 does nothing here"),
    "window": ({"confidence": {"weight_advantages": True, "measure": "mean", "window_size": 5}}, "window_size 5 does"),
    "stride": ({"confidence": {"top_p_keep": 0.5, "measure": "tail", "stride": 5}}, "stride 5 does nothing"),
    "order": ({"confidence": {"weight_advantages": True, "weight_clip_min": 2.0}}, "weight_clip_min 2 is above"),
    "server": ({"pause": {}, "rollout_server": "http://h/v1#m"}, "pause needs the policy to sample in this process"),
    "long": ({"pause": {"tokens_per_pause": 8}}, "tokens_per_pause 8 leaves no token of max_new_tokens 8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_cannot_act_are_refused(name: str) -> None:
    settings, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        GrpoConfig.model_validate(STAGE | settings)
