"""Chat templates of the model families: conversations written as spans of text and places of clips. No torch.

`render` writes a conversation in the chat template of a model family. The result is a sequence of `Span`s.
`models/prompt_encoding.py` tokenizes every text span by itself and puts audio tokens in place of the audio spans. A
span boundary is therefore always a token boundary: the tokens that are trained are exactly the tokens that generation
would have to sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

from earwise.types import Audio, Role, Text, Turn


@dataclass(frozen=True, slots=True)
class FixedLayout:
    """Layout of a prompt that always has the same number of tokens (Mellow as released): clips, then text."""

    clips: int
    """Number of clips in every prompt; a conversation with fewer clips repeats the first one."""
    text_tokens: int
    """Number of tokens after the last clip; the text is truncated or padded to it."""
    pad_token: str
    """Token that pads the text; the model attends to it like to any other token."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The chat format of a model family: the texts around turns and clips."""

    name: str
    """Name of the template, for messages and tests."""
    turn_start: str
    """Text before a turn; `{role}` is replaced by the turn's role."""
    turn_end: str
    """Text after a turn. After an assistant turn it is trained, since the model must learn to end its answer."""
    audio_start: str
    """Text before a clip; `{k}` is replaced by the clip's number, counted from 1 over the whole conversation."""
    audio_end: str
    """Text after a clip."""
    system: str | None = None
    """System message of a conversation that has none of its own; None adds no system message."""
    turn_separator: str = "\n"
    """Text after `turn_end`; never trained."""
    conversation_start: str = ""
    """Text before the first turn, such as the begin-of-sequence token."""
    role_markers: Mapping[Role, tuple[str, str]] = field(default_factory=dict)
    """Start and end of a turn for the roles that do not use `turn_start` and `turn_end`."""
    system_in_user: bool = False
    """Whether the system message is written at the beginning of the first user turn, for a format without system
    turns."""
    fixed_layout: FixedLayout | None = None
    """Layout of prompts of fixed length; None for a family whose prompts have any length."""

    def turn_markers(self, role: Role) -> tuple[str, str]:
        """Start and end of a turn of this role."""
        return self.role_markers.get(role, (self.turn_start.format(role=role), self.turn_end))

    def texts(self) -> tuple[str, ...]:
        """All texts that this template writes around turns and clips."""
        markers = [text for role in get_args(Role) for text in self.turn_markers(role)]
        return (self.conversation_start, *markers, self.turn_separator, self.audio_start, self.audio_end)


# The chat template released with Qwen/Qwen2-Audio-7B-Instruct: ChatML, "Audio k:" before each clip, with k counted over
# the whole conversation.
QWEN2_AUDIO = ChatTemplate(
    "qwen2-audio",
    "<|im_start|>{role}\n",
    "<|im_end|>",
    "Audio {k}: <|audio_bos|>",
    "<|audio_eos|>\n",
    "You are a helpful assistant.",
)
# Qwen2-Audio before instruction tuning (model card of Qwen/Qwen2-Audio-7B): the clip, the bare task, the answer.
QWEN2_AUDIO_BASE = ChatTemplate(
    "qwen2-audio-base", "", "", "<|audio_bos|>", "<|audio_eos|>", turn_separator="",
    role_markers={"assistant": ("", "<|endoftext|>")},
)  # fmt: skip
# Mellow (arXiv:2503.08540) has no roles: clips, each followed by a separator, then the question. The released trainer
# writes an end token after the question. The released inference code does not, and packs two clips and 129 tokens of
# text into every prompt; that form is MELLOW_COMPAT.
MELLOW = ChatTemplate(
    "mellow",
    "",
    " <|endoftext|>",
    "",
    "<|endoftext|>",
    turn_separator="",
    role_markers={"assistant": ("", "<|endoftext|>")},
)
MELLOW_COMPAT = replace(MELLOW, name="mellow-compat", turn_end="", fixed_layout=FixedLayout(2, 1 + 129, "!"))
# SALMONN (arXiv:2310.13289; released code, bytedance/SALMONN): Vicuna's turns; the tags around a clip are plain text,
# not special tokens.
SALMONN = ChatTemplate(
    "salmonn", "", "", "<Speech>", "</Speech> ", turn_separator="", conversation_start="<s>",
    role_markers={"system": ("", " "), "user": ("USER: ", "\n"), "assistant": ("ASSISTANT:", "</s>")},
)  # fmt: skip
# The embedded model: ChatML without a system message, so that the prompt of a short clip stays short.
EMBEDDED = ChatTemplate("embedded", "<|im_start|>{role}\n", "<|im_end|>", "", "\n")


@dataclass(frozen=True, slots=True)
class Piece:
    """A text of one origin inside a span."""

    text: str
    from_template: bool = False
    """Whether the chat template wrote it. Only there a control token such as `<|im_end|>` has its meaning; the same
    characters in a text of a row or a request are text."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a rendered conversation that is tokenised as a whole: a text, or the place of one clip."""

    pieces: tuple[Piece, ...] = ()
    """The text by origin; empty for a clip."""
    trained: bool = False
    """Whether the loss counts this span: the assistant's text and the end of its turn."""
    audio: bool = False
    """Whether this is the place of a clip."""

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(piece.text for piece in self.pieces)


def render(turns: tuple[Turn, ...], template: ChatTemplate, *, generate: bool) -> tuple[Span, ...]:
    """Write a conversation in a chat template.

    Args:
        turns: The conversation.
        template: Chat template of the model.
        generate: Whether to end with the start of an assistant turn, for a prompt to be completed. False for a
            conversation that ends with the assistant's text.
    Returns:
        The spans in order; consecutive text spans are joined unless they differ in `trained`, and consecutive pieces
        of a span unless they differ in their origin.
    """
    if template.system is not None and (not turns or turns[0].role != "system"):
        turns = (Turn("system", (Text(template.system),)), *turns)
    if template.system_in_user and [turn.role for turn in turns[:2]] == ["system", "user"]:
        turns = (Turn("user", (*turns[0].parts, Text("\n\n"), *turns[1].parts)), *turns[2:])
    spans: list[Span] = []

    def append(piece: Piece, trained: bool = False) -> None:
        if not piece.text:
            return
        if spans and not spans[-1].audio and spans[-1].trained == trained:
            spans[-1] = replace(spans[-1], pieces=_joined(spans[-1].pieces, piece))
        else:
            spans.append(Span((piece,), trained))

    def append_template(text: str, trained: bool = False) -> None:
        append(Piece(text, from_template=True), trained)

    append_template(template.conversation_start)
    clips = 0
    for turn in turns:
        start, end = template.turn_markers(turn.role)
        append_template(start)
        trained = turn.role == "assistant"
        for part in turn.parts:
            if isinstance(part, Audio):
                clips += 1
                append_template(template.audio_start.format(k=clips))
                spans.append(Span(audio=True))
                append_template(template.audio_end)
            else:
                append(Piece(part.text), trained)
        append_template(end, trained)
        append_template(template.turn_separator)
    if generate:
        append_template(template.turn_markers("assistant")[0])
    return tuple(spans)


def _joined(pieces: tuple[Piece, ...], piece: Piece) -> tuple[Piece, ...]:
    """The pieces with one more, which is joined to the last if both have one origin."""
    last = pieces[-1]
    if last.from_template != piece.from_template:
        return (*pieces, piece)
    return (*pieces[:-1], Piece(last.text + piece.text, piece.from_template))
