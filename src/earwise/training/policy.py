"""The policy: a model behind one `forward` call, and the two checks that run before the first training step.

One call takes a packed forest (`earwise.forest`) with the encoder states or waveforms of its clips, and returns the
log-probabilities of the trained tokens, so that accelerate can wrap it (DDP, FSDP2). `MicroBatch` holds the arguments
of such a call and what the loss of the stage needs beside the log-probabilities.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, TypeVar

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
    target_scores,
)
from earwise.models.base import AudioLM
from earwise.models.parts.attention import TreeAttention, eager_attention
from earwise.models.precision.compute import plan_of
from earwise.training.distillation.divergence import TeacherTargets, token_divergences
from earwise.types import Waveform

Inputs = TypeVar("Inputs")
NewInputs = TypeVar("NewInputs")


@dataclass(frozen=True, slots=True)
class MicroBatch(Generic[Inputs]):
    """The input of one forward pass and of the loss computed from it.

    Attributes:
        paths: The token paths of each tree; `check_forest` runs those of the first tree one by one.
        forest: The trees, packed.
        encoder_states: Clip number -> encoder output; empty while the encoder is trained.
        waveforms: Clip number -> waveform.
        loss_inputs: What the stage's loss needs beside the log-probabilities; each stage has a dataclass for it.
        temperature: Temperature of the log-probabilities: that of sampling, where the policy has sampled the tokens.
        log_entropy: Whether the entropy of the policy at the trained tokens is logged.
        teacher_targets: A teacher's side, in distillation: the loss is then given divergences from it in place of
            log-probabilities.
    """

    paths: list[list[TokenPath]]
    forest: Forest
    encoder_states: dict[int, Tensor]
    waveforms: dict[int, Waveform]
    loss_inputs: Inputs
    temperature: float = 1.0
    log_entropy: bool = False
    teacher_targets: TeacherTargets | None = None

    @property
    def policy_inputs(self) -> tuple[Forest, dict[int, Tensor], dict[int, Waveform], float]:
        """The arguments of `Policy.forward`."""
        return self.forest, self.encoder_states, self.waveforms, self.temperature

    def with_loss_inputs(self, loss_inputs: NewInputs) -> "MicroBatch[NewInputs]":
        """The same forward pass with other inputs of the loss."""
        return replace(self, loss_inputs=loss_inputs)  # type: ignore[arg-type, return-value]


class Policy(nn.Module):
    """A model behind one forward call; the parameters are the model's own."""

    def __init__(self, model: AudioLM) -> None:
        super().__init__()
        self.module = model.module
        self._model = model

    def forward(
        self,
        forest: Forest,
        encoder_states: Mapping[int, Tensor],
        waveforms: Mapping[int, Waveform],
        temperature: float = 1.0,
        *,
        with_entropy: bool = False,
        teacher_targets: TeacherTargets | None = None,
    ) -> Float[Tensor, "branches tokens"] | tuple[Float[Tensor, "branches tokens"], Float[Tensor, "branches tokens"]]:
        """Log-probability of every trained token, and the policy's entropy there if it is asked for; or its divergence
        from a teacher.

        Args:
            forest: The packed trees.
            encoder_states: Clip number -> encoder output of every clip; empty to run the encoder on `waveforms`.
            waveforms: Clip number -> waveform of every clip.
            temperature: Logits are divided by it.
            with_entropy: Whether to return entropies too.
            teacher_targets: A teacher's side of the comparison; None for log-probabilities.
        Returns:
            Natural-log probabilities (nats), one row per branch of the forest, 0 at padding; with `with_entropy` also
            entropies (nats) in the same shape, without gradients. With `teacher_targets` the divergence from the
            teacher (nats) where each token was predicted, in the same shape.
        """
        hidden = self.hidden_states(forest, encoder_states, waveforms)
        if teacher_targets is not None:
            return token_divergences(hidden, forest, teacher_targets, self._model.logits)
        logprobs, entropies = target_scores(
            hidden, forest, self._model.logits, temperature=temperature, with_entropy=with_entropy
        )
        if entropies is None:
            return branch_logprobs(logprobs, forest)
        return branch_logprobs(logprobs, forest), branch_logprobs(entropies, forest)

    def hidden_states(
        self, forest: Forest, encoder_states: Mapping[int, Tensor], waveforms: Mapping[int, Waveform]
    ) -> Float[Tensor, "seq dim"]:
        """Decoder states of the packed tokens after the final norm; arguments as in `forward`."""
        clips = sorted(set(forest.audio_clips))
        if encoder_states:
            clip_states = [encoder_states[clip] for clip in clips]
        else:
            clip_states = self._model.encode_audio([waveforms[clip] for clip in clips]) if clips else []
        audio_embeddings = dict(zip(clips, self._model.project_audio(clip_states), strict=True)) if clips else {}
        embeddings = insert_audio_embeddings(self._model.embed(forest.ids), forest, audio_embeddings)
        return self._model.decode(embeddings, forest.positions, TreeAttention(forest))


FOREST_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.5}
"""Dtype in which a model computes -> largest difference (nats per token) that rounding alone explains between a packed
forest and its paths run one by one. A token that attends to a wrong token differs by several nats."""


def forest_tolerance(module: nn.Module) -> float:
    """The tolerance of a model, whose parts may differ in dtype: that of the least precise one.

    Products that are computed in bfloat16 (`model.compute`) count as bfloat16.
    """
    dtypes = {parameter.dtype for parameter in module.parameters()}
    if "bfloat16" in asdict(plan_of(module)).values():
        dtypes.add(torch.bfloat16)
    return max(FOREST_TOLERANCE.get(dtype, 0.0) for dtype in dtypes)


@torch.no_grad()
def check_forest(policy: Policy, micro_batch: MicroBatch[Any], *, tolerance: float) -> float:
    """Compare the log-probabilities of the first tree's paths with the same paths run one by one by transformers' own
    eager attention, which knows nothing of the forest: with the mask, positions and windows of the model's config.

    Args:
        policy: The model.
        micro_batch: Any micro-batch of the training data.
        tolerance: Largest difference to accept, in nats per token; see `FOREST_TOLERANCE`.
    Returns:
        The largest difference, in nats.
    Raises:
        ModelError: if it exceeds `tolerance`: the model or its attention ignores the forest's mask or positions.
    """
    packed = policy(*micro_batch.policy_inputs)
    largest = 0.0
    for branch, path in enumerate(micro_batch.paths[0]):
        single_forest = pack([build_tree([path])], micro_batch.forest.ids.device)
        with eager_attention():
            single = policy(single_forest, *micro_batch.policy_inputs[1:])[0]
        if len(single):
            largest = max(largest, float((packed[branch, : len(single)] - single).abs().max()))
    if not largest <= tolerance:  # also refuses NaN
        raise ModelError(
            f"the log-probabilities of a packed forest differ from those of single sequences under transformers' own "
            f"attention by {largest:.2e} nats (limit {tolerance:.0e}); run `earwise doctor` on this model"
        )
    return largest


@torch.no_grad()
def check_hearing(policy: Policy, micro_batch: MicroBatch[Any], silent_states: Mapping[int, Tensor]) -> float:
    """Compare the log-probabilities with those under silence.

    Args:
        policy: The model.
        micro_batch: A micro-batch of the training data that has a clip.
        silent_states: Clip number -> encoder output of a silent clip of equal length; empty while the encoder is
            trained.
    Returns:
        Mean of (log-probability with audio - log-probability under silence) over the trained tokens, in nats.
    Raises:
        ModelError: if the micro-batch has no audio, or nothing at all changes: then the audio does not reach the loss.
    """
    if not micro_batch.forest.audio_clips:
        raise ModelError("the check under silence got rows without a clip; it needs a row with one")
    with_audio = policy(*micro_batch.policy_inputs)
    silence = {clip: waveform * 0 for clip, waveform in micro_batch.waveforms.items()}
    without_audio = policy(micro_batch.forest, silent_states, silence, micro_batch.temperature)
    if torch.equal(with_audio, without_audio):
        raise ModelError(
            "the loss is the same under silence, so the audio does not reach it; check the audio placeholders of the "
            "chat template and the connector"
        )
    num_tokens = micro_batch.forest.loss_mask.sum().clamp_min(1)
    return float((with_audio - without_audio).sum() / num_tokens)
