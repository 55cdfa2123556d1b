"""Predictions in a benchmark's own format: its rows unchanged, each with the prediction, for the official program."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from earwise.answers import extract_answer_r1aqa
from earwise.errors import DataError
from earwise.evaluation.metrics import mmau as metric
from earwise.evaluation.published.choice_file import read_rows
from earwise.evaluation.results import EvalRun
from earwise.files import write_json, write_jsonl, write_text


def write_official(
    path: Path,
    samples: Iterable[Mapping[str, Any]],
    *,
    source: Path,
    key: str = metric.MMAU.prediction_key,
    field: str = "output",
) -> int:
    """Write predictions in the benchmark's own format: its rows unchanged, each with the prediction under `key`.

    Args:
        path: File to write; `.jsonl` gives one object per line, any other name a JSON list.
        samples: Rows of a `samples.jsonl`.
        source: The benchmark file that the samples were made from.
        key: Name of the prediction's field (MMAU's program reads `model_output`, MMAR's `answer_prediction`).
        field: Field of a sample that is the prediction: `output` (raw) or `answer` (extracted, empty if there is none).
    Returns:
        Number of items without a sample; they are written with an empty prediction, so that they count.
    Raises:
        DataError: if a sample belongs to no item of `source`, or the disk refuses.
    """
    rows = read_rows(source, ("id", "question", "choices"))
    predictions = {str(sample["id"]): str(sample[field] or "") for sample in samples if not sample.get("permutation")}
    unknown = predictions.keys() - {str(row["id"]) for row in rows}
    if unknown:
        raise DataError(
            f"{source}: has no item {min(unknown)!r} ({len(unknown)} such samples); give the file they came from"
        )
    filled = [{**row, key: predictions.get(str(row["id"]), "")} for row in rows]
    if path.suffix == ".jsonl":
        write_jsonl(path, filled)
    else:
        write_json(path, filled)
    return sum(str(row["id"]) not in predictions for row in rows)


def write_submission(run: EvalRun, path: Path, source: Path, layout: metric.Layout) -> int:
    """Write a run's predictions in the benchmark's format and, beside them, the summary that its program would print.

    The prediction is the extracted answer in prompt styles that reason aloud, where the official program would
    otherwise match words of the reasoning. In the other styles it is the output without the tags of an answer block,
    whose names count as words: an answer in tags would be wrong where an option says "answer".

    Args:
        run: A finished run on the benchmark, or on a part of it.
        path: File to write. The summary gets the same name with the suffix `.txt`, if all items have a gold answer.
        source: The benchmark file.
        layout: Layout of the benchmark's program.
    Returns:
        Number of items without a prediction.
    Raises:
        DataError: see `write_official`.
    """
    field = "answer" if run.metrics["headline"] == "lenient" else "output"
    samples = [{**row, "output": extract_answer_r1aqa(str(row["output"] or ""))} for row in run.rows]
    num_missing = write_official(path, samples, source=source, key=layout.prediction_key, field=field)
    filled = read_rows(path, ("id", layout.prediction_key, "choices"))
    fields = ("answer", *(name for _, name, _ in layout.groups))
    if all(row.get(name) is not None for row in filled for name in fields):
        summary = metric.official_summary(filled, layout)
        write_text(path.with_suffix(".txt"), "\n".join(metric.summary_lines(summary)) + "\n")
    return num_missing
