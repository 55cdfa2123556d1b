"""What `earwise models` says of a model, as plain values: sizes, limits, and the memory of its usual uses. No torch."""

from typing import Any

from earwise.config.stages import TrainableConfig
from earwise.models import registry
from earwise.models.memory.estimate import MemoryEstimate, answering_memory, training_memory
from earwise.models.memory.sizes import ModelSizes

GB = 1e9


def usual_memory(sizes: ModelSizes, dtype: str | None) -> dict[str, MemoryEstimate]:
    """Memory to answer one prompt about 30 s of audio, and to train LoRA or the whole decoder at 1024 packed tokens,
    without and with gradient checkpointing.

    Args:
        sizes: Sizes of the model.
        dtype: Dtype of the weights; None is the published one.
    """
    memory = {"answer": answering_memory(sizes, dtype=dtype)}
    for suffix, checkpointing in (("", False), (", checkpointed", True)):
        for mode in ("lora", "full"):
            trainable = TrainableConfig(decoder=mode)
            memory[f"{mode}{suffix}"] = training_memory(
                sizes, trainable, dtype=dtype, gradient_checkpointing=checkpointing
            )
    return memory


def describe_model(family: str, sizes: ModelSizes, dtype: str | None) -> dict[str, Any]:
    """The facts about one model.

    Args:
        family: Name of its family.
        sizes: Its sizes.
        dtype: Dtype of the weights for the memory; None is the published one.
    """
    shape = sizes.decoder_shape
    return {
        "family": family,
        "weights": sizes.weights,
        "dtype": dtype or sizes.dtype,
        "parameters": {
            "all": sizes.parameters, "encoder": sizes.encoder, "connector": sizes.connector, "decoder": sizes.decoder,
        },
        "sample_rate": sizes.sample_rate,
        "max_audio_s": round(sizes.max_audio_s, 2),
        "audio_tokens_per_s": sizes.audio_tokens_per_s,
        "window_s": sizes.window_s,
        "decoder": {
            "layers": shape.layers, "width": shape.width, "heads": shape.heads, "kv_heads": shape.kv_heads,
            "vocabulary": shape.vocabulary, "lora_target_modules": list(shape.lora_target_modules),
        },
        "memory_gb": {
            use: {"peak": round(memory.peak / GB, 2)}
            | {part: round(size / GB, 3) for part, size in memory.parts.items()}
            for use, memory in usual_memory(sizes, dtype).items()
        },
    }  # fmt: skip


def describe_families(dtype: str | None) -> dict[str, dict[str, Any]]:
    """Name of each family -> its summary (`about`) and the facts about its published models (`published`)."""
    families: dict[str, dict[str, Any]] = {}
    for family in registry.FAMILIES:
        name = family.variant_of or family.name
        published = [describe_model(name, sizes, dtype) for sizes in registry.sizes(family.name)]
        families[family.name] = {"about": family.summary, "published": published}
    return families
