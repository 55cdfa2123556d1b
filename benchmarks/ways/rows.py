"""Rows in batches, each one question with a sound of its own, as transformers' collators and test scripts make them.

`sft_step.py` trains on such batches with transformers' Trainer, `evaluate.py` generates from them. The models are
those of `hears.py`, with one difference: here the embedded model's padding is masked in the encoder, as Qwen2-Audio's
class masks its own. So a padded batch costs what padding costs and still hears just what earwise hears: losses,
gradients and answers can be held against each other in the very runs that are timed.
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

from earwise.forest import Path
from earwise.models.base import AudioLM
from earwise.models.embedded.model import POOL
from earwise.models.parts.projector import pool_states
from earwise.models.parts.whisper import HOP_SAMPLES, STRIDE, mel_frames
from earwise.types import Waveform
from ways.hears import EmbeddedBody, Hearing, hearing

IGNORED = -100  # transformers' label of a token that is not learnt


@dataclass(frozen=True, slots=True)
class Row:
    """One question about one sound: its tokens (placeholders where the sound goes) and the waveform."""

    path: Path
    wave: Waveform


class MaskedBody(nn.Module):
    """The embedded model's encoder, connector and decoder on a padded batch; what is padding changes nothing."""

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
        """The decoder on text embeddings with what was heard in the placeholders' place."""
        embeddings = self.decoder.embed_tokens(input_ids)
        if input_features is not None and feature_attention_mask is not None:
            heard = torch.cat(self.connector(self.listen(input_features, feature_attention_mask)))
            embeddings = embeddings.masked_scatter((input_ids == self.placeholder_id)[..., None], heard)
        return self.decoder(inputs_embeds=embeddings, **kwargs)

    def listen(self, features: Tensor, mask: Tensor) -> list[Tensor]:
        """Pooled states of all layers per clip; `features (batch, mels, frames)`, `mask (batch, frames)`."""
        encoder, real = self.encoder, mask[:, None].to(features)
        counts = (mask.sum(1) - 1) // STRIDE + 1
        hidden = gelu(encoder.conv2(gelu(encoder.conv1(features * real)) * real)).mT
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        seen = (torch.arange(hidden.shape[1]) < counts[:, None])[:, None, None].expand(-1, 1, hidden.shape[1], -1)
        keys = None if bool(seen.all()) else seen
        layers = [hidden]
        for layer in encoder.layers:
            hidden = layer(hidden, keys)
            layers.append(hidden)
        layers[-1] = encoder.layer_norm(hidden)
        stacked = torch.stack(layers, 1)
        return [pool_states(stacked[clip, :, :count], POOL) for clip, count in enumerate(counts.tolist())]


def hearing_rows(model: AudioLM) -> Hearing:
    """The model behind transformers' interface for batches, parameters shared with `model`."""
    ears = hearing(model, padded=True)
    if isinstance(ears.module.model, EmbeddedBody):
        ears.module.model = MaskedBody(ears.module.model)
    return ears


@dataclass(frozen=True, slots=True)
class Collator:
    """Rows -> the tensors of one batch.

    Attributes:
        extractor: Log-mel over the model's window.
        pad_id: Fills up short rows.
        left: Pad on the left, to generate from; else on the right, with `labels`.
        trimmed: Pad the sounds to the longest of the batch only, instead of to the window.
    """

    extractor: WhisperFeatureExtractor
    pad_id: int
    left: bool = False
    trimmed: bool = False

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `labels` `(batch, seq)`, features and their mask."""
        width = max(len(row.path.ids) for row in rows)
        batch = {
            "input_ids": self._filled([row.path.ids for row in rows], width, self.pad_id),
            "attention_mask": self._filled([(1,) * len(row.path.ids) for row in rows], width, 0),
            **self.features([row.wave for row in rows]),
        }
        if not self.left:
            labels = [
                [token if trained else IGNORED for token, trained in zip(row.path.ids, row.path.trained, strict=True)]
                for row in rows
            ]
            batch["labels"] = self._filled(labels, width, IGNORED)
        return batch

    def features(self, waves: Sequence[Waveform]) -> dict[str, Tensor]:
        """`input_features (batch, mels, frames)` and `feature_attention_mask (batch, frames)`."""
        longest = max(mel_frames(len(wave)) for wave in waves)
        # Two hops more, cut off again: the last real window sees the silence it would see in a padded clip.
        samples = (longest + 2) * HOP_SAMPLES if self.trimmed else None
        heard = self.extractor(
            [np.asarray(wave) for wave in waves], sampling_rate=16000, padding="max_length", max_length=samples,
            return_attention_mask=True, return_tensors="pt",
        )  # fmt: skip
        stop = longest if self.trimmed else None
        return {
            "input_features": heard.input_features[:, :, :stop],
            "feature_attention_mask": heard.attention_mask[:, :stop],
        }

    def _filled(self, rows: Sequence[Sequence[int]], width: int, value: int) -> Tensor:
        pads = [[value] * (width - len(row)) for row in rows]
        return torch.tensor(
            [pad + list(row) if self.left else [*row, *pad] for row, pad in zip(rows, pads, strict=True)]
        )
