"""Batches of questions with a clip each, as transformers' collators make them.

`sft_step.py` trains on such batches with transformers' Trainer, and `evaluate.py` generates from them. The models are
those of `hf_models.py`, with one difference: the embedded model's padding is masked in the encoder, as Qwen2-Audio's
class masks its own. So a padded batch costs what padding costs, but gives the results of trimmed clips: losses,
gradients and answers can be compared in the same runs that are timed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import WhisperFeatureExtractor
from transformers.modeling_outputs import BaseModelOutputWithPast

from baselines.hf_models import EmbeddedBody, HFModel, as_hf_model
from earwise.forest import TokenPath
from earwise.models.base import AudioLM
from earwise.models.embedded.model import POOL
from earwise.models.parts.projector import pool_states
from earwise.models.parts.whisper import HOP_SAMPLES, STRIDE, mel_frames
from earwise.types import Waveform

IGNORED = -100
"""transformers' label of a token that is not trained."""


@dataclass(frozen=True, slots=True)
class ClipQuestion:
    """A question about a clip: its tokens, with placeholders for the audio, and the waveform."""

    path: TokenPath
    waveform: Waveform


class MaskedBody(nn.Module):
    """The embedded model's encoder, connector and decoder on a padded batch, with masked padding."""

    def __init__(self, body: EmbeddedBody) -> None:
        super().__init__()
        self.encoder, self.connector, self.decoder = body.encoder, body.connector, body.decoder
        self.placeholder_id = body.placeholder_id

    def forward(
        self,
        input_ids: Tensor,
        input_features: Tensor | None = None,
        feature_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Decoder output for text, with audio embeddings in place of the placeholders."""
        embeddings = self.decoder.embed_tokens(input_ids)
        if input_features is not None and feature_attention_mask is not None:
            audio = torch.cat(self.connector(self.encode(input_features, feature_attention_mask))).to(embeddings)
            embeddings = embeddings.masked_scatter((input_ids == self.placeholder_id)[..., None], audio)
        return self.decoder(inputs_embeds=embeddings, **kwargs)

    def encode(self, features: Tensor, mask: Tensor) -> list[Tensor]:
        """Pooled states of all layers for each clip.

        Args:
            features: `(batch, mels, frames)`.
            mask: True for real frames, `(batch, frames)`.
        """
        encoder, frame_mask = self.encoder, mask[:, None].to(features)
        counts = (mask.sum(1) - 1) // STRIDE + 1
        hidden = gelu(encoder.conv2(gelu(encoder.conv1(features * frame_mask)) * frame_mask)).mT
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        key_mask = (torch.arange(hidden.shape[1]) < counts[:, None])[:, None, None].expand(-1, 1, hidden.shape[1], -1)
        if bool(key_mask.all()):
            key_mask = None
        layers = [hidden]
        for layer in encoder.layers:
            hidden = layer(hidden, key_mask)
            layers.append(hidden)
        layers[-1] = encoder.layer_norm(hidden)
        stacked = torch.stack(layers, 1)
        return [pool_states(stacked[clip, :, :count], POOL) for clip, count in enumerate(counts.tolist())]


def as_batched_hf_model(model: AudioLM) -> HFModel:
    """A model behind transformers' interface for padded batches, with shared parameters."""
    hf_model = as_hf_model(model, padded=True)
    if isinstance(hf_model.module.model, EmbeddedBody):
        hf_model.module.model = MaskedBody(hf_model.module.model)
    return hf_model


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes the tensors of a batch.

    Attributes:
        extractor: Log-mel features over the model's window.
        pad_id: Id of the padding token.
        pad_left: True pads on the left, for generation; False on the right, and adds `labels`.
        trimmed: True pads clips to the longest of the batch, False to the window.
    """

    extractor: WhisperFeatureExtractor
    pad_id: int
    pad_left: bool = False
    trimmed: bool = False

    def __call__(self, rows: Sequence[ClipQuestion]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `labels` `(batch, seq)`, and the results of `features`."""
        width = max(len(row.path.ids) for row in rows)
        batch = {
            "input_ids": self._padded([row.path.ids for row in rows], width, self.pad_id),
            "attention_mask": self._padded([(1,) * len(row.path.ids) for row in rows], width, 0),
            **self.features([row.waveform for row in rows]),
        }
        if not self.pad_left:
            labels = [
                [
                    token if is_target else IGNORED
                    for token, is_target in zip(row.path.ids, row.path.trained, strict=True)
                ]
                for row in rows
            ]
            batch["labels"] = self._padded(labels, width, IGNORED)
        return batch

    @torch.autocast("cpu", enabled=False)  # features are made before a model, in float32
    def features(self, waveforms: Sequence[Waveform]) -> dict[str, Tensor]:
        """`input_features` `(batch, mels, frames)` and `feature_attention_mask` `(batch, frames)`."""
        longest = max(mel_frames(len(waveform)) for waveform in waveforms)
        # Two extra hops, cut off below: the last frame then sees the silence that it would see in a padded clip.
        samples = (longest + 2) * HOP_SAMPLES if self.trimmed else None
        features = self.extractor(
            [np.asarray(waveform) for waveform in waveforms], sampling_rate=16000, padding="max_length",
            max_length=samples, return_attention_mask=True, return_tensors="pt",
        )  # fmt: skip
        stop = longest if self.trimmed else None
        return {
            "input_features": features.input_features[:, :, :stop],
            "feature_attention_mask": features.attention_mask[:, :stop],
        }

    def _padded(self, rows: Sequence[Sequence[int]], width: int, value: int) -> Tensor:
        """Rows as a tensor, padded with a value to a width."""
        pads = [[value] * (width - len(row)) for row in rows]
        return torch.tensor(
            [pad + list(row) if self.pad_left else [*row, *pad] for row, pad in zip(rows, pads, strict=True)]
        )
