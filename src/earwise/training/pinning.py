"""Pins the models of a hub that a recipe names to the commit that is used; called when a run starts."""

from pathlib import Path

from earwise.config.recipe import Recipe
from earwise.models import detect, hub, registry


def pin_model(recipe: Recipe) -> Recipe:
    """The same recipe with the commit of every model that a hub gives, so that the record of a run names the weights
    that it started from and a resumed run gets the same ones. Fetches what is not in the cache.

    Raises:
        ModelError: if a model of a hub is neither in the cache nor can it be fetched.
    """
    model = recipe.model
    changes: dict[str, str] = {}
    if model.weights is None:
        published = detect.fetch_published(model.name)
        if published is not None:
            changes["weights" if registry.find(model.name) else "name"] = published.name
    elif not Path(model.weights).is_dir() and hub.is_hub_name(model.weights):
        changes["weights"] = hub.fetch(model.weights).name
    return recipe.model_copy(update={"model": model.model_copy(update=changes)}) if changes else recipe
