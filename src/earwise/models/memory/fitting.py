"""What to change in a stage that does not fit into a machine's memory: settings, tried one after the other from cheap
to costly until the stage fits. No torch. Used by `plan.py`, which gives the function that computes the memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from earwise.config.stages import StageConfig
from earwise.models.memory.sizes import ModelSizes

GB = 1e9
WORTHWHILE = 0.98
"""A change that leaves more than this share of the memory is not worth advising."""
SMALLEST_PACK = 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """What the memory of a stage depends on and a recipe can change.

    Attributes:
        config: The stage's settings.
        sizes: Sizes of the model, with its quantization.
        dtype: Dtype of the weights; None is the published one.
        engine: How processes share the weights.
    """

    config: StageConfig
    sizes: ModelSizes
    dtype: str | None
    engine: str


def fitting_change(
    settings: Settings, processes: int, free_bytes: float, needed_bytes: Callable[[Settings], float]
) -> str:
    """The changes that make a stage fit, each on top of those before it; those that save nothing are left out.

    Args:
        settings: The stage as it is.
        processes: Number of processes.
        free_bytes: Free memory.
        needed_bytes: Computes the memory that a stage takes, in bytes.
    Returns:
        The settings to change, as `key: value` of a recipe; or that nothing helps, and how much is missing.
    """
    needed = needed_bytes(settings)
    changes: dict[str, str] = {}
    for key, change in _CHANGES:
        for value, changed in change(settings, processes):
            if needed <= free_bytes:
                break
            if (needed_then := needed_bytes(changed)) < WORTHWHILE * needed:
                settings, needed = changed, needed_then
                changes[key] = value
    text = ", ".join(f"{key}: {value}" for key, value in changes.items())
    if needed <= free_bytes:
        return text
    tried = f"; with {text} {(needed - free_bytes) / GB:.1f} GB are still missing" if text else ""
    return f"more GPUs under fsdp2, fewer prompts or clips per step, or a smaller model{tried}"


Change = Callable[[Settings, int], Iterator[tuple[str, Settings]]]
"""Yields the values of one setting that may help, from cheap to costly, each with the settings that it gives."""


def _with_config(settings: Settings, **changes: Any) -> Settings:
    return replace(settings, config=settings.config.model_copy(update=changes))


def _gradient_checkpointing(settings: Settings, processes: int) -> Iterator[tuple[str, Settings]]:
    if not settings.config.gradient_checkpointing:
        yield "true", _with_config(settings, gradient_checkpointing=True)


def _fsdp2(settings: Settings, processes: int) -> Iterator[tuple[str, Settings]]:
    if processes > 1 and settings.engine != "fsdp2":
        yield "fsdp2", replace(settings, engine="fsdp2")


def _dtype(settings: Settings, processes: int) -> Iterator[tuple[str, Settings]]:
    if (settings.dtype or settings.sizes.dtype) == "float32":
        yield "bfloat16", replace(settings, dtype="bfloat16")


def _pack_tokens(settings: Settings, processes: int) -> Iterator[tuple[str, Settings]]:
    pack_tokens = settings.config.pack_tokens
    while pack_tokens >= 2 * SMALLEST_PACK:
        pack_tokens //= 2
        yield str(pack_tokens), _with_config(settings, pack_tokens=pack_tokens)


def _optim(settings: Settings, processes: int) -> Iterator[tuple[str, Settings]]:
    optimizer = settings.config.optimizer
    if settings.engine != "fsdp2" and optimizer.optim == "adamw":
        yield "adamw_8bit", _with_config(settings, optimizer=optimizer.model_copy(update={"optim": "adamw_8bit"}))


def _trainable(settings: Settings, processes: int) -> Iterator[tuple[str, Settings]]:
    trainable = settings.config.trainable
    if trainable.decoder == "full" or trainable.encoder != "frozen":
        changed = trainable.model_copy(update={"encoder": "frozen", "decoder": "lora"})
        yield "{encoder: frozen, decoder: lora}", _with_config(settings, trainable=changed)


def _quantization(settings: Settings, processes: int) -> Iterator[tuple[str, Settings]]:
    if settings.sizes.quantization is None and settings.config.trainable.decoder == "lora":
        yield "nf4", replace(settings, sizes=replace(settings.sizes, quantization="nf4"))


_CHANGES: tuple[tuple[str, Change], ...] = (
    ("gradient_checkpointing", _gradient_checkpointing),
    ("engine", _fsdp2),
    ("model.dtype", _dtype),
    ("pack_tokens", _pack_tokens),
    ("optimizer.optim", _optim),
    ("trainable", _trainable),
    ("model.quantization", _quantization),
)
"""Setting -> values to try, in the order of what they cost."""
