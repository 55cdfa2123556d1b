"""Prompts with sound against transformers' own processors, token for token: how many audio tokens stand where, and what
stands around them. The texts of the chat formats are compared in `test_transformers_audio.py` and
`tests/unit/test_prompts.py`."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import (
    AudioFlamingo3Processor,
    Gemma4AudioFeatureExtractor,
    Gemma4Processor,
    MusicFlamingoProcessor,
    PreTrainedTokenizerFast,
)

from builders import feature_extractor, tone
from earwise.prompts import render
from earwise.types import Waveform
from families import audio_flamingo3, audio_flamingo_next, gemma4
from families.forests import conversation, turn
from families.tiny import Tiny
from families.transformers_audio import MELS, special_byte_tokenizer

Expand = Callable[[str, list[Waveform]], list[int]]
"""A prompt with one placeholder per clip and the clips -> token ids."""


def processor_ids(processor: Any) -> Expand:
    """The ids that a whole processor makes."""
    return lambda text, clips: processor(text=[text], audio=clips, return_tensors="pt").input_ids[0].tolist()


def flamingo(module: Any, processor_class: Any) -> tuple[Tiny, str, Expand]:
    """A family of Audio Flamingo's kind, its placeholder and its processor."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=module.tokenizer(), pad_token="<|endoftext|>")
    processor = processor_class(feature_extractor(window_s=1), tokenizer)
    return module.tiny(), "<sound>", processor_ids(processor)


def gemma() -> tuple[Tiny, str, Expand]:
    """Gemma 4: the method of its processor that writes a clip, since the whole one needs image and video processors."""
    tokenizer: Tokenizer = special_byte_tokenizer(gemma4.SPECIAL, {})
    extractor = Gemma4AudioFeatureExtractor(feature_size=MELS)
    names = SimpleNamespace(boa_token="<|audio>", audio_token="<|audio|>", eoa_token="<audio|>")

    def expand(text: str, clips: list[Waveform]) -> list[int]:
        features = extractor(clips, return_tensors="np")
        pieces = text.split(names.audio_token)
        for number in range(len(clips)):
            pieces[number] += Gemma4Processor.replace_audio_token(names, features, number)
        ids: list[int] = tokenizer.encode("".join(pieces)).ids
        return ids

    return gemma4.tiny(), names.audio_token, expand


BUILDERS: dict[str, Callable[[], tuple[Tiny, str, Expand]]] = {
    "audio_flamingo3": lambda: flamingo(audio_flamingo3, AudioFlamingo3Processor),
    "audio_flamingo_next": lambda: flamingo(audio_flamingo_next, MusicFlamingoProcessor),
    "gemma4": gemma,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_ids_are_those_of_the_processor(name: str) -> None:
    """Audio Flamingo's processors take one clip a conversation."""
    family, placeholder, expand = BUILDERS[name]()
    template = family.model.template
    several = ((1.995, 0.5),) if name == "gemma4" else ()
    for lengths in ((0.25,), (1.0,), (1.31,), *several):
        clips = [tone(seconds, 300.0 + number, number) for number, seconds in enumerate(lengths)]
        turns = [turn("user", "What is it?", number) for number in range(len(clips))]
        path = conversation(family.model, turns, dict(enumerate(clips)))
        written = [placeholder if span.audio else span.text for span in render(tuple(turns), template, generate=True)]
        text = "".join(written).replace(template.audio_start + placeholder + template.audio_end, placeholder)
        assert list(path.ids) == expand(text, clips), f"clips of {lengths} s"
