"""From a conversation with clips to a `TokenPath` of token ids: the only place where text, audio placeholders and clips
are put together."""

from collections.abc import Sequence

from earwise.errors import DataError
from earwise.forest import TokenPath
from earwise.models.base import AudioLM
from earwise.prompts import ChatTemplate, FixedLayout, Piece, Span, render
from earwise.types import Turn


def conversation_path(
    model: AudioLM, turns: tuple[Turn, ...], clips: Sequence[int], samples: Sequence[int], *, generate: bool
) -> TokenPath:
    """Tokenise a conversation, with one run of placeholders per clip.

    Args:
        model: Its template, tokenizer and number of audio tokens are used.
        turns: The conversation.
        clips: For each audio part, the number of its clip in this batch.
        samples: For each audio part, its length in samples.
        generate: True for a prompt (it ends with the start of an assistant turn, and nothing is trained), False for a
            whole conversation whose assistant turns are trained.
    Returns:
        The path. Text spans are tokenised one by one, so that training sees the same tokens as sampling. Control
        tokens are obeyed only where the template writes them.
    Raises:
        DataError: if the numbers of audio parts and clips differ, the text cannot be written without the placeholder's
            token, or the conversation does not fit a template of fixed length.
    """
    spans = render(turns, model.template, generate=generate)
    audio_parts = sum(span.audio for span in spans)
    if not audio_parts == len(clips) == len(samples):
        raise DataError(
            f"conversation has {audio_parts} audio parts but {len(clips)} sounds were given; "
            "give one sound per audio part"
        )
    layout = model.template.fixed_layout
    if layout is not None:
        missing = _missing_clips(spans, model.template, layout, model.name)
        separator = Span((Piece(model.template.audio_end, from_template=True),))
        spans = (Span(audio=True), separator) * missing + spans
        clips, samples = [clips[0]] * missing + [*clips], [samples[0]] * missing + [*samples]
    ids: list[int] = []
    trained: list[bool] = []
    clip_of_token: list[int] = []  # -1 for text
    audio_index = 0
    for span in spans:
        if span.audio:
            count = model.audio_tokens(samples[audio_index])
            ids += [model.placeholder_id] * count
            clip_of_token += [clips[audio_index]] * count
            trained += [False] * count
            audio_index += 1
            continue
        tokens = model.tokenizer.encode_pieces(span.pieces)
        if model.placeholder_id in tokens:
            raise DataError(f"text holds characters that {model.name} cannot read: {span.text[:60]!r}; remove them")
        if layout is not None and audio_index == layout.clips and not span.trained:
            tokens = tokens[: layout.text_tokens]
            tokens += model.tokenizer.encode_template(layout.pad_token) * (layout.text_tokens - len(tokens))
        ids += tokens
        clip_of_token += [-1] * len(tokens)
        trained += [span.trained and not generate] * len(tokens)
    return TokenPath(tuple(ids), tuple(trained), tuple(clip_of_token))


def _missing_clips(spans: Sequence[Span], template: ChatTemplate, layout: FixedLayout, name: str) -> int:
    """Number of clips that a conversation lacks to fill its template's layout: clips, then one question, then at most
    one answer.

    Raises:
        DataError: if the conversation has another form.
    """
    prompt = spans[:-1] if spans and spans[-1].trained else spans
    audio_parts = sum(span.audio for span in prompt)
    audio_spans, question = prompt[: 2 * audio_parts - 1], prompt[2 * audio_parts - 1 :]
    alternate = all(
        span.audio != bool(index % 2) and span.text in ("", template.audio_end)
        for index, span in enumerate(audio_spans)
    )
    if not (1 <= audio_parts <= layout.clips and alternate and len(question) == 1 and not question[0].trained):
        raise DataError(
            f"{name} in its released packing takes 1 to {layout.clips} sounds, then one question, in one turn; this "
            f"has {audio_parts} sounds in {len(spans)} pieces: put sounds first, or load the model with its other "
            "template"
        )
    return layout.clips - audio_parts


def completion_path(ids: Sequence[int]) -> TokenPath:
    """Sampled tokens, all of them trained."""
    return TokenPath(tuple(ids), (True,) * len(ids), (-1,) * len(ids))


def answer_path(model: AudioLM, text: str) -> TokenPath:
    """A given answer as if the model had sampled it: its tokens and the end token, all trained."""
    return completion_path([*model.tokenizer.encode(text), model.eos_ids[0]])
