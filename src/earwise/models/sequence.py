"""From a conversation with sounds to a `Path` of token ids, the only place where text, placeholders and clips meet."""

from collections.abc import Sequence

from earwise.errors import DataError
from earwise.forest import Path
from earwise.models.base import AudioLM
from earwise.prompts import render
from earwise.types import Turn


def conversation_path(
    model: AudioLM, turns: tuple[Turn, ...], clips: Sequence[int], samples: Sequence[int], *, generate: bool
) -> Path:
    """Tokenise a conversation, one run of placeholders per clip.

    Args:
        model: Gives template, tokenizer and the number of audio tokens.
        turns: The conversation.
        clips: For each audio part the number that names its clip in this batch.
        samples: For each audio part its length in samples.
        generate: True for a prompt (ends with an opened assistant turn, nothing is trained), False for a whole
            conversation whose assistant
            turns are trained.
    Returns:
        The path. Text spans are tokenised one by one, so what is trained is what is sampled.
    Raises:
        DataError: if audio parts and sounds differ in number, or the text itself holds the placeholder.
    """
    spans = render(turns, model.template, generate=generate)
    places = sum(span.audio for span in spans)
    if not places == len(clips) == len(samples):
        raise DataError(
            f"conversation has {places} audio parts but {len(clips)} sounds were given; give one sound per audio part"
        )
    ids: list[int] = []
    trained: list[bool] = []
    marks: list[int] = []
    heard = 0
    for span in spans:
        if span.audio:
            run = model.audio_tokens(samples[heard])
            ids += [model.placeholder_id] * run
            marks += [clips[heard]] * run
            trained += [False] * run
            heard += 1
            continue
        tokens = model.tokenize(span.text)
        if model.placeholder_id in tokens:
            raise DataError(f"text holds the model's audio placeholder token: {span.text[:60]!r}; remove it")
        ids += tokens
        marks += [-1] * len(tokens)
        trained += [span.trained and not generate] * len(tokens)
    return Path(tuple(ids), tuple(trained), tuple(marks))


def completion_path(ids: Sequence[int]) -> Path:
    """Sampled tokens, all of them trained."""
    return Path(tuple(ids), (True,) * len(ids), (-1,) * len(ids))


def answer_path(model: AudioLM, text: str) -> Path:
    """A given answer as if the model had said it: its tokens and the end mark, all trained."""
    return completion_path([*model.tokenize(text), model.eos_ids[0]])
