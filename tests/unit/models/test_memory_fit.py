"""Whether recipes fit: every profile on the hardware that it names, what is advised where one does not, the refusal at
the start of a run, and the planner against the peak of real training steps.
"""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from builders import (
    MELS,
    SPECIAL,
    WINDOW_S,
    byte_tokenizer,
    feature_extractor,
    randomize_weights,
    tiny_qwen2_audio,
    tone,
    user_question,
)
from earwise.config.optimizer import OptimizerConfig
from earwise.config.recipe import Recipe, check_recipe, load_recipe
from earwise.config.recipe_files import find_recipe
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.config.variants import take_definitions
from earwise.errors import ConfigError
from earwise.models import base, registry
from earwise.models.encoder_cache import EncoderCache
from earwise.models.families.qwen2_audio import Qwen2Audio, from_parts
from earwise.models.memory import estimate
from earwise.models.memory.lookup import declared_sizes
from earwise.models.memory.measured_sizes import measure_loaded
from earwise.models.memory.plan import Machine, PlannedStage, StagePlan, plan_stages
from earwise.models.memory.sizes import EncoderShape
from earwise.models.memory.stage_memory import StageMemory
from earwise.models.parts.gradient_checkpointing import enable_gradient_checkpointing
from earwise.models.precision.nf4 import quantize_decoder
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.training import run
from earwise.training.batches import build_micro_batches
from earwise.training.memory_check import check_memory
from earwise.training.optimization.master_weights import MasterWeights
from earwise.training.optimization.optimizer import build_optimizer
from earwise.training.policy import Policy
from earwise.training.stages.table import stage_class
from earwise.training.trainable import set_trainable

RECIPES = (
    "r1-aqa", "sari", "qwen2-audio", "xs-cot", "ke-omni-r", "audio-thinker", "cesar", "hyper", "audiomcq", "audio-r1",
    "gkd",
)  # fmt: skip


def plans(recipe: Recipe, machine: Machine) -> list[StagePlan]:
    """The plans of a recipe's stages."""
    declared = declared_sizes(recipe.model.name, recipe.model.weights)
    assert declared is not None
    sizes = replace(declared, quantization=recipe.model.quantization)
    stages = [PlannedStage(stage, stage_class(stage).memory(stage, machine.processes), {}) for stage in recipe.stages]
    return plan_stages(sizes, stages, machine, dtype=recipe.model.dtype)


@pytest.mark.parametrize("profile", ["paper", "one-gpu", "24gb"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_profile_fits_the_hardware_that_it_names(name: str, profile: str) -> None:
    recipe = load_recipe(name, profile=profile)
    hardware = recipe.hardware
    assert hardware is not None
    assert hardware.gpu_memory_gb == {"paper": 80, "one-gpu": 80, "24gb": 24}[profile]
    machine = Machine("GPU", hardware.gpu_memory_gb * 1e9, True, hardware.gpus, hardware.engine)
    for plan in plans(recipe, machine):
        assert plan.fits and (plan.margin_gb or 0) > 1.0, f"{plan.stage}: {plan.needed_gb} GB, {plan.memory_gb}"
    assert (recipe.model.quantization == "nf4") == (profile == "24gb")


@pytest.mark.parametrize("profile", ["paper", "one-gpu", "24gb"])
@pytest.mark.parametrize("name", [*RECIPES, "mellow"])
def test_every_arm_fits_the_hardware_of_its_profile(name: str, profile: str) -> None:
    """Full training of 8 billion parameters on one GPU does not, and is refused with what to change."""
    path, _ = find_recipe(name)
    definitions = take_definitions(yaml.safe_load(path.read_text(encoding="utf-8")), name)
    if profile not in definitions["profiles"]:
        assert (name, profile) == ("mellow", "24gb"), "its profiles are for 24 GB already"
        return
    num_planned = 0
    for arm in definitions["arms"]:
        recipe = load_recipe(name, profile=profile, arm=arm)
        hardware = recipe.hardware
        assert hardware is not None
        machine = Machine("GPU", hardware.gpu_memory_gb * 1e9, True, hardware.gpus, hardware.engine)
        for plan in plans(recipe, machine):
            num_planned += 1
            if (name, arm) == ("r1-aqa", "sft-full") and profile != "paper":
                assert not plan.fits and "decoder: lora" in plan.advice
            else:
                assert plan.fits, f"{arm}, {plan.stage}: {plan.needed_gb} GB, {plan.memory_gb}"
    assert num_planned >= len(definitions["arms"]) - 1


def test_what_is_advised_makes_it_fit() -> None:
    recipe = load_recipe("r1-aqa", profile="one-gpu", overrides=["stages.0.gradient_checkpointing=false"])
    machine = Machine("a small GPU", 80e9, True)
    (plan,) = plans(recipe, machine)
    assert plan.fits is False and plan.advice == "gradient_checkpointing: true" and (plan.margin_gb or 0) < -10
    with pytest.raises(
        ConfigError, match=r"stage 0 grpo needs about 10\d\.\d GB, a small GPU has 80.0 GB free; set grad"
    ):
        check_memory(recipe, machine)
    changed = load_recipe("r1-aqa", profile="one-gpu", overrides=["stages.0.gradient_checkpointing=true"])
    check_memory(changed, machine)
    check_memory(recipe, replace(machine, is_gpu=False))  # nothing is refused on a CPU
    (too_small,) = plans(changed, replace(machine, free_bytes=8e9))
    assert "GB are still missing" in too_small.advice and "model.quantization: nf4" in too_small.advice
    full = load_recipe("r1-aqa", profile="paper")
    (alone,) = plans(full, replace(machine, processes=8))  # ddp: all weights and masters in every process
    assert "engine: fsdp2" in alone.advice


def test_full_training_in_bfloat16_takes_eighteen_bytes_a_parameter() -> None:
    """Weight 2, master 4, gradient 4, two moments of 4; two moments of 1 and their scales with 8 bits."""
    (qwen,) = registry.sizes("qwen2_audio")
    full = TrainableConfig(encoder="full", connector="full", decoder="full")
    permanent = estimate.training_memory(qwen, full).permanent
    in_model_dtype, connector = qwen.encoder + qwen.decoder, qwen.connector
    held = sum(permanent[name] for name in ("weights", "masters", "gradients", "optimizer"))
    assert held == 18 * in_model_dtype + 16 * connector
    quantized = estimate.training_memory(replace(qwen, quantization="nf4"), TrainableConfig())
    layers = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    saved = estimate.training_memory(qwen, TrainableConfig()).permanent["weights"] - quantized.permanent["weights"]
    assert saved == pytest.approx(layers * (2 - 0.5 - 1 / 64), rel=1e-3)


class StorageMeter(TorchDispatchMode):
    """Counts the bytes of all tensor storages that are alive: `live` now, `peak` at the largest moment."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, storage.nbytes())

    def _remove(self, nbytes: int) -> None:
        self.live -= nbytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_flatten(result)[0]:
            if isinstance(value, Tensor):
                self.add(value)
        return result


def scaled_down_model() -> Qwen2Audio:
    """Qwen2-Audio with six layers on each side and its proportions of widths."""
    audio = {"num_mel_bins": MELS, "encoder_layers": 6, "encoder_attention_heads": 4, "encoder_ffn_dim": 512}
    audio |= {"d_model": 128, "max_source_positions": 50 * WINDOW_S}
    text = {"model_type": "qwen2", "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 704}
    text |= {"num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4, "bos_token_id": None}
    text |= {"max_position_embeddings": 4096, "tie_word_embeddings": False}
    text |= {"eos_token_id": SPECIAL.index("<|im_end|>"), "pad_token_id": SPECIAL.index("<|endoftext|>")}
    config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=SPECIAL.index("<|AUDIO|>"))
    config._attn_implementation = "eager"
    module = Qwen2AudioForConditionalGeneration(config).eval()
    randomize_weights(module, 0, 1.0)
    model = from_parts(module, byte_tokenizer(), feature_extractor(), name="qwen2_audio", trim=True)
    module.model.audio_tower.config._attn_implementation = "sdpa"
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("modes", "dtype", "quantization"),
    [
        ({"decoder": "lora"}, torch.float32, None),
        ({"encoder": "full", "decoder": "full"}, torch.float32, None),
        ({"decoder": "lora"}, torch.bfloat16, None),
        ({"encoder": "full", "decoder": "full"}, torch.bfloat16, None),
        ({"decoder": "lora"}, torch.bfloat16, "nf4"),
    ],
    ids=["lora float32", "full float32", "lora bfloat16", "full bfloat16", "lora nf4"],
)
def test_the_planner_predicts_the_peak_of_training_steps(
    modes: dict, dtype: torch.dtype, quantization: str | None, checkpointing: bool
) -> None:
    """Two steps of two micro-batches each, every storage counted; the encoder's activations of all clips included."""
    model = scaled_down_model()
    model.module.to(dtype)
    full_sizes = measure_loaded(model)
    if quantization is not None:
        pytest.importorskip("bitsandbytes")
        quantize_decoder(model)
    trainable = TrainableConfig(**modes, lora=LoraConfig(r=4))
    set_trainable(model, trainable)
    if checkpointing:
        enable_gradient_checkpointing(model.module)
    waveforms = {clip: tone(1.9, 200.0 + 50 * clip, clip) for clip in range(6)}
    question = user_question("Which sound is this, and where was it recorded?")
    trees = []
    for clip, waveform in waveforms.items():
        prompt = conversation_path(model, question, [clip], [len(waveform)], generate=True)
        trees.append([prompt + answer_path(model, text) for text in ("a dog", "a cat in a house", "rain")])
    (micro_batch,) = build_micro_batches(model, EncoderCache(model), trees, waveforms, 100_000)
    states = micro_batch.encoder_states if trainable.encoder == "frozen" else {}
    masters = MasterWeights(model.module, {})
    optimizer = build_optimizer(model, OptimizerConfig(), sharded=False, trained=masters.trained)
    model.module.train()
    meter, policy = StorageMeter(), Policy(model)
    for value in (*model.module.parameters(), *model.module.buffers(), *masters.trained.values(), *states.values()):
        meter.add(value)
    with meter:
        for _ in range(2):
            for _ in range(2):
                policy(micro_batch.forest, states, micro_batch.waveforms).mean().neg().backward()
            optimizer.step()
            masters.round_to_module()
            optimizer.zero_grad()
    sizes = replace(full_sizes, encoder_shape=EncoderShape(6, 128, 512, 50.0), quantization=quantization)
    memory = estimate.training_memory(
        sizes, trainable, StageMemory(clips=len(waveforms)), dtype=str(dtype).removeprefix("torch."),
        pack_tokens=len(micro_batch.forest), gradient_checkpointing=checkpointing, clip_s=1.9,
    )  # fmt: skip
    assert memory.peak - estimate.LIBRARY_BYTES == pytest.approx(meter.peak, rel=0.15)


def test_lora_is_trained_on_four_bit_layers_and_becomes_an_adapter(tmp_path: Path) -> None:
    """Two stages, so that the second starts from the first one's adapter beside quantized layers."""
    pytest.importorskip("bitsandbytes")
    model = tiny_qwen2_audio(4)
    model.module.to(torch.bfloat16)
    model.save(tmp_path / "base")
    data = {"mixture": [{"manifest": "starter:train"}], "long_audio": "truncate"}
    shared: dict[str, Any] = {"data": data, "max_steps": 1, "optimizer": {"learning_rate": 1e-2}}
    shared["trainable"] = {"connector": "frozen", "lora": {"r": 2}}
    sft = shared | {"kind": "sft", "clips_per_step": 2, "name": "sft"}
    second = shared | {"kind": "sft", "clips_per_step": 2, "name": "again"}
    config = {"name": "qwen2_audio", "weights": str(tmp_path / "base"), "dtype": "bfloat16", "quantization": "nf4"}
    raw = {"recipe": "t", "model": config, "stages": [sft, second], "trackers": []}
    recipe = check_recipe(raw, "test")
    quantized = run.load_recipe_model(recipe)
    layer: Any = quantized.module.get_submodule("model.language_model.layers.0.mlp.up_proj")
    assert layer.weight.dtype == torch.uint8 and layer.weight.numel() == 48 * 32 // 2
    final = run.start(recipe, tmp_path / "run", Path())
    assert (final / "adapter_config.json").is_file() and not (final / "config.json").exists()
    assert base.load(str(final)).module is not None
    full = raw | {"stages": [sft | {"trainable": {"decoder": "full"}}]}
    with pytest.raises(ConfigError, match="4-bit layers are trained with LoRA only"):
        run.start(check_recipe(full, "test"), tmp_path / "full", Path())
