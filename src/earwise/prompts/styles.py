"""The prompt styles of the papers: how a question is worded, and the completion to train on. No torch.

`prompt_turns` words the question of an `Example` in a style (the instruction of one paper), `target_text` words the
answer to train on. `chat_templates.render` then writes the conversation for a model family.
"""

from collections.abc import Sequence
from dataclasses import replace

from earwise.errors import ConfigError, DataError
from earwise.prompts import mellow
from earwise.types import Audio, Example, Text, Turn

AUDIO_PLACEHOLDER = "<|AUDIO|>"
"""Qwen's marker of a clip inside a text. Typed in the text of a turn it is text and stands for no clip."""
CHOICES_PROMPT = " Please choose the answer from the following options: {choices}."
"""Sentence that lists the choices, between question and instruction (R1-AQA, released code, xiaomi-research/r1-aqa)."""
INSTRUCTIONS = {
    # R1-AQA (arXiv:2503.11197): "answer" and "think" are its prompts 2 and 3, word for word as in the released code.
    # "plain" is our version of its prompt 1, whose text is not published. "open" is for questions without choices.
    "open": "",
    "plain": "",
    "answer": " Output the final answer in <answer> </answer>.",
    "think": " Output the thinking process in <think> </think> and final answer in <answer> </answer>.",
    "short-think": " Output the thinking process (less than 50 words) in <think> </think> "
    "and final answer in <answer> </answer>.",
    # Qwen-Audio prompted with tags; Qwen2-Audio (arXiv:2407.10759, section 2) replaced them by natural language. The
    # tags depend on the example and stand before the question: see `hierarchical_tags`.
    "tags": "",
    # Audio-Thinker (arXiv:2508.08039) lets the model decide whether to reason; the wording is ours.
    "adaptive": " If it helps, first output the thinking process in <think> </think>. "
    "Output the final answer in <answer> </answer>.",
    # SARI (arXiv:2504.15900) reasons in four sections; the tags and the wording are ours.
    "structured": " Output the thinking process in <think> </think>, in four sections: <planning> </planning> "
    "<caption> </caption> <reasoning> </reasoning> <summary> </summary>, and final answer in <answer> </answer>.",
    # HyPeR (arXiv:2604.14806) describes what is heard before it reasons; the tags and the wording are ours.
    "perception": " Output the thinking process in <think> </think>, in four sections: <planning> </planning> "
    "<caption> </caption> <reasoning> </reasoning> <summary> </summary>, where the caption holds <background> "
    "</background> <speakers> </speakers> <transcript> </transcript> <description> </description>, and final answer in "
    "<answer> </answer>.",
    "spoken": " Answer what is said, in the language that was spoken.",
    # Mellow (arXiv:2503.08540): lower case, options with letters; see `mellow.py`.
    "mellow": "",
    # XS-CoT (arXiv:2504.20835): transcript, English translation, English answer, answer; the wording is ours.
    "xs-cot": " Write down what is said, translate it into English, answer it in English, "
    "then answer it in the language that was spoken.",
}
"""Prompt style -> the instruction after the question. Recipes, `--style` and reports name styles by these keys."""
TAGGED_STYLES = ("answer", "think", "short-think", "adaptive", "structured", "perception")
"""Styles whose completion carries its answer in an <answer> tag."""
THINKING_STYLES = ("think", "short-think", "structured", "perception")
"""Styles whose completion must reason in a <think> tag before it answers."""
REASONING_STYLES = (*THINKING_STYLES, "adaptive", "xs-cot")
"""Styles whose completion may reason before it answers: it needs more tokens, and its answer has to be extracted."""


def question_text(question: str, choices: tuple[str, ...], style: str) -> str:
    """The text of a user turn: the question, the choices, and the instruction of the style.

    The choices are printed as a Python list, as R1-AQA's released code prints them.

    Args:
        question: The question; may be empty, for tasks that the audio alone poses.
        choices: Texts of the options of a multiple-choice question; empty for an open question.
        style: Prompt style, a key of `INSTRUCTIONS`.
    Returns:
        The text, without a leading space if the question is empty.
    Raises:
        ConfigError: if there is no such style.

    Example:
        >>> question_text("What is it?", ("dog", "cat"), "plain")
        "What is it? Please choose the answer from the following options: ['dog', 'cat']."
    """
    if style not in INSTRUCTIONS:
        raise ConfigError(f"prompt style {style!r} is none of {', '.join(INSTRUCTIONS)}")
    if style == "mellow":
        return mellow.question(question, choices)
    options = CHOICES_PROMPT.format(choices=list(choices)) if choices else ""
    text = question + options + INSTRUCTIONS[style]
    return text if question else text.lstrip()


def part_marker(language: str, *, response: bool = False) -> str:
    """Marker at the beginning of one part of an XS-CoT chain.

    Markers are plain text instead of special tokens, so that a model with frozen embeddings can read and write them.

    Args:
        language: Language code of the part.
        response: Whether the part answers the instruction; False for the instruction itself.

    Example:
        >>> part_marker("ja"), part_marker("en", response=True)
        ('[ja] ', '[en-response] ')
    """
    return f"[{language}-response] " if response else f"[{language}] "


def xs_cot_chain(language: str, transcript: str, translation: str, response: str) -> str:
    """The reasoning of an XS-CoT completion: three parts, each on a line of its own behind its marker.

    Args:
        language: Language code of the spoken instruction.
        transcript: The spoken instruction.
        translation: Its English translation.
        response: The English answer to it.

    Example:
        >>> xs_cot_chain("de", "Bellt er?", "Does it bark?", "Yes.")
        '[de] Bellt er?\\n[en] Does it bark?\\n[en-response] Yes.'
    """
    parts = (
        (part_marker(language), transcript),
        (part_marker("en"), translation),
        (part_marker("en", response=True), response),
    )
    return "\n".join(marker + text for marker, text in parts)


def hierarchical_tags(example: Example) -> str:
    """The task of an example as a sequence of tags, from general to specific, for the style `tags`.

    The tags say whether to transcribe or to analyse, which language is spoken ("unknown" for anything but speech),
    which task it is, and the language of the answer. The idea is Qwen-Audio's (arXiv:2311.07919); these tags, written
    as plain text, are ours.

    Example:
        >>> hierarchical_tags(Example("a", (), task="caption", category="sound"))
        '<|startofanalysis|><|unknown|><|caption|><|en|>'
    """
    is_transcript = example.task in ("transcribe", "translate", "transcription", "translation")
    spoken_language = example.language if example.category == "speech" else "unknown"
    task = example.task if is_transcript or example.task == "caption" else "question-answer"
    start = "transcript" if is_transcript else "analysis"
    return f"<|startof{start}|><|{spoken_language}|><|{task}|><|{example.language}|>"


def prompt_part(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """A conversation without the assistant turns at its end."""
    end = len(turns)
    while end and turns[end - 1].role == "assistant":
        end -= 1
    return turns[:end]


def prompt_turns(example: Example, style: str) -> tuple[Turn, ...]:
    """The prompt of an example: its conversation up to the answer, with the last user turn worded in a style.

    Sound and text of that turn keep their order. The choices and the instruction of the style follow its last text, or
    its last clip if no text comes after it; tags (style `tags`) come before its first text.

    Args:
        example: The example; assistant turns at the end of its conversation are left out.
        style: Prompt style, a key of `INSTRUCTIONS`.
    Returns:
        The turns. The last one is the user's (without a text part if there is no text).
    Raises:
        ConfigError: if there is no such style, or the conversation has no user turn to answer.
        DataError: if the question names a clip by the audio placeholder, and the example has none.
    """
    turns = prompt_part(example.turns)
    if not turns or turns[-1].role != "user":
        raise ConfigError(f"example {example.id!r} has no user turn to answer; end its messages with one")
    if AUDIO_PLACEHOLDER in example.question and not any(isinstance(p, Audio) for turn in turns for p in turn.parts):
        raise DataError(
            f"example {example.id!r}: its text holds the audio placeholder {AUDIO_PLACEHOLDER!r}, but it has no sound"
        )
    *parts, last = [part for part in turns[-1].parts if part != Text("")] or [Text("")]
    question = last.text if isinstance(last, Text) else ""
    if isinstance(last, Audio):
        parts.append(last)
    parts.append(Text(question_text(question, example.choices, style)))
    if style == "tags":
        place, first = next((place, part) for place, part in enumerate(parts) if isinstance(part, Text))
        parts[place] = Text(hierarchical_tags(example) + first.text)
    worded = (*turns[:-1], Turn("user", tuple(part for part in parts if part != Text(""))))
    return mellow.lower_turns(worded) if style == "mellow" else worded


def repeat_audio_parts(turns: tuple[Turn, ...], num_chunks: Sequence[int]) -> tuple[Turn, ...]:
    """Repeat every audio part once for each chunk of its clip, for clips that are cut into chunks (`long_audio:
    chunk`).

    Args:
        turns: The conversation.
        num_chunks: For each audio part, in order, the number of chunks of its clip.
    """
    counts = iter(num_chunks)
    return tuple(
        replace(
            turn,
            parts=tuple(p for part in turn.parts for p in [part] * (next(counts) if isinstance(part, Audio) else 1)),
        )
        for turn in turns
    )


def target_text(example: Example, style: str, answer: str | None = None) -> str:
    """The completion to train on: reasoning and answer in the form that a style asks for.

    Args:
        example: The example, with an answer, and with reasoning if the style asks for it.
        style: Prompt style, a key of `INSTRUCTIONS`. A tagged style writes `<answer>...</answer>`, a thinking style
            `<think>...</think>` before it; `xs-cot` writes the parts of the chain and then the answer behind its
            marker; `mellow` the option with its letter, in lower case; any other style the bare answer.
        answer: Answer to write; None takes the example's first one.
    Raises:
        ConfigError: if the example has no answer, or a thinking style meets an example without `reasoning`.
    """
    if answer is None:
        if not example.answer:
            raise ConfigError(f"example {example.id!r} has no answer to train on; add one or leave the example out")
        answer = example.answer[0]
    if style == "xs-cot":
        if not example.reasoning:
            raise ConfigError(
                f"example {example.id!r} has no reasoning for style 'xs-cot'; add it with `earwise build xs-cot`"
            )
        return f"{example.reasoning}\n{part_marker(example.language, response=True)}{answer}"
    if style not in TAGGED_STYLES:
        return mellow.target(example, answer) if style == "mellow" else answer
    tagged_answer = f"<answer>{answer}</answer>"
    if style not in THINKING_STYLES and not (style == "adaptive" and example.reasoning):
        return tagged_answer
    if not example.reasoning:
        raise ConfigError(
            f"example {example.id!r} has no reasoning for style {style!r}; use style 'answer' or add reasoning"
        )
    return f"<think>{example.reasoning}</think>\n{tagged_answer}"
