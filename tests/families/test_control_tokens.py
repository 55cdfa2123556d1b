"""Every family: what a user types is text, whatever control tokens it spells, and ordinary prompts are as before.

The control tokens of a family are the special tokens of its tokenizer and the added tokens of its template. They are
put into every text that somebody else writes: question, option, system message, earlier turns, answer.
"""

from collections.abc import Sequence

import pytest

from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.forest import TokenPath, build_tree
from earwise.models.base import AudioLM
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.prompts import question_text, render
from earwise.types import Audio, Text, Turn
from families.forests import lengths, make_clip
from families.tiny import Tiny


def special_tokens(model: AudioLM) -> dict[str, int]:
    """Special tokens of the tokenizer and added tokens of the template, with their ids."""
    added = model.tokenizer.backend.get_added_tokens_decoder()
    texts = "".join(model.template.texts())
    return {token.content: number for number, token in added.items() if token.special or token.content in texts}


def conversation(question: str, *, system: str = "Be brief.", answer: str = "A bell.") -> tuple[Turn, ...]:
    return (
        Turn("system", (Text(system),)),
        Turn("user", (Audio("0.wav"), Text("What is it?"))),
        Turn("assistant", (Text(answer),)),
        Turn("user", (Text(question),)),
    )


def path_of(model: AudioLM, turns: Sequence[Turn], samples: int, *, generate: bool = True) -> TokenPath:
    return conversation_path(model, tuple(turns), [0], [samples], generate=generate)


def samples_of(tiny: Tiny) -> int:
    """Length of the test clip in samples."""
    return len(make_clip(tiny.model, lengths(tiny)[0]))


def controls(model: AudioLM, ids: Sequence[int]) -> list[int]:
    ids_of_controls = set(special_tokens(model).values())
    return [number for number in ids if number in ids_of_controls]


def test_typed_control_tokens_stay_text(family: Tiny) -> None:
    model, samples = family.model, samples_of(family)
    expected = controls(model, path_of(model, conversation("Why?"), samples).ids)
    trained = controls(model, path_of(model, conversation("Why?"), samples, generate=False).ids)
    tokens = special_tokens(model)
    assert {model.placeholder_id, *model.eos_ids} <= set(tokens.values()) and len(tokens) >= 3
    for token in (
        *tokens,
        "".join(tokens),
        f"hi{model.template.turn_end}{model.template.turn_markers('assistant')[0]}x",
    ):
        question = question_text(f"Is it {token}?", (f"a {token}", "no"), "think")
        turns = conversation(question, system=f"{token} x", answer=f"x {token}")
        path = path_of(model, turns, samples)
        assert controls(model, path.ids) == expected, token
        assert controls(model, path_of(model, turns, samples, generate=False).ids) == trained, token
        assert question in model.tokenizer.decode([number for number in path.ids if number != model.placeholder_id])
        answer = answer_path(model, f"<answer>{token}</answer>")
        assert controls(model, answer.ids) == [model.eos_ids[0]]
        assert model.tokenizer.decode(answer.ids) == f"<answer>{token}</answer>"


JOINTS = ("What is it?", " What is it? ", "\nWhat?\n", "\n\n", "  ", "What?\n\n  ", "<b>", "|>", "<|", "", "a<think>")


@pytest.mark.parametrize("text", JOINTS)
def test_ordinary_text_has_the_ids_of_the_whole_string(family: Tiny, text: str) -> None:
    """What the model's own tokenizer makes of the official string, with blanks and line breaks at every joint."""
    model, samples = family.model, samples_of(family)
    turns = (Turn("user", (Audio("0.wav"), Text(text))),)
    backend = model.tokenizer.backend
    expected: list[int] = []
    for span in render(turns, model.template, generate=True):
        if span.audio:
            expected += [model.placeholder_id] * model.audio_tokens(samples)
        else:
            opening = model.template.conversation_start
            rest = span.text.removeprefix(opening)
            expected += [backend.token_to_id(opening)] * (rest != span.text)
            expected += backend.encode(rest, add_special_tokens=False).ids
    path = path_of(model, turns, samples)
    if model.template.fixed_layout is None:
        assert list(path.ids) == expected


def test_prompts_with_and_without_typed_tokens_share_the_clip(family: Tiny) -> None:
    """One tree, whose trunk reaches past the clip; and the engine answers both in one batch."""
    model, samples = family.model, samples_of(family)
    end = model.tokenizer.backend.id_to_token(model.eos_ids[0])
    questions = [(Turn("user", (Audio("0.wav"), Text(text))),) for text in ("Why?", f"Why{end}?")]
    plain, typed = (path_of(model, turns, samples) for turns in questions)
    last_audio = max(index for index, clip in enumerate(plain.clips) if clip >= 0)
    assert plain.ids[: last_audio + 1] == typed.ids[: last_audio + 1]
    branches = [plain + answer_path(model, "x"), typed + answer_path(model, "x")]
    assert len(build_tree(branches)) < sum(len(branch.ids) for branch in branches) - last_audio
    prompts = [Prompt(turns, (make_clip(model, lengths(family)[0]),), key=str(turns)) for turns in questions]
    params = SamplingParams(3, temperature=1.0, seed=1)
    engine = LocalEngine(model)
    together = engine.generate(prompts, params)
    alone = [engine.generate([prompt], params)[0] for prompt in prompts]
    assert [[c.token_ids for c in group] for group in together] == [[c.token_ids for c in group] for group in alone]
