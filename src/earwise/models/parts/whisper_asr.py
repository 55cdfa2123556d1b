"""Speech recognition with Whisper, used to check synthesised speech (`datasets.xs_cot.speech_recognition`).

transformers' encoder and decoder with a short greedy loop over the KV cache: the clip is padded to the 30 s window that
Whisper was trained on, and the decoder is prompted with the language and without timestamps. There is no fallback to
higher temperatures: a clip that needs one should not pass the check.

Source: Whisper (arXiv:2212.04356), section 2.3, for the order of the control tokens. The suppressed tokens are those of
the released configuration.
"""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import DynamicCache, EncoderDecoderCache, WhisperConfig, WhisperFeatureExtractor, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from earwise.errors import AudioError, ConfigError
from earwise.types import Waveform

SAMPLE_RATE = 16000
WINDOW_S = 30
"""Longest clip in seconds."""
CACHE = "cache" if "cache" in inspect.signature(WhisperDecoder.forward).parameters else "past_key_values"
"""Name of the decoder's argument for the KV cache: `cache` from transformers 5.24 on."""


class WhisperRecogniser:
    """A Whisper checkpoint that transcribes speech, in float32.

    Args:
        module: Encoder and decoder.
        tokenizer: The tokenizer.
        suppressed: Ids of tokens that are never generated.
        suppressed_first: Ids of tokens that are not generated as the first one.
    """

    def __init__(
        self, module: WhisperModel, tokenizer: Tokenizer, suppressed: Sequence[int], suppressed_first: Sequence[int]
    ) -> None:
        self.module = module.eval()
        self.tokenizer = tokenizer
        self._suppressed = torch.tensor(suppressed)
        self._suppressed_first = torch.tensor(suppressed_first)
        self._extractor = WhisperFeatureExtractor(feature_size=module.config.num_mel_bins, sampling_rate=SAMPLE_RATE)

    @torch.inference_mode()
    def transcribe(self, waveforms: Sequence[Waveform], language: str, max_new_tokens: int = 200) -> list[str]:
        """The transcript of each clip.

        Args:
            waveforms: Mono at 16 kHz, at most 30 s each.
            language: ISO 639-1 code, for example "ja".
            max_new_tokens: Longest transcript, in tokens.
        Raises:
            ConfigError: if Whisper does not know the language.
            AudioError: if a clip is longer than the window.
        """
        prompt = self._prompt(language)
        for waveform in waveforms:
            if len(waveform) > WINDOW_S * SAMPLE_RATE:
                raise AudioError(
                    f"clip lasts {len(waveform) / SAMPLE_RATE:.1f} s, the recogniser takes up to {WINDOW_S}; cut it"
                )
        features = self._extractor(list(waveforms), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        encoder_states = self.module.encoder(features).last_hidden_state
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        end_id = self.tokenizer.token_to_id("<|endoftext|>")
        ids = torch.tensor([prompt] * len(waveforms))
        transcripts: list[list[int]] = [[] for _ in waveforms]
        is_running = [True] * len(waveforms)
        head = self.module.decoder.embed_tokens.weight
        max_steps = min(max_new_tokens, self.module.config.max_target_positions - len(prompt))
        for step in range(max_steps):
            out = self.module.decoder(
                input_ids=ids, encoder_hidden_states=encoder_states, use_cache=True, **{CACHE: cache}
            )
            logits = out.last_hidden_state[:, -1] @ head.T
            logits[:, self._suppressed] = -torch.inf
            if step == 0:
                logits[:, self._suppressed_first] = -torch.inf
            ids = logits.argmax(-1, keepdim=True)
            for clip, token in enumerate(ids[:, 0].tolist()):
                is_running[clip] = is_running[clip] and token != end_id
                if is_running[clip]:
                    transcripts[clip].append(token)
            if not any(is_running):
                break
        return [str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in transcripts]

    def _prompt(self, language: str) -> list[int]:
        """Ids of the control tokens before a transcript.

        Raises:
            ConfigError: if Whisper does not know the language.
        """
        control_tokens = ("<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>")
        ids = [token_id for token in control_tokens if (token_id := self.tokenizer.token_to_id(token)) is not None]
        if len(ids) < len(control_tokens):
            raise ConfigError(f"language {language!r} is not one of Whisper's; give a code such as ja, de, fr, en")
        return ids


def load(folder: Path) -> WhisperRecogniser:
    """Load the recogniser from a folder made by `models.embedded.base_weights.recogniser_folder`."""
    config = json.loads((folder / "recogniser.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        module = WhisperModel(WhisperConfig(**config["sizes"], dropout=0.0, pad_token_id=None))
    weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    module.load_state_dict(weights, assign=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return WhisperRecogniser(module, tokenizer, config["never"], config["never_first"])
