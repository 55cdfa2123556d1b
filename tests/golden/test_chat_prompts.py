"""Prompts of Voxtral and Granite Speech, token for token: mistral-common's, and those of Granite's public template."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import VoxtralConfig, WhisperFeatureExtractor

from builders import tone
from earwise.models.families import voxtral as voxtral_family
from earwise.models.prompt_encoding import conversation_path
from earwise.types import Audio, Text, Turn
from families import granite_speech, voxtral
from families.tiny import Tiny

FAMILIES: dict[str, Callable[[], Tiny]] = {"voxtral": voxtral.tiny, "granite_speech": granite_speech.tiny}
SPECIAL = {"voxtral": voxtral.SPECIAL, "granite_speech": granite_speech.SPECIAL}


def tokens_of(tiny: Tiny, turns: tuple[Turn, ...], special: tuple[str, ...]) -> list[Any]:
    """The tokens of a conversation as the golden file writes them."""
    model, clip = tiny.model, tone(0.5)
    clips = [
        number for number, _ in enumerate(part for turn in turns for part in turn.parts if isinstance(part, Audio))
    ]
    path = conversation_path(model, turns, clips, [len(clip)] * len(clips), generate=turns[-1].role == "user")
    tokens: list[Any] = []
    text_ids: list[int] = []
    for position, (token, audio) in enumerate(zip(path.ids, path.clips, strict=True)):
        if audio < 0 and token >= len(special):
            text_ids.append(token)
            continue
        if text_ids:
            tokens.append({"text": model.tokenizer.decode(text_ids)})
            text_ids = []
        if audio < 0:
            tokens.append(special[token])
        elif position == 0 or path.clips[position - 1] != audio:
            tokens.append("<clip>")
    return tokens + ([{"text": model.tokenizer.decode(text_ids)}] if text_ids else [])


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_are_those_of_the_publisher(name: str, golden: Callable[[str], dict[str, Any]]) -> None:
    tiny = FAMILIES[name]()
    for case in golden("chat_prompts.json")[name]:
        turns = tuple(
            Turn(role, tuple(Audio("clip.wav") if part == "<clip>" else Text(part) for part in parts))
            for role, parts in case["turns"]
        )
        assert tokens_of(tiny, turns, SPECIAL[name]) == case["tokens"], case["turns"]


def test_voxtral_counts_audio_tokens_as_mistral_common(golden: Callable[[str], dict[str, Any]]) -> None:
    extractor = WhisperFeatureExtractor(feature_size=128)
    for case in golden("chat_prompts.json")["voxtral"]:
        counts = [voxtral_family.audio_tokens(VoxtralConfig(), extractor, round(16000 * s)) for s in case["seconds"]]
        assert counts == case["audio_tokens"]
