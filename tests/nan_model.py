"""A tiny model that returns NaN where it is trained on a certain text, for tests of what a run does then."""

from pathlib import Path

import torch

from builders import tiny_qwen2_audio
from earwise.models.families.qwen2_audio import Qwen2Audio

NAN_MODEL = "nan_model:load"
"""Name of the model in recipes."""
NAN_TEXT = "~~"
"""Text that makes the model return NaN; two characters, since a policy may sample a single one."""


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """The model: returns NaN wherever it is trained on a text that contains `NAN_TEXT`."""
    model = tiny_qwen2_audio(3)
    nan_token, _ = model.tokenizer.encode(NAN_TEXT)

    def return_nan(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        is_nan_token = inputs[0] == nan_token
        contains_text = bool((is_nan_token[:-1] & is_nan_token[1:]).any())
        return output * float("nan") if model.module.training and contains_text else output

    model.module.model.language_model.embed_tokens.register_forward_hook(return_nan)
    return model
