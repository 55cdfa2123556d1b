"""Mellow against records of the official code: names, filters, every stage, packing, logits, greedy answers, audio
loading, metrics (the golden files' README describes the records).

The weights follow a formula, under the official names, and are read by the converter, so its names are part of the
test.
"""

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import ScoringError
from earwise.evaluation.metrics import mellow as metrics
from earwise.files import cache_dir
from earwise.forest import build_tree, insert_audio_embeddings, pack
from earwise.models.convert import mellow
from earwise.models.convert.mellow import from_official, front_end, official_shapes, official_state_dict
from earwise.models.families.mellow import END_TOKEN, RELEASED, Mellow, MellowModule, official_window
from earwise.models.parts import htsat
from earwise.models.parts.attention import TreeAttention
from earwise.models.prompt_encoding import answer_path, completion_path, conversation_path
from earwise.types import Audio, Text, Turn, Waveform
from golden.conftest import golden_path
from golden.fill import TOLERANCE_FACTOR, assert_matches_record, formula_sound, formula_weight

Record = dict[str, Any]
HTSAT = "audio_encoder.base.htsat."
QUESTION = (Turn("user", (Audio("1"), Audio("2"), Text("?"))),)


def numbered_tokenizer() -> Tokenizer:
    """49,152 tokens named by their numbers (`t5588`), except for the special tokens that the model needs: the ids do
    not need SmolLM2's tokenizer."""
    names = {0: END_TOKEN, 5: RELEASED["placeholder"], 17: "!"}
    vocab = {names.get(number, f"t{number}"): number for number in range(RELEASED["decoder"]["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="t1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([END_TOKEN, RELEASED["placeholder"]])
    return tokenizer


def waveform_of(case: Record, which: str) -> Waveform:
    """One of a case's two clips."""
    return formula_sound(case[which] | {"seconds": case["samples"] / case["rate"]}, case["rate"])


@pytest.fixture(scope="module")
def record() -> Record:
    path = golden_path("mellow_model.json")
    if path is None:
        pytest.skip("golden file mellow_model.json is not here; set EARWISE_GOLDEN_DIR")
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def model(record: Record) -> Mellow:
    """The model at full size, with formula weights and the released packing."""
    with torch.device("meta"):
        empty = MellowModule(RELEASED)
    shapes = official_shapes(empty)
    untouched = htsat.Htsat(htsat.config())  # integer tensors and masks are as built
    index = {name: value for name, value in untouched.state_dict().items() if not value.is_floating_point()}
    official = {mellow.official_name(f"encoder.{name}")[0]: value for name, value in index.items()}
    official |= front_end(untouched) | mellow.attention_masks(untouched)
    # Nothing reads AudioSet's clip head, so the formula is not computed for it.
    official |= {name: torch.zeros(shape) for name, shape in shapes.items() if name.startswith(f"{HTSAT}head.")}
    for name, shape in shapes.items():
        if name not in official and name != mellow.HEAD:
            official[name] = torch.from_numpy(formula_weight(name, shape))
    official[mellow.HEAD] = official[mellow.EMBEDDING]
    prefixed = {f"module.{name}": value for name, value in official.items()}
    source = golden_path("mellow_model.json")
    assert source is not None
    return Mellow(from_official(prefixed, RELEASED, source), RELEASED, numbered_tokenizer(), template="compat")


def test_official_names_and_shapes(golden: Callable[[str], Record]) -> None:
    keys = golden("mellow_state_dict_keys.json")
    with torch.device("meta"):
        module = MellowModule(RELEASED)
    assert official_shapes(module) == {name: tuple(shape) for name, shape, _ in keys["cases"]}
    # The official count includes what ours computes or leaves out: the front end's filters and the clip head.
    computed = sum(value.numel() for value in front_end(htsat.Htsat(htsat.config())).values()) + 527 * 528
    assert sum(value.numel() for value in module.parameters()) + computed == keys["parameter_count"]


def test_fixed_tensors(record: Record, model: Mellow) -> None:
    tensors = official_state_dict(model)
    assert len(tensors) == 479
    for name, want in record["fixed_or_check_tensors"].items():
        assert_matches_record(tensors[name], want, 1e-6 if "melW" not in name else 1e-8, name)


@torch.no_grad()
def test_stages(record: Record, model: Mellow) -> None:
    limits = {
        stage: TOLERANCE_FACTOR * limit for stage, limit in record["float32_vs_float64_max_abs_difference"].items()
    }
    limits |= {"embedding_1025": limits["latent_output"], "downsampled_129": limits["projected_1025"]}
    encoder, connector = model.module.encoder, model.module.connector
    outputs: dict[str, Tensor] = {}
    stages = {"bn0_out_transposed": encoder.clap.batch_norm, "patch_embed": encoder.clap.patch_embed}
    stages |= {f"layer{number}": layer for number, layer in enumerate(encoder.clap.layers)}
    stages |= {"norm": encoder.clap.norm, "tscam_conv": encoder.tscam_conv}
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, out, stage=stage: outputs.update({stage: out if isinstance(out, Tensor) else out[0]})
        )
        for stage, module in stages.items()
    ]
    hooks.append(encoder.clap.patch_embed.register_forward_hook(lambda _m, inputs, _o: outputs.update(image=inputs[0])))
    assert record["cases"]
    for number, case in enumerate(record["cases"]):
        for which in ("audio2", "audio1"):
            waveforms = torch.from_numpy(waveform_of(case, which))[None]
            power = encoder.power(waveforms)
            scores = encoder.class_scores(encoder.states(waveforms))
            (encoder_states,) = model.encode_audio([waveform_of(case, which)])
            latent, posteriors = encoder_states[:1, : encoder.dim], encoder_states[1:, : encoder.classes]
            features = torch.cat([latent, connector.c2l(posteriors.repeat_interleave(32, 0))])
            linear = connector.linear1(features)
            projected = connector.layer_norm(linear + connector.linear2(torch.nn.functional.gelu(linear)))
            values = outputs | {
                "spectrogram_power": power[:, None],
                "logmel": encoder.log_mel(power)[:, None],
                "clipwise_output": scores.mean(1).sigmoid(),
                "framewise_output": posteriors.repeat_interleave(32, 0)[None],
                "latent_output": latent,
                "embedding_1025": features[None],
                "projected_1025": projected[None],
                "downsampled_129": model.project_audio([encoder_states])[0][None],
            }
            for stage, want in case[f"{which}_stages"].items():
                assert_matches_record(values[stage], want, limits[stage], f"case {number} {which} {stage}")
        assert len(case["audio1_stages"]) == 17
    for hook in hooks:
        hook.remove()


def question(case: Record) -> tuple[Turn, ...]:
    """The recorded prompt in the numbered tokenizer's words, without its padding."""
    ids = case["prompt_ids_padded"]
    last = max(index for index, token in enumerate(ids) if token != 17)
    words = " ".join("!" if token == 17 else f"t{token}" for token in ids[: last + 1])
    return (Turn("user", (Audio("1"), Audio("2"), Text(words))),)


@torch.no_grad()
def test_packing_and_logits(record: Record, model: Mellow) -> None:
    limit = TOLERANCE_FACTOR * record["float32_vs_float64_max_abs_difference"]["lm_logits"]
    for number, case in enumerate(record["cases"]):
        waveforms = [waveform_of(case, "audio1"), waveform_of(case, "audio2")]
        trunk = conversation_path(
            model, question(case), (0, 1), [len(waveform) for waveform in waveforms], generate=True
        )
        assert len(trunk.ids) == 389 and trunk.ids[260:] == tuple(case["prompt_ids_padded"])
        assert (trunk.ids[129], trunk.ids[259]) == (record["separator_token_id"],) * 2
        path = trunk + completion_path(case["answer_ids"])
        forest = pack([build_tree([path])])
        connected = dict(enumerate(model.project_audio(model.encode_audio(waveforms))))
        embeddings = insert_audio_embeddings(model.embed(forest.ids), forest, connected)
        assert_matches_record(embeddings[None, :389], case["prefix"], limit, f"case {number} prefix")
        scores = model.logits(model.decode(embeddings, forest.positions, TreeAttention(forest)))
        assert_matches_record(scores[None], case["forward_logits_with_answer"], limit, f"case {number} answer")
        assert_matches_record(scores[None, :389], case["logits"], limit, f"case {number} logits")
        assert_matches_record(scores[388], case["last_position_logits"], limit, f"case {number} last")
        for position, want in case["logsumexp_by_position"].items():
            assert float(scores[int(position)].logsumexp(-1)) == pytest.approx(want, abs=limit)
        for position, ids in case["top5_ids_by_position"].items():
            assert scores[int(position)].topk(5).indices.tolist() == ids
        logprobs = scores[388].log_softmax(-1)
        for token, want in case["last_position_logprob_of_ids"].items():
            assert float(logprobs[int(token)]) == pytest.approx(want, abs=limit)


def test_greedy_answer(record: Record, model: Mellow) -> None:
    case = record["cases"][0]
    prompt = Prompt(question(case), (waveform_of(case, "audio1"), waveform_of(case, "audio2")))
    (completion,) = LocalEngine(model).generate([prompt], SamplingParams(6))[0]
    assert list(completion.token_ids) == case["greedy_ids_6"]


@pytest.mark.weights
def test_prompt_ids(record: Record, model: Mellow) -> None:
    """With SmolLM2's own tokenizer, `!` in the middle of a question included."""
    smollm_tokenizer = Tokenizer.from_file(str(cache_dir() / "embedded-base-1" / "tokenizer.json"))
    released = Mellow(model.module, RELEASED, smollm_tokenizer, template="compat")
    for case in record["cases"]:
        turns = (Turn("user", (Audio("1"), Text(case["prompt"]))),)
        path = conversation_path(released, turns, (7,), (320000,), generate=True)
        assert list(path.ids[260:]) == case["prompt_ids_padded"]
        assert path.clips == (7,) * 129 + (-1,) + (7,) * 129 + (-1,) * 130, "a single clip is used twice"
        assert list(answer_path(released, "the first clip is a steady tone").ids) == [*case["answer_ids"], 0]
    assert released.tokenizer.decode(released.tokenizer.encode("Louder!! Yes!")) == "Louder!! Yes!"


@torch.no_grad()
def test_repaired_gives_the_same_embeddings_in_33_tokens(record: Record, model: Mellow) -> None:
    repaired = Mellow(model.module, RELEASED, numbered_tokenizer())
    waveform = waveform_of(record["cases"][0], "audio1")
    (repeated,), (distinct,) = (lm.project_audio(lm.encode_audio([waveform])) for lm in (model, repaired))
    assert len(distinct) == repaired.audio_tokens(len(waveform)) == 33
    assert torch.equal(repeated[1:], distinct[1:].repeat_interleave(4, 0)) and torch.equal(repeated[0], distinct[0])
    path = conversation_path(repaired, QUESTION, (0, 1), (320000, 95000), generate=True)
    assert path.clips == (0,) * 33 + (-1,) + (1,) * 11 + (-1,) * (len(path.ids) - 45)


def test_audio_loading(golden: Callable[[str], Record]) -> None:
    cases = golden("mellow_audio_loading.json")["cases"]
    assert cases
    for case in cases:
        ramp = np.arange(case["channels"] * case["samples_per_channel"], dtype=np.float32)
        loaded = official_window(ramp.reshape(case["channels"], -1), random.Random(case["python_random_seed"]))
        assert len(loaded) == case["output_length"]
        sources = {index: int(loaded[int(index)]) for index in case["source_index_at_output"]}
        assert sources == case["source_index_at_output"]


def test_metrics(golden: Callable[[str], Record]) -> None:
    cases = golden("mellow_metrics.json")["cases"]
    assert cases
    for case in cases:
        predictions, answers = case["predictions"], case["answers"]
        assert [metrics.option_letter(prediction) for prediction in predictions] == case["options_read"]
        assert metrics.mmau(predictions, answers, case["metadata"]) == pytest.approx(case["mmau"])
        assert_same_figures(metrics.multiple_choice(predictions, answers), case["aqa_multiple_choice"])
        assert_same_figures(
            metrics.binary(predictions, ["yes" if len(answer) % 2 else "no" for answer in answers]), case["aqa_binary"]
        )
        ours, official = metrics.entailment(predictions, answers), case["aqa_entailment"]
        if "error" in official:  # a class without items
            assert None in ours.values()
        else:
            assert_same_figures(ours, official)


def test_caption_groups(golden: Callable[[str], Record]) -> None:
    cases = golden("mellow_caption_grouping.json")["cases"]
    assert cases
    for case in cases:
        groups = metrics.caption_groups(case["files"], case["predictions"], case["references"])
        official = [(pair["file"], pair["prediction"], pair["references"]) for pair in case["pairs_scored"]]
        assert groups == official, case


def assert_same_figures(ours: Record, official: Record) -> None:
    """Every official figure, and no other except `unreadable`."""
    assert ours.keys() - official.keys() <= {"unreadable"}
    assert {name: ours[name] for name in official} == pytest.approx(official)


def test_metrics_by_hand() -> None:
    """Four items computed by hand; the recorded predictions contain neither yes nor no."""
    scores = metrics.entailment(["a) x", "b) x", "hm", "c) x"], ["a)", "b)", "c)", "c)"])
    assert (scores["ACC"], scores["unreadable"]) == (0.75, 0.25)
    assert scores["Precision"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert scores["Recall"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert scores["F1"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    assert (scores["ACC_Neutral"], scores["ACC_Contradiction"]) == (1.0, 0.5)
    assert metrics.binary(["I know it", "Yes.", "no"], ["no", "yes", "yes"])["ACC"] == pytest.approx(200 / 3)
    with pytest.raises(ScoringError, match="0 predictions for 0"):
        metrics.binary([], [])
    with pytest.raises(ScoringError, match="task 'noise'"):
        metrics.mmau(["a"], ["a)"], [{"task": "noise", "difficulty": "easy"}])
