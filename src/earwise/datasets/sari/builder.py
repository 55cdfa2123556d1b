"""Builds SARI's corpus: questions with captions, pass rates and chains, and the two sets that its stages train on.

clips -> captions (`captions.py`) -> questions by a teacher that reads captions (`multiple_choice.py`), beside questions
that exist already (AVQA in the paper) -> 16 attempts of the policy at each question, those at 0 of 16 dropped
(`datasets/difficulty.py`) -> 2,000 questions with chains for supervised fine-tuning (`chains.py`), 30,000 for GRPO

Source: SARI (arXiv:2504.15900). Ours, where the paper is silent:
1. Both sets are taken from one order of the pool that the seed decides, the set with chains first.
2. A question is in the set with chains only if the chains of every style succeeded, so that the arms of a comparison
   hold the same questions. A question whose chain failed is left to the other set.
3. Questions at 16 of 16 are kept.

Every step has a log in `OUT/work` and does only the work that is missing, so that an interrupted build continues where
it stopped.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from earwise.data import manifest
from earwise.datasets.difficulty import count_bands, measure_pass_rates, with_pass_rates
from earwise.datasets.sari import captions, chains, multiple_choice
from earwise.datasets.sari.build_report import BuildReport
from earwise.datasets.sari.captions import Caption
from earwise.datasets.sari.inputs import SariInputs, select_inputs
from earwise.datasets.sari.options import SariModels, SariOptions
from earwise.datasets.sari.pool import (
    BuildContext,
    caption_clips,
    question_requests,
    questions_from_labels,
    with_captions,
    write_questions,
)
from earwise.datasets.teachers import request_runner
from earwise.datasets.teachers.audio_queries import QueryOptions
from earwise.datasets.teachers.keyed_log import UNSHARDED, Shard
from earwise.datasets.teachers.teacher import TemplateReply
from earwise.errors import DataError
from earwise.files import write_json, write_jsonl
from earwise.types import Example

TEMPLATE_REPLIES: Mapping[str, TemplateReply] = {
    captions.KIND: captions.template_caption,
    multiple_choice.KIND: multiple_choice.template_questions,
    chains.KIND: chains.template_chain,
}
"""Answers of a `TemplateTeacher` that stands in for the language model."""
WORK = "work"
"""Folder of the steps' logs, inside the output folder."""
TYPICAL_CAPTION = "x" * 160
"""Text of the length of a caption, for estimates."""


@dataclass(frozen=True, slots=True)
class _Pool:
    """The questions of the pool, and counts about how they were made."""

    examples: list[Example]
    counts: dict[str, Any]


def build_sari(
    inputs: SariInputs,
    out: Path,
    models: SariModels,
    options: SariOptions | None = None,
    *,
    shard: Shard = UNSHARDED,
) -> dict[str, Any]:
    """Build the corpus; the same call again continues where it stopped.

    Args:
        inputs: Clips and existing questions, see `inputs.load_inputs`.
        out: Folder for `sft-STYLE.jsonl`, `rl.jsonl`, `unsolved.jsonl`, `failed.jsonl`, `summary.json` and the logs.
        models: Teacher, audio models, and how they are driven.
        options: Size and make-up of the corpus; None takes the defaults.
        shard: The part of the clips whose captions, questions and attempts this process makes. A shard writes no
            manifests: copy the logs of all shards into one folder, then build without `shard`.
    Returns:
        The contents of `summary.json`.
    Raises:
        ConfigError: if clips have no caption and no model can write one.
        DataError: if no question results, or a file cannot be written; finished work is kept.
        EngineError: if the teacher or an audio model stays unreachable; finished work is kept.
    """
    context = BuildContext(models, options or SariOptions(), out / WORK, shard, BuildReport())
    pool = _build_pool(inputs, out, context)
    if shard != UNSHARDED:
        report = context.report
        return pool.counts | {"shard": list(shard), "failed": report.count_failures(), "steps": report.steps}
    summary = pool.counts | _write_sets(pool.examples, out, context)
    write_json(out / "summary.json", summary)
    return summary


def plan_sari(inputs: SariInputs, out: Path, models: SariModels, options: SariOptions) -> dict[str, Any]:
    """Estimate what `build_sari` would request, without any request.

    Captions and questions that do not exist yet count with typical lengths.

    Args:
        inputs: See `build_sari`.
        out: See `build_sari`.
        models: Only the teacher and its limits are used.
        options: See `build_sari`.
    Returns:
        Counts of clips, questions, captions to write, and largest possible counts of pool and attempts; `estimates`
        holds a `RunEstimate` for questions and for chains.
    """
    selected = select_inputs(inputs, options, UNSHARDED)
    all_clips = (*selected.clips, *(clip for _, clip in selected.questions))
    num_uncaptioned = sum(captions.row_caption(clip.row) is None for clip in all_clips)
    captions_by_file = {
        clip.file: Caption(captions.row_caption(clip.row) or TYPICAL_CAPTION, "") for clip in selected.clips
    }
    drawn = questions_from_labels(inputs.rows, options) if models.teacher.is_template else None
    questions = list(question_requests(selected.clips, captions_by_file, drawn, options))
    max_pool = len(selected.questions) + len(questions) * options.questions_per_clip
    typical_question = multiple_choice.question_example(
        {"question": "q" * 60, "choices": ["a" * 12, "b" * 12, "c" * 12, "d" * 12], "answer": "a" * 12},
        "clip.wav", Path(), {}, seed=0,
    )  # fmt: skip
    chain_requests = [
        replace(chains.chain_request(typical_question, TYPICAL_CAPTION, style), sample_index=number)
        for number in range(min(options.n_sft, max_pool))
        for style in options.chains
    ]
    estimates = {
        step: request_runner.estimate_requests(requests, models.teacher, out / WORK / step, limits=models.limits)
        for step, requests in (("questions", questions), ("chains", chain_requests))
    }
    return {
        "clips": len(selected.clips), "items": len(selected.questions), "left_out": selected.left_out,
        "captions_to_write": num_uncaptioned, "pool_at_most": max_pool,
        "attempts_at_most": max_pool * options.attempts.count, "teacher": models.teacher.name,
        "estimates": {step: asdict(estimate) for step, estimate in estimates.items()},
    }  # fmt: skip


def _build_pool(inputs: SariInputs, out: Path, context: BuildContext) -> _Pool:
    """Caption clips, write questions, and measure pass rates."""
    models, options = context.models, context.options
    selected = select_inputs(inputs, options, context.shard)
    captions_by_file = caption_clips(selected, context)
    drawn = questions_from_labels(inputs.rows, options) if models.teacher.is_template else None
    requests = list(question_requests(selected.clips, captions_by_file, drawn, options))
    questions = write_questions(selected, captions_by_file, requests, context)
    examples, num_duplicates = _without_duplicates([*with_captions(selected.questions, captions_by_file), *questions])
    if not examples:
        failed = out / "failed.jsonl"
        write_jsonl(failed, context.report.failures)
        raise DataError(
            f"{len(inputs.rows)} clips and {len(inputs.questions)} existing questions gave no question; "
            f"the reasons are in {failed}"
        )
    models.notify(f"{len(examples)} questions in the pool")
    examples = _measure_difficulty(examples, context)
    counts = {
        "clips": len(selected.clips), "clips_unasked": len(selected.clips) - len(requests),
        "items": len(selected.questions), "left_out": selected.left_out, "twice": num_duplicates,
        "pool": len(examples), "truncated": sum("long_clips" in example.meta for example in examples),
        "difficulty": count_bands(examples) if models.policy is not None else None, "teacher": models.teacher.name,
        "template": models.teacher.is_template,
        "captions_by": dict(Counter(caption.by for caption in captions_by_file.values())),
    }  # fmt: skip
    return _Pool(examples, counts)


def _measure_difficulty(pool: list[Example], context: BuildContext) -> list[Example]:
    """The pool with pass rates, if there is a policy; failed attempts are reported."""
    models, attempts = context.models, context.options.attempts
    if models.policy is None:
        return pool
    rows = measure_pass_rates(
        models.policy,
        pool,
        context.work / "difficulty",
        attempts,
        options=QueryOptions(batch=models.batch, long_audio="truncate"),
        shard=context.shard,
    )
    for example, row in zip(pool, rows, strict=True):
        if row["status"] != "ok":
            context.report.add_failed_row("difficulty", example.id, row)
    return list(with_pass_rates(pool, rows, attempts))


def _write_sets(pool: Sequence[Example], out: Path, context: BuildContext) -> dict[str, Any]:
    """Divide the pool into the sets and write their manifests; returns the counts for the summary."""
    options, report = context.options, context.report
    dropped_bands = () if options.keep_unsolved else ("unsolved",)
    dropped = [example for example in pool if example.difficulty in dropped_bands]
    usable = [
        example
        for example in pool
        if example.difficulty not in dropped_bands and "difficulty_error" not in example.meta
    ]
    usable = _shuffled(usable, options.seed)
    sft_sets = _write_chains(usable, context)
    sft_ids = {example.id for example in sft_sets[options.chains[0]]}
    rl_set = [example for example in usable if example.id not in sft_ids][: options.n_rl]
    files = {f"sft-{style}.jsonl": examples for style, examples in sft_sets.items()}
    files |= {"rl.jsonl": rl_set, "unsolved.jsonl": dropped}
    counts = {name: manifest.write(out / name, examples) for name, examples in files.items()}
    write_jsonl(out / "failed.jsonl", report.failures)
    return {
        "wanted": {"sft": options.n_sft, "rl": options.n_rl}, "written": counts, "failed": report.count_failures(),
        "steps": report.steps, "settings": asdict(options),
    }  # fmt: skip


def _write_chains(pool: Sequence[Example], context: BuildContext) -> dict[str, list[Example]]:
    """Let the teacher write chains, in the order of the pool, until `n_sft` questions have one of every style.

    Returns:
        Style -> the questions with their chains of that style; the questions are the same for all styles.
    """
    options, teacher = context.options, context.models.teacher
    candidates = [example for example in pool if "caption" in example.meta]
    sets: dict[str, list[Example]] = {style: [] for style in options.chains}
    num_finished, num_tried = 0, 0
    while num_tried < len(candidates) and num_finished < options.n_sft:
        examples = candidates[num_tried : num_tried + options.n_sft - num_finished]
        num_tried += len(examples)
        requests = [
            chains.chain_request(example, example.meta["caption"], style)
            for example in examples
            for style in options.chains
        ]
        folder = context.ask_teacher(requests, "chain", UNSHARDED)
        rows = {request.id: row for request, row in request_runner.read_answers(requests, teacher, folder)}
        for identifier, row in rows.items():
            if row is None or row["status"] != "ok":
                context.report.add_failed_row("chain", identifier, row)
        for example in examples:
            answers = {
                style: row
                for style in options.chains
                if (row := rows[f"{example.id}:{style}"]) is not None and row["status"] == "ok"
            }
            if len(answers) < len(set(options.chains)):
                continue
            num_finished += 1
            for style, row in answers.items():
                meta = {**example.meta, "reasoning_style": style, "reasoning_by": row["teacher"]}
                sets[style].append(replace(example, reasoning=chains.render_chain(row["value"], style), meta=meta))
    return sets


def _without_duplicates(pool: Iterable[Example]) -> tuple[list[Example], int]:
    """The pool without examples whose id occurred before, and the number of those."""
    examples_by_id: dict[str, Example] = {}
    total = 0
    for example in pool:
        total += 1
        examples_by_id.setdefault(example.id, example)
    return list(examples_by_id.values()), total - len(examples_by_id)


def _shuffled(pool: Sequence[Example], seed: int) -> list[Example]:
    """The pool in an order that only the seed and the ids decide."""
    return sorted(pool, key=lambda example: hashlib.sha256(f"{seed}:{example.id}".encode()).digest())
