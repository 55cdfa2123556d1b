"""A device without memory left: one line that says what to change, in place of a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from earwise.config.stages import GrpoConfig, StageConfig
from earwise.errors import ModelError, is_out_of_memory


@contextmanager
def explain_out_of_memory(stage: str, config: StageConfig) -> Iterator[None]:
    """Turn an error inside the block that a full memory caused, the GPU's or the machine's, into a ModelError with
    remedies.

    Args:
        stage: Name of the stage's folder.
        config: Settings of the stage.
    Raises:
        ModelError: naming, for the settings as they are, what needs less memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        place = "the GPU's" if isinstance(error, torch.OutOfMemoryError) else "this machine's"
        raise ModelError(
            f"{stage}: {place} memory is full ({' '.join(str(error).split())[:120] or 'MemoryError'}); finished steps "
            f"are kept. {remedies(config)}; then --resume"
        ) from error


def remedies(config: StageConfig) -> str:
    """What needs less memory than the settings as they are, the most useful change first."""
    changes = []
    if not config.gradient_checkpointing:
        changes.append("gradient_checkpointing: true")
    if config.pack_tokens > 1024:
        changes.append(f"pack_tokens below {config.pack_tokens}")
    if config.trainable.encoder == "full":
        changes.append("trainable.encoder: frozen")
    if config.trainable.decoder == "full":
        changes.append("trainable.decoder: lora")
    if isinstance(config, GrpoConfig):
        changes.append("fewer prompts_per_step, or a shorter max_new_tokens")
    changes.append("several GPUs with the launch configuration fsdp2")
    return f"In the run's recipe.json set, in this order, {', '.join(changes)} (earwise train --plan shows the need)"
