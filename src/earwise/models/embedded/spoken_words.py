"""Words that are spoken in a clip, as text that the embedded model's decoder reads among its audio embeddings.

Whisper's own decoder writes a transcript from the states that the embedded model's encoder computes anyway. The
decoder of the embedded model then finds the transcript's tokens, as its own embeddings, in *slots* behind the tokens of
the connector, after a lead (" Words:"). The number of slots depends on the clip's length alone; slots that the words do
not fill hold a line break.

The transcript is written when a clip is encoded, and its token ids travel with the clip's encoder states, as rows of
whole numbers below 256, which float16 and bfloat16 hold exactly. So whatever caches the states caches the words, and no
second question or epoch runs Whisper's decoder again. Which slots show them is decided later, so states that are stored
on disk fit any number of slots.

A linear *speech gate* decides from the encoder's states whether the clip may contain speech. For other clips Whisper's
decoder is not even loaded, and no words are shown. Ours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from earwise.errors import ModelError
from earwise.models.decoders.whisper_decoder import Transcriber, load_transcriber
from earwise.models.embedded import base_weights
from earwise.models.parts import whisper
from earwise.models.parts.projector import concat_weighted_layers, pool_states
from earwise.types import Waveform

LEAD = " Words:"
FILLER = "\n"
"""Text of the tokens in front of the words, and of the token in slots without words."""
GATE_PREFIX = "speech_gate."
"""Beginning of the names of the gate's weights in a checkpoint."""
STATE_S = 0.02
"""Seconds of audio per state of Whisper's encoder."""
BASE = 256
"""Numbers are stored by their digits to this base."""
NUMBER_DIGITS = 2
"""Digits of a token id."""
MAYBE_SPEECH, SURELY_SPEECH = 0.1, 0.5
"""Clips whose probability of speech is at least the first are transcribed; from the second on, the transcript is shown
whether or not Whisper itself is sure that somebody speaks."""
SILENCE_S = 3.0
"""Seconds of silence that Whisper's decoder needs behind a clip whose padding is trimmed: without any it repeats itself
and takes short clips for other languages."""
MAX_IDS = 384
"""Longest transcript that is stored, in tokens; half a minute of fast Japanese in byte tokens."""


@dataclass(frozen=True, slots=True)
class WordSlots:
    """How many tokens show the words of a clip.

    Attributes:
        per_s: Slots per second of audio.
        extra: Slots of a clip of any length.
        most: Largest number of slots of a clip.
        gate: Number of kinds of sound that the speech gate distinguishes; the first is speech. 0: there is no gate, and
            every clip is transcribed.
    """

    per_s: float = 5.0
    extra: int = 8
    most: int = 128
    gate: int = 0

    def __post_init__(self) -> None:
        if not (self.per_s >= 0 and self.extra >= 1 and 1 <= self.most <= MAX_IDS and self.gate >= 0):
            raise ModelError(
                f"word slots {self}: per_s must be 0 or more, extra 1 or more, most between 1 and {MAX_IDS}"
            )

    def count(self, seconds: float) -> int:
        """Number of slots of a clip.

        >>> WordSlots(per_s=5, extra=8, most=60).count(2.5), WordSlots(per_s=5, extra=8, most=60).count(30)
        (21, 60)
        """
        return min(self.most, math.ceil(self.per_s * seconds) + self.extra)


@dataclass(frozen=True, slots=True)
class StoredWords:
    """What the extra rows of a clip's encoder states hold.

    Attributes:
        samples: Number of samples of the clip.
        ids: Token ids of the words; empty where nobody speaks.
    """

    samples: int
    ids: tuple[int, ...]


def num_rows(layers: int, dim: int) -> int:
    """Number of extra rows of encoder states of `layers` layers."""
    return -(-(4 + NUMBER_DIGITS * MAX_IDS + NUMBER_DIGITS) // (layers * dim))


def append_rows(states: Float[Tensor, "layers rows dim"], words: StoredWords) -> Float[Tensor, "layers longer dim"]:
    """Encoder states of a clip with its words in extra rows behind them.

    Args:
        states: Reduced states of the connector.
        words: Words of the clip; those beyond `MAX_IDS` are left out.
    """
    ids = words.ids[:MAX_IDS]
    numbers = [*_digits(words.samples, 4), *_digits(len(ids), NUMBER_DIGITS)]
    for token_id in ids:
        numbers += _digits(token_id, NUMBER_DIGITS)
    layers, _, dim = states.shape
    flat = states.new_zeros(num_rows(layers, dim) * layers * dim)
    flat[: len(numbers)] = torch.tensor(numbers, dtype=states.dtype)
    return torch.cat([states, flat.view(layers, -1, dim)], 1)


def split_rows(states: Float[Tensor, "layers longer dim"]) -> tuple[Float[Tensor, "layers rows dim"], StoredWords]:
    """The inverse of `append_rows`."""
    layers, rows, dim = states.shape
    own = rows - num_rows(layers, dim)
    numbers = states[:, own:].flatten().round().long().tolist()
    count = _number(numbers[4 : 4 + NUMBER_DIGITS])
    digits = numbers[4 + NUMBER_DIGITS :][: count * NUMBER_DIGITS]
    ids = [_number(digits[start : start + NUMBER_DIGITS]) for start in range(0, len(digits), NUMBER_DIGITS)]
    return states[:, :own], StoredWords(_number(numbers[:4]), tuple(ids))


def _digits(number: int, count: int) -> list[int]:
    """Digits of a number to the base `BASE`, the lowest first."""
    return [number // BASE**place % BASE for place in range(count)]


def _number(digits: Sequence[int]) -> int:
    """The inverse of `_digits`."""
    return sum(digit * BASE**place for place, digit in enumerate(digits))


def speech_features(layers: Float[Tensor, "layers states dim"]) -> Float[Tensor, "*features"]:
    """Input of the speech gate: mean and standard deviation over time of each layer, in units of the layer's scale."""
    pooled = pool_states(layers.float(), layers.shape[1])[:, :2]
    return concat_weighted_layers(pooled, pooled[:, :1], pooled.new_zeros(len(pooled))).flatten()


class WordListener:
    """Writes down what is spoken in clips, and shows it to the decoder.

    Args:
        slots: How many tokens show the words.
        gate: The speech gate, a linear layer whose first output is speech; None transcribes every clip.
        encode: Token ids of a text, in the decoder's vocabulary.
        sample_rate: Sample rate of the clips, in Hz.
    """

    def __init__(
        self, slots: WordSlots, gate: nn.Linear | None, encode: Callable[[str], list[int]], sample_rate: int
    ) -> None:
        self.slots = slots
        self._gate = gate
        self._encode = encode
        self._sample_rate = sample_rate
        self._transcriber: Transcriber | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether Whisper's decoder has been needed so far."""
        return self._transcriber is not None

    def num_tokens(self, samples: int) -> int:
        """Number of tokens of lead and slots for a clip."""
        return len(self._encode(LEAD)) + self.slots.count(samples / self._sample_rate)

    def speech_probability(self, layers: Float[Tensor, "layers states dim"]) -> float:
        """The gate's probability that somebody speaks; without a gate, `MAYBE_SPEECH`."""
        if self._gate is None:
            return MAYBE_SPEECH
        probabilities: Tensor = self._gate(speech_features(layers)).softmax(0)
        return float(probabilities[0])

    @torch.no_grad()
    def listen(
        self, encoder: Any, waveform: Waveform, layers: Float[Tensor, "layers states dim"], count: int, *,
        trims_padding: bool,
    ) -> StoredWords:  # fmt: skip
        """The words that are spoken in a clip.

        Args:
            encoder: The encoder that the states come from.
            waveform: The clip.
            layers: Its states, those of padding among them.
            count: Number of states of the clip's own frames.
            trims_padding: True if no padding was encoded.
        """
        speech = self.speech_probability(layers[:, :count])
        if speech < MAYBE_SPEECH:
            return StoredWords(len(waveform), ())
        seconds, states = len(waveform) / self._sample_rate, layers[-1]
        if trims_padding:
            longest_s = encoder.embed_positions.num_embeddings * STATE_S
            mel = whisper.log_mel(waveform, encoder.num_mel_bins, min(longest_s, seconds + SILENCE_S))
            states = whisper.layer_states(encoder, [mel])[0][-1]
        if self._transcriber is None:
            self._transcriber = load_transcriber(base_weights.recogniser_folder(), str(states.device))
        transcript = self._transcriber.transcribe(states, seconds)
        is_shown = transcript.text and (speech >= SURELY_SPEECH or transcript.is_speech)
        return StoredWords(len(waveform), tuple(self._encode(f" {transcript.text}")) if is_shown else ())

    def shown_ids(self, words: StoredWords) -> list[int]:
        """Token ids of lead, words and unfilled slots; words that do not fit are left out."""
        count = self.slots.count(words.samples / self._sample_rate)
        filler = self._encode(FILLER)[:1] * count
        return self._encode(LEAD) + [*words.ids, *filler][:count]
