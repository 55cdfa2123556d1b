"""Connectors of the embedded model at test size: each equals its formula, is exact in packed trees, is kept by
checkpoints, counted by the planner and chosen by recipes; and a decoder can start with random weights."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from builders import tone, user_question
from earwise.config.recipe import Recipe, check_recipe
from earwise.data import manifest
from earwise.errors import ConfigError, ModelError
from earwise.models import base, registry
from earwise.models.embedded import model as embedded
from earwise.models.embedded.connector import KINDS, ConnectorSpec, build_connector, parse_connector_spec
from earwise.models.embedded.labels.event_listener import WindowScores, find_events, sounds_overlap
from earwise.models.embedded.model import Embedded
from earwise.models.memory.measured_sizes import measure_folder, with_connector
from earwise.models.parts import whisper
from earwise.models.parts.projector import LayerMix, ResidualProjection
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.training import run
from earwise.training.batches import build_micro_batches
from earwise.training.policy import Policy, check_forest
from earwise.types import Audio, Example, Text, Turn
from families.embedded import random_base_weights, write_base_weights

SPECS = [
    {"kind": "linear"},
    {"kind": "linear", "layers": "last", "token_ms": 640},
    {"kind": "residual"},
    {"kind": "residual", "layers": "last"},
    {"kind": "qformer", "token_ms": 160},
    {"kind": "qformer", "layers": "last"},
    {"kind": "mix", "layers": "last", "token_ms": 100},
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base weights at test size, where the real ones are expected."""
    write_base_weights(tmp_path / "home", random_base_weights())
    monkeypatch.setenv("EARWISE_HOME", str(tmp_path / "home"))


def untrained(spec: dict[str, Any] | None, **options: Any) -> Embedded:
    """The embedded model with an untrained connector; `options` are further arguments of `load`."""
    model = base.load("embedded-blank", device="cpu", trim=True, connector=spec, **options)
    assert isinstance(model, Embedded)
    return model


@torch.no_grad()
def perturbed(model: Embedded) -> Embedded:
    """Change all weights of the connector, so that no gate or bias has its neutral initial value."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.module.connector.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def by_formula(model: Embedded, seconds: float) -> Tensor:
    """The connector's embeddings of one clip, computed window by window from the encoder's states."""
    connector: Any = model.module.connector
    mel = whisper.log_mel(tone(seconds), model.module.encoder.num_mel_bins)
    (layers,) = whisper.layer_states(model.module.encoder, [mel])
    layers_read = layers if model.connector_spec.layers == "all" else layers[-1:]
    scale = layers_read.mean(1, keepdim=True).std(-1, keepdim=True, correction=0) + 1e-6
    gates = connector.gates.softmax(0)[:, None, None] * len(layers_read)
    states = torch.cat(list(layers_read / scale * gates), -1)  # (states, layers * dim)
    windows = states.split(model.connector_spec.token_ms // 20)
    if model.connector_spec.kind == "qformer":
        return torch.cat([connector.out(connector.former.read_windows(window[None])[0]) for window in windows])
    rows = torch.stack([states.mean(0), *(window.mean(0) for window in windows)])
    if model.connector_spec.kind == "linear":
        return rows @ connector.project.weight.T + connector.project.bias
    straight = rows @ connector.project.straight.weight.T
    both = straight + torch.nn.functional.gelu(straight) @ connector.project.bent.weight.T
    normed = (both - both.mean(-1, keepdim=True)) / (both.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    return normed * connector.project.norm.weight + connector.project.norm.bias


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec["kind"] != "mix"], ids=str)
@torch.no_grad()
def test_embeddings_equal_the_formula(spec: dict[str, Any]) -> None:
    model = perturbed(untrained(spec))
    clips = [tone(seconds) for seconds in (0.02, 1.0, 0.33)]
    together = model.project_audio(model.encode_audio(clips))
    assert [len(embeddings) for embeddings in together] == [model.audio_tokens(len(clip)) for clip in clips]
    torch.testing.assert_close(together[1], by_formula(model, 1.0), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(together[2], by_formula(model, 0.33), atol=2e-5, rtol=1e-4)
    assert model.project_audio([]) == []


LABELS = {
    "kind": "labels",
    "facets": [{"labels": 5, "shown": 2, "tokens": 2}, {"labels": 3}],
    "listener": {"labels": 4, "slots": 3, "shown": 2, "components": 8, "width": 8},
}


def _event_words(connector: Any, heard: WindowScores, slots: int) -> list[torch.Tensor]:
    """What the decoder should see of the events, written out."""
    words, leads, found = connector.event_words, connector.event_leads, find_events(heard)
    likeliest = [event.label_scores.topk(2).indices.tolist() for event in found]
    order = [torch.cat([words[first], words[second]]) for first, second in likeliest[:slots]]
    order += [connector.no_event.repeat(2, 1)] * (slots - len(order))
    loudest = max(range(len(found)), key=lambda number: found[number].level) if found else None
    longest = max(range(len(found)), key=lambda number: found[number].end - found[number].start) if found else None
    most = [connector.no_event if number is None else words[likeliest[number][0]] for number in (loudest, longest)]
    together = connector.together_words[int(sounds_overlap(heard))][None]
    return [leads[0], *order, leads[1], most[0], leads[2], most[1], leads[3], together]


@torch.no_grad()
def test_the_connector_labels_shows_the_words_of_the_likeliest_labels(tmp_path: Path) -> None:
    model = perturbed(untrained(LABELS))
    connector: Any = model.module.connector
    facets, slots = (2 + 2 * 2) + (2 + 1), 2  # 4 windows: 1 + 4 // 3 slots
    events = (2 + slots * 2 * 2) + (2 + 2) + (2 + 2) + (2 + 1)
    assert model.audio_tokens(16000) == facets + events + 14 + 4
    assert model.audio_tokens(16000 * 9) == facets + events + 2 * 2 + 14 + 29, "no more than three slots"
    (states,) = model.encode_audio([tone(1.0)])
    (embeddings,) = model.project_audio([states])
    rows = connector.mix.mix_layers(states)
    scores = torch.cat([rows[0], rows[1]]) @ connector.classify.weight.T + connector.classify.bias
    first, second = scores[:5].sort(descending=True).indices[:2].tolist()
    likeliest = int(scores[5:].argmax())
    words, leads = connector.words, connector.facet_leads
    expected = [leads[0], words[0][first], words[0][second], leads[1], words[1][likeliest]]
    assert torch.equal(embeddings[:9], torch.cat(expected))
    heard = connector.listener(rows[2:])
    expected = _event_words(connector, heard, slots)
    assert torch.equal(embeddings[9 : 9 + events], torch.cat(expected))
    (mixed,) = connector.mix([states])
    assert torch.equal(embeddings[9 + events : 23 + events], mixed[:14])
    shares = torch.softmax(heard.label_logits, 1)
    by_window = [mixed[14 + n] + sum(shares[n, k] * connector.window_words[k] for k in range(4)) for n in range(4)]
    torch.testing.assert_close(embeddings[23 + events :], torch.stack(by_window))
    model.save(tmp_path / "saved")
    loaded: Any = base.load(str(tmp_path / "saved"), device="cpu")
    assert loaded.connector_spec == model.connector_spec and isinstance(loaded.connector_spec.facets, tuple)
    assert torch.equal(loaded.project_audio([states])[0], embeddings)


def test_token_counts_by_hand() -> None:
    """One second of audio is 50 encoder states."""
    counts = [untrained(spec).audio_tokens(16000) for spec in SPECS]
    assert counts == [1 + 4, 1 + 2, 1 + 4, 1 + 4, 7, 4, 14 + 10]
    assert [untrained(spec).spec.tokens_per_s for spec in SPECS[:2]] == [3.125, 1.5625]


def test_residual_projection_by_hand() -> None:
    projection = ResidualProjection(1, 2)
    with torch.no_grad():
        projection.straight.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        projection.bent.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
        out = projection(torch.tensor([2.0]))
    # h = (2, -2); gelu(2) is 1.9545, so h2 = (0, 5.8635); the sum (2, 3.8635) is normed to (-1, 1)
    assert out.tolist() == pytest.approx([-1.0, 1.0], abs=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "labels"])
def test_packed_trees_are_exact_and_every_weight_has_a_gradient(kind: str) -> None:
    model = perturbed(untrained({"kind": kind, "token_ms": 100}))
    model.module.connector.requires_grad_(True)
    waveforms = {0: tone(1.0), 1: tone(0.5, 700.0)}
    trees = []
    for clip, waveform in waveforms.items():
        prompt = conversation_path(model, user_question("What?"), [clip], [len(waveform)], generate=True)
        trees.append([prompt + answer_path(model, text) for text in ("a dog", "a door", "rain")])
    (micro_batch,) = build_micro_batches(model, None, trees, waveforms, 10_000)
    policy = Policy(model)
    assert check_forest(policy, micro_batch, tolerance=1e-4) < 1e-4
    policy(micro_batch.forest, {}, micro_batch.waveforms).sum().backward()
    # A single query attends only to itself, and a bias shared by all keys does not change attention.
    no_gradient = (
        "layer.0.attention.attention.",
        "layer.1.attention.attention.",
        "crossattention.attention.key.bias",
    )
    for name, parameter in model.module.connector.named_parameters():
        if not any(part in name for part in no_gradient):
            assert parameter.grad is not None and parameter.grad.abs().any(), name


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_checkpoint_keeps_its_connector(spec: dict[str, Any], tmp_path: Path) -> None:
    model = perturbed(untrained(spec, seed=3))
    model.save(tmp_path / "saved")
    loaded = base.load(str(tmp_path / "saved"), device="cpu")
    assert isinstance(loaded, Embedded)
    assert loaded.connector_spec == model.connector_spec == ConnectorSpec(**spec)
    clip = [tone(0.7)]
    assert torch.equal(
        loaded.project_audio(loaded.encode_audio(clip))[0], model.project_audio(model.encode_audio(clip))[0]
    )
    assert measure_folder(tmp_path / "saved")[1].audio_tokens_per_s == model.spec.tokens_per_s
    loaded.save(tmp_path / "twice")
    for name in ("trained.safetensors", "earwise.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_the_default_connector_has_the_same_weights_as_before_the_choice_existed() -> None:
    torch.manual_seed(0)
    expected = LayerMix(3, 16, 32, 4).state_dict()
    for model in (untrained(None), untrained({}), untrained({"kind": "mix"}, seed=0)):
        weights = model.module.connector.state_dict()
        assert list(weights) == list(expected)
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert untrained(None).revision == "blank" and untrained({}).revision == "blank-mix-all-320ms-0"
    assert not torch.equal(untrained({}, seed=1).module.connector.frames.weight, expected["frames.weight"])


def test_a_decoder_with_random_weights(tmp_path: Path) -> None:
    pretrained, random_start = untrained(None).module.decoder, untrained(None, decoder_init="random", seed=2)
    table = random_start.module.decoder.embed_tokens.weight
    assert float(table.std()) == pytest.approx(0.02, rel=0.1) and float(pretrained.embed_tokens.weight.std()) > 0.5
    assert torch.equal(random_start.module.head.weight, table)
    same_seed, other_seed = (
        untrained(None, decoder_init="random", seed=seed).module.decoder.state_dict() for seed in (2, 3)
    )
    weights = random_start.module.decoder.state_dict()
    assert all(torch.equal(weights[name], same_seed[name]) for name in weights)
    assert not torch.equal(weights["embed_tokens.weight"], other_seed["embed_tokens.weight"])
    default, seeded = untrained(None).module.connector, random_start.module.connector
    torch.manual_seed(2)
    assert torch.equal(seeded.frames.weight, LayerMix(3, 16, 32, 4).frames.weight)
    assert not torch.equal(default.frames.weight, seeded.frames.weight)
    random_start.module.requires_grad_(False)
    random_start.save(tmp_path / "saved")  # nothing was trained, but these weights cannot be downloaded
    loaded: Any = base.load(str(tmp_path / "saved"), device="cpu")
    loaded_weights = loaded.module.decoder.state_dict()
    assert all(torch.equal(weights[name], loaded_weights[name]) for name in weights)


def test_the_planner_counts_the_connector() -> None:
    """Seven layers of 512 to 576: gates 7, linear 3584 x 576 + 576; the last alone: gate 1, residual 512 x 576 +
    576 x 576 + 2 x 576."""
    sizes = registry.sizes("embedded")[0]
    assert with_connector(sizes, ConnectorSpec()) == sizes
    linear = with_connector(sizes, ConnectorSpec("linear", token_ms=640))
    assert (linear.connector, linear.audio_tokens_per_s) == (7 + 3584 * 576 + 576, 1.5625)
    assert with_connector(sizes, ConnectorSpec("residual", "last")).connector == 1 + 512 * 576 + 576 * 576 + 2 * 576
    former = build_connector(ConnectorSpec("qformer"), 3, 16, 32)
    assert with_connector(sizes, ConnectorSpec("qformer")).connector > 10 * sum(
        parameter.numel() for parameter in former.parameters()
    )


# Recipes -------------------------------------------------------------------------------------------------------------


def recipe(tmp_path: Path, model: dict[str, Any], **stage_fields: Any) -> Recipe:
    """A recipe of two equal SFT stages on four clips; its model fields and stage fields can be changed."""
    examples = []
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", 0.3 * np.sin(np.arange(9000) * 0.05 * (number + 1)), 16000)
        turns = (Turn("user", (Audio(f"{number}.wav"), Text("pitch?"))),)
        examples.append(Example(f"{number}", turns, ("low",), ("low", "high"), root=tmp_path))
    manifest.write(tmp_path / "rows.jsonl", examples)
    stage = {
        "kind": "sft", "data": {"mixture": [{"manifest": "rows.jsonl"}]}, "max_steps": 2, "clips_per_step": 2,
        "trainable": {"encoder": "frozen", "connector": "full", "decoder": "lora"}, "pack_tokens": 600,
    } | stage_fields  # fmt: skip
    top = {"recipe": "t", "model": {"name": "embedded-blank"} | model, "seed": 4}
    return check_recipe(top | {"stages": [stage, stage | {"name": "again"}]}, "t")


@pytest.mark.parametrize("spec", [{"kind": "residual", "layers": "last"}, {"kind": "qformer"}], ids=str)
def test_a_run_trains_the_chosen_connector_in_all_stages(spec: dict[str, Any], tmp_path: Path) -> None:
    two_stages = recipe(tmp_path, {"connector": spec, "trim": True})
    first = run.load_recipe_model(two_stages)
    assert first.revision == f"blank-{ConnectorSpec(**spec)}-4", "random weights depend on the recipe's seed"
    run.start(two_stages, tmp_path / "run", tmp_path)
    stages = [base.load(str(tmp_path / "run" / name), device="cpu") for name in ("stage-0-sft/final", "final")]
    assert [model.connector_spec for model in stages] == [ConnectorSpec(**spec)] * 2
    gates = [model.module.connector.gates for model in (first, *stages)]
    weights = [dict(model.module.connector.named_parameters())["out.weight" if spec["kind"] == "qformer"
               else "project.straight.weight"] for model in (first, *stages)]  # fmt: skip
    assert len(gates[0]) == (1 if spec.get("layers") == "last" else 3)
    steps = [float((b - a).abs().max()) for a, b in pairwise(weights)]
    assert all(0 < step < 2e-3 for step in steps), "each stage trains two small steps and initialises nothing again"
    losses = [json.loads(line)["sft/loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and all(np.isfinite(losses))


def test_a_run_keeps_a_frozen_decoder_with_random_weights(tmp_path: Path) -> None:
    frozen = {"encoder": "frozen", "connector": "full", "decoder": "frozen"}
    two_stages = recipe(tmp_path, {"decoder_init": "random"}, trainable=frozen)
    initial = run.load_recipe_model(two_stages).module.decoder.state_dict()
    run.start(two_stages, tmp_path / "run", tmp_path)
    trained: Any = base.load(str(tmp_path / "run"), device="cpu")
    final = trained.module.decoder.state_dict()
    assert all(torch.equal(initial[name], final[name]) for name in initial)


def test_invalid_choices_are_rejected_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="connector is for name: embedded-blank, embedded was trained with its own"):
        recipe(tmp_path, {"name": "embedded", "connector": {"kind": "linear"}})
    with pytest.raises(ConfigError, match="decoder_init is for name: embedded-blank, qwen2_audio was"):
        recipe(tmp_path, {"name": "qwen2_audio", "decoder_init": "random"})
    with pytest.raises(ConfigError, match=r"model\.connector\.token_ms.*multiple of 20, got 50"):
        recipe(tmp_path, {"connector": {"token_ms": 50}})
    with pytest.raises(ModelError, match=r"model 'embedded': its loader takes no connector"):
        base.load("embedded", device="cpu", connector={"kind": "linear"})
    with pytest.raises(ModelError, match="connector 'mlp' of 'all' layers"):
        untrained({"kind": "mlp"})
    with pytest.raises(ModelError, match="token_ms 30: give a multiple of 20"):
        untrained({"token_ms": 30})
    with pytest.raises(ModelError, match="is not known to this version"):
        parse_connector_spec({"kind": "mix", "depth": 3})
    linear = recipe(tmp_path, {"connector": {"kind": "linear"}}, connector_init="ridge")
    with pytest.raises(
        ConfigError, match="connector mix, not for embedded-blank with connector linear; use connector_init: none"
    ):
        run.start(linear, tmp_path / "run", tmp_path)


def test_a_checkpoint_with_another_connector_than_its_marker_names_is_rejected(tmp_path: Path) -> None:
    untrained({"kind": "linear"}).save(tmp_path / "saved")
    marker = json.loads((tmp_path / "saved" / "earwise.json").read_text())
    (tmp_path / "saved" / "earwise.json").write_text(json.dumps(marker | {"connector": {"kind": "residual"}}))
    with pytest.raises(ModelError, match="trained part does not fit"):
        embedded.load(tmp_path / "saved")
