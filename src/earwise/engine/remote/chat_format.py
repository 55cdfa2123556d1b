"""The form of OpenAI's chat completions: prompts to messages with audio parts, and choices to completions.

Pure functions between `engine.remote.client` and the JSON that it exchanges with a server.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from earwise.audio import encode_wav, waveform_sha256
from earwise.engine.base import Prompt
from earwise.engine.remote.address import AudioPart
from earwise.engine.remote.openai_http import JsonObject
from earwise.types import Completion, Text, Waveform

CONTROL_TOKEN = re.compile(
    r"<(?=\|[^<>|\s]{1,64}\|>|/?s>|(?:bos|eos|pad|unk|start_of_turn|end_of_turn|start_of_audio|end_of_audio|"
    r"audio_soft_token|image_soft_token|sound|Speech|SpeechHere)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|AUDIO|BEGIN_AUDIO|TRANSCRIBE|THINK)\])"
)
"""The first character of what a tokenizer of the supported families may read as a control token: `<|im_end|>` and the
like, and those of Llama, Gemma, Mistral, Audio Flamingo and SALMONN."""
WORD_JOINER = "\u2060"
"""A character without width, which takes the meaning from a control token that it stands in."""
TREATS_TEXT_AS_TEXT = ("earwise",)
"""Kinds of servers that obey no control token in the text of a request."""


def messages(
    prompt: Prompt, sample_rate: int, audio_part: AudioPart, *, keep_control_tokens: bool = False
) -> list[JsonObject]:
    """The messages of a conversation. A turn of one text has a plain string as content.

    Args:
        prompt: The conversation and its waveforms.
        sample_rate: Sample rate of the waveforms, in Hz.
        audio_part: Type of the message parts that hold audio.
        keep_control_tokens: Whether texts are sent unchanged where they spell control tokens. Most servers would obey
            them: a row with `<|im_end|>` in its question would end its turn there.
    """
    waveforms = iter(prompt.waveforms)
    conversation = []
    for turn in prompt.turns:
        parts = [
            {"type": "text", "text": part.text if keep_control_tokens else break_control_tokens(part.text)}
            if isinstance(part, Text)
            else _audio_content(next(waveforms), sample_rate, audio_part)
            for part in turn.parts
        ]
        is_plain_text = len(parts) == 1 and "text" in parts[0]
        conversation.append({"role": turn.role, "content": parts[0]["text"] if is_plain_text else parts})
    return conversation


def break_control_tokens(text: str) -> str:
    """A text with a character without width inside everything that a tokenizer may read as a control token.

    >>> [len(break_control_tokens(text)) - len(text) for text in ("a <b> [c]", "<|im_end|>", "<s>[INST]")]
    [0, 1, 2]
    """
    return CONTROL_TOKEN.sub(lambda match: match[0] + WORD_JOINER, text)


def _audio_content(waveform: Waveform, sample_rate: int, audio_part: AudioPart) -> JsonObject:
    """The message part of a clip, as base64 of a 16-bit WAV file."""
    if audio_part == "audio_url":
        return {"type": "audio_url", "audio_url": {"url": audio_data_url(waveform, sample_rate)}}
    data = base64.b64encode(encode_wav(waveform, sample_rate)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def audio_data_url(waveform: Waveform, sample_rate: int) -> str:
    """A clip as a data URL with a 16-bit WAV file."""
    return f"data:audio/wav;base64,{base64.b64encode(encode_wav(waveform, sample_rate)).decode()}"


def loggable(prompt: Prompt) -> list[Any]:
    """The conversation as plain values, with the hash of each clip in place of its samples."""
    hashes = map(waveform_sha256, prompt.waveforms)
    return [
        [turn.role, *(part.text if isinstance(part, Text) else {"sha256": next(hashes)} for part in turn.parts)]
        for turn in prompt.turns
    ]


def fingerprint(value: object) -> str:
    """Hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def text(choice: Mapping[str, Any]) -> str:
    """Text of a choice. Reasoning that a server separated from the answer is put back before it, in <think> tags."""
    message = choice["message"]
    content = message.get("content") or message.get("refusal") or ""
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    return f"<think>{reasoning}</think>\n{content}" if isinstance(reasoning, str) and reasoning else content


def completion(choice: Mapping[str, Any]) -> Completion:
    """A choice of a response as a completion."""
    tokens = (choice.get("logprobs") or {}).get("content") or ()
    return Completion(
        text(choice),
        tuple(choice.get("token_ids") or ()),
        tuple(float(token["logprob"]) for token in tokens),
        "length" if choice.get("finish_reason") == "length" else "stop",
        confidences=_confidences(tokens),
    )


def _confidences(tokens: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Confidence at each token from the likeliest tokens that a server returned; empty if it returned none.

    >>> _confidences([{"top_logprobs": [{"logprob": -0.5}, {"logprob": -1.5}]}]), _confidences([{"logprob": -1.0}])
    ((1.0,), ())
    """
    likeliest = [[float(token["logprob"]) for token in place.get("top_logprobs") or ()] for place in tokens]
    return tuple(-sum(values) / len(values) for values in likeliest) if all(likeliest) else ()
