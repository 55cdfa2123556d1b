"""The benchmarks work and are fair: alternatives take turns, lower bounds are correct, and the compared implementations
compute the same gradient, from the audio."""

import json
import pickle
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from builders import tiny_qwen2_audio
from earwise.config.stages import TrainableConfig
from earwise.models.decoders.llama import LlamaDecoder, LlamaSizes
from earwise.models.embedded.model import PLACEHOLDER, Embedded, EmbeddedModule
from earwise.models.parts import whisper
from earwise.models.parts.projector import LayerMix
from earwise.training.trainable import set_trainable

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
import distinct
from baselines import timing
from baselines.flops import (
    WeightCounts,
    encoder_flops,
    num_decoded_prefixes,
    reference_flops,
    rollout_seconds,
    train_flops,
)
from baselines.models import perturb, take_gradients, word_tokenizer
from baselines.workload import SHAPES, workload

COUNTS = WeightCounts(base=100, lora=10, head=50, attention=4, encoder=1000, stem=(6, 8), encoder_attention=3)


def test_alternatives_take_turns_in_alternating_order() -> None:
    calls: list[str] = []
    times = timing.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert [len(values) for values in times.values()] == [3, 3]


def test_phases_add_up_within_a_run_and_stay_apart_between_runs() -> None:
    def run(timer: timing.PhaseTimer) -> None:
        for _ in range(2):
            with timer("twice"):
                timer.seconds["twice"] = timer.seconds.get("twice", 0.0) + 10.0

    times = timing.alternate_phases({"phases": run}, 2, warm_up=False)
    assert [round(seconds) for seconds in times["phases"]["twice"]] == [20, 20]


def test_a_ratio_is_the_median_over_rounds_and_not_of_medians() -> None:
    assert timing.ratio([10.0, 30.0, 8.0], [1.0, 10.0, 4.0]) == 3.0
    assert timing.medians({"a": [3.0, 1.0, 2.0]}) == {"a": 2.0}
    with pytest.raises(ValueError, match="pairs is 0"):
        timing.alternate({}, 0)


def test_memory_is_that_of_another_process() -> None:
    assert 390 < timing.peak_memory(partial(np.ones, 50_000_000)) < 900  # 381 MB and the interpreter
    with pytest.raises(RuntimeError, match="ended with code 1"):
        timing.peak_memory(partial(int, "no number"))


def test_lower_bounds_by_hand() -> None:
    positions = [0, 1, 2, 2]  # a prompt of two tokens, two branches: 1 + 2 + 3 + 3 attended pairs
    assert reference_flops(COUNTS, positions, 2) == 2 * 100 * 4 + 2 * 50 * 2 + 4 * 4 * 9
    # forward with LoRA, gradients of activations through all of it, of weights for LoRA alone, attention twice more
    forward = 2 * 110 * 4 + 2 * 50 * 2 + 4 * 4 * 9
    assert train_flops(COUNTS, positions, 2) == forward + (2 * 110 * 4 + 2 * 50 * 2 + 8 * 4 * 9) + 2 * 10 * 4
    assert encoder_flops(COUNTS, 0.1) == 2 * (6 * 10 + 1008 * 5) + 4 * 3 * 25
    prefill = 2 * 100 * 3 + 2 * 50 + 4 * 4 * 6
    bound_by_reading = rollout_seconds(COUNTS, [3], 1, 5, gflops=1e-9, gigabytes=1e-9)
    assert bound_by_reading == prefill + 4 * 150 * 5
    bound_by_computing = rollout_seconds(COUNTS, [3], 100, 5, gflops=1e-9, gigabytes=1.0)
    assert bound_by_computing == prefill + 2 * 150 * 100


def test_prefixes_that_had_to_be_computed() -> None:
    assert num_decoded_prefixes([[[1, 2, 3], [1, 2, 4]], [[1, 2]]]) == 3
    assert num_decoded_prefixes([[[1], [2]]]) == 0


def test_one_grpo_step_by_three_implementations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trl")
    import grpo_step

    grpo_step.main(["--quick", "--no-memory", "--out", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text())
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{\n") :]) == result
    assert {"cpu", "cores", "threads", "torch", "transformers", "load_average"} <= set(result["machine"])
    assert result["matmul_gflops"] > 0 and result["stream_gbs"] > 0
    (measured,) = result["results"]
    assert len(measured["gradient_differences"]) == 3
    assert max(measured["gradient_differences"].values()) < 1e-5
    phases = {"rollout", "rollout_natural", "listen", "reference", "loss", "optimizer"}
    assert set(measured["seconds"]) == set(grpo_step.IMPLEMENTATIONS)
    assert all(set(times) == phases and min(times.values()) > 0 for times in measured["seconds"].values())
    assert [line["reached"] for line in measured["goals"]] == [*[None] * 6, True]
    assert set(measured["floor"]["phases"]) == {"rollout", "listen", "reference", "loss"}
    assert all(0 < phase["floor"] < phase["seconds"] for phase in measured["floor"]["phases"].values())
    tokens, (first, second) = measured["floor"]["decoder_tokens"], measured["trunk_tokens"]
    assert tokens["one_by_one"] == 4 * (first + second) + 8 * 6 and tokens["distinct"] < tokens["one_by_one"] / 2


def test_a_step_can_be_sent_to_a_process_of_its_own() -> None:
    pytest.importorskip("trl")
    import grpo_step

    groups = [[[9, 10], [11], [12, 13], [14]]]
    step = partial(grpo_step.one_step, "qwen2audio-random:tiny", "quick", 1, "earwise", 1, groups)
    pickle.loads(pickle.dumps(step))()


def tiny_embedded(trim: bool = True) -> Embedded:
    """The embedded model at test size, with LoRA."""
    torch.manual_seed(0)
    encoder = {"encoder_layers": 2, "d_model": 24, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
    tokenizer = word_tokenizer(["Which sound is this?", "user assistant"])
    tokenizer.add_special_tokens([PLACEHOLDER])
    decoder = LlamaDecoder(LlamaSizes(64, 32, 48, 2, 4, 2))
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    whisper_encoder = whisper.WhisperEncoder(encoder | {"num_mel_bins": 16, "max_source_positions": 1500})
    nn.init.normal_(whisper_encoder.embed_positions.weight, std=0.1)
    module = EmbeddedModule(whisper_encoder, LayerMix(3, 24, 32), decoder)
    module = module.eval().requires_grad_(False)
    model = Embedded(module, tokenizer, name="tiny", revision="", merged_lora={}, trim=trim)
    set_trainable(model, TrainableConfig())
    return model


@pytest.mark.parametrize("trim", [True, False])
def test_the_baselines_compute_the_embedded_models_gradient(trim: bool) -> None:
    pytest.importorskip("trl")
    import grpo_step

    model = tiny_embedded(trim)
    work = workload(model, SHAPES["quick"], 2)
    names = grpo_step.with_equal_states(model)
    assert names == (["plain-trimmed", "trl-trimmed", "earwise"] if trim else ["plain", "trl", "earwise"])
    implementations = {name: grpo_step.make_implementation(name, model, work, 2) for name in names}
    perturb(model)
    groups = [[[20, 21, 4], [22], [20, 23], [20, 21, 4]], [[40, 41, 42], [40], [41, 41], [42]]]
    differences = grpo_step.gradient_differences(model, implementations, groups)
    assert max(differences.values()) < 1e-5
    for implementation in implementations.values():
        completions = implementation.rollout(timing.PhaseTimer(), full=True, seed=0)
        assert [[len(ids) for ids in group] for group in completions] == [[6] * 4] * 2


@torch.no_grad()
def test_generate_of_transformers_uses_its_cache_with_the_embedded_model() -> None:
    """Greedy, with a shorter prompt padded on the left: each token is the likeliest of a full forward pass without a
    cache, and every pass after the first reads one token per row."""
    from baselines.hf_models import as_hf_model

    model = tiny_embedded()
    hf_model = as_hf_model(model, padded=False)
    rows = [[9] * 3 + [20, 21, 22, 23], [30, 31]]
    ids = torch.tensor([[0] * (7 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (7 - len(row)) + [1] * len(row) for row in rows])
    widths: list[int] = []
    hf_model.module.model.decoder.register_forward_hook(
        lambda _, __, named, ___: widths.append(named["inputs_embeds"].shape[1]), with_kwargs=True
    )
    out = hf_model.module.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=-1
    )
    assert widths == [7, 1, 1, 1, 1]
    for row, generated in zip(rows, out[:, 7:].tolist(), strict=True):
        for token in generated:
            assert int(hf_model.module(input_ids=torch.tensor([row])).logits[0, -1].argmax()) == token
            row.append(token)


def test_the_trainer_does_not_pass_loss_arguments_to_the_embedded_model() -> None:
    from baselines.hf_models import EmbeddedForGeneration

    assert EmbeddedForGeneration.accepts_loss_kwargs is False


def test_every_implementation_uses_the_audio() -> None:
    pytest.importorskip("trl")
    import grpo_step

    model = tiny_embedded()
    work = workload(model, SHAPES["quick"], 1)
    silent_prompts = tuple(replace(prompt, waveforms=(prompt.waveforms[0] * 0,)) for prompt in work.prompts)
    silent = replace(work, prompts=silent_prompts)
    for name in ("plain-trimmed", "trl-trimmed", "earwise"):
        gradients = []
        for workload_variant in (work, silent):
            implementation = grpo_step.make_implementation(name, model, workload_variant, 1)
            implementation.train(timing.PhaseTimer(), [[[20, 21], [22], [23], [4]]], update=False)
            gradients.append(take_gradients(model))
        assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) > 1e-2


def test_goals_compare_the_right_phases() -> None:
    pytest.importorskip("trl")
    from grpo_step import goals

    phases = ("rollout", "listen", "reference", "loss", "optimizer")
    slow = dict(zip(phases, ([20.0], [1.0], [29.0], [30.0], [1.0]), strict=True))
    fast = dict(zip(phases, ([2.0], [3.0], [1.0], [2.0], [1.0]), strict=True))
    training, again, step, gradients = goals("r1-aqa", {"plain": slow, "earwise": fast}, 2e-4)
    assert (training["found"], training["goal"], training["reached"]) == (60 / 3, 10.0, True)
    assert (again["found"], again["goal"], again["reached"]) == (60 / 6, 10.0, True)
    assert step["found"] == 81 / 6  # clips encoded in the rollout are not encoded again
    assert gradients["reached"] is False


def test_shares_of_distinct_tokens(tmp_path: Path) -> None:
    tiny_qwen2_audio(1).save(tmp_path / "tiny")
    size = ["--items", "2", "--samples", "4", "--seconds", "1", "--max-new-tokens", "12"]
    distinct.main(["--policy", "random", str(tmp_path / "tiny"), "answer", *size, "--out", str(tmp_path / "out.json")])
    policy = json.loads((tmp_path / "out.json").read_text())["policies"]["random"]
    assert policy["items"] == 2 and 1 <= policy["mean_length"] <= 12
    assert 0.2 < policy["answer_share"] <= 1 and 0.2 < policy["tree_share"] < 0.5, "prompts are long and shared"
    assert policy["passes"] <= policy["passes_without_guesses"] == 11
