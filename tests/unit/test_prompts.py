"""Chat templates and prompt styles: exact texts, which spans are trained, and every error."""

import pytest

from builders import tiny_qwen2_audio, tone, user_question
from earwise.errors import ConfigError, DataError
from earwise.models.families import gemma3n, phi4_multimodal, qwen3_omni, qwen25_omni
from earwise.models.prompt_encoding import answer_path, completion_path, conversation_path
from earwise.prompts import (
    EMBEDDED,
    QWEN2_AUDIO,
    QWEN2_AUDIO_BASE,
    Piece,
    Span,
    prompt_turns,
    question_text,
    render,
    target_text,
)
from earwise.types import Audio, Example, Text, Turn

CHAT = (
    Turn("user", (Audio("a.wav"), Text("What is it?"))),
    Turn("assistant", (Text("A dog."),)),
    Turn("user", (Audio("b.wav"), Text("And this?"))),
    Turn("assistant", (Text("A cat."),)),
)


def control(text: str) -> Piece:
    """Text that the chat template writes."""
    return Piece(text, from_template=True)


def test_embedded_spans() -> None:
    assert render(CHAT[:2], EMBEDDED, generate=False) == (
        Span((control("<|im_start|>user\n"),)),
        Span(audio=True),
        Span((control("\n"), Piece("What is it?"), control("<|im_end|>\n<|im_start|>assistant\n"))),
        Span((Piece("A dog."), control("<|im_end|>")), trained=True),
        Span((control("\n"),)),
    )


def test_qwen2_audio_counts_clips_over_the_conversation() -> None:
    spans = render(CHAT[:3], QWEN2_AUDIO, generate=True)
    assert [span.text for span in spans] == [
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nAudio 1: <|audio_bos|>",
        "",
        "<|audio_eos|>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n",
        "A dog.<|im_end|>",
        "\n<|im_start|>user\nAudio 2: <|audio_bos|>",
        "",
        "<|audio_eos|>\nAnd this?<|im_end|>\n<|im_start|>assistant\n",
    ]
    with_system = render((Turn("system", (Text("Listen."),)), *CHAT[:1]), QWEN2_AUDIO, generate=True)
    assert with_system[0].text.startswith("<|im_start|>system\nListen.<|im_end|>\n<|im_start|>user\nAudio 1: ")


def test_qwen2_audio_before_instruction_tuning_gets_clip_and_bare_task() -> None:
    task = Turn("user", (Audio("a.wav"), Text("Detect the language and recognize the speech: ")))
    prompt = render((task,), QWEN2_AUDIO_BASE, generate=True)
    assert [span.text for span in prompt] == [
        "<|audio_bos|>",
        "",
        "<|audio_eos|>Detect the language and recognize the speech: ",
    ]
    answer = Turn("assistant", (Text("<|en|>Hello."),))
    whole = render((task, answer), QWEN2_AUDIO_BASE, generate=False)
    assert whole == (*prompt, Span((Piece("<|en|>Hello."), control("<|endoftext|>")), trained=True))


def test_voice_chat_is_a_turn_of_audio_alone() -> None:
    spans = render((Turn("user", (Audio("a.wav"),)),), QWEN2_AUDIO, generate=True)
    assert spans[-1].text == "<|audio_eos|>\n<|im_end|>\n<|im_start|>assistant\n"


def test_what_is_trained_is_what_is_sampled() -> None:
    """A whole conversation and a prompt with a sampled answer have the same token ids, except for the line break after
    the last end-of-turn token of the conversation.
    """
    model = tiny_qwen2_audio()
    samples = [len(tone(0.3)), len(tone(0.5))]
    whole = conversation_path(model, CHAT, [0, 1], samples, generate=False)
    prompt = conversation_path(model, CHAT[:3], [0, 1], samples, generate=True)
    sampled = prompt + answer_path(model, "A cat.")
    assert whole.ids == (*sampled.ids, *model.tokenizer.encode("\n")) and whole.clips == (*sampled.clips, -1)
    trained_ids = [i for i, trained in zip(whole.ids, whole.trained, strict=True) if trained]
    assert model.tokenizer.encode_template("A dog.<|im_end|>A cat.<|im_end|>") == trained_ids
    # In a prompt nothing is trained, not even earlier answers: only sampled tokens count.
    assert not any(prompt.trained)
    assert [i for i, trained in zip(sampled.ids, sampled.trained, strict=True) if trained] == [
        *model.tokenizer.encode("A cat."),
        model.eos_ids[0],
    ]
    assert answer_path(model, "A cat.") == completion_path([*model.tokenizer.encode("A cat."), model.eos_ids[0]])
    assert [prompt.clips.count(clip) for clip in (0, 1)] == [model.audio_tokens(count) for count in samples]


def test_number_of_clips_must_match_the_audio_parts() -> None:
    model = tiny_qwen2_audio()
    with pytest.raises(DataError, match="1 audio parts but 2 sounds"):
        conversation_path(model, user_question("What?"), [0, 1], [5000, 5000], generate=True)
    with pytest.raises(DataError, match="2 audio parts but 1 sounds"):
        conversation_path(model, user_question("What?", 2), [0], [5000], generate=True)


def test_a_row_that_names_a_clip_in_its_text_alone_is_refused() -> None:
    """Otherwise the model would be asked about a sound that it does not get."""
    text = Text("Audio 1: <|AUDIO|> What is it?")
    with pytest.raises(DataError, match=r"'e1': its text holds the audio placeholder .* but it has no sound"):
        prompt_turns(example(turns=(Turn("user", (text,)),)), "plain")
    assert prompt_turns(example(turns=(Turn("user", (Audio("a.wav"), text)),), choices=()), "plain") == (
        Turn("user", (Audio("a.wav"), text)),
    )


@pytest.mark.parametrize(
    ("style", "end"),
    [
        ("plain", ""),
        ("answer", " Output the final answer in <answer> </answer>."),
        ("think", " Output the thinking process in <think> </think> and final answer in <answer> </answer>."),
    ],
)
def test_question_text_is_that_of_r1aqa(style: str, end: str) -> None:
    options = " Please choose the answer from the following options: ['dog', \"cat's\"]."
    assert question_text("What is it?", ("dog", "cat's"), style) == "What is it?" + options + end
    assert question_text("What is it?", (), style) == "What is it?" + end


def example(**changes: object) -> Example:
    fields = {"id": "e1", "turns": CHAT[:1], "answer": ("dog",), "choices": ("dog", "cat")} | changes
    return Example(**fields)  # type: ignore[arg-type]


def test_prompt_turns() -> None:
    turns = prompt_turns(example(turns=CHAT), "plain")
    assert turns[:2] == CHAT[:2]
    options = "And this? Please choose the answer from the following options: ['dog', 'cat']."
    assert turns[2] == Turn("user", (Audio("b.wav"), Text(options)))
    assert prompt_turns(example(turns=(Turn("user", (Audio("a.wav"),)),), choices=()), "open") == (
        Turn("user", (Audio("a.wav"),)),
    )
    with pytest.raises(ConfigError, match="'e1' has no user turn"):
        prompt_turns(example(turns=CHAT[1:2]), "plain")
    with pytest.raises(ConfigError, match="style 'loud' is none of open, plain"):
        prompt_turns(example(), "loud")


def test_target_text() -> None:
    assert target_text(example(), "plain") == "dog"
    assert target_text(example(), "answer", "a dog") == "<answer>a dog</answer>"
    assert target_text(example(reasoning="It barks."), "think") == "<think>It barks.</think>\n<answer>dog</answer>"
    with pytest.raises(ConfigError, match="'e1' has no reasoning for style 'think'"):
        target_text(example(), "think")
    with pytest.raises(ConfigError, match="'e1' has no answer"):
        target_text(example(answer=()), "plain")


def test_mellow_letters_options_and_writes_lower_case() -> None:
    """The form of the released data: `what is it? a) a car b) rain`, target `b) rain`; no instruction is added."""
    row = example(turns=user_question("What Is It?"), choices=("A Car", "Rain"), answer=("Rain",))
    assert question_of(row, "mellow") == "what is it? a) a car b) rain"
    assert target_text(row, "mellow") == "b) rain" and target_text(row, "mellow", "A Car") == "a) a car"
    yes_no = example(turns=user_question("Is It Raining? Answer yes or no."), choices=("yes", "no"), answer=("no",))
    assert question_of(yes_no, "mellow") == "is it raining? answer yes or no." and target_text(yes_no, "mellow") == "no"
    assert target_text(example(answer=("It Is Loud.",), choices=(), task="detail"), "mellow") == "it is loud."


def test_mellow_captions_have_a_beginning_and_differences_keep_their_case() -> None:
    caption = example(turns=user_question("Describe."), answer=("A Dog barks",), task="caption")
    assert target_text(caption, "mellow") == "the audio 1 is a dog barks"
    both = example(turns=user_question("Describe.", clips=2), answer=("The first: A. The second: B.",), task="caption")
    assert target_text(both, "mellow") == "the first: a. the second: b."
    difference = example(
        turns=user_question("Explain.", clips=2), answer=("Rain. A Dog.",), choices=(), task="difference"
    )
    assert target_text(difference, "mellow") == "Rain. A Dog." and question_of(difference, "mellow") == "explain."


def question_of(row: Example, style: str) -> str:
    """Text of the last user turn in a style."""
    return "".join(part.text for part in prompt_turns(row, style)[-1].parts if isinstance(part, Text))


PROMPT_FORMATS = {
    "qwen2.5-omni": (
        "You are a helpful assistant.",
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\nA dog."
        "<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3-omni": (
        None,
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\nA dog."
        "<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "gemma3n": (
        None,
        "<bos><start_of_turn>user\n{system}\n\nWhat?<end_of_turn>\n<start_of_turn>model\nA dog.<end_of_turn>\n"
        "<start_of_turn>user\nAnd now?<end_of_turn>\n<start_of_turn>model\n",
    ),
    "phi4-multimodal": (
        None,
        "<|system|>{system}<|end|><|user|>What?<|end|><|assistant|>A dog.<|end|><|user|>And now?<|end|>"
        "<|assistant|>",
    ),
}  # fmt: skip
"""Template -> its default system message, and a conversation of three turns as LLaMA-Factory 0.9.5 writes it."""


@pytest.mark.parametrize("name", PROMPT_FORMATS)
def test_conversations_are_written_as_another_trainer_writes_them(name: str) -> None:
    families = (qwen25_omni, qwen3_omni, gemma3n, phi4_multimodal)
    template = next(family.TEMPLATE for family in families if family.TEMPLATE.name == name)
    default, expected = PROMPT_FORMATS[name]
    turns = (Turn("user", (Text("What?"),)), Turn("assistant", (Text("A dog."),)), Turn("user", (Text("And now?"),)))
    system = (Turn("system", (Text("Be brief."),)),)
    written = "".join(span.text for span in render((*system, *turns), template, generate=True))
    assert written == expected.format(system="Be brief.")
    assert template.system == default
