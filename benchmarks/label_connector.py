"""What the classifiers of the connector `labels` hear in validation recordings that they were not fitted on.

    python benchmarks/label_connector.py COLLECTION --scenes scenes.jsonl --out benchmarks/results/label-connector.json

Fits the connector of the embedded model on the training split of a labelled collection, as `earwise build connector`
does, and writes its report with machine and commit. Clips of unclear licence are left out with `--where-not`.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from baselines.timing import machine

from earwise.apps.label_connector import build_label_connector
from earwise.files import write_json
from earwise.models.base import load


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, measure and write."""
    parser = argparse.ArgumentParser(description="accuracy of the connector's classifiers")
    parser.add_argument("collection", type=Path)
    parser.add_argument("--model", default="embedded-aligned")
    parser.add_argument("--scenes", type=Path, action="append", default=[])
    parser.add_argument("--where-not", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--encoder-cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    without = [(condition.partition("=")[0], condition.partition("=")[2]) for condition in options.where_not]
    start = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = build_label_connector(
            load(options.model, device="cpu"),
            options.collection,
            Path(folder) / "start",
            scenes=options.scenes,
            without=without,
            encoder_cache=options.encoder_cache,
        )
    result = {"machine": machine(), "model": options.model, "seconds": round(perf_counter() - start, 1)}
    write_json(options.out, result | {"report": asdict(report), "without": options.where_not})


if __name__ == "__main__":
    main()
