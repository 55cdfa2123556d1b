"""What a stage trains, in all four kinds: encoder, connector and decoder apart, each at its own learning rate."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from builders import tiny_qwen2_audio
from earwise.config.recipe import check_recipe
from earwise.config.stages import OptimizerConfig, TrainableConfig
from earwise.data import manifest
from earwise.models.base import load as load_model
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.train import run
from earwise.train.trainable import parameter_groups, set_trainable
from earwise.types import Audio, Example, Text, Turn


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """Named in recipes below as `test_groups:load`."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


def likes_e(_: Example, completion: str) -> float:
    """A reward that a byte model can earn."""
    return float(sum(c in "etaoinshrdlu" for c in completion))


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four clips with chains and wrong options."""
    monkeypatch.setitem(sys.modules, "test_groups", sys.modules[__name__])
    examples = []
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", 0.3 * np.sin(np.arange(9000) * 0.05 * (number + 1)), 16000)
        turns = (Turn("user", (Audio(f"{number}.wav"), Text("pitch?"))),)
        examples.append(Example(f"{number}", turns, ("low",), ("low", "high"), "It hums. It is slow.", root=tmp_path))
    manifest.write(tmp_path / "rows.jsonl", examples)
    return tmp_path / "rows.jsonl"


PARTS = {
    "encoder": "model.audio_tower.", "connector": "model.multi_modal_projector.", "decoder": "model.language_model.",
}  # fmt: skip
MODES = [
    {"encoder": "full", "connector": "frozen", "decoder": "frozen"},
    {"encoder": "frozen", "connector": "full", "decoder": "frozen"},
    {"encoder": "frozen", "connector": "frozen", "decoder": "full"},
    {"encoder": "lora", "connector": "full", "decoder": "lora"},
    {"encoder": "full", "connector": "full", "decoder": "full"},
]
KINDS: dict[str, dict] = {
    "sft": {},
    "grpo": {"group_size": 4, "max_new_tokens": 5, "rewards": {"test_groups:likes_e": 1.0}},
    "dpo": {"negatives": "options"},
    "compress": {"steps_per_unit": 1},
}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("modes", MODES, ids=lambda modes: "-".join(modes.values()))
def test_every_stage_trains_the_parts_that_are_asked_for_and_no_other(rows: Path, kind: str, modes: dict) -> None:
    pytest.importorskip("peft")
    data = {"mixture": [{"manifest": "rows.jsonl"}], "styles": {"think" if kind == "compress" else "answer": 1.0}}
    optimizer = {"learning_rate": 1e-3, "encoder_learning_rate": 1e-5, "connector_learning_rate": 1e-4, "lr_scheduler_type": "constant"}
    stage = {
        "kind": kind,
        "max_steps": 1,
        "pack_tokens": 600,
        "data": data,
        "trainable": modes,
        "optimizer": optimizer,
    } | KINDS[kind]
    asked = {"recipe": "t", "model": {"name": "test_groups:load"}, "seed": 5, "stages": [stage]}
    run.start(check_recipe(asked, "test"), rows.parent / "run", rows.parent)
    before = dict(load().module.named_parameters())
    after = dict(load_model(str(rows.parent / "run"), device="cpu").module.named_parameters())
    moved = {
        part: max(float((after[name] - old).abs().max()) for name, old in before.items() if name.startswith(prefix))
        for part, prefix in PARTS.items()
    }
    assert {part: change > 0 for part, change in moved.items()} == {p: mode != "frozen" for p, mode in modes.items()}
    # The first step of Adam moves a weight by its rate, rounding apart.
    rates = {"encoder": 1e-5, "connector": 1e-4, "decoder": 1e-3}
    for part, mode in modes.items():
        assert mode != "full" or moved[part] == pytest.approx(rates[part], rel=0.1)


def test_rates_by_group() -> None:
    model = tiny_qwen2_audio(1)
    set_trainable(model, TrainableConfig(encoder="full", connector="full", decoder="full"))
    names = {id(parameter): name for name, parameter in model.module.named_parameters()}

    def found(**rates: float) -> dict[float, set[str]]:
        groups = parameter_groups(model, OptimizerConfig(learning_rate=1.0, **rates))
        return {
            group["lr"]: {part for part, at in PARTS.items() for p in group["params"] if names[id(p)].startswith(at)}
            for group in groups
        }

    assert found(encoder_learning_rate=0.1, connector_learning_rate=0.2) == {1.0: {"decoder"}, 0.1: {"encoder"}, 0.2: {"connector"}}
    assert found(connector_learning_rate=0.2) == {1.0: {"encoder", "decoder"}, 0.2: {"connector"}}
    assert found(encoder_learning_rate=0.1)[0.1] == {"encoder"}
    order = parameter_groups(model, OptimizerConfig())[0]["params"]
    rest = [p for name, p in model.module.named_parameters() if not name.startswith(PARTS["connector"])]
    assert all(a is b for a, b in zip(order, rest, strict=True)), "as checkpoints of before have it"
