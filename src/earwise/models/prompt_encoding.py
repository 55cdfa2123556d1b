"""From a conversation with sounds to a `Path` of token ids, the only place where text, placeholders and clips meet."""

from collections.abc import Sequence

from earwise.errors import DataError
from earwise.forest import TokenPath
from earwise.models.base import AudioLM
from earwise.prompts import FixedLayout, Span, ChatTemplate, render
from earwise.types import Turn


def conversation_path(
    model: AudioLM, turns: tuple[Turn, ...], clips: Sequence[int], samples: Sequence[int], *, generate: bool
) -> TokenPath:
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
        DataError: if audio parts and sounds differ in number, the text itself holds the placeholder, or the
            conversation does not fit a template of fixed length.
    """
    spans = render(turns, model.template, generate=generate)
    places = sum(span.audio for span in spans)
    if not places == len(clips) == len(samples):
        raise DataError(
            f"conversation has {places} audio parts but {len(clips)} sounds were given; give one sound per audio part"
        )
    layout = model.template.fixed_layout
    if layout is not None:
        missing = _missing_clips(spans, model.template, layout, model.name)
        spans = (Span("", audio=True), Span(model.template.audio_end)) * missing + spans
        clips, samples = [clips[0]] * missing + [*clips], [samples[0]] * missing + [*samples]
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
        tokens = model.tokenizer.encode(span.text)
        if model.placeholder_id in tokens:
            raise DataError(f"text holds the model's audio placeholder token: {span.text[:60]!r}; remove it")
        if layout is not None and heard == layout.clips and not span.trained:
            tokens = tokens[: layout.text_tokens]
            tokens += model.tokenizer.encode(layout.pad_token) * (layout.text_tokens - len(tokens))
        ids += tokens
        marks += [-1] * len(tokens)
        trained += [span.trained and not generate] * len(tokens)
    return TokenPath(tuple(ids), tuple(trained), tuple(marks))


def _missing_clips(spans: Sequence[Span], template: ChatTemplate, layout: FixedLayout, name: str) -> int:
    """How many clips a conversation lacks to fill its template's slots, once it fits them: clips, then one question,
    then at most one answer."""
    prompt = spans[:-1] if spans and spans[-1].trained else spans
    places = sum(span.audio for span in prompt)
    clips, question = prompt[: 2 * places - 1], prompt[2 * places - 1 :]
    fits = all(span.audio != bool(at % 2) and span.text in ("", template.audio_end) for at, span in enumerate(clips))
    if not (1 <= places <= layout.clips and fits and len(question) == 1 and not question[0].trained):
        raise DataError(
            f"{name} in its released packing takes 1 to {layout.clips} sounds, then one question, in one turn; this has "
            f"{places} sounds in {len(spans)} pieces: put sounds first, or load the model with its other template"
        )
    return layout.clips - places


def completion_path(ids: Sequence[int]) -> TokenPath:
    """Sampled tokens, all of them trained."""
    return TokenPath(tuple(ids), (True,) * len(ids), (-1,) * len(ids))


def answer_path(model: AudioLM, text: str) -> TokenPath:
    """A given answer as if the model had said it: its tokens and the end mark, all trained."""
    return completion_path([*model.tokenizer.encode(text), model.eos_ids[0]])
