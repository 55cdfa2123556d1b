"""Whisper as a recogniser: speech in, the words it holds out. Used to check synthesised speech (`build/asr.py`).

transformers' own encoder and decoder, one lean greedy loop over its key/value cache: the clip is padded to the 30 s
window that Whisper was trained on, the decoder is told the language and to write without time stamps. Greedy, no
fallback to higher temperatures: a clip that needs one is a clip that the check should not pass.

Sources: Whisper (arXiv:2212.04356), section 2.3 for the order of the control tokens; which tokens are never said is the
released configuration's list.
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
CACHE = "cache" if "cache" in inspect.signature(WhisperDecoder.forward).parameters else "past_key_values"
"""How the decoder calls its key/value cache: `cache` from transformers 5.24 on."""


class WhisperRecogniser:
    """All of a Whisper checkpoint, float32, ready to write down speech."""

    def __init__(self, module: WhisperModel, tokenizer: Tokenizer, never: Sequence[int], never_first: Sequence[int]):
        self.module = module.eval()
        self.tokenizer = tokenizer
        self._never = torch.tensor(never)
        self._never_first = torch.tensor(never_first)
        self._extractor = WhisperFeatureExtractor(feature_size=module.config.num_mel_bins, sampling_rate=SAMPLE_RATE)

    @torch.inference_mode()
    def transcribe(self, waveforms: Sequence[Waveform], language: str, max_new_tokens: int = 200) -> list[str]:
        """The words of each clip.

        Args:
            waveforms: Mono at 16 kHz, at most 30 s each.
            language: ISO 639-1 code, for example "ja".
            max_new_tokens: Longest transcript.
        Raises:
            ConfigError: if Whisper does not know the language.
            AudioError: if a clip is longer than the window.
        """
        prompt = self._prompt(language)
        for wave in waveforms:
            if len(wave) > WINDOW_S * SAMPLE_RATE:
                raise AudioError(f"clip lasts {len(wave) / SAMPLE_RATE:.1f} s, the recogniser hears {WINDOW_S}; cut it")
        features = self._extractor(list(waveforms), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        states = self.module.encoder(features).last_hidden_state
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        end = self.tokenizer.token_to_id("<|endoftext|>")
        ids = torch.tensor([prompt] * len(waveforms))
        said: list[list[int]] = [[] for _ in waveforms]
        open_ = [True] * len(waveforms)
        head = self.module.decoder.embed_tokens.weight
        limit = min(max_new_tokens, self.module.config.max_target_positions - len(prompt))
        for step in range(limit):
            out = self.module.decoder(input_ids=ids, encoder_hidden_states=states, use_cache=True, **{CACHE: cache})
            scores = out.last_hidden_state[:, -1] @ head.T
            scores[:, self._never] = -torch.inf
            if step == 0:
                scores[:, self._never_first] = -torch.inf
            ids = scores.argmax(-1, keepdim=True)
            for row, token in enumerate(ids[:, 0].tolist()):
                open_[row] = open_[row] and token != end
                if open_[row]:
                    said[row].append(token)
            if not any(open_):
                break
        return [str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in said]

    def _prompt(self, language: str) -> list[int]:
        marks = ("<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>")
        ids = [token for mark in marks if (token := self.tokenizer.token_to_id(mark)) is not None]
        if len(ids) < len(marks):
            raise ConfigError(f"language {language!r} is none of Whisper's; give a code such as ja, de, fr, en")
        return ids


def load(folder: Path) -> WhisperRecogniser:
    """The recogniser of a folder that `fetch.recogniser_folder` made."""
    config = json.loads((folder / "recogniser.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        module = WhisperModel(WhisperConfig(**config["sizes"], dropout=0.0, pad_token_id=None))
    state = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    module.load_state_dict(state, assign=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return WhisperRecogniser(module, tokenizer, config["never"], config["never_first"])
