"""Connectors of the embedded model, at test size: each against its formula on transformers' own states, exact in a
forest, kept by checkpoints, counted by the planner, chosen by recipes; and a decoder that starts at random."""

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
from earwise.models import base
from earwise.models.embedded import model as embedded
from earwise.models.embedded.connector import KINDS, ConnectorSpec, build_connector, parse_connector_spec
from earwise.models.embedded.model import Embedded
from earwise.models.memory import config_shapes
from earwise.models.memory.published_sizes import of_family
from earwise.models.parts import whisper
from earwise.models.parts.projector import LayerMix, ResidualProjection
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.train import run
from earwise.train.batches import build_micro_batches
from earwise.train.policy import Policy, check_forest
from earwise.types import Audio, Example, Text, Turn
from families.embedded import at_random, keep_base

CHOICES = [
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
    """Base weights at test size where the real ones are looked for."""
    keep_base(tmp_path / "home", at_random())
    monkeypatch.setenv("EARWISE_HOME", str(tmp_path / "home"))


def blank(choice: dict[str, Any] | None, **more: Any) -> Embedded:
    model = base.load("embedded-blank", device="cpu", trim=True, connector=choice, **more)
    assert isinstance(model, Embedded)
    return model


@torch.no_grad()
def shaken(model: Embedded) -> Embedded:
    """Gates and biases away from their start, so that a formula that forgets them is found out."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.module.connector.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def by_formula(model: Embedded, seconds: float) -> Tensor:
    """A connector's embeddings of one clip, window by window, from the encoder's states."""
    connector: Any = model.module.connector
    mel = whisper.log_mel(tone(seconds), model._extractor)
    (layers,) = whisper.layer_states(model.module.encoder, [mel])
    read = layers if model.connector_spec.layers == "all" else layers[-1:]
    level = read.mean(1, keepdim=True).std(-1, keepdim=True, correction=0) + 1e-6
    gates = connector.gates.softmax(0)[:, None, None] * len(read)
    states = torch.cat(list(read / level * gates), -1)  # (states, layers * dim)
    windows = states.split(model.connector_spec.token_ms // 20)
    if model.connector_spec.kind == "qformer":
        return torch.cat([connector.out(connector.former.ask(window[None])[0]) for window in windows])
    rows = torch.stack([states.mean(0), *(window.mean(0) for window in windows)])
    if model.connector_spec.kind == "linear":
        return rows @ connector.project.weight.T + connector.project.bias
    straight = rows @ connector.project.straight.weight.T
    both = straight + torch.nn.functional.gelu(straight) @ connector.project.bent.weight.T
    normed = (both - both.mean(-1, keepdim=True)) / (both.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    return normed * connector.project.norm.weight + connector.project.norm.bias


@pytest.mark.parametrize("choice", [one for one in CHOICES if one["kind"] != "mix"], ids=str)
@torch.no_grad()
def test_what_a_connector_says_is_its_formula(choice: dict[str, Any]) -> None:
    model = shaken(blank(choice))
    clips = [tone(seconds) for seconds in (0.02, 1.0, 0.33)]
    together = model.project_audio(model.encode_audio(clips))
    assert [len(one) for one in together] == [model.audio_tokens(len(clip)) for clip in clips]
    torch.testing.assert_close(together[1], by_formula(model, 1.0), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(together[2], by_formula(model, 0.33), atol=2e-5, rtol=1e-4)
    assert model.project_audio([]) == []


def test_tokens_by_hand() -> None:
    """One second is 50 states."""
    counts = [blank(choice).audio_tokens(16000) for choice in CHOICES]
    assert counts == [1 + 4, 1 + 2, 1 + 4, 1 + 4, 7, 4, 14 + 10]
    assert [blank(choice).spec.tokens_per_s for choice in CHOICES[:2]] == [3.125, 1.5625]


def test_residual_by_hand() -> None:
    part = ResidualProjection(1, 2)
    with torch.no_grad():
        part.straight.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        part.bent.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
        out = part(torch.tensor([2.0]))
    # h = (2, -2); gelu(2) is 1.9545, so h2 = (0, 5.8635); the sum (2, 3.8635) is normed to (-1, 1)
    assert out.tolist() == pytest.approx([-1.0, 1.0], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_forest_is_exact_and_the_gradient_reaches_every_part(kind: str) -> None:
    model = shaken(blank({"kind": kind, "token_ms": 100}))
    model.module.connector.requires_grad_(True)
    waveforms = {0: tone(1.0), 1: tone(0.5, 700.0)}
    trees = []
    for clip, wave in waveforms.items():
        trunk = conversation_path(model, user_question("What?"), [clip], [len(wave)], generate=True)
        trees.append([trunk + answer_path(model, text) for text in ("a dog", "a door", "rain")])
    (micro_batch,) = build_micro_batches(model, None, trees, waveforms, 10_000)
    policy = Policy(model)
    assert check_forest(policy, micro_batch, tolerance=1e-4) < 1e-4
    policy(micro_batch.forest, {}, micro_batch.waveforms).sum().backward()
    # A lone query attends to itself whatever it asks, and a bias that all keys share changes no attention.
    idle = ("layer.0.attention.attention.", "layer.1.attention.attention.", "crossattention.attention.key.bias")
    for name, parameter in model.module.connector.named_parameters():
        if not any(part in name for part in idle):
            assert parameter.grad is not None and parameter.grad.abs().any(), name


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_checkpoint_keeps_its_connector(choice: dict[str, Any], tmp_path: Path) -> None:
    model = shaken(blank(choice, seed=3))
    model.save(tmp_path / "saved")
    again = base.load(str(tmp_path / "saved"), device="cpu")
    assert isinstance(again, Embedded)
    assert again.connector_spec == model.connector_spec == ConnectorSpec(**choice)
    clip = [tone(0.7)]
    assert torch.equal(again.project_audio(again.encode_audio(clip))[0], model.project_audio(model.encode_audio(clip))[0])
    assert config_shapes.of_folder(tmp_path / "saved").tokens_per_s == model.spec.tokens_per_s
    again.save(tmp_path / "twice")
    for name in ("trained.safetensors", "earwise.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_nothing_chosen_is_what_was_before() -> None:
    torch.manual_seed(0)
    before = LayerMix(3, 16, 32, 4).state_dict()
    for model in (blank(None), blank({}), blank({"kind": "mix"}, seed=0)):
        now = model.module.connector.state_dict()
        assert list(now) == list(before) and all(torch.equal(now[name], before[name]) for name in before)
    assert blank(None).revision == "blank" and blank({}).revision == "blank-mix-all-320ms-0"
    assert not torch.equal(blank({}, seed=1).module.connector.frames.weight, before["frames.weight"])


def test_a_decoder_that_never_read(tmp_path: Path) -> None:
    read, drawn = blank(None).module.decoder, blank(None, decoder_init="random", seed=2)
    table = drawn.module.decoder.embed_tokens.weight
    assert float(table.std()) == pytest.approx(0.02, rel=0.1) and float(read.embed_tokens.weight.std()) > 0.5
    assert torch.equal(drawn.module.head.weight, table)
    same, other = (blank(None, decoder_init="random", seed=seed).module.decoder.state_dict() for seed in (2, 3))
    mine = drawn.module.decoder.state_dict()
    assert all(torch.equal(mine[name], same[name]) for name in mine)
    assert not torch.equal(mine["embed_tokens.weight"], other["embed_tokens.weight"])
    before, after = blank(None).module.connector, drawn.module.connector
    torch.manual_seed(2)
    assert torch.equal(after.frames.weight, LayerMix(3, 16, 32, 4).frames.weight)
    assert not torch.equal(before.frames.weight, after.frames.weight)
    drawn.module.requires_grad_(False)
    drawn.save(tmp_path / "saved")  # nothing of it was trained, and yet it is no base that can be fetched
    again: Any = base.load(str(tmp_path / "saved"), device="cpu")
    kept = again.module.decoder.state_dict()
    assert all(torch.equal(mine[name], kept[name]) for name in mine)


def test_the_planner_counts_what_is_chosen() -> None:
    """Seven layers of 512 to 576: gates 7, linear 3584 x 576 + 576; the last alone: gate 1, residual 512 x 576 +
    576 x 576 + 2 x 576."""
    known = of_family("embedded")[0]
    assert config_shapes.with_connector(known, ConnectorSpec()) == known
    linear = config_shapes.with_connector(known, ConnectorSpec("linear", token_ms=640))
    assert (linear.connector, linear.tokens_per_s) == (7 + 3584 * 576 + 576, 1.5625)
    assert (
        config_shapes.with_connector(known, ConnectorSpec("residual", "last")).connector == 1 + 512 * 576 + 576 * 576 + 2 * 576
    )
    former = build_connector(ConnectorSpec("qformer"), 3, 16, 32)
    assert config_shapes.with_connector(known, ConnectorSpec("qformer")).connector > 10 * sum(
        p.numel() for p in former.parameters()
    )


# Recipes -------------------------------------------------------------------------------------------------------------


def recipe(tmp_path: Path, model: dict[str, Any], **settings: Any) -> Recipe:
    examples = []
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", 0.3 * np.sin(np.arange(9000) * 0.05 * (number + 1)), 16000)
        turns = (Turn("user", (Audio(f"{number}.wav"), Text("pitch?"))),)
        examples.append(Example(f"{number}", turns, ("low",), ("low", "high"), root=tmp_path))
    manifest.write(tmp_path / "rows.jsonl", examples)
    stage = {
        "kind": "sft", "data": {"mixture": [{"manifest": "rows.jsonl"}]}, "max_steps": 2, "clips_per_step": 2,
        "trainable": {"encoder": "frozen", "connector": "full", "decoder": "lora"}, "pack_tokens": 600,
    } | settings  # fmt: skip
    top = {"recipe": "t", "model": {"name": "embedded-blank"} | model, "seed": 4}
    return check_recipe(top | {"stages": [stage, stage | {"name": "again"}]}, "t")


@pytest.mark.parametrize("choice", [{"kind": "residual", "layers": "last"}, {"kind": "qformer"}], ids=str)
def test_a_run_trains_what_was_chosen_and_its_later_stages_go_on_with_it(
    choice: dict[str, Any], tmp_path: Path
) -> None:
    asked = recipe(tmp_path, {"connector": choice, "trim": True})
    first = run.load_recipe_model(asked)
    assert first.revision == f"blank-{ConnectorSpec(**choice)}-4", "the recipe's seed decides what is drawn"
    run.start(asked, tmp_path / "run", tmp_path)
    stages = [base.load(str(tmp_path / "run" / name), device="cpu") for name in ("stage-0-sft/final", "final")]
    assert [model.connector_spec for model in stages] == [ConnectorSpec(**choice)] * 2
    gates = [model.module.connector.gates for model in (first, *stages)]
    weights = [dict(model.module.connector.named_parameters())["out.weight" if choice["kind"] == "qformer"
               else "project.straight.weight"] for model in (first, *stages)]  # fmt: skip
    assert len(gates[0]) == (1 if choice.get("layers") == "last" else 3)
    steps = [float((b - a).abs().max()) for a, b in pairwise(weights)]
    assert all(0 < step < 2e-3 for step in steps), "two small steps each, and nothing drawn anew between"
    losses = [json.loads(line)["sft/loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and all(np.isfinite(losses))


def test_a_run_from_a_decoder_that_never_read_ends_with_it(tmp_path: Path) -> None:
    frozen = {"encoder": "frozen", "connector": "full", "decoder": "frozen"}
    asked = recipe(tmp_path, {"decoder_init": "random"}, trainable=frozen)
    start = run.load_recipe_model(asked).module.decoder.state_dict()
    run.start(asked, tmp_path / "run", tmp_path)
    end: Any = base.load(str(tmp_path / "run"), device="cpu")
    kept = end.module.decoder.state_dict()
    assert all(torch.equal(start[name], kept[name]) for name in start)


def test_what_cannot_be_chosen_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="connector is for name: embedded-blank, embedded was trained with its own"):
        recipe(tmp_path, {"name": "embedded", "connector": {"kind": "linear"}})
    with pytest.raises(ConfigError, match="decoder_init is for name: embedded-blank, qwen2_audio was"):
        recipe(tmp_path, {"name": "qwen2_audio", "decoder_init": "random"})
    with pytest.raises(ConfigError, match=r"model\.connector\.token_ms.*multiple of 20, got 50"):
        recipe(tmp_path, {"connector": {"token_ms": 50}})
    with pytest.raises(ModelError, match=r"model 'embedded': its loader takes no connector"):
        base.load("embedded", device="cpu", connector={"kind": "linear"})
    with pytest.raises(ModelError, match="connector 'mlp' of 'all' layers"):
        blank({"kind": "mlp"})
    with pytest.raises(ModelError, match="token_ms 30: give a multiple of 20"):
        blank({"token_ms": 30})
    with pytest.raises(ModelError, match="is not known to this version"):
        parse_connector_spec({"kind": "mix", "depth": 3})
    other = recipe(tmp_path, {"connector": {"kind": "linear"}}, connector_init="ridge")
    with pytest.raises(ConfigError, match="connector mix, not for embedded-blank with connector linear; use start: no"):
        run.start(other, tmp_path / "run", tmp_path)


def test_a_checkpoint_with_another_connector_than_it_says_is_refused(tmp_path: Path) -> None:
    blank({"kind": "linear"}).save(tmp_path / "saved")
    marks = json.loads((tmp_path / "saved" / "earwise.json").read_text())
    (tmp_path / "saved" / "earwise.json").write_text(json.dumps(marks | {"connector": {"kind": "residual"}}))
    with pytest.raises(ModelError, match="trained part does not fit"):
        embedded.load(tmp_path / "saved")
