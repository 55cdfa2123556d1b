"""Gemma 3n: a Universal Speech Model conformer (one state per 160 ms), 188 soft tokens a clip, and a decoder with
alternating updates (AltUp), per-layer embeddings, shared keys and values and sliding windows.

1. Every clip takes 188 tokens: those that its own sound gives (one per 160 ms), then the embedding of the family's
   padding token, as in transformers' class.
2. Per-layer embeddings need token ids, which `decode` does not see: a row of `embed` is the embedding with the layers'
   embeddings behind it, and `decode` parts them. Audio takes the layers' embeddings of id 0, as in the class.
3. Layers with a sliding window are exact only up to its length (512 tokens as released): longer sequences are refused.
4. Layers that share keys and values hand the shared ones to `attend` under their own number: a cache keeps them twice.
5. Clips are encoded one at a time: in a batch the end of a clip depends on how long its neighbours are.
6. The class is transformers' own without its image tower, which needs another package (timm); a checkpoint's image
   weights are written back by `save`.

Source: transformers 5 `models/gemma3n`; USM: arXiv:2303.01037.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Gemma3nAudioFeatureExtractor, Gemma3nConfig
from transformers.models.gemma3n.modeling_gemma3n import (
    Gemma3nAudioEncoder,
    Gemma3nMultimodalEmbedder,
    Gemma3nPreTrainedModel,
    Gemma3nTextModel,
)

from earwise.audio import AudioSpec
from earwise.models.families.native import Row, embed_text, head_logits, sliding_window
from earwise.models.parts.attention import AttentionFn
from earwise.prompts import ChatTemplate
from earwise.types import Waveform

TEMPLATE = ChatTemplate(
    "gemma3n", "<start_of_turn>{role}\n", "<end_of_turn>", "\n\n<start_of_audio>", "<end_of_audio>\n\n",
    conversation_start="<bos>", role_markers={"assistant": ("<start_of_turn>model\n", "<end_of_turn>")}, system_in_user=True,
)  # fmt: skip
WINDOW_S = 30.0
ROUNDED_SAMPLES = 128
"""The extractor fills clips up to a multiple of this."""
IMAGES = ("model.vision_tower.", "model.embed_vision.")


class Gemma3nForConditionalGeneration(Gemma3nPreTrainedModel):  # type: ignore[misc]
    """The parts of transformers' class of this name that sound goes through, under the same parameter names; config
    files name the class, so it keeps its name."""

    config: Gemma3nConfig
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: Gemma3nConfig) -> None:
        super().__init__(config)
        text = Gemma3nTextModel(config.text_config)
        self.model = nn.Module()
        self.model.language_model = text
        self.model.audio_tower = Gemma3nAudioEncoder(config.audio_config)
        self.model.embed_audio = Gemma3nMultimodalEmbedder(config.audio_config, config.text_config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # Released files hold keys and values of layers that share others'; the text model says which.
        shared: list[str] = text._keys_to_ignore_on_load_unexpected or []
        self._keys_to_ignore_on_load_unexpected = [*(rf"^{prefix}" for prefix in IMAGES), *shared]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The text model's."""
        return self.model.get_submodule("language_model.embed_tokens")


def _extractor(folder: Path | None, config: Any) -> Gemma3nAudioFeatureExtractor:
    if folder is not None and (folder / "preprocessor_config.json").exists():
        return Gemma3nAudioFeatureExtractor.from_pretrained(str(folder))
    return Gemma3nAudioFeatureExtractor(feature_size=config.audio_config.input_feat_size)


def _spec(config: Any, extractor: Gemma3nAudioFeatureExtractor) -> AudioSpec:
    """30 s, or less if the soft tokens hold less."""
    audio = config.audio_config
    stride = audio.sscp_conv_stride_size[0][0] * audio.sscp_conv_stride_size[1][0] * audio.conf_reduction_factor
    per_s = extractor.sampling_rate / (extractor.hop_length * stride)
    return AudioSpec(extractor.sampling_rate, min(WINDOW_S, config.audio_soft_tokens_per_image / per_s), per_s)


def _tokens(config: Any, extractor: Gemma3nAudioFeatureExtractor, samples: int) -> int:
    filled = -(-samples // ROUNDED_SAMPLES) * ROUNDED_SAMPLES
    return config.audio_soft_tokens_per_image if filled > extractor.frame_length else 0


def _listen(module: Any, extractor: Gemma3nAudioFeatureExtractor, waveforms: Sequence[Waveform]) -> list[Tensor]:
    """Encoder states of the frames that hold sound; fewer than there are soft tokens."""
    tower = module.model.audio_tower
    weight = tower.subsample_conv_projection.input_proj_linear.weight
    heard = []
    for wave in waveforms:
        out = extractor(wave, truncation=False, pad_to_multiple_of=ROUNDED_SAMPLES, return_tensors="pt")
        silent = ~out.input_features_mask.to(weight.device)
        states = tower(out.input_features.to(weight), silent)
        heard.append(states.last_hidden_state[0][~states.audio_mel_mask[0]])
    return heard


def _connect(module: Any, heard: Sequence[Tensor]) -> list[Tensor]:
    """`(188, dim + layers * dim per layer)` a clip."""
    config, embedder = module.config, module.model.embed_audio
    weight = embedder.embedding_projection.weight
    last = torch.tensor([config.text_config.vocab_size - 1], device=weight.device)
    padding = embedder(input_ids=last)
    layers = module.model.language_model.embed_tokens_per_layer(torch.zeros_like(last))
    out = []
    for clip in heard:
        soft = embedder(inputs_embeds=clip.to(weight))
        filled = torch.cat([soft, padding.expand(config.audio_soft_tokens_per_image - len(soft), -1)])
        out.append(torch.cat([filled, layers.expand(len(filled), -1)], 1))
    return out


def _embed(module: Any, ids: Tensor) -> Tensor:
    """Embeddings with the layers' embeddings behind them; marks above the text vocabulary have tables of their own."""
    text, embedder = module.model.language_model, module.model.embed_audio
    plain = embed_text(module, ids)
    ids = ids.to(plain.device)
    marks = ids >= embedder.vocab_offset
    audio = embedder(input_ids=torch.where(marks, ids, embedder.vocab_offset))
    plain = torch.where(marks[:, None], audio.to(plain.dtype), plain)
    return torch.cat([plain, text.get_per_layer_inputs(ids).flatten(1)], 1)


def _decode(decoder: Any, rows: Tensor, positions: Tensor, attend: AttentionFn) -> Tensor:
    config = decoder.config
    plain, layers = rows.split([config.hidden_size, rows.shape[1] - config.hidden_size], 1)
    out = decoder(
        inputs_embeds=plain[None],
        per_layer_inputs=layers.unflatten(1, (config.num_hidden_layers, -1))[None],
        position_ids=positions[None],
        use_cache=False,
        attend_with=attend,
    )
    hidden: Tensor = out.last_hidden_state[0]
    return hidden


def _logits(module: Any, hidden: Tensor) -> Tensor:
    scores, cap = head_logits(module, hidden), module.config.text_config.final_logit_softcapping
    return scores if cap is None else torch.tanh(scores / cap) * cap


ROW = Row(
    family="gemma3n",
    what="a Gemma 3n model",
    hub="google/gemma-3n-E2B-it",
    model_class="earwise.models.families.gemma3n:Gemma3nForConditionalGeneration",
    types={"gemma3n": ""},
    mark="<audio_soft_token>",
    end_marks=("<end_of_turn>", "<eos>"),
    template=TEMPLATE,
    encoder=("model.audio_tower.",),
    connector=("model.embed_audio.",),
    decoder=("model.language_model.", "lm_head."),
    language="model.language_model",
    placeholder_id=lambda config: config.audio_token_id,
    extractor=_extractor,
    spec=_spec,
    tokens=_tokens,
    encode_audio=_listen,
    project_audio=_connect,
    trims=True,
    masks=False,
    left_out=IMAGES,
    embed=_embed,
    decode=_decode,
    logits=_logits,
    longest=sliding_window,
)
