"""earwise: build data for, train, evaluate and serve audio-language models that listen and reason.

The names below are the library's front door; importing the package itself loads none of the heavy ones.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from earwise.audio import decode
    from earwise.config.recipe import load_recipe
    from earwise.data.manifest import read as read_manifest
    from earwise.engine.base import Prompt, SamplingParams
    from earwise.engine.local import LocalEngine
    from earwise.engine.question import ask
    from earwise.models.base import load as load_model
    from earwise.types import Example

_FRONT = {
    "SamplingParams": "earwise.engine.base:SamplingParams",
    "Example": "earwise.types:Example",
    "LocalEngine": "earwise.engine.local:LocalEngine",
    "Prompt": "earwise.engine.base:Prompt",
    "ask": "earwise.engine.question:ask",
    "decode": "earwise.audio:decode",
    "load_model": "earwise.models.base:load",
    "load_recipe": "earwise.config.recipe:load_recipe",
    "read_manifest": "earwise.data.manifest:read",
}
__all__ = [
    "SamplingParams",
    "Example",
    "LocalEngine",
    "Prompt",
    "ask",
    "decode",
    "load_model",
    "load_recipe",
    "read_manifest",
]


def __getattr__(name: str) -> Any:
    if name not in _FRONT:
        raise AttributeError(f"module 'earwise' has no attribute {name!r}")
    module, _, attribute = _FRONT[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
