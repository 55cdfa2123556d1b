"""Pause tokens: where they are put, by hand and against transformers' own decoding with a processor of the scores."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from builders import hf_copy, hf_inputs, max_abs, tiny_qwen2_audio, tone, user_question
from earwise.engine.base import PauseParams, Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.engine.sampling.pause import PauseRule, pause_rule
from earwise.errors import ConfigError
from earwise.models.prompt_encoding import conversation_path

PROMPTS = [
    Prompt(user_question(f"Which of these? one two {number}"), (tone(0.2 + number / 5, 300, number),), f"p{number}")
    for number in range(3)
]
PAUSE = 9
"""Token of the tiny tokenizer that stands for a pause."""


def test_a_pause_is_made_where_the_entropy_is_high_a_few_times_and_is_followed_by_a_token() -> None:
    rule = PauseRule(9, PauseParams(1.5, max_pauses=2))
    assert rule.applies([], 1.5) and not rule.applies([], 1.49)
    assert not rule.applies([4, 9], 5.0), "the token after a pause is sampled"
    assert rule.applies([4, 9, 5], 5.0)
    assert not rule.applies([9, 5, 9, 6], 5.0), "two pauses are used"
    assert rule.visible([9, 5, 9, 6]) == [5, 6]


def test_a_pause_of_several_tokens_is_completed_whatever_the_entropy() -> None:
    rule = PauseRule(9, PauseParams(1.5, max_pauses=2, tokens_per_pause=3))
    assert rule.applies([4, 9], 0.0) and rule.applies([4, 9, 9], 0.0)
    assert not rule.applies([4, 9, 9, 9], 5.0)
    assert rule.applies([9, 9, 9, 5], 5.0) and not rule.applies([9, 9, 9, 5, 9, 9, 9, 5], 5.0)


class PauseScores(LogitsProcessor):
    """The released code's processor, as far as it is understood: where the entropy of the scores reaches a threshold
    and pauses are left, nothing but the pause token has a finite score. The token after a pause is left alone."""

    def __init__(self, prompt_tokens: int, entropy: float, max_pauses: int) -> None:
        self.prompt_tokens, self.entropy, self.max_pauses = prompt_tokens, entropy, max_pauses

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        completion = input_ids[0, self.prompt_tokens :]
        entropy = torch.distributions.Categorical(logits=scores[0]).entropy()
        if len(completion) and completion[-1] == PAUSE:
            return scores
        if entropy >= self.entropy and (completion == PAUSE).sum() < self.max_pauses:
            return scores.masked_fill(torch.arange(scores.shape[1]) != PAUSE, -torch.inf)
        return scores


@pytest.mark.parametrize("quantile", [0.2, 0.8], ids=["often", "seldom"])
def test_greedy_completions_with_pauses_equal_those_of_transformers(quantile: float) -> None:
    """Tokens, and the log-probability, entropy and confidence at each of them."""
    model = tiny_qwen2_audio(seed=31, scale=2.0)
    token = model.tokenizer.backend.id_to_token(PAUSE)
    module, engine = hf_copy(model), LocalEngine(model)
    pauses = 0
    for prompt in PROMPTS:
        path = conversation_path(model, prompt.turns, range(1), [len(prompt.waveforms[0])], generate=True)
        inputs = hf_inputs(path, dict(enumerate(prompt.waveforms)))
        options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": list(model.eos_ids), "pad_token_id": 0}
        plain = module.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
        entropies = torch.distributions.Categorical(logits=torch.cat(plain.logits)).entropy()
        threshold = float(entropies.quantile(quantile)) + 1e-4
        processor = PauseScores(len(path.ids), threshold, 3)
        expected = module.generate(
            **inputs, **options, output_logits=True, return_dict_in_generate=True,
            logits_processor=LogitsProcessorList([processor]),
        )  # fmt: skip
        params = SamplingParams(24, pause=PauseParams(threshold, token), confidence_top_k=5)
        (completion,) = engine.generate([prompt], params)[0]
        ids = expected.sequences[0, len(path.ids) :]
        assert completion.token_ids == tuple(ids.tolist())
        logprobs = torch.cat(expected.logits).log_softmax(-1)
        at = torch.distributions.Categorical(logits=logprobs).entropy()
        assert max_abs([torch.tensor(completion.entropies) - at]) < 1e-4
        assert max_abs([torch.tensor(completion.confidences) + logprobs.topk(5).values.mean(-1)]) < 1e-4
        assert max_abs([torch.tensor(completion.logprobs) - logprobs.gather(1, ids[:, None])[:, 0]]) < 1e-4
        visible = [token for token in ids.tolist() if token != PAUSE and token not in model.eos_ids]
        assert completion.text == model.tokenizer.decode(visible)
        pauses += (ids == PAUSE).sum()
    assert pauses >= 3


def test_samples_with_pauses_do_not_depend_on_the_batch_and_drafts() -> None:
    model = tiny_qwen2_audio(seed=31)
    token = model.tokenizer.backend.id_to_token(PAUSE)
    params = SamplingParams(30, 0.3, seed=2, pause=PauseParams(1.0, token, max_pauses=2, tokens_per_pause=2))
    engine = LocalEngine(model, use_static_cache=True)
    together = engine.generate(PROMPTS, params, 4)
    alone = [LocalEngine(model, use_static_cache=False).generate([prompt], params, 4)[0] for prompt in PROMPTS]
    assert engine.stats.accepted_tokens > 0, "some tokens were drafts"
    completions = list(itertools.chain(*together))
    assert [row.token_ids for row in completions] == [row.token_ids for row in itertools.chain(*alone)]
    assert any(PAUSE in row.token_ids for row in completions)
    for row in completions:
        runs = [len(list(run)) for is_pause, run in itertools.groupby(row.token_ids, PAUSE.__eq__) if is_pause]
        assert len(runs) <= 2 and set(runs) <= {2} | ({1} if row.token_ids[-1] == PAUSE else set()), row.token_ids


def test_without_pauses_nothing_is_measured_and_nothing_new_is_recorded() -> None:
    params = SamplingParams(4, confidence_top_k=20)
    assert params.as_dict() == SamplingParams(4).as_dict() and "pause" not in params.as_dict()
    assert SamplingParams(4, pause=PauseParams(1.0)).as_dict()["pause"]["entropy"] == 1.0
    (completion,) = LocalEngine(tiny_qwen2_audio(seed=31)).generate(PROMPTS[:1], SamplingParams(4))[0]
    assert not completion.entropies and not completion.confidences


def test_a_pause_token_must_exist_and_have_no_other_meaning() -> None:
    model = tiny_qwen2_audio(seed=31)
    with pytest.raises(ConfigError, match="'<PAUSE>' is no token of tiny; name one that it has"):
        pause_rule(model, PauseParams(1.0, "<PAUSE>"))
    end = model.tokenizer.backend.id_to_token(model.eos_ids[0])
    with pytest.raises(ConfigError, match="ends answers"):
        pause_rule(model, PauseParams(1.0, end))
    rows = model.module.get_input_embeddings().num_embeddings
    used = max(model.tokenizer.backend.get_vocab(with_added_tokens=True).values()) + 1
    if used < rows:
        assert pause_rule(model, PauseParams(1.0)).token_id == used
    else:
        with pytest.raises(ConfigError, match="no unused row"):
            pause_rule(model, PauseParams(1.0))
    assert math.isinf(PauseParams(math.inf).entropy)
