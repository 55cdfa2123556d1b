"""Words that a model's connector shows its decoder about a clip: what its classifiers make of the sound.

The connector `labels` of the embedded model gives the decoder the likeliest labels as the decoder's own words. They are
read back here: an audio embedding that lies in the direction of a word's embedding is that word. Other connectors show
no words. So a wrong answer with the right label beside it was heard, and read wrongly; without it, it was not heard.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from earwise.audio import decode
from earwise.audio_model import load
from earwise.files import write_json

EXACT = 0.995
"""Smallest cosine at which an audio embedding is taken for a word."""
GAP = "…"


def write_shown_words(model: str, clips: Sequence[Path], out: Path, notify: Callable[[str], None]) -> None:
    """Write a JSON file: file name -> the words that the connector shows about the clip; empty if it shows none.

    Args:
        model: Name of a model of the family `embedded`, or a folder with one.
        clips: Audio files.
        out: File to write.
        notify: Receives lines about progress.
    """
    engine = load(model, notify).engine
    listener = getattr(engine, "model", None)
    if getattr(listener, "name", "") != "embedded":  # a server, or a family whose connector shows no words
        write_json(out, {})
        return
    vocabulary = listener.module.decoder.embed_tokens.weight.detach()
    words: dict[str, str] = {}
    with torch.inference_mode():
        for path in clips:
            states = listener.encode_audio([decode(path, listener.spec.sample_rate)])
            nearest = nearest_words(listener.project_audio(states)[0], vocabulary)
            text = "".join(GAP if token is None else listener.tokenizer.decode([token]) for token in nearest)
            words[path.name] = tidy(text)
    write_json(out, {name: text for name, text in words.items() if text})


def nearest_words(embeddings: Float[Tensor, "audio dim"], vocabulary: Float[Tensor, "words dim"]) -> list[int | None]:
    """For each audio embedding the id of the word in whose direction it lies; None if there is none.

    Args:
        embeddings: Audio embeddings of a clip.
        vocabulary: Embeddings of all words.
    """
    cosines = torch.nn.functional.normalize(embeddings, dim=-1) @ torch.nn.functional.normalize(vocabulary, dim=-1).T
    values, ids = cosines.max(dim=-1)
    return [int(token) if value >= EXACT else None for value, token in zip(values, ids, strict=True)]


def tidy(text: str) -> str:
    """The words with one sign for each stretch that is no word; empty if there is no word but leads.

    A lead (`Sound:`) that no word follows is left out: the connector `mix` has leads before tokens that are no words.
    """
    text = re.sub(rf"\s*({GAP}\s*)+", f" {GAP} ", " ".join(text.split())).strip()
    text = re.sub(rf"\S+:( {GAP}|$)", "", text)
    return re.sub(rf"\s*({GAP}\s*)+", f" {GAP} ", " ".join(text.split())).strip(f"{GAP} ")


def read_shown_words(path: Path) -> dict[str, str]:
    """What `write_shown_words` wrote; empty if it was not asked to."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
