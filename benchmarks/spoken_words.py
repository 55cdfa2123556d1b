"""What the embedded model's word slots show of recordings whose words are known: error rates, and words without speech.

    python benchmarks/spoken_words.py COLLECTION --model FOLDER --out benchmarks/results/spoken-words.json

FOLDER is a model with word slots (`earwise build words`). Every clip of one split of a labelled collection is heard as
in training and answering; the words are read back from the encoder's states, and compared with the collection's
transcripts by the metric of the transcription tasks in Whisper's reading (characters for Japanese). Clips that the
collection cuts, whose transcripts go on after their end, count only in `all`.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from baselines.timing import machine

from earwise import progress
from earwise.audio import decode
from earwise.datasets.labels import collection
from earwise.evaluation.metrics.transcripts import ErrorCount, count_errors
from earwise.files import write_json
from earwise.models.base import load
from earwise.models.embedded.spoken_words import split_rows
from earwise.models.encoder_cache import EncoderCache, encoder_fingerprint

CUT_S = 11.99
"""Clips that are longer are cut."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Hear the clips, compare, and write."""
    parser = argparse.ArgumentParser(description="error rates of the words in the embedded model's slots")
    parser.add_argument("collection", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--where-not", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--encoder-cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    model: Any = load(options.model, device="cpu")
    folder = options.encoder_cache / encoder_fingerprint(model) if options.encoder_cache else None
    cache = EncoderCache(model, max_mb=0, folder=folder)
    rows, root = collection.load(options.collection)
    without = [condition.partition("=") for condition in options.where_not]
    rows = [row for row in rows if row["split"] == options.split and all(str(row.get(k)) != v for k, _, v in without)]
    counts: dict[str, ErrorCount] = defaultdict(lambda: ErrorCount(0, 0))
    clips: dict[str, int] = defaultdict(int)
    heard_without_speech: list[list[str]] = []
    silent = 0
    for row in progress.track(rows, "clips heard", len(rows)):
        waveform = decode(root / row["path"], model.spec.sample_rate, max_s=model.spec.max_s, long_audio="truncate")
        _, words = split_rows(cache.encoder_states([waveform])[0])
        text = model.tokenizer.decode(list(words.ids)).strip()
        if row["category"] != "speech":
            silent += 1
            if text:
                heard_without_speech.append([row["path"], text])
            continue
        for group in _groups(row):
            counts[group] += count_errors(row["text"], text, row["language"], "whisper")
            clips[group] += 1
    groups = {
        group: {
            "error_rate": round(counts[group].rate, 4),
            "edits": counts[group].num_edits,
            "units": counts[group].num_units,
            "clips": clips[group],
        }
        for group in sorted(counts)
    }
    result = {
        "machine": machine(),
        "model": Path(options.model).name,
        "split": options.split,
        "without": options.where_not,
    }
    no_speech = {"clips": silent, "with_words": heard_without_speech}
    write_json(options.out, result | {"groups": groups, "no_speech": no_speech})


def _groups(row: Mapping[str, Any]) -> list[str]:
    """The groups that a clip counts in: its language, and its source; none without language or transcript."""
    if not row.get("text") or not row.get("language"):
        return []
    kinds = ("all", "whole") if float(row.get("duration") or 0) < CUT_S else ("all",)
    return [f"{row['language']} {part} {kind}" for part in ("any source", row["source"]) for kind in kinds]


if __name__ == "__main__":
    main()
