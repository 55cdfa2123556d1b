"""Rows in the keys of other chat programs, each made from a `Conversation`. `data/formats` reads all of them.

Paths that the programs resolve from the data set's own folder are written relative to it; where a program starts from
its working folder, paths are absolute. All functions are pure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from earwise.data.interchange.writers.chat.conversation import Conversation, message_parts, tagged_text
from earwise.errors import DataError
from earwise.types import Audio, Text, Turn

ClipName = Literal["relative", "absolute", "url", "data"]
"""How a form names clips: a path relative to the file, an absolute one, a `file://` URL, or the audio in base64."""
Row = dict[str, Any]
SHAREGPT_ROLES = {"user": "human", "assistant": "gpt", "system": "system"}


@dataclass(frozen=True, slots=True)
class ChatForm:
    """A form of conversations."""

    title: str
    """Name of the form in messages."""
    clip_name: ClipName
    """How rows name their clips."""
    row: Callable[[Conversation], Row]
    """Writes a conversation as a row."""


def openai_row(conversation: Conversation) -> Row:
    """OpenAI chat with `input_audio`: the audio stands inside the row, in base64."""

    def clip_part(name: str) -> Row:
        header, _, data = name.partition(";base64,")
        return {"type": "input_audio", "input_audio": {"data": data, "format": header.rpartition("/")[2]}}

    return _parts_row(conversation, clip_part, "OpenAI chat")


def audio_url_row(conversation: Conversation) -> Row:
    """OpenAI chat with `audio_url`, as vLLM and others take it."""
    return _parts_row(conversation, lambda name: {"type": "audio_url", "audio_url": {"url": name}}, "OpenAI chat")


def hugging_face_row(conversation: Conversation) -> Row:
    """Messages for transformers' chat templates. Every content is a list, since Arrow allows a column one type."""
    row = _parts_row(conversation, lambda name: {"type": "audio", "path": name}, "the messages of Hugging Face")
    messages = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in row["messages"]
    ]
    return row | {"messages": messages}


def swift_row(conversation: Conversation) -> Row:
    """ms-swift: `messages` with `<audio>` tags, `audios`, and perhaps `rejected_response`."""
    messages = [
        {"role": turn.role, "content": _text(turn, conversation, "<audio>")} for turn in conversation.turns
    ] + _reply_message(conversation, "role", "content", "assistant")
    rejected = {} if conversation.rejected is None else {"rejected_response": conversation.rejected}
    return _head(conversation) | {"messages": messages} | _audios(conversation) | rejected | conversation.fields


def sharegpt_row(conversation: Conversation) -> Row:
    """LLaMA-Factory's ShareGPT form: `conversations`, `system`, `audios`; a preference in `chosen` and `rejected`."""
    system, turns = _system_apart(conversation, "ShareGPT")
    _check_alternation(conversation, turns, "ShareGPT")
    messages = [
        {"from": SHAREGPT_ROLES[turn.role], "value": _text(turn, conversation, "<audio>")} for turn in turns
    ]  # fmt: skip
    row = _head(conversation) | {"conversations": messages}
    if conversation.rejected is not None:
        pair = {"chosen": conversation.reply, "rejected": conversation.rejected}
        row |= {key: {"from": "gpt", "value": text} for key, text in pair.items()}
    else:
        messages += _reply_message(conversation, "from", "value", "gpt")
    return row | system | _audios(conversation) | conversation.fields


def flamingo_row(conversation: Conversation) -> Row:
    """Audio Flamingo: `sound` and `conversations`, with numbered tags where a row has several clips."""
    _refuse_preference(conversation, "Audio Flamingo")
    clips = conversation.clips
    if not clips:
        raise DataError(f"row {conversation.id!r}: has no clip; a row of Audio Flamingo needs one. Write --to sharegpt")
    numbers = iter(range(1, len(clips) + 1))
    messages = []
    for turn in conversation.turns:
        own = [part for part in turn.parts if isinstance(part, Audio)]
        tags = ["<sound>"] if len(clips) == 1 else [f"<sound-{next(numbers)}>" for _ in own]
        messages.append({"from": SHAREGPT_ROLES[turn.role], "value": tagged_text(turn.parts, tags, conversation.id)})
    messages += _reply_message(conversation, "from", "value", "gpt")
    sound = {"sound": clips[0] if len(clips) == 1 else clips}
    return _head(conversation) | sound | {"conversations": messages} | conversation.fields


def query_row(conversation: Conversation) -> Row:
    """ms-swift's `query` and `response`, with `history` and `system`."""
    row = _exchange_row(conversation, ("query", "response"), "query/response")
    rejected = {} if conversation.rejected is None else {"rejected_response": conversation.rejected}
    return row | rejected | _audios(conversation) | conversation.fields


def alpaca_row(conversation: Conversation) -> Row:
    """LLaMA-Factory's Alpaca form: `instruction`, `input`, `output`, `history`, `system`, and a preference."""
    row = _exchange_row(conversation, ("instruction", "output"), "Alpaca")
    row["input"] = ""
    if conversation.rejected is not None:
        row |= {"chosen": conversation.reply, "rejected": conversation.rejected}
        row.pop("output", None)
    return row | _audios(conversation) | conversation.fields


def prompt_row(conversation: Conversation) -> Row:
    """TRL: `prompt` in messages with empty places for the clips, `completion`, or `chosen` and `rejected`."""

    def reply(text: str) -> list[Row]:
        return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]

    prompt = [
        {"role": turn.role, "content": message_parts(turn, lambda _: {"type": "audio"})} for turn in conversation.turns
    ]
    row: Row = _head(conversation) | {"prompt": prompt}
    if conversation.rejected is not None and conversation.reply is not None:
        row |= {"chosen": reply(conversation.reply), "rejected": reply(conversation.rejected)}
    elif conversation.reply is None:
        raise DataError(
            f"row {conversation.id!r}: has no answer, and rows of prompt and completion need one. Write --to messages"
        )
    else:
        row |= {"completion": reply(conversation.reply)}
    return row | _audios(conversation) | conversation.fields


def question_row(conversation: Conversation) -> Row:
    """A question under `question`, its clip or clips under `audio`, and the answer under `answer`."""
    _refuse_preference(conversation, "question and answer")
    if len(conversation.turns) != 1:
        raise DataError(
            f"row {conversation.id!r}: {len(conversation.turns)} turns; a row of question and answer holds one. Write "
            "--to messages, swift or sharegpt"
        )
    turn, clips = conversation.turns[0], conversation.clips
    are_first = all(isinstance(part, Audio) for part in turn.parts[: len(clips)])
    tag = "" if are_first and len(turn.parts) > len(clips) else "<audio>"
    row: Row = _head(conversation) | ({"audio": clips[0] if len(clips) == 1 else clips} if clips else {})
    row |= {"question": _text(turn, conversation, tag)}
    answer = {} if conversation.reply is None else {"answer": conversation.reply}
    return row | answer | conversation.fields


FORMS: Mapping[str, ChatForm] = {
    "openai": ChatForm("OpenAI chat", "data", openai_row),
    "audio-url": ChatForm("OpenAI chat with addresses", "url", audio_url_row),
    "messages": ChatForm("Hugging Face messages", "absolute", hugging_face_row),
    "swift": ChatForm("ms-swift", "absolute", swift_row),
    "sharegpt": ChatForm("ShareGPT", "relative", sharegpt_row),
    "audio-flamingo": ChatForm("Audio Flamingo", "relative", flamingo_row),
    "query": ChatForm("query and response", "absolute", query_row),
    "alpaca": ChatForm("Alpaca", "relative", alpaca_row),
    "prompt": ChatForm("prompt and completion", "absolute", prompt_row),
    "question": ChatForm("question and answer", "relative", question_row),
}
"""Name after `--to` -> form."""


def _head(conversation: Conversation) -> Row:
    return {"id": conversation.id}


def _audios(conversation: Conversation) -> Row:
    clips = conversation.clips
    return {"audios": clips} if clips else {}


def _reply_message(conversation: Conversation, role_key: str, text_key: str, role: str) -> list[Row]:
    """The reply as a last message; nothing for an unlabelled row."""
    return [] if conversation.reply is None else [{role_key: role, text_key: conversation.reply}]


def _text(turn: Turn, conversation: Conversation, tag: str) -> str:
    """A turn as a text with `tag` for every clip."""
    clips = [part for part in turn.parts if isinstance(part, Audio)]
    if not tag:  # clips come first by themselves, so that a line break after them is kept
        return tagged_text([part for part in turn.parts if isinstance(part, Text)], [], conversation.id)
    return tagged_text(turn.parts, [tag] * len(clips), conversation.id)


def _parts_row(conversation: Conversation, clip_part: Callable[[str], Row], title: str) -> Row:
    """A row of `messages` whose clips are parts; a turn that is only a text is a string."""
    _refuse_preference(conversation, title)
    messages: list[Row] = []
    for turn in conversation.turns:
        parts = message_parts(turn, clip_part)
        is_text = len(parts) == 1 and parts[0]["type"] == "text"
        messages.append({"role": turn.role, "content": parts[0]["text"] if is_text else parts})
    messages += _reply_message(conversation, "role", "content", "assistant")
    return _head(conversation) | {"messages": messages} | conversation.fields


def _exchange_row(conversation: Conversation, keys: tuple[str, str], title: str) -> Row:
    """A question and its reply under `keys`, with earlier exchanges in `history`."""
    system, turns = _system_apart(conversation, title)
    _check_alternation(conversation, turns, title)
    texts = [_text(turn, conversation, "<audio>") for turn in turns]
    row = _head(conversation) | system | {keys[0]: texts[-1]}
    row |= {} if conversation.reply is None else {keys[1]: conversation.reply}
    history = [[texts[place], texts[place + 1]] for place in range(0, len(texts) - 1, 2)]
    return row | ({"history": history} if history else {})


def _system_apart(conversation: Conversation, title: str) -> tuple[Row, tuple[Turn, ...]]:
    """The key `system` of a conversation that begins with a system message, and the other turns."""
    first, *others = conversation.turns
    if first.role != "system":
        return {}, conversation.turns
    if any(isinstance(part, Audio) for part in first.parts):
        raise DataError(
            f"row {conversation.id!r}: its system message holds a clip; {title} has text there. Write --to messages"
        )
    return {"system": "".join(part.text for part in first.parts if isinstance(part, Text))}, tuple(others)


def _check_alternation(conversation: Conversation, turns: tuple[Turn, ...], title: str) -> None:
    """Refuse a conversation in which user and assistant do not take turns."""
    roles = [turn.role for turn in turns]
    expected = ["user" if place % 2 == 0 else "assistant" for place in range(len(turns))]
    if not turns or roles != expected or roles[-1] != "user":
        raise DataError(
            f"row {conversation.id!r}: its turns are {', '.join(roles)}; in {title} user and assistant take turns. "
            "Write --to messages, openai or swift"
        )


def _refuse_preference(conversation: Conversation, title: str) -> None:
    if conversation.rejected is not None:
        raise DataError(
            f"row {conversation.id!r}: has a rejected reply, which {title} cannot hold. Write --to swift, sharegpt, "
            "query, alpaca or prompt"
        )
