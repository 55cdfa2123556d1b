"""Pins the models of a hub that a recipe names to the commit that is used; called when a run starts."""

from pathlib import Path
from typing import TypeVar

from earwise.config.kinds.gkd import GkdConfig, TeacherConfig
from earwise.config.recipe import ModelConfig, Recipe
from earwise.models import detect, hub, registry

Config = TypeVar("Config", ModelConfig, TeacherConfig)


def pin_model(recipe: Recipe) -> Recipe:
    """The same recipe with the commit of every model that a hub gives, so that the record of a run names the weights
    that it started from and a resumed run gets the same ones. Fetches what is not in the cache.

    Raises:
        ModelError: if a model of a hub is neither in the cache nor can it be fetched.
    """
    stages = tuple(
        stage.model_copy(update={"teacher": _pinned(stage.teacher)})
        if isinstance(stage, GkdConfig) and stage.teacher is not None
        else stage
        for stage in recipe.stages
    )
    return recipe.model_copy(update={"model": _pinned(recipe.model), "stages": stages})


def _pinned(model: Config) -> Config:
    """The same settings of a model with the commit that a hub gives."""
    changes: dict[str, str] = {}
    if model.weights is None:
        published = detect.fetch_published(model.name)
        if published is not None:
            changes["weights" if registry.find(model.name) else "name"] = published.name
    elif not Path(model.weights).is_dir() and hub.is_hub_name(model.weights):
        changes["weights"] = hub.fetch(model.weights).name
    return model.model_copy(update=changes)
