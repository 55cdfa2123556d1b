"""Text and sound of a turn keep their order: training, evaluation, server and history give transformers' text.

The chat template is the one inside transformers' own `Qwen2AudioProcessor`.
"""

import pytest

from earwise.data import manifest
from earwise.evaluation.items import build_items
from earwise.evaluation.options import EvalOptions
from earwise.prompts import AUDIO_PLACEHOLDER, QWEN2_AUDIO, prompt_turns, render
from earwise.serve.chat_request import parse_request
from earwise.serve.http.limits import ServerLimits
from earwise.types import Turn

jinja2 = pytest.importorskip("jinja2")
processing = pytest.importorskip("transformers.models.qwen2_audio.processing_qwen2_audio")

A, B = ({"type": "audio", "audio_url": f"{name}.wav"} for name in "ab")


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


CONTENTS = {
    "sound, text": [A, text("What is it?")],
    "text, sound": [text("Listen: "), A],
    "text, sound, text, sound, text": [text("First: "), A, text(" Second: "), B, text("Which is longer?")],
    "two sounds, text": [A, B, text("Same?")],
    "sound, text, sound": [A, text("or"), B],
    "sound alone": [A],
    "two texts": [A, text("One. "), text("Two?")],
}


def official(messages: list[dict]) -> str:
    """The prompt that transformers' processor writes, with one placeholder for each clip."""
    template = processing.Qwen2AudioProcessor.default_chat_template.fget(None)
    return jinja2.Environment().from_string(template).render(messages=messages, add_generation_prompt=True)


def rendered(turns: tuple[Turn, ...]) -> str:
    spans = render(turns, QWEN2_AUDIO, generate=True)
    return "".join(AUDIO_PLACEHOLDER if span.audio else span.text for span in spans)


@pytest.mark.parametrize("name", CONTENTS)
def test_all_ways_to_a_prompt_give_the_official_text(name: str) -> None:
    user = {"role": "user", "content": CONTENTS[name]}
    history = [user, {"role": "assistant", "content": "A dog."}, {"role": "user", "content": [B, text(" And now?")]}]
    for messages in ([user], history):
        example = manifest.from_row({"id": "1", "messages": messages, "answer": "yes"})
        expected = official(messages)
        assert rendered(prompt_turns(example, "open")) == expected, "training"
        (item,) = build_items([example], EvalOptions(style="open"))
        assert rendered(item.request.turns) == expected, "evaluation"
        request = {"messages": [_as_request(message) for message in messages]}
        assert rendered(parse_request(request, ServerLimits()).turns) == expected, "server"


def _as_request(message: dict) -> dict:
    """The message with its clips in the form that the server takes."""
    if isinstance(message["content"], str):
        return message
    clip = {"type": "audio_url", "audio_url": {"url": "a"}}
    parts = [clip if "audio_url" in part else part for part in message["content"]]
    return message | {"content": parts}


def test_choices_and_instruction_follow_the_last_part() -> None:
    content = [text("First: "), A, text(" Second: "), B]
    example = manifest.from_row(
        {"id": "1", "messages": [{"role": "user", "content": content}], "choices": ["one", "two"], "answer": "two"}
    )
    options = "Please choose the answer from the following options: ['one', 'two']."
    tags = " Output the final answer in <answer> </answer>."
    messages = [{"role": "user", "content": [*content, text(options + tags)]}]
    assert rendered(prompt_turns(example, "answer")) == official(messages)
