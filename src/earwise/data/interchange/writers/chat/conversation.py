"""What every form of conversations is written from: turns whose clips are named, the reply, and the fields beside them.

Forms differ in their keys only (`forms.py`); what none of them can hold is refused here, with the row's id.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from earwise.data.example_rows import FIELDS, TEXT_DEFAULTS
from earwise.data.formats.sound_names import find_tag
from earwise.errors import DataError
from earwise.prompts import prompt_turns, target_text
from earwise.types import Audio, Example, Text, Turn

NameClip = Callable[[Audio], str]
"""Writes how a row names a clip: a path, an address, or the audio itself as a `data:` URL."""
KEPT_FIELDS = ("reasoning", *TEXT_DEFAULTS, "difficulty")
"""Fields that are written beside the conversation where a row has them."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """An example on its way into another program's row."""

    id: str
    turns: tuple[Turn, ...]
    """The prompt; the paths of its clips are as the row names them, and texts beside each other are one."""
    reply: str | None
    """The assistant's last message; None for an unlabelled row."""
    rejected: str | None
    """The reply that is worse than `reply`; None for a row without a preference."""
    fields: dict[str, Any]
    """All that the conversation itself does not hold, under the names of a manifest."""

    @property
    def clips(self) -> list[str]:
        """The names of all clips, in order."""
        return [part.path for turn in self.turns for part in turn.parts if isinstance(part, Audio)]


def worded(example: Example, style: str) -> Example:
    """The example with its question, options and replies worded in a prompt style, so that any program trains the same.

    Args:
        example: The example.
        style: Prompt style, a key of `prompts.INSTRUCTIONS`.
    Raises:
        ConfigError: as `prompts.prompt_turns` and `prompts.target_text`.
    """
    answer = (target_text(example, style),) if example.answer else ()
    chosen, rejected = example.chosen, example.rejected
    if rejected and not chosen:
        chosen = answer
        rejected = tuple(target_text(example, style, text) for text in rejected)
    turns = prompt_turns(example, style)
    return replace(example, turns=turns, answer=answer, choices=(), reasoning=None, chosen=chosen, rejected=rejected)


def take_apart(example: Example, name_clip: NameClip, form: str) -> Conversation:
    """The conversation that an example is.

    Args:
        example: The example; its conversation ends with a turn of the user.
        name_clip: Writes how the row names a clip.
        form: Name of the form that is written, for messages.
    Raises:
        DataError: for a row with several chosen or rejected replies, or with rejected answers that are no replies.
    """
    if example.turns[-1].role == "assistant":
        raise DataError(
            f"row {example.id!r}: its conversation ends with the assistant, and its answer stands beside it; leave "
            f"either out, {form} holds one of them"
        )
    chosen, rejected = example.chosen, example.rejected
    if rejected and not chosen:
        raise DataError(
            f"row {example.id!r}: `rejected` holds answers, and {form} holds replies word for word; say how they are "
            "worded with --style (`--style plain` takes the answers themselves)"
        )
    if len(chosen) > 1 or len(rejected) > 1:
        raise DataError(
            f"row {example.id!r}: {len(chosen)} chosen and {len(rejected)} rejected replies; {form} holds one of each. "
            "Write one row for each pair"
        )
    reply = chosen[0] if chosen else example.answer[0] if example.answer else None
    fields: dict[str, Any] = {"choices": list(example.choices)} if example.choices else {}
    if example.answer and example.answer != (reply,):
        fields["answer"] = example.answer[0] if len(example.answer) == 1 else list(example.answer)
    for name in KEPT_FIELDS:
        value = getattr(example, name)
        if value is not None and value != TEXT_DEFAULTS.get(name):
            fields[name] = value
    fields |= {"text_only": True} if example.text_only else {}
    if clashing := next((key for key in example.meta if key in FIELDS), None):
        raise DataError(f"row {example.id!r}: meta holds the field {clashing!r}; rename it")
    turns = tuple(Turn(turn.role, joined_parts(turn, name_clip)) for turn in example.turns)
    return Conversation(example.id, turns, reply, rejected[0] if rejected else None, fields | dict(example.meta))


def joined_parts(turn: Turn, name_clip: NameClip) -> tuple[Text | Audio, ...]:
    """The parts of a turn with clips named by `name_clip`; neighbouring texts are joined, as every template does."""
    parts: list[Text | Audio] = []
    for part in turn.parts:
        if isinstance(part, Audio):
            parts.append(replace(part, path=name_clip(part)))
        elif parts and isinstance(parts[-1], Text):
            parts[-1] = Text(parts[-1].text + part.text)
        else:
            parts.append(part)
    return tuple(part for part in parts if part != Text("")) or (Text(""),)


def tagged_text(parts: Sequence[Text | Audio], tags: Sequence[str], row_id: str) -> str:
    """A turn as one text with a tag in the place of every clip.

    A line break that follows a tag is doubled, because readers of tags drop one.

    Args:
        parts: The parts of the turn.
        tags: A tag for each of its clips.
        row_id: Id of the row, for messages.
    Raises:
        DataError: if the text itself holds what its reader would take for a clip.
    """
    pieces, places = list[str](), iter(tags)
    for part in parts:
        if isinstance(part, Audio):
            pieces.append(next(places))
            continue
        if tag := find_tag(part.text):
            raise DataError(
                f"row {row_id!r}: its text holds {tag!r}, which a program that reads tags takes for a clip; change the "
                "text, or write --to openai or messages"
            )
        is_after_tag = bool(pieces) and part.text.startswith("\n")
        pieces.append("\n" + part.text if is_after_tag else part.text)
    return "".join(pieces)


def message_parts(turn: Turn, clip_part: Callable[[str], dict[str, Any]]) -> list[dict[str, Any]]:
    """A turn as a list of parts; `clip_part` writes the part of a clip."""
    return [
        clip_part(part.path) if isinstance(part, Audio) else {"type": "text", "text": part.text} for part in turn.parts
    ]
