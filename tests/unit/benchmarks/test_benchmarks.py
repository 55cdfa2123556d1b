"""The benchmarks work and are honest: clocks take turns, floors are reckoned right, and the ways that are compared
compute the same gradient, which a TRL that does not hear would not.
"""

import json
import pickle
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from builders import tiny_qwen2_audio
from earwise.config.stages import TrainableConfig
from earwise.models.embedded.model import PLACEHOLDER, Embedded, EmbeddedModule
from earwise.models.parts import attention, whisper
from earwise.models.parts.projector import LayerMix
from earwise.train.trainable import set_trainable

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
import distinct
from ways import timing
from ways.floor import Sizes, advanced, listen_flops, reference_flops, rollout_seconds, train_flops
from ways.models import stir, take_gradients, word_tokenizer
from ways.shapes import SHAPES, workload

SIZES = Sizes(base=100, lora=10, head=50, attention=4, encoder=1000, stem=(6, 8), encoder_attention=3)


def test_ways_take_turns_and_the_order_turns_around() -> None:
    calls: list[str] = []
    times = timing.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert [len(values) for values in times.values()] == [3, 3]


def test_phases_add_up_within_a_run_and_stay_apart_between_runs() -> None:
    def run(clock: timing.Clock) -> None:
        for _ in range(2):
            with clock("twice"):
                clock.seconds["twice"] = clock.seconds.get("twice", 0.0) + 10.0

    times = timing.alternate_phases({"way": run}, 2, warm_up=False)
    assert [round(seconds) for seconds in times["way"]["twice"]] == [20, 20]


def test_a_ratio_is_the_median_over_rounds_and_not_of_medians() -> None:
    assert timing.ratio([10.0, 30.0, 8.0], [1.0, 10.0, 4.0]) == 3.0
    assert timing.medians({"a": [3.0, 1.0, 2.0]}) == {"a": 2.0}
    with pytest.raises(ValueError, match="pairs is 0"):
        timing.alternate({}, 0)


def test_memory_is_that_of_another_process() -> None:
    assert 390 < timing.peak_memory(partial(np.ones, 50_000_000)) < 900  # 381 MB and the interpreter
    with pytest.raises(RuntimeError, match="ended with code 1"):
        timing.peak_memory(partial(int, "no number"))


def test_the_floor_by_hand() -> None:
    positions = [0, 1, 2, 2]  # a trunk of two tokens, two branches: 1 + 2 + 3 + 3 visible pairs
    assert reference_flops(SIZES, positions, 2) == 2 * 100 * 4 + 2 * 50 * 2 + 4 * 4 * 9
    # forward with LoRA, gradients of activations through all of it, of weights for LoRA alone, attention twice more
    forward = 2 * 110 * 4 + 2 * 50 * 2 + 4 * 4 * 9
    assert train_flops(SIZES, positions, 2) == forward + (2 * 110 * 4 + 2 * 50 * 2 + 8 * 4 * 9) + 2 * 10 * 4
    assert listen_flops(SIZES, 0.1) == 2 * (6 * 10 + 1008 * 5) + 4 * 3 * 25
    prefill = 2 * 100 * 3 + 2 * 50 + 4 * 4 * 6
    bound_by_reading = rollout_seconds(SIZES, [3], 1, 5, gflops=1e-9, gigabytes=1e-9)
    assert bound_by_reading == prefill + 4 * 150 * 5
    bound_by_computing = rollout_seconds(SIZES, [3], 100, 5, gflops=1e-9, gigabytes=1.0)
    assert bound_by_computing == prefill + 2 * 150 * 100


def test_what_had_to_be_computed_to_draw_completions() -> None:
    assert advanced([[[1, 2, 3], [1, 2, 4]], [[1, 2]]]) == 3
    assert advanced([[[1], [2]]]) == 0


def test_one_grpo_step_three_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trl")
    import grpo_step

    grpo_step.main(["--quick", "--no-memory", "--out", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text())
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{\n") :]) == result
    assert {"cpu", "cores", "threads", "torch", "transformers", "load_average"} <= set(result["machine"])
    assert result["matmul_gflops"] > 0 and result["stream_gbs"] > 0
    (found,) = result["results"]
    assert len(found["gradient_differences"]) == 3
    assert max(found["gradient_differences"].values()) < 1e-5
    phases = {"rollout", "rollout_natural", "listen", "reference", "loss", "optimizer"}
    assert set(found["seconds"]) == set(grpo_step.WAYS)
    assert all(set(times) == phases and min(times.values()) > 0 for times in found["seconds"].values())
    assert [line["reached"] for line in found["goals"]] == [*[None] * 6, True]
    assert set(found["floor"]["phases"]) == {"rollout", "listen", "reference", "loss"}
    assert all(0 < phase["floor"] < phase["seconds"] for phase in found["floor"]["phases"].values())
    tokens, (first, second) = found["floor"]["decoder_tokens"], found["trunk_tokens"]
    assert tokens["one_by_one"] == 4 * (first + second) + 8 * 6 and tokens["distinct"] < tokens["one_by_one"] / 2


def test_a_step_can_be_sent_to_a_process_of_its_own() -> None:
    pytest.importorskip("trl")
    import grpo_step

    groups = [[[9, 10], [11], [12, 13], [14]]]
    step = partial(grpo_step.one_step, "qwen2audio-random:tiny", "quick", 1, "earwise", 1, groups)
    pickle.loads(pickle.dumps(step))()


def tiny_embedded(trim: bool = True) -> Embedded:
    """The embedded model's parts at toy size, LoRA in place."""
    torch.manual_seed(0)
    encoder = {"encoder_layers": 2, "d_model": 24, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
    tokenizer = word_tokenizer(["Which sound is this?", "user assistant"])
    tokenizer.add_special_tokens([PLACEHOLDER])
    decoder = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, initializer_range=0.3,
    )  # fmt: skip
    decoder._attn_implementation = attention.IMPLEMENTATION
    module = EmbeddedModule(
        whisper.build_encoder(encoder | {"num_mel_bins": 16, "max_source_positions": 1500}),
        LayerMix(3, 24, 32),
        LlamaModel(decoder),
    )
    module = module.eval().requires_grad_(False)
    model = Embedded(module, tokenizer, name="tiny", revision="", merged_lora={}, trim=trim)
    set_trainable(model, TrainableConfig())
    return model


@pytest.mark.parametrize("trim", [True, False])
def test_the_embedded_model_is_the_same_model_to_transformers_and_trl(trim: bool) -> None:
    pytest.importorskip("trl")
    import grpo_step

    model = tiny_embedded(trim)
    work = workload(model, SHAPES["quick"], 2)
    names = grpo_step.equal_listening(model)
    assert names == (["plain-trimmed", "trl-trimmed", "earwise"] if trim else ["plain", "trl", "earwise"])
    ways = {name: grpo_step.make_way(name, model, work, 2) for name in names}
    stir(model)
    groups = [[[20, 21, 4], [22], [20, 23], [20, 21, 4]], [[40, 41, 42], [40], [41, 41], [42]]]
    differences = grpo_step.gradient_differences(model, ways, groups)
    assert max(differences.values()) < 1e-5
    for way in ways.values():
        drawn = way.rollout(timing.Clock(), full=True, seed=0)
        assert [[len(ids) for ids in group] for group in drawn] == [[6] * 4] * 2


@torch.no_grad()
def test_generate_of_transformers_keeps_its_cache_for_the_embedded_model() -> None:
    """Greedy, with a shorter prompt filled up on the left: each token is the best of a whole forward pass without a
    cache, and a pass after the first reads one token a row."""
    from ways.hears import hearing

    model = tiny_embedded()
    ears = hearing(model, padded=False)
    rows = [[9] * 3 + [20, 21, 22, 23], [30, 31]]
    ids = torch.tensor([[0] * (7 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (7 - len(row)) + [1] * len(row) for row in rows])
    widths: list[int] = []
    ears.module.model.decoder.register_forward_hook(
        lambda _, __, named, ___: widths.append(named["inputs_embeds"].shape[1]), with_kwargs=True
    )
    out = ears.module.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=-1)
    assert widths == [7, 1, 1, 1, 1]
    for row, generated in zip(rows, out[:, 7:].tolist(), strict=True):
        for token in generated:
            assert int(ears.module(input_ids=torch.tensor([row])).logits[0, -1].argmax()) == token
            row.append(token)


def test_the_trainer_does_not_take_the_embedded_models_forward_for_one_that_computes_losses() -> None:
    from ways.hears import EmbeddedForGeneration

    assert EmbeddedForGeneration.accepts_loss_kwargs is False


def test_every_part_of_a_step_hears() -> None:
    pytest.importorskip("trl")
    import grpo_step

    model = tiny_embedded()
    work = workload(model, SHAPES["quick"], 1)
    quiet = replace(work, prompts=tuple(replace(p, waveforms=(p.waveforms[0] * 0,)) for p in work.prompts))
    for name in ("plain-trimmed", "trl-trimmed", "earwise"):
        found = []
        for sounds in (work, quiet):
            way = grpo_step.make_way(name, model, sounds, 1)
            way.train(timing.Clock(), [[[20, 21], [22], [23], [4]]], update=False)
            found.append(take_gradients(model))
        assert float((found[0] - found[1]).norm() / found[0].norm()) > 1e-2


def test_goals_compare_the_right_phases() -> None:
    pytest.importorskip("trl")
    from grpo_step import goals

    phases = ("rollout", "listen", "reference", "loss", "optimizer")
    slow = dict(zip(phases, ([20.0], [1.0], [29.0], [30.0], [1.0]), strict=True))
    fast = dict(zip(phases, ([2.0], [3.0], [1.0], [2.0], [1.0]), strict=True))
    training, again, step, gradients = goals("r1-aqa", {"plain": slow, "earwise": fast}, 2e-4)
    assert (training["found"], training["goal"], training["reached"]) == (60 / 3, 10.0, True)
    assert (again["found"], again["goal"], again["reached"]) == (60 / 6, 10.0, True)
    assert step["found"] == 81 / 6  # what is heard in the rollout is not heard again
    assert gradients["reached"] is False


def test_what_samples_share(tmp_path: Path) -> None:
    tiny_qwen2_audio(1).save(tmp_path / "tiny")
    size = ["--items", "2", "--samples", "4", "--seconds", "1", "--max-new-tokens", "12"]
    distinct.main(["--policy", "random", str(tmp_path / "tiny"), "answer", *size, "--out", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())["policies"]["random"]
    assert found["items"] == 2 and 1 <= found["mean_length"] <= 12
    assert 0.2 < found["answer_share"] <= 1 and 0.2 < found["tree_share"] < 0.5, "trunks are long and shared"
    assert found["passes"] <= found["passes_without_guesses"] == 11
