"""Whisper's decoder equals that of transformers: scores after every token, greedy tokens, detected language."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from earwise.models.decoders.whisper_decoder import (
    Transcriber,
    TranscriptState,
    WhisperDecoder,
    repeated_tail,
)

CONTROL_TOKENS = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|ja|>", "<|translate|>", "<|transcribe|>",
    "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip
END, START, TASK, NO_SPEECH, NO_TIMESTAMPS = 0, 1, 6, 7, 8
LANGUAGES = {"en": 2, "de": 3, "ja": 4}
WORDS = tuple(f"w{number}" for number in range(40))
SUPPRESSED, SUPPRESSED_FIRST = [*range(1, 9), 12], [0]
SIZES = {
    "vocab_size": len(CONTROL_TOKENS) + len(WORDS), "d_model": 64, "encoder_layers": 1, "decoder_layers": 2,
    "num_mel_bins": 8, "encoder_attention_heads": 1, "decoder_attention_heads": 2, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 96, "max_target_positions": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def original() -> WhisperForConditionalGeneration:
    """transformers' Whisper with weights large enough to matter."""
    torch.manual_seed(1)
    config = WhisperConfig(**SIZES, dropout=0.0, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    model = WhisperForConditionalGeneration(config).eval().requires_grad_(False)
    for name, value in model.named_parameters():
        if "embed_positions" not in name or "decoder" in name:
            value.normal_(1.0 if "norm.weight" in name else 0.0, 0.1 if value.dim() == 1 else value.shape[-1] ** -0.5)
    return model


@pytest.fixture(scope="module")
def transcriber(original: Any) -> Transcriber:
    """Our decoder with the same weights, by the same names."""
    decoder = WhisperDecoder(SIZES)
    decoder.load_state_dict(original.model.decoder.state_dict())
    vocab = {word: number for number, word in enumerate((*CONTROL_TOKENS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=WORDS[0]))
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    return Transcriber(decoder.requires_grad_(False), tokenizer, SUPPRESSED, SUPPRESSED_FIRST)


def encoder_states(seed: int, count: int = 30) -> Tensor:
    """States of an encoder, at random."""
    return 2 * torch.randn(count, SIZES["d_model"], generator=torch.Generator().manual_seed(seed))


def scores_of(model: Any, states: Tensor, ids: list[int]) -> Tensor:
    """transformers' scores after each token, `(seq, vocab)`, without a cache."""
    outputs = BaseModelOutput(last_hidden_state=states[None])
    logits: Tensor = model(encoder_outputs=outputs, decoder_input_ids=torch.tensor([ids])).logits[0]
    return logits


def test_scores_equal_transformers(original: Any, transcriber: Transcriber) -> None:
    states = encoder_states(0)
    ids = torch.randint(0, SIZES["vocab_size"], (20,), generator=torch.Generator().manual_seed(3)).tolist()
    state = TranscriptState(transcriber.decoder, states)
    scores = torch.cat([state.append(ids[:1]), state.append(ids[1:9]), *(state.append([token]) for token in ids[9:])])
    torch.testing.assert_close(scores, scores_of(original, states, ids), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_transcripts_equal_transformers(original: Any, transcriber: Transcriber, seed: int) -> None:
    states = encoder_states(seed)
    start = scores_of(original, states, [START])[0]
    language = max(LANGUAGES, key=lambda code: float(start[LANGUAGES[code]]))
    ids, logprobs = [START, LANGUAGES[language], TASK, NO_TIMESTAMPS], []
    while ids[-1] != END and len(ids) < 4 + 20 + 6 and not repeated_tail(ids[4:]):
        scores = scores_of(original, states, ids)[-1]
        scores[SUPPRESSED + (SUPPRESSED_FIRST if len(ids) == 4 else [])] = -torch.inf
        ids.append(int(scores.argmax()))
        logprobs.append(float(scores.log_softmax(0)[ids[-1]]))
    transcript = transcriber.transcribe(states, seconds=0.5)
    written = [token for token in ids[4:] if token != END]
    assert transcript.language == language
    assert list(transcript.ids) == written[: len(written) - repeated_tail(written)]
    assert transcript.no_speech == pytest.approx(float(start.softmax(0)[NO_SPEECH]), abs=1e-6)
    assert transcript.mean_logprob == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-5)
    assert transcript.text == " ".join(WORDS[token - len(CONTROL_TOKENS)] for token in transcript.ids)


def test_a_language_can_be_given(original: Any, transcriber: Transcriber) -> None:
    states = encoder_states(1)
    scores = scores_of(original, states, [START, LANGUAGES["ja"], TASK, NO_TIMESTAMPS])[-1]
    scores[SUPPRESSED + SUPPRESSED_FIRST] = -torch.inf
    transcript = transcriber.transcribe(states, 1.0, language="ja")
    assert transcript.language == "ja" and transcript.ids[0] == int(scores.argmax())


def test_repetitions_end_a_transcript() -> None:
    sentence = [5, 6, 7, 8, 9, 10, 11]
    assert repeated_tail([1, *sentence, *sentence]) == 7
    assert repeated_tail([*sentence, *sentence[:-1]]) == 0, "not yet"
    assert repeated_tail([3] * 12) == 11 and repeated_tail([3] * 11) == 0, "eleven times `no` may be meant"
    assert repeated_tail([1, 2] * 6) == 10 and repeated_tail([]) == 0
