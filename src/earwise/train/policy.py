"""A model as one `forward`, so that accelerate (DDP, FSDP, DeepSpeed) can wrap it: packed forest in, log-probabilities
out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from earwise.errors import ModelError
from earwise.forest import (
    Forest,
    TokenPath,
    branch_logprobs,
    build_tree,
    insert_audio_embeddings,
    pack,
    target_logprobs,
)
from earwise.models.base import AudioLM
from earwise.models.parts.attention import TreeAttention
from earwise.types import Waveform


@dataclass(slots=True)
class Micro:
    """One forward pass: trees, what the encoder heard (or the waveforms, if it is trained), and what the loss needs
    per branch.

    Attributes:
        paths: The paths of each tree, for the one-by-one check.
        forest: The trees, packed.
        heard: Clip number -> output of `model.encode_audio`; empty while the encoder is trained.
        waveforms: Clip number -> waveform.
        extra: Named tensors for the loss, one row per branch or one value per branch token.
    """

    paths: list[list[TokenPath]]
    forest: Forest
    heard: dict[int, Tensor]
    waveforms: dict[int, Waveform]
    extra: dict[str, Tensor] = field(default_factory=dict)


class Policy(nn.Module):
    """`model` behind one forward call; parameters are the model's own."""

    def __init__(self, model: AudioLM) -> None:
        super().__init__()
        self.module = model.module
        self._model = model

    def forward(
        self, forest: Forest, heard: Mapping[int, Tensor], waveforms: Mapping[int, Waveform]
    ) -> Float[Tensor, "branches tokens"]:
        """Log-probabilities (nats) of the trained tokens of every branch, 0 at padding."""
        clips = sorted(set(forest.audio_clips))
        if heard:
            outputs = [heard[clip] for clip in clips]
        else:
            outputs = self._model.encode_audio([waveforms[clip] for clip in clips]) if clips else []
        connected = dict(zip(clips, self._model.project_audio(outputs), strict=True)) if clips else {}
        embeddings = insert_audio_embeddings(self._model.embed(forest.ids), forest, connected)
        hidden = self._model.decode(embeddings, forest.positions, TreeAttention(forest))
        return branch_logprobs(target_logprobs(hidden, forest, self._model.logits), forest)


FOREST_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.5}
"""Largest difference (nats a token) that rounding alone makes between two ways through a model of this dtype; a token
that sees what it must not is off by several."""


@torch.no_grad()
def check_forest(policy: Policy, micro: Micro, *, tolerance: float) -> float:
    """Compare the first tree's log-probabilities with the same paths run one by one.

    Returns:
        The largest difference (nats).
    Raises:
        ModelError: if it is over `tolerance`: then this model or its attention does not honour the forest.
    """
    shared = policy(micro.forest, micro.heard, micro.waveforms)
    worst = 0.0
    for row, path in enumerate(micro.paths[0]):
        alone = pack([build_tree([path])], micro.forest.ids.device)
        single = policy(alone, micro.heard, micro.waveforms)[0]
        worst = max(worst, float((shared[row, : len(single)] - single).abs().max()) if len(single) else 0.0)
    if not worst <= tolerance:
        raise ModelError(
            f"the forest differs from the one-by-one run by {worst:.2e} nats (limit {tolerance:.0e}); "
            "run `earwise doctor` on this model"
        )
    return worst


@torch.no_grad()
def check_hearing(policy: Policy, micro: Micro, silent: Mapping[int, Tensor]) -> float:
    """Mean change of the trained tokens' log-probability when every clip is silenced (nats per token).

    Raises:
        ModelError: if nothing at all changes: then audio does not reach the loss.
    """
    if not micro.forest.audio_clips:
        return 0.0
    real = policy(micro.forest, micro.heard, micro.waveforms)
    quiet = {clip: wave * 0 for clip, wave in micro.waveforms.items()}
    blind = policy(micro.forest, silent, quiet)
    if torch.equal(real, blind):
        raise ModelError(
            "the loss is the same under silence: the model trains deaf; check the placeholders and the connector"
        )
    count = micro.forest.loss_mask.sum().clamp_min(1)
    return float((real - blind).sum() / count)
