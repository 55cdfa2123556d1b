"""The declared table of model sizes against transformers' classes on the meta device, and the memory computed from it
against numbers by hand and against what autograd really keeps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from builders import ask, sound, tiny_qwen2_audio
from earwise.audio import AudioSpec
from earwise.config.stages import LoraConfig, SftStage, TrainableConfig
from earwise.errors import ModelError
from earwise.forest import Forest
from earwise.models.base import MODELS
from earwise.models.embedded import model as embedded
from earwise.models.families import mellow, qwen2_audio, salmonn
from earwise.models.memory import config_shapes, estimate
from earwise.models.memory.published_sizes import (
    ALIASES,
    FAMILIES,
    PUBLISHED,
    Decoder,
    Encoder,
    Sizes,
    default,
    of_family,
)
from earwise.models.parts import whisper
from earwise.models.parts.projector import LayerMix
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.train.batches import assemble
from earwise.train.policy import Policy
from earwise.train.trainable import prepare

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
    ears = {"num_layers": 16, "dim_head": 128, "output_dim": 256}
    projector = {"model_type": "blip_2_qformer", "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16}
    projector |= {"intermediate_size": 4096, "encoder_hidden_size": 1024, "cross_attention_frequency": 1}
    return transformers.GraniteSpeechConfig(
        text_config=text | {"hidden_size": width, "intermediate_size": ffn},
        encoder_config=ears,
        projector_config=projector,
    )


def released(weights: str) -> Any:
    """The config of a native family's release."""
    made = {
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
    }
    return made[weights]() if weights in made else None


def recomputed(sizes: Sizes) -> Sizes:
    """A row of the table from the classes themselves."""
    spec = AudioSpec(sizes.sample_rate, sizes.max_s, sizes.tokens_per_s)
    if (config := released(sizes.weights)) is not None:
        return config_shapes.of_native(sizes.family, config, sizes.weights, sizes.dtype)
    if sizes.family == "salmonn":
        size = "7B" if "7B" in sizes.weights else "13B"
        module: torch.nn.Module = salmonn.empty(salmonn.RELEASED[size])
        groups: Any = salmonn.GROUPS
    else:
        groups = {"encoder": ("encoder.",), "connector": ("connector.",), "decoder": ("decoder.",)}
        with torch.device("meta"):
            if sizes.family == "mellow":
                module = mellow.MellowModule(mellow.RELEASED)
            elif sizes.family == "qwen2_audio":
                config = transformers.Qwen2AudioConfig(text_config=QWEN_7B)
                module, groups = transformers.Qwen2AudioForConditionalGeneration(config), qwen2_audio.GROUPS
            else:
                text = transformers.LlamaConfig(
                    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                    num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
                )  # fmt: skip
                ears = {"encoder_layers": 6, "d_model": 512, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
                module = embedded.EmbeddedModule(
                    whisper.build_encoder(ears | {"num_mel_bins": 80, "max_source_positions": 1500}),
                    LayerMix(7, 512, 576, embedded.SUMMARY),
                    transformers.LlamaModel(text),
                )
    return config_shapes.of_parts(sizes.family, sizes.weights, module, groups, spec, sizes.dtype)


@pytest.mark.parametrize("sizes", PUBLISHED, ids=lambda sizes: sizes.weights)
def test_the_table_is_what_the_classes_have(sizes: Sizes) -> None:
    found = recomputed(sizes)
    assert (found.encoder, found.connector, found.decoder) == (sizes.encoder, sizes.connector, sizes.decoder)
    assert found.says == sizes.says
    assert found.sample_rate == sizes.sample_rate
    assert found.max_s == pytest.approx(sizes.max_s) and found.tokens_per_s == pytest.approx(sizes.tokens_per_s)


def test_every_family_is_in_the_table_and_the_smallest_comes_first() -> None:
    assert list(FAMILIES) == list(MODELS)
    assert {sizes.family for sizes in PUBLISHED} | set(ALIASES) == set(MODELS)
    for name in MODELS:
        found = of_family(name)
        assert [sizes.parameters for sizes in found] == sorted(sizes.parameters for sizes in found)
        assert default(name) in found
    assert of_family("no such") == () and default("no such") is None
    assert default("qwen25_omni") == of_family("qwen25_omni")[1]


TOY = Sizes(
    "toy", "toy", 1000, 100, 10_000, Encoder(2, 8, 16, 50.0), Decoder(2, 8, 2, 1, 4, 16, 50), 16000, 30.0, 10.0,
    dtype="bfloat16",
)  # fmt: skip


def test_memory_by_hand() -> None:
    lora = TrainableConfig(lora=LoraConfig(r=2, targets=("q_proj", "down_proj")))
    # LoRA: two layers of r 2 in q (8 -> 8) and down (16 -> 8)
    assert estimate.trained(TOY, lora) == {"encoder": 0, "connector": 100, "decoder": 2 * 2 * (16 + 24)}
    assert estimate.trained(TOY, TrainableConfig(encoder="full", decoder="full"))["decoder"] == 10_000
    need = estimate.training(TOY, lora, pack_tokens=10)
    weights = 11_100 * 2 + 100 * 2 + 160 * 4  # the connector in float32, LoRA beside the rest
    assert need.lasting["weights"] == weights
    assert need.lasting["gradients"] == 4 * 260 and need.lasting["optimizer"] == 8 * 260
    assert need.lasting["reference"] == 0
    # a layer: two residuals in float32; 3 ffn, q and the output of attention, k and v in bfloat16; LoRA's inputs
    # (8 and 16 wide) and its own narrow states in float32
    layer = 4 * 2 * 8 + 2 * (3 * 16 + 2 * 8 + 2 * 4) + 4 * (8 + 16) + 4 * 2 * 2
    assert need.phases["update"] == {"activations": 10 * (2 * layer + 4 * 8), "scores": 2 * 50 * 14}
    again = estimate.training(TOY, lora, pack_tokens=10, checkpoint=True)
    assert again.phases["update"]["activations"] == 10 * (2 * 2 * 8 + layer + 4 * 8)
    full = estimate.training(TOY, TrainableConfig(decoder="full"), dtype="float32", pack_tokens=10, reference=True)
    assert full.lasting["reference"] == full.lasting["gradients"] == 4 * 10_100
    assert full.peak == sum(full.parts.values()) and full.dominates == "libraries"
    here, there = (estimate.answering(TOY, dtype="float32", cpu=cpu) for cpu in (True, False))
    assert here.peak - there.peak == 4 * 10_000 and "packed weights" not in estimate.answering(TOY).parts


def test_only_the_worst_phase_counts() -> None:
    one = estimate.training(TOY, TrainableConfig(), pack_tokens=10, rollout=(100, 8, 64))
    assert set(one.phases) == {"update", "rollout"}
    trunk = round(10.0 * 10.0) + estimate.TRUNK
    assert one.phases["rollout"]["keys and values"] == 2 * 2 * 1 * 4 * 2 * 100 * (trunk + 8 * 64)
    assert "keys and values" in one.parts and "activations" not in one.parts
    assert one.peak == sum(one.lasting.values()) + sum(one.phases["rollout"].values())


def test_windows_are_heard_whole() -> None:
    (mini, _) = of_family("voxtral")
    assert [mini.heard_s(seconds) for seconds in (1.0, 30.0, 31.0)] == [30.0, 30.0, 60.0]
    assert of_family("qwen2_audio")[0].heard_s(4.0) == 4.0 and of_family("qwen2_audio")[0].heard_s(99.0) == 30.0


def packed(model: Any) -> Iterator[tuple[Policy, Any]]:
    from earwise.models.encoder_cache import EncoderCache

    waveforms = {k: sound(1.5, 200.0 + 50 * k, k) for k in range(3)}
    trees = []
    for k in waveforms:
        prompt = conversation_path(
            model, ask("Which sound is this, and where was it recorded?"), [k], [24000], generate=True
        )
        trees.append([prompt + answer_path(model, text) for text in ("a dog", "a cat in a house", "rain")])
    (micro,) = assemble(model, EncoderCache(model), trees, waveforms, 100_000)
    yield Policy(model), micro


@pytest.mark.parametrize("mode", ["lora", "full", "frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_autograd_keeps_is_what_the_planner_says(mode: Any, dtype: torch.dtype) -> None:
    """Every tensor that a real pass saves for its backward pass, storages counted once, within 10 percent."""
    model = tiny_qwen2_audio(0)
    model.module.to(dtype)
    trainable = TrainableConfig(decoder=mode, lora=LoraConfig(r=4))
    prepare(model, trainable)
    model.module.train()
    ((policy, micro),) = packed(model)
    own = {part.untyped_storage().data_ptr() for part in (*model.module.parameters(), *model.module.buffers())}
    seen: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy(micro.forest, micro.heard, micro.waveforms)
    forest: Forest = micro.forest
    shape = config_shapes.of_model(model).says
    size = 2 if dtype == torch.bfloat16 else 4
    tokens = len(forest)
    told = tokens * estimate._kept(shape, size, trainable, False) + 4 * len(forest.source_indices) * shape.vocab
    trees = [stop - start for start, stop in zip(forest.tree_offsets, forest.tree_offsets[1:], strict=False)]
    masks = shape.layers * size * sum(n * n for n in trees)  # left out by the planner, large in a tiny model
    found = sum(storage.nbytes() for storage in seen.values())
    assert found == pytest.approx(told + masks, rel=0.1)


def test_a_stage_of_a_recipe() -> None:
    stage = SftStage.model_validate(
        {"kind": "sft", "data": {"mixture": [{"manifest": "x"}]}, "max_steps": 1, "checkpoint_activations": True}
    )
    seven = of_family("qwen2_audio")[0]
    need = estimate.of_stage(seven, stage)
    assert need.dominates == "weights" and 17e9 < need.peak < 22e9
    plain = estimate.of_stage(seven, stage.model_copy(update={"checkpoint_activations": False}))
    assert plain.peak - need.peak > 6e9


def test_a_folder_is_measured_by_its_config(tmp_path: Path) -> None:
    model = tiny_qwen2_audio(0)
    model.save(tmp_path / "tiny")
    found = config_shapes.of_folder(tmp_path / "tiny")
    assert found.parameters == sum(p.numel() for p in model.module.parameters())
    assert (found.family, found.max_s, found.says.width) == ("qwen2_audio", 2.0, 32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no model"):
        config_shapes.of_folder(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "qwen2_audio", "text_config": 3}')
    with pytest.raises(ModelError, match="not a whole config"):
        config_shapes.of_folder(tmp_path / "empty")
    (tmp_path / "embedded").mkdir()
    (tmp_path / "embedded" / "earwise.json").write_text('{"family": "embedded"}')
    assert config_shapes.of_folder(tmp_path / "embedded").parameters == of_family("embedded")[0].parameters
