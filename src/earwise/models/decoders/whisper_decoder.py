"""Whisper's decoder: writes a transcript from the states of Whisper's encoder, greedily, for one clip at a time.

The modules only hold weights, under transformers' names, so that no import of transformers is needed. The prompt is
Whisper's: the language, which is detected, the task and no timestamps. There is no fallback to higher temperatures.
Instead a transcript ends where the length limit or a repetition ends it, and is empty where Whisper hears no speech or
is not sure of what it writes.

Source: Whisper (arXiv:2212.04356), section 2.3, for the order of the control tokens, and the thresholds of its released
code (`transcribe.py`); the names of transformers' Whisper classes. The suppressed tokens are those of the released
configuration.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from earwise.models.parts.whisper import WhisperAttention

NO_SPEECH_PROBABILITY, MIN_MEAN_LOGPROB = 0.6, -1.0
"""Whisper's rule: a clip is silent if the probability of `no speech` is above the first and the mean log-probability of
the transcript's tokens (nats) below the second."""
BASE_TOKENS, TOKENS_PER_S = 20, 12
"""Longest transcript: `BASE_TOKENS`, and more tokens per second of audio than anybody speaks."""
MAX_PERIOD = 32
"""Longest sequence of tokens whose repetition ends a transcript."""
MIN_REPEATED = 12
"""A repetition has at least this many tokens, and stands there at least twice: "no no no" goes on."""
START, TASK, NO_TIMESTAMPS, END = "<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>", "<|endoftext|>"
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
"""The token's names in Whisper's newer and older vocabularies."""
KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, `(heads, seq, head_dim)` each."""


class WhisperDecoderLayer(nn.Module):
    """Weights of one decoder layer, which `run_decoder` reads.

    Args:
        dim: Width of the decoder.
        heads: Number of attention heads.
        ffn: Width of the feed-forward part.
    """

    def __init__(self, dim: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attn, self.encoder_attn = WhisperAttention(dim, heads), WhisperAttention(dim, heads)
        self.self_attn_layer_norm, self.encoder_attn_layer_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, ffn), nn.Linear(ffn, dim)
        self.final_layer_norm = nn.LayerNorm(dim)


class WhisperDecoder(nn.Module):
    """Weights of Whisper's decoder; the output head is tied to `embed_tokens`. All weights are to be loaded or set.

    Args:
        config: Sizes, as fields of transformers' `WhisperConfig`.
    """

    def __init__(self, config: dict[str, int]) -> None:
        super().__init__()
        dim, heads, ffn = (config[key] for key in ("d_model", "decoder_attention_heads", "decoder_ffn_dim"))
        # An embedding that draws random weights would import torch's compiler on the meta device, which takes a second.
        self.embed_tokens, self.embed_positions = (
            nn.Embedding.from_pretrained(torch.empty(config[rows], dim), freeze=False)
            for rows in ("vocab_size", "max_target_positions")
        )
        self.layers = nn.ModuleList([WhisperDecoderLayer(dim, heads, ffn) for _ in range(config["decoder_layers"])])
        self.layer_norm = nn.LayerNorm(dim)


class TranscriptState:
    """The decoder after some tokens of one clip: keys and values of all layers.

    Args:
        decoder: A `WhisperDecoder`, or that of transformers; its weights are used.
        encoder_states: Whisper's last encoder layer with the final norm, `(states, dim)`.
    """

    def __init__(self, decoder: Any, encoder_states: Float[Tensor, "states dim"]) -> None:
        self._decoder = decoder
        self._num_tokens = 0
        self._encoder_keys = [
            (_heads(layer.encoder_attn, layer.encoder_attn.k_proj(encoder_states)),
             _heads(layer.encoder_attn, layer.encoder_attn.v_proj(encoder_states)))
            for layer in decoder.layers
        ]  # fmt: skip
        self._keys: list[KeyValue | None] = [None] * len(decoder.layers)

    def append(self, ids: Sequence[int]) -> Float[Tensor, "seq vocab"]:
        """Feed tokens, and return the scores of the token that follows each of them."""
        decoder, past = self._decoder, self._num_tokens
        table = decoder.embed_tokens.weight
        hidden = table[list(ids)] + decoder.embed_positions.weight[past : past + len(ids)]
        is_seen = torch.ones(len(ids), past + len(ids), dtype=torch.bool, device=table.device).tril(past)
        for number, layer in enumerate(decoder.layers):
            attention = layer.self_attn
            normed = layer.self_attn_layer_norm(hidden)
            key, value = _heads(attention, attention.k_proj(normed)), _heads(attention, attention.v_proj(normed))
            earlier = self._keys[number]
            if earlier is not None:
                key, value = torch.cat([earlier[0], key], 1), torch.cat([earlier[1], value], 1)
            self._keys[number] = key, value
            hidden = hidden + _attend(attention, normed, (key, value), is_seen)
            normed = layer.encoder_attn_layer_norm(hidden)
            hidden = hidden + _attend(layer.encoder_attn, normed, self._encoder_keys[number], None)
            hidden = hidden + layer.fc2(gelu(layer.fc1(layer.final_layer_norm(hidden))))
        self._num_tokens += len(ids)
        scores: Tensor = decoder.layer_norm(hidden) @ table.T
        return scores


def _heads(attention: WhisperAttention, rows: Float[Tensor, "seq dim"]) -> Float[Tensor, "heads seq head_dim"]:
    """Projected rows, divided among the attention heads."""
    return rows.view(len(rows), attention.num_heads, -1).transpose(0, 1)


def _attend(attention: WhisperAttention, rows: Tensor, key_value: KeyValue, is_seen: Tensor | None) -> Tensor:
    """Output of an attention layer, `(seq, dim)`, for query rows and keys and values that are already projected."""
    attended = scaled_dot_product_attention(_heads(attention, attention.q_proj(rows)), *key_value, is_seen)
    projected: Tensor = attention.out_proj(attended.transpose(0, 1).reshape(rows.shape))
    return projected


@dataclass(frozen=True, slots=True)
class Transcript:
    """What Whisper writes about one clip.

    Attributes:
        ids: Tokens of the text, without control tokens.
        text: The text, without blanks around it.
        language: Code of the detected or given language.
        no_speech: Probability that nobody speaks.
        mean_logprob: Mean log-probability (nats) of the tokens, the end among them.
    """

    ids: tuple[int, ...]
    text: str
    language: str
    no_speech: float
    mean_logprob: float

    @property
    def is_speech(self) -> bool:
        """Whether somebody speaks, by Whisper's rule."""
        return bool(self.text) and not (self.no_speech > NO_SPEECH_PROBABILITY and self.mean_logprob < MIN_MEAN_LOGPROB)


class Transcriber:
    """Whisper's decoder with its vocabulary.

    Args:
        decoder: The decoder's weights.
        tokenizer: Whisper's tokenizer.
        suppressed: Ids of tokens that are never generated.
        suppressed_first: Ids of tokens that are not generated as the first one.
    """

    def __init__(
        self, decoder: WhisperDecoder, tokenizer: Tokenizer, suppressed: Sequence[int], suppressed_first: Sequence[int]
    ) -> None:
        self.decoder = decoder
        self.tokenizer = tokenizer
        self._suppressed, self._suppressed_first = list(suppressed), list(suppressed_first)
        ids: dict[str, int] = tokenizer.get_vocab()
        self._start, self._task, self._no_timestamps, self._end = (
            ids[token] for token in (START, TASK, NO_TIMESTAMPS, END)
        )
        self._no_speech = next(ids[token] for token in NO_SPEECH if token in ids)
        # The languages stand between the start and the first task (`translate`).
        first_task = min(self._task, ids["<|translate|>"])
        languages = {id_: token for token, id_ in ids.items() if self._start < id_ < first_task}
        self.languages = {languages[id_][2:-2]: id_ for id_ in sorted(languages)}

    @torch.inference_mode()
    def transcribe(
        self, encoder_states: Float[Tensor, "states dim"], seconds: float, language: str | None = None,
        max_new_tokens: int | None = None,
    ) -> Transcript:  # fmt: skip
        """The transcript of one clip.

        Args:
            encoder_states: Whisper's last encoder layer with the final norm.
            seconds: Length of the clip, which limits that of the transcript.
            language: Code of the language, a key of `languages`; None detects it.
            max_new_tokens: Longest transcript, in tokens; None: the limit of the clip's length.
        """
        state = TranscriptState(self.decoder, encoder_states.float())
        scores = state.append([self._start])[-1]
        no_speech = float(scores.softmax(0)[self._no_speech])
        if language is None:
            codes = list(self.languages)
            language = codes[int(scores[list(self.languages.values())].argmax())]
        scores = state.append([self.languages[language], self._task, self._no_timestamps])[-1]
        room = self.decoder.embed_positions.num_embeddings - 4
        limit = min(BASE_TOKENS + round(TOKENS_PER_S * seconds) if max_new_tokens is None else max_new_tokens, room)
        ids: list[int] = []
        logprobs: list[float] = []
        scores[self._suppressed_first] = -torch.inf
        while len(logprobs) < limit:
            scores[self._suppressed] = -torch.inf
            next_id = int(scores.argmax())
            logprobs.append(float(scores.log_softmax(0)[next_id]))
            if next_id == self._end:
                break
            ids.append(next_id)
            if surplus := repeated_tail(ids):
                del ids[-surplus:]
                break
            scores = state.append([next_id])[-1]
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return Transcript(tuple(ids), text, language, no_speech, sum(logprobs) / len(logprobs))


def repeated_tail(ids: Sequence[int]) -> int:
    """Number of tokens at the end that only repeat those before them; 0 if there are none, or few.

    >>> repeated_tail([9, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]), repeated_tail([1, 2, 3, 1, 2, 3])
    (6, 0)
    """
    for period in range(1, min(MAX_PERIOD, len(ids) // 2) + 1):
        length = period * max(2, -(-MIN_REPEATED // period))
        tail = ids[-length:]
        if len(tail) == length and tail[period:] == tail[:-period]:
            return length - period
    return 0


def load_transcriber(folder: Path, device: str = "cpu") -> Transcriber:
    """Load the decoder, in float32, from a folder made by `models.embedded.base_weights.recogniser_folder`."""
    config = json.loads((folder / "recogniser.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        decoder = WhisperDecoder(config["sizes"])
    prefix = "decoder."
    with safe_open(str(folder / "model.safetensors"), "pt") as handle:
        names = [name for name in handle.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict
        weights = {name.removeprefix(prefix): handle.get_tensor(name).float() for name in names}
    decoder.load_state_dict(weights, assign=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Transcriber(
        decoder.to(device).eval().requires_grad_(False), tokenizer, config["never"], config["never_first"]
    )
