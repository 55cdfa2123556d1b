"""Turns into text with spans that say where audio goes and what is trained; the papers' question templates.

No torch. A `ChatTemplate` is the chat format of one model family; a `style` is the wording of one paper. `render` gives
spans, the forest tokenises each text span by itself, so a span boundary is always a token boundary: what is trained is
what is sampled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from earwise.errors import ConfigError, DataError
from earwise.types import Audio, Example, Role, Text, Turn

AUDIO_PLACEHOLDER = "<|AUDIO|>"


@dataclass(frozen=True, slots=True)
class FixedLayout:
    """A prompt of fixed length: so many clips, then so many tokens of text (Mellow as released)."""

    clips: int
    """Every prompt has as many; a missing one repeats the first."""
    text_tokens: int
    """What stands behind the last clip is cut or filled up to as many."""
    pad_token: str
    """The token that fills up; the model sees it."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat format. `{role}` and `{k}` (the clip's number in the whole conversation, from 1) are filled in."""

    name: str
    turn_start: str
    turn_end: str
    audio_start: str
    audio_end: str
    system: str | None = None
    """System line put in front when the conversation has none."""
    turn_separator: str = "\n"
    """What stands behind every turn's end; never trained."""
    conversation_start: str = ""
    """What stands before the first turn."""
    role_markers: Mapping[Role, tuple[str, str]] = field(default_factory=dict)
    """Start and end of the turns of a role that has its own."""
    system_in_user: bool = False
    """True for a format without system turns: what stands there begins the first user turn."""
    fixed_layout: FixedLayout | None = None
    """Of prompts of fixed length; see `models.sequence`."""

    def turn(self, role: Role) -> tuple[str, str]:
        """Start and end of a turn of this role."""
        return self.role_markers.get(role, (self.turn_start.format(role=role), self.turn_end))


# Qwen2-Audio's released chat template: ChatML, "Audio k:" counted over the conversation (papers/qwen2-audio.md,
# section 3).
QWEN2_AUDIO = ChatTemplate(
    "qwen2-audio",
    "<|im_start|>{role}\n",
    "<|im_end|>",
    "Audio {k}: <|audio_bos|>",
    "<|audio_eos|>\n",
    "You are a helpful assistant.",
)
# Qwen2-Audio before its instruction tuning: the sound, then the bare task, then the answer (same section).
QWEN2_AUDIO_BASE = ChatTemplate(
    "qwen2-audio-base", "", "", "<|audio_bos|>", "<|audio_eos|>", turn_separator="",
    role_markers={"assistant": ("", "<|endoftext|>")},
)  # fmt: skip
# Mellow (papers/mellow.md section 2): clips, each before a separator, then the bare question and the end mark, as its
# trainer writes it; and its inference code's packing, two clips and 129 tokens of question, no end mark.
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
# SALMONN: Vicuna's turns, the sound between tags that are plain text (papers/salmonn.md, section 2).
SALMONN = ChatTemplate(
    "salmonn", "", "", "<Speech>", "</Speech> ", turn_separator="", conversation_start="<s>",
    role_markers={"system": ("", " "), "user": ("USER: ", "\n"), "assistant": ("ASSISTANT:", "</s>")},
)  # fmt: skip
# The embedded model: ChatML without a system line, so that the prompt of a short clip stays short.
EMBEDDED = ChatTemplate("embedded", "<|im_start|>{role}\n", "<|im_end|>", "", "\n")


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a rendered conversation: text, or the place of one clip (`audio`); `trained` spans are what the
    model must learn to say."""

    text: str
    trained: bool = False
    audio: bool = False


def render(turns: tuple[Turn, ...], template: ChatTemplate, *, generate: bool) -> tuple[Span, ...]:
    """Render a conversation.

    Args:
        turns: The conversation; content parts are told apart by type, never by key presence.
        template: Chat format of the model.
        generate: True to end with an opened assistant turn, False when the conversation ends with the assistant's own
            words.
    Returns:
        Spans in order. Assistant text and the end mark after it are `trained`; neighbouring spans of one kind are
        joined.
    Raises:
        DataError: if a text contains the audio placeholder, which would be counted as a clip.
    """
    if template.system is not None and (not turns or turns[0].role != "system"):
        turns = (Turn("system", (Text(template.system),)), *turns)
    if template.system_in_user and [turn.role for turn in turns[:2]] == ["system", "user"]:
        turns = (Turn("user", (*turns[0].parts, Text("\n\n"), *turns[1].parts)), *turns[2:])
    spans: list[Span] = []

    def say(text: str, trained: bool = False) -> None:
        if spans and not spans[-1].audio and spans[-1].trained == trained:
            spans[-1] = replace(spans[-1], text=spans[-1].text + text)
        elif text:
            spans.append(Span(text, trained))

    say(template.conversation_start)
    clips = 0
    for turn in turns:
        start, end = template.turn(turn.role)
        say(start)
        trained = turn.role == "assistant"
        for part in turn.parts:
            if isinstance(part, Audio):
                clips += 1
                say(template.audio_start.format(k=clips))
                spans.append(Span("", audio=True))
                say(template.audio_end)
            else:
                if AUDIO_PLACEHOLDER in part.text:
                    raise DataError(
                        f"text holds the audio placeholder {AUDIO_PLACEHOLDER!r}: {part.text[:60]!r}; "
                        "put the clip in a part of its own"
                    )
                say(part.text, trained)
        say(end, trained)
        say(template.turn_separator)
    if generate:
        say(template.turn("assistant")[0])
    return tuple(spans)


# R1-AQA's wordings (papers/r1-aqa.md, section 3): <1> is "plain" (exact text unpublished; ours), <2> "answer", <3>
# "think".
CHOICES_PROMPT = " Please choose the answer from the following options: {choices}."
INSTRUCTIONS = {
    "open": "",
    "plain": "",
    "answer": " Output the final answer in <answer> </answer>.",
    "think": " Output the thinking process in <think> </think> and final answer in <answer> </answer>.",
    "short-think": " Output the thinking process (less than 50 words) in <think> </think> "
    "and final answer in <answer> </answer>.",
    # What natural-language prompts replaced in Qwen2-Audio (arXiv:2407.10759, section 2): see `hierarchical_tags`.
    "tags": "",
    # Audio-Thinker lets the model choose (arXiv:2508.08039); the wording is ours.
    "adaptive": " If it helps, first output the thinking process in <think> </think>. "
    "Output the final answer in <answer> </answer>.",
    # SARI's four sections (arXiv:2504.15900); tags and wording are ours.
    "structured": " Output the thinking process in <think> </think>, in four sections: <planning> </planning> "
    "<caption> </caption> <reasoning> </reasoning> <summary> </summary>, and final answer in <answer> </answer>.",
    "spoken": " Answer what is said, in the language that was spoken.",
    # XS-CoT (arXiv:2504.20835): transcript, translation, English answer, answer; the wording is ours.
    "xs-cot": " Write down what is said, translate it into English, answer it in English, "
    "then answer it in the language that was spoken.",
}
TAGGED_STYLES = ("answer", "think", "short-think", "adaptive", "structured")
THINKING_STYLES = ("think", "short-think", "structured")


def question_text(question: str, choices: tuple[str, ...], style: str) -> str:
    """The user's text: question, the options as a Python list (the released code prints one), and the style's
    instruction.

    >>> question_text("What is it?", ("dog", "cat"), "plain")
    "What is it? Please choose the answer from the following options: ['dog', 'cat']."
    """
    if style not in INSTRUCTIONS:
        raise ConfigError(f"prompt style {style!r} is none of {', '.join(INSTRUCTIONS)}")
    options = CHOICES_PROMPT.format(choices=list(choices)) if choices else ""
    text = question + options + INSTRUCTIONS[style]
    return text if question else text.lstrip()


def part_marker(language: str, *, response: bool = False) -> str:
    """What a part of an XS-CoT chain begins with: plain text, so that a frozen embedding table knows it.

    >>> part_marker("ja"), part_marker("en", response=True)
    ('[ja] ', '[en-response] ')
    """
    return f"[{language}-response] " if response else f"[{language}] "


def xs_cot_chain(language: str, said: str, translated: str, response: str) -> str:
    """The reasoning of an XS-CoT answer: transcript, its English translation, the English answer, a marker each.

    >>> xs_cot_chain("de", "Bellt er?", "Does it bark?", "Yes.")
    '[de] Bellt er?\\n[en] Does it bark?\\n[en-response] Yes.'
    """
    parts = (
        (part_marker(language), said),
        (part_marker("en"), translated),
        (part_marker("en", response=True), response),
    )
    return "\n".join(marker + text for marker, text in parts)


def hierarchical_tags(example: Example) -> str:
    """What is asked of a sound as tags, from the general to the particular: write down or analyse, language of the
    sound, task, language of the answer. The idea is Qwen-Audio's; these tags, as plain text, are ours.

    >>> hierarchical_tags(Example("a", (), task="caption", category="sound"))
    '<|startofanalysis|><|unknown|><|caption|><|en|>'
    """
    written = example.task in ("transcription", "translation")
    heard = example.language if example.category == "speech" else "unknown"
    task = example.task if written or example.task == "caption" else "question-answer"
    return f"<|startof{'transcript' if written else 'analysis'}|><|{heard}|><|{task}|><|{example.language}|>"


def prompt_turns(example: Example, style: str) -> tuple[Turn, ...]:
    """The conversation up to the answer, with the last user turn worded in `style`; trailing assistant turns are left
    out."""
    turns = list(example.turns)
    while turns and turns[-1].role == "assistant":
        turns.pop()
    if not turns or turns[-1].role != "user":
        raise ConfigError(f"example {example.id!r} has no user turn to answer; end its messages with one")
    last = turns.pop()
    audio = tuple(part for part in last.parts if isinstance(part, Audio))
    text = question_text(example.question, example.choices, style)
    if style == "tags":
        text = hierarchical_tags(example) + text
    return (*turns, Turn("user", (*audio, Text(text)) if text else audio))


def repeat_audio_parts(turns: tuple[Turn, ...], pieces: Sequence[int]) -> tuple[Turn, ...]:
    """The conversation with every audio part as often as its sound was cut into `pieces` (`long_audio: chunk`)."""
    counts = iter(pieces)
    return tuple(
        replace(
            turn,
            parts=tuple(p for part in turn.parts for p in [part] * (next(counts) if isinstance(part, Audio) else 1)),
        )
        for turn in turns
    )


def target_text(example: Example, style: str, answer: str | None = None) -> str:
    """What the assistant should say: the option's text, tagged where the style asks for tags; for `xs-cot` the three
    parts of the reasoning, then the answer behind its marker.

    Raises:
        ConfigError: if the example has no answer, or a thinking style meets an example without `reasoning`.
    """
    if answer is None:
        if not example.answer:
            raise ConfigError(f"example {example.id!r} has no answer to train on; add one or leave it out")
        answer = example.answer[0]
    if style == "xs-cot":
        if not example.reasoning:
            raise ConfigError(f"example {example.id!r} has no reasoning for style 'xs-cot'; make it by build xs-cot")
        return f"{example.reasoning}\n{part_marker(example.language, response=True)}{answer}"
    if style not in TAGGED_STYLES:
        return answer
    tagged = f"<answer>{answer}</answer>"
    if style not in THINKING_STYLES and not (style == "adaptive" and example.reasoning):
        return tagged
    if not example.reasoning:
        raise ConfigError(
            f"example {example.id!r} has no reasoning for style {style!r}; use style 'answer' or add reasoning"
        )
    return f"<think>{example.reasoning}</think>\n{tagged}"
