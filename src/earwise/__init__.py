"""earwise: build data for, train, evaluate and serve audio-language models that reason about what they hear.

The names below are the library's front door. Each is imported when it is first used, so that `import earwise` itself
loads neither torch nor numpy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from earwise.api import evaluate, resume, train
    from earwise.apps.recipe_run import TrainOptions
    from earwise.audio_model import Answer, AudioModel, load
    from earwise.config.recipe import load_recipe
    from earwise.data.manifest import read as read_manifest
    from earwise.engine.base import SamplingParams
    from earwise.evaluation.run import EvalOptions
    from earwise.types import Example

_EXPORTS = {
    "Answer": "earwise.audio_model:Answer",
    "AudioModel": "earwise.audio_model:AudioModel",
    "EvalOptions": "earwise.evaluation.run:EvalOptions",
    "Example": "earwise.types:Example",
    "SamplingParams": "earwise.engine.base:SamplingParams",
    "TrainOptions": "earwise.apps.recipe_run:TrainOptions",
    "evaluate": "earwise.api:evaluate",
    "load": "earwise.audio_model:load",
    "load_recipe": "earwise.config.recipe:load_recipe",
    "read_manifest": "earwise.data.manifest:read",
    "resume": "earwise.api:resume",
    "train": "earwise.api:train",
}
"""Public name -> `module:attribute` that it is imported from."""

__all__ = [
    "Answer",
    "AudioModel",
    "EvalOptions",
    "Example",
    "SamplingParams",
    "TrainOptions",
    "evaluate",
    "load",
    "load_recipe",
    "read_manifest",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'earwise' has no attribute {name!r}")
    module, _, attribute = _EXPORTS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
