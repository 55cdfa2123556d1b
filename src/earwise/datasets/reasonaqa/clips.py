"""Captioned clips: what every part of ReasonAQA is made from, and its captioning part itself."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from earwise.data.sources import example_builder
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import CAPTION
from earwise.errors import DataError
from earwise.types import Example


@dataclass(frozen=True, slots=True)
class CaptionedClip:
    """A clip with its captions, or with one of them."""

    id: str
    """Id of the example that it comes from, with the caption's number if it is one of several."""
    clip: str
    """Path of the audio file, relative to the root of `info`."""
    captions: tuple[str, ...]
    """The captions."""
    family: str
    """Data set that the clip comes from: Clotho, AudioCaps, or the name of another source."""
    group: str
    """Group of the clip, which never crosses a split."""
    info: SourceInfo
    """Source, licence, split and audio folder."""


def captioned_clips(examples: Iterable[Example]) -> list[CaptionedClip]:
    """Read captioned clips from captioning examples. All are held in memory, since pairs and wrong options need them.

    Raises:
        DataError: if an example has no caption, or does not have exactly one clip.
    """
    items = []
    for example in examples:
        clips = [part.path for part in example.audio_parts]
        if any(clip.is_segment for clip in example.clips):
            raise DataError(
                f"example {example.id!r}: its clip is a segment of a file; cut it out into a file of its own"
            )
        if len(clips) != 1 or not example.answer:
            raise DataError(
                f"example {example.id!r}: {len(clips)} clips and {len(example.answer)} captions; "
                "one clip and at least one caption are needed"
            )
        info = SourceInfo(example.source, example.licence, example.root, example.split)
        items.append(CaptionedClip(example.id, clips[0], example.answer, example.source, example.group, info))
    return items


def one_per_caption(items: Iterable[CaptionedClip]) -> list[CaptionedClip]:
    """Split clips with several captions into one item per caption."""
    return [
        replace(item, id=f"{item.id}-{number}", captions=(caption,))
        for item in items
        for number, caption in enumerate(item.captions, 1)
    ]


def caption_examples(items: Iterable[CaptionedClip]) -> Iterator[Example]:
    """One captioning example per caption, as in the paper's table."""
    for item in one_per_caption(items):
        yield example_builder.build_example(
            item.info,
            f"{item.id}-caption",
            [item.clip],
            example_builder.pick_by_hash(CAPTION, item.id),
            item.captions,
            task="caption",
            category="sound",
            group=item.group,
            meta={"subset": f"{item.family} caption"},
        )
