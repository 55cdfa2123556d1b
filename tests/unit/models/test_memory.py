"""The declared table of model sizes against transformers' classes on the meta device, and the memory computed from it
against numbers by hand and against what autograd really keeps."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from builders import tiny_qwen2_audio, tone, user_question
from earwise.audio import AudioSpec
from earwise.config.stages import LoraConfig, SftConfig, TrainableConfig
from earwise.errors import ModelError
from earwise.forest import Forest
from earwise.models import registry
from earwise.models.base import EmptyModel
from earwise.models.embedded import model as embedded
from earwise.models.encoder_cache import EncoderCache
from earwise.models.families import mellow, qwen2_audio, salmonn
from earwise.models.families.transformers_audio import empty_of_config
from earwise.models.memory import estimate
from earwise.models.memory.measured_sizes import measure, measure_folder, measure_loaded
from earwise.models.memory.plan import Machine, PlannedStage, process_memory
from earwise.models.memory.sizes import DecoderShape, EncoderShape, ModelSizes
from earwise.models.memory.stage_memory import RolloutSize, StageMemory
from earwise.models.parts import whisper
from earwise.models.parts.projector import LayerMix
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.training.batches import build_micro_batches
from earwise.training.policy import Policy
from earwise.training.trainable import set_trainable

# The released configs, as far as they differ from transformers' defaults and matter for sizes.
QWEN2_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 151672,
}  # fmt: skip
QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 156032,
}  # fmt: skip
OMNI_3B = {
    "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
    "num_key_value_heads": 2, "vocab_size": 151936,
}  # fmt: skip
OMNI_30B = {
    "vocab_size": 152064, "hidden_size": 2048, "intermediate_size": 768, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 4096, "short_factor": [1.0] * 48, "long_factor": [1.0] * 48,
}  # fmt: skip


def voxtral(**sizes: int) -> Any:
    text = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072}
    text |= {"model_type": "llama", "max_position_embeddings": 131072}
    return transformers.VoxtralConfig(text_config=text | sizes)


def granite(width: int, ffn: int) -> Any:
    text = {"model_type": "granite", "vocab_size": 49160, "num_hidden_layers": 40, "num_attention_heads": 32}
    text |= {"num_key_value_heads": 8, "tie_word_embeddings": True, "max_position_embeddings": 131072}
    encoder = {"num_layers": 16, "dim_head": 128, "output_dim": 256}
    projector = {"model_type": "blip_2_qformer", "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16}
    projector |= {"intermediate_size": 4096, "encoder_hidden_size": 1024, "cross_attention_frequency": 1}
    return transformers.GraniteSpeechConfig(
        text_config=text | {"hidden_size": width, "intermediate_size": ffn},
        encoder_config=encoder,
        projector_config=projector,
    )


def gemma4(period: int, **sizes: Any) -> Any:
    """Every `period`-th layer has full attention."""
    kinds = [
        "full_attention" if layer % period == period - 1 else "sliding_attention"
        for layer in range(sizes["num_hidden_layers"])
    ]
    text = {"num_attention_heads": 8, "final_logit_softcapping": 30.0, "layer_types": kinds, **sizes}
    return transformers.Gemma4Config(text_config=text, audio_config={}, vision_config={})


def released_config(weights: str) -> Any:
    """The config of a published checkpoint over a transformers class; None for other families."""
    configs = {
        "Qwen/Qwen2.5-Omni-3B": lambda: transformers.Qwen2_5OmniThinkerConfig(
            text_config=OMNI_3B, audio_config={"output_dim": 2048}
        ),
        "Qwen/Qwen2.5-Omni-7B": lambda: transformers.Qwen2_5OmniThinkerConfig(),
        "Qwen/Qwen3-Omni-30B-A3B-Instruct": lambda: transformers.Qwen3OmniMoeThinkerConfig(
            text_config=OMNI_30B, audio_config={"output_dim": 2048}
        ),
        "nvidia/audio-flamingo-3-hf": lambda: transformers.AudioFlamingo3Config(text_config=QWEN2_7B),
        "mistralai/Voxtral-Mini-3B-2507": lambda: voxtral(
            hidden_size=3072, intermediate_size=8192, num_hidden_layers=30
        ),
        "mistralai/Voxtral-Small-24B-2507": lambda: voxtral(
            hidden_size=5120, intermediate_size=32768, num_hidden_layers=40
        ),
        "ibm-granite/granite-speech-3.3-2b": lambda: granite(2048, 8192),
        "ibm-granite/granite-speech-3.3-8b": lambda: granite(4096, 12800),
        "microsoft/Phi-4-multimodal-instruct": lambda: transformers.Phi4MultimodalConfig(
            num_attention_heads=24, tie_word_embeddings=True, rope_parameters=LONGROPE
        ),
        "google/gemma-3n-E2B-it": lambda: transformers.Gemma3nConfig(
            text_config={"intermediate_size": 8192, "num_hidden_layers": 30, "num_kv_shared_layers": 10}
        ),
        "google/gemma-3n-E4B-it": lambda: transformers.Gemma3nConfig(),
        "nvidia/audio-flamingo-next-hf": lambda: transformers.MusicFlamingoConfig(
            audio_config={"model_type": "audioflamingo3_encoder"}, text_config=QWEN2_7B
        ),
        "google/gemma-4-E2B-it": lambda: gemma4(
            5,
            hidden_size=1536,
            intermediate_size=6144,
            num_hidden_layers=35,
            num_key_value_heads=1,
            num_kv_shared_layers=20,
            use_double_wide_mlp=True,
        ),
        "google/gemma-4-E4B-it": lambda: gemma4(
            6,
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=42,
            num_key_value_heads=2,
            num_kv_shared_layers=18,
        ),
    }
    return configs[weights]() if weights in configs else None


def published_models() -> list[tuple[str, ModelSizes]]:
    """Every published model with its family."""
    return [(family.name, sizes) for family in registry.FAMILIES for sizes in family.sizes]


def empty_model(family: str, sizes: ModelSizes) -> EmptyModel:
    """The model of a row of the table, built from the classes themselves on the meta device."""
    if (config := released_config(sizes.weights)) is not None:
        module_name = registry.get(family).loader.partition(":")[0]
        return empty_of_config(importlib.import_module(module_name).ARCHITECTURE, config)
    spec = AudioSpec(sizes.sample_rate, sizes.max_audio_s, sizes.audio_tokens_per_s)
    if family == "salmonn":
        size = "7B" if "7B" in sizes.weights else "13B"
        return EmptyModel(salmonn.empty_module(salmonn.RELEASED[size]), salmonn.PARAMETER_PREFIXES, spec)
    with torch.device("meta"):
        if family == "mellow":
            return EmptyModel(mellow.MellowModule(mellow.RELEASED), mellow.PARAMETER_PREFIXES, spec)
        if family == "qwen2_audio":
            config = transformers.Qwen2AudioConfig(text_config=QWEN_7B)
            module = transformers.Qwen2AudioForConditionalGeneration(config)
            return EmptyModel(module, qwen2_audio.PARAMETER_PREFIXES, spec)
        text = transformers.LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        )  # fmt: skip
        encoder = {"encoder_layers": 6, "d_model": 512, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
        module = embedded.EmbeddedModule(
            whisper.WhisperEncoder(encoder | {"num_mel_bins": 80, "max_source_positions": 1500}),
            LayerMix(7, 512, 576, embedded.SUMMARY),
            transformers.LlamaModel(text),
        )
    prefixes = {"encoder": ("encoder.",), "connector": ("connector.",), "decoder": ("decoder.",)}
    return EmptyModel(module, prefixes, spec)


@pytest.mark.parametrize(
    ("family", "sizes"), published_models(), ids=[sizes.weights for _, sizes in published_models()]
)
def test_the_table_equals_the_classes(family: str, sizes: ModelSizes) -> None:
    measured = measure(empty_model(family, sizes), family, sizes.weights, sizes.dtype)
    assert (measured.encoder, measured.connector, measured.decoder) == (sizes.encoder, sizes.connector, sizes.decoder)
    assert measured.decoder_shape == sizes.decoder_shape
    assert measured.sample_rate == sizes.sample_rate
    assert measured.max_audio_s == pytest.approx(sizes.max_audio_s)
    assert measured.audio_tokens_per_s == pytest.approx(sizes.audio_tokens_per_s)


def test_every_family_has_sizes_and_the_smallest_comes_first() -> None:
    for name in registry.names():
        published = registry.sizes(name)
        assert [sizes.parameters for sizes in published] == sorted(sizes.parameters for sizes in published)
        assert registry.default_sizes(name) in published
    assert registry.sizes("no such") == () and registry.default_sizes("no such") is None
    assert registry.default_sizes("qwen25_omni") == registry.sizes("qwen25_omni")[1]


TOY = ModelSizes(
    "toy", 1000, 100, 10_000, EncoderShape(2, 8, 16, 50.0), DecoderShape(2, 8, 2, 1, 4, 16, 50), 16000, 30.0, 10.0,
    dtype="bfloat16",
)  # fmt: skip


def test_memory_by_hand() -> None:
    lora = TrainableConfig(lora=LoraConfig(r=2, target_modules=("q_proj", "down_proj")))
    # LoRA: two layers of r 2 in q (8 -> 8) and down (16 -> 8)
    assert estimate.trained_parameters(TOY, lora) == {"encoder": 0, "connector": 100, "decoder": 2 * 2 * (16 + 24)}
    everything = TrainableConfig(encoder="full", decoder="full")
    assert estimate.trained_parameters(TOY, everything)["decoder"] == 10_000
    memory = estimate.training_memory(TOY, lora, pack_tokens=10)
    weights = 11_100 * 2 + 100 * 2 + 160 * 4  # the connector in float32, LoRA beside the other weights
    assert memory.permanent["weights"] == weights
    assert memory.permanent["gradients"] == 4 * 260 and memory.permanent["optimizer"] == 8 * 260
    assert memory.permanent["reference"] == 0
    # a layer: two residuals in float32; 3 ffn, q and the output of attention, k and v in bfloat16; LoRA's inputs
    # (8 and 16 wide) and its own low-rank states in float32
    layer = 4 * 2 * 8 + 2 * (3 * 16 + 2 * 8 + 2 * 4) + 4 * (8 + 16) + 4 * 2 * 2
    assert memory.phases["update"] == {"activations": 10 * (2 * layer + 4 * 8), "scores": 2 * 50 * 14}
    recomputing = estimate.training_memory(TOY, lora, pack_tokens=10, gradient_checkpointing=True)
    assert recomputing.phases["update"]["activations"] == 10 * (2 * 2 * 8 + layer + 4 * 8)
    with_reference = StageMemory(keeps_reference=True)
    full = estimate.training_memory(
        TOY, TrainableConfig(decoder="full"), with_reference, dtype="float32", pack_tokens=10
    )
    assert full.permanent["reference"] == full.permanent["gradients"] == 4 * 10_100
    assert full.peak == sum(full.parts.values()) and full.largest_part == "libraries"
    on_cpu, on_gpu = (estimate.answering_memory(TOY, dtype="float32", cpu=cpu) for cpu in (True, False))
    assert on_cpu.peak - on_gpu.peak == 4 * 10_000
    assert "packed weights" not in estimate.answering_memory(TOY).parts


def test_copies_in_lower_precision_by_hand() -> None:
    in_layers, head = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16), 50 * 8
    exact = sum(estimate.answering_memory(TOY, dtype="float32", cpu=False).permanent.values())
    for compute, number in (("bfloat16", 2), ("int8", 1)):
        packed = estimate.answering_memory(TOY, dtype="float32", compute=compute)
        assert sum(packed.permanent.values()) == exact - (4 - number) * in_layers + number * head
    lora, full = TrainableConfig(decoder="lora"), TrainableConfig(encoder="full", decoder="full")
    stage = StageMemory(rollout=RolloutSize(prompts=1, group_size=2, max_new_tokens=4))
    trained = [estimate.training_memory(TOY, lora, stage, dtype="float32", compute=c) for c in ("float32", "auto")]
    assert trained[1].permanent["bfloat16 copies"] == 2 * 2 * in_layers + 2 * 1000
    assert trained[0].permanent["bfloat16 copies"] == 0
    assert [memory.permanent["packed weights"] for memory in trained] == [40_000, 20_000]
    for options in ({"dtype": "float32", "cpu": False}, {"dtype": "bfloat16"}):
        assert estimate.training_memory(TOY, lora, compute="auto", **options).permanent["bfloat16 copies"] == 0
    assert estimate.training_memory(TOY, full, dtype="float32", compute="auto").permanent["bfloat16 copies"] == 0


def test_only_the_largest_phase_counts() -> None:
    stage = StageMemory(rollout=RolloutSize(prompts=100, group_size=8, max_new_tokens=64))
    memory = estimate.training_memory(TOY, TrainableConfig(), stage, pack_tokens=10)
    assert set(memory.phases) == {"update", "rollout"}
    prompt_tokens = round(10.0 * 10.0) + estimate.PROMPT_TEXT_TOKENS
    assert memory.phases["rollout"]["keys and values"] == 2 * 2 * 1 * 4 * 2 * 100 * (prompt_tokens + 8 * 64)
    assert "keys and values" in memory.parts and "activations" not in memory.parts
    assert memory.peak == sum(memory.permanent.values()) + sum(memory.phases["rollout"].values())


def test_windows_are_encoded_whole() -> None:
    (mini, _) = registry.sizes("voxtral")
    assert [mini.encoded_s(seconds) for seconds in (1.0, 30.0, 31.0)] == [30.0, 30.0, 60.0]
    (qwen,) = registry.sizes("qwen2_audio")
    assert qwen.encoded_s(4.0) == 4.0 and qwen.encoded_s(99.0) == 30.0


def one_micro_batch(model: Any) -> Any:
    """Three trees of three answers each, about clips of 1.5 s."""
    waveforms = {clip: tone(1.5, 200.0 + 50 * clip, clip) for clip in range(3)}
    trees = []
    question = user_question("Which sound is this, and where was it recorded?")
    for clip in waveforms:
        prompt = conversation_path(model, question, [clip], [24000], generate=True)
        trees.append([prompt + answer_path(model, text) for text in ("a dog", "a cat in a house", "rain")])
    (micro_batch,) = build_micro_batches(model, EncoderCache(model), trees, waveforms, 100_000)
    return micro_batch


@pytest.mark.parametrize("mode", ["lora", "full", "frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_autograd_keeps_is_what_the_planner_says(mode: Any, dtype: torch.dtype) -> None:
    """Every tensor that a real pass saves for its backward pass, storages counted once, within 10 percent."""
    model = tiny_qwen2_audio(0)
    model.module.to(dtype)
    trainable = TrainableConfig(decoder=mode, lora=LoraConfig(r=4))
    set_trainable(model, trainable)
    model.module.train()
    policy, micro_batch = Policy(model), one_micro_batch(model)
    weights = {part.untyped_storage().data_ptr() for part in (*model.module.parameters(), *model.module.buffers())}
    saved: dict[int, Any] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        policy(micro_batch.forest, micro_batch.encoder_states, micro_batch.waveforms)
    forest: Forest = micro_batch.forest
    shape = measure_loaded(model).decoder_shape
    number_bytes = 2 if dtype == torch.bfloat16 else 4
    activations = len(forest) * estimate._activation_bytes(shape, number_bytes, trainable, False)
    scores = 4 * len(forest.source_indices) * shape.vocabulary
    tree_lengths = [stop - start for start, stop in zip(forest.tree_offsets, forest.tree_offsets[1:], strict=False)]
    # left out by the planner, large in a tiny model
    masks = shape.layers * number_bytes * sum(length * length for length in tree_lengths)
    saved_bytes = sum(storage.nbytes() for storage in saved.values())
    assert saved_bytes == pytest.approx(activations + scores + masks, rel=0.1)


def test_a_stage_of_a_recipe() -> None:
    stage = SftConfig.model_validate(
        {"kind": "sft", "data": {"mixture": [{"manifest": "x"}]}, "max_steps": 1, "gradient_checkpointing": True}
    )
    (qwen,) = registry.sizes("qwen2_audio")
    machine = Machine("this machine", None, is_gpu=False)
    checkpointed = process_memory(qwen, PlannedStage(stage, StageMemory(), {}), machine)
    assert checkpointed.largest_part == "weights" and 17e9 < checkpointed.peak < 22e9
    stage = stage.model_copy(update={"gradient_checkpointing": False})
    stored = process_memory(qwen, PlannedStage(stage, StageMemory(), {}), machine)
    assert stored.peak - checkpointed.peak > 6e9


def test_a_folder_is_measured_by_its_config(tmp_path: Path) -> None:
    model = tiny_qwen2_audio(0)
    model.save(tmp_path / "tiny")
    family, sizes = measure_folder(tmp_path / "tiny")
    assert sizes.parameters == sum(parameter.numel() for parameter in model.module.parameters())
    assert (family, sizes.max_audio_s, sizes.decoder_shape.width) == ("qwen2_audio", 2.0, 32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no model"):
        measure_folder(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "qwen2_audio", "text_config": 3}')
    with pytest.raises(ModelError, match="not a whole config"):
        measure_folder(tmp_path / "empty")
    (tmp_path / "embedded").mkdir()
    (tmp_path / "embedded" / "earwise.json").write_text('{"family": "embedded"}')
    assert measure_folder(tmp_path / "embedded")[1].parameters == registry.sizes("embedded")[0].parameters
