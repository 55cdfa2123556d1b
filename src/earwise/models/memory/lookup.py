"""Sizes of a model by the name that `--model` or a recipe gives it: declared ones, or measured ones.

Declared sizes need no torch; a folder or a user's own model imports it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earwise.errors import ModelError
from earwise.models import hub, registry
from earwise.models.memory.sizes import ModelSizes

if TYPE_CHECKING:
    from earwise.models.base import AudioLM


def find_sizes(model: str, load: "Callable[[str], AudioLM]") -> tuple[str, tuple[ModelSizes, ...]]:
    """The family of a model, and the sizes of its published checkpoints or of the one that `model` names.

    Args:
        model: Name of a family, a checkpoint's folder, a model of a hub (only its config is fetched, and only if it is
            none of those that are declared), or `module:function`.
        load: Loads a `module:function`, which can only be measured when it is loaded.
    Raises:
        ModelError: if there is no such model, or its sizes cannot be found.
    """
    if Path(model).is_dir():
        from earwise.models.memory.measured_sizes import measure_folder

        family, sizes = measure_folder(Path(model))
        return family, (sizes,)
    if hub.is_hub_name(model):
        repository = hub.split_name(model)[0]
        published = registry.family_of_published(repository)
        if published:
            return published, tuple(sizes for sizes in registry.sizes(published) if sizes.is_of(repository))
        from earwise.models.memory.measured_sizes import measure_folder

        family, sizes = measure_folder(hub.fetch(model, files=hub.CONFIG_FILES).folder)
        return family, (replace(sizes, weights=model),)
    family_row = registry.base_family(model)
    if family_row is not None and family_row.sizes:
        return family_row.name, family_row.sizes
    if registry.find(model) is not None:
        raise ModelError(
            f"family {model!r} declares no sizes in models/registry.py; give a checkpoint folder: earwise models FOLDER"
        )
    if ":" not in model:
        raise ModelError(
            f"model {model!r} is none of {', '.join(registry.names())}; or give a checkpoint folder or file.py:function"
        )
    from earwise.models.memory.measured_sizes import measure_loaded

    loaded = load(model)
    return loaded.name, (measure_loaded(loaded),)


def declared_sizes(name: str, weights: str | None) -> ModelSizes | None:
    """Sizes of a published model that are declared, without loading or fetching anything; None if there are none.

    Args:
        name: The recipe's `model.name`.
        weights: The recipe's `model.weights`.
    """
    if weights is not None and not Path(weights).is_dir() and hub.is_hub_name(weights):
        repository = hub.split_name(weights)[0]
        published = registry.family_of_published(repository)
        return next((sizes for sizes in registry.sizes(published or "") if sizes.is_of(repository)), None)
    return registry.default_sizes(name)


def starting_sizes(
    name: str, weights: str | None, connector: Mapping[str, Any] | None, load: "Callable[[str], AudioLM]"
) -> ModelSizes:
    """Sizes of the model that a recipe starts from.

    Args:
        name: The recipe's `model.name`.
        weights: The recipe's `model.weights`.
        connector: The untrained connector that the recipe builds (`model.connector`); None for the family's own.
        load: See `find_sizes`.
    Raises:
        ModelError: if the model is unknown.
    """
    if weights is not None and (Path(weights).is_dir() or hub.is_hub_name(weights)):
        return find_sizes(weights, load)[1][0]
    sizes = registry.default_sizes(name) or find_sizes(name, load)[1][0]
    if connector is None:
        return sizes
    from earwise.models.embedded.connector import parse_connector_spec
    from earwise.models.memory.measured_sizes import with_connector

    return with_connector(sizes, parse_connector_spec(connector))
