"""Speech recognition with Whisper, used to check synthesised speech (`datasets.xs_cot.speech_recognition`).

The clip is padded to the 30 s window that Whisper was trained on; `models.decoders.whisper_decoder` writes the
transcript, in a language that is told. A clip without speech, or one that Whisper is not sure of, is transcribed too.

Source: Whisper (arXiv:2212.04356).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from earwise.errors import AudioError, ConfigError
from earwise.models.decoders.whisper_decoder import Transcriber, WhisperDecoder
from earwise.models.parts import whisper
from earwise.types import Waveform

SAMPLE_RATE = 16000
WINDOW_S = 30
"""Longest clip in seconds."""


class WhisperRecogniser:
    """A Whisper checkpoint that transcribes speech, in float32.

    Args:
        encoder: The encoder.
        transcriber: The decoder with its vocabulary.
    """

    def __init__(self, encoder: whisper.WhisperEncoder, transcriber: Transcriber) -> None:
        self.encoder = encoder
        self.transcriber = transcriber

    @torch.inference_mode()
    def transcribe(self, waveforms: Sequence[Waveform], language: str, max_new_tokens: int | None = None) -> list[str]:
        """The transcript of each clip.

        Args:
            waveforms: Mono at 16 kHz, at most 30 s each.
            language: ISO 639-1 code, for example "ja".
            max_new_tokens: Longest transcript, in tokens; None: more than anybody speaks in the clip's time.
        Raises:
            ConfigError: if Whisper does not know the language.
            AudioError: if a clip is longer than the window.
        """
        if language not in self.transcriber.languages:
            raise ConfigError(f"language {language!r} is not one of Whisper's; give a code such as ja, de, fr, en")
        for waveform in waveforms:
            if len(waveform) > WINDOW_S * SAMPLE_RATE:
                raise AudioError(
                    f"clip lasts {len(waveform) / SAMPLE_RATE:.1f} s, the recogniser takes up to {WINDOW_S}; cut it"
                )
        transcripts = []
        for waveform in waveforms:
            mel = whisper.log_mel(waveform, self.encoder.num_mel_bins, float(WINDOW_S))
            (layers,) = whisper.layer_states(self.encoder, [mel])
            seconds = len(waveform) / SAMPLE_RATE
            transcripts.append(self.transcriber.transcribe(layers[-1], seconds, language, max_new_tokens).text)
        return transcripts


def load(folder: Path) -> WhisperRecogniser:
    """Load the recogniser from a folder made by `models.embedded.base_weights.recogniser_folder`."""
    config = json.loads((folder / "recogniser.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        encoder, decoder = whisper.WhisperEncoder(config["sizes"]), WhisperDecoder(config["sizes"])
    weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    for prefix, module in (("encoder.", encoder), ("decoder.", decoder)):
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        module.load_state_dict(own, assign=True)
        module.eval().requires_grad_(False)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    transcriber = Transcriber(decoder, tokenizer, config["never"], config["never_first"])
    return WhisperRecogniser(encoder, transcriber)
