"""Refuses a run that does not fit into the memory of the GPU that it would be trained on, before anything is loaded.

Called by `training/run.py` at the start of a run. On a CPU nothing is refused: its memory can be swapped, and what is
free says little of what can be had.
"""

from dataclasses import replace

from earwise.config.recipe import Recipe
from earwise.errors import ConfigError
from earwise.models.memory.lookup import declared_sizes
from earwise.models.memory.plan import Machine, PlannedStage, plan_stages
from earwise.training.stages.table import stage_class


def check_quantized_stages(recipe: Recipe) -> None:
    """Refuse a stage that trains a decoder in full whose layers are held in 4 bits.

    Raises:
        ConfigError: naming the stage.
    """
    for number, stage in enumerate(recipe.stages):
        if recipe.model.quantization is not None and stage.trainable.decoder != "lora":
            raise ConfigError(
                f"model.quantization {recipe.model.quantization}: stage {stage.name or number} has trainable.decoder "
                f"{stage.trainable.decoder}, but 4-bit layers are trained with LoRA only; set it to lora"
            )


def check_memory(recipe: Recipe, machine: Machine) -> None:
    """Check every stage of a recipe whose model's sizes are declared.

    Args:
        recipe: Resolved recipe.
        machine: The GPU, with its free memory and the number of processes.
    Raises:
        ConfigError: naming the first stage that does not fit, what it needs, and the settings that make it fit.
    """
    sizes = declared_sizes(recipe.model.name, recipe.model.weights)
    if not machine.is_gpu or sizes is None:
        return
    sizes = replace(sizes, quantization=recipe.model.quantization)
    stages = [PlannedStage(stage, stage_class(stage).memory(stage, machine.processes), {}) for stage in recipe.stages]
    for plan in plan_stages(sizes, stages, machine, dtype=recipe.model.dtype):
        if plan.fits is False:
            raise ConfigError(
                f"stage {plan.stage} needs about {plan.needed_gb:.1f} GB, {machine.name} has "
                f"{(machine.free_bytes or 0) / 1e9:.1f} GB free; set {plan.advice}"
            )
