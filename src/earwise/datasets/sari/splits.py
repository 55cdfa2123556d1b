"""SARI's corpus: captions, questions, pass rates, chains, and the two sets that its stages train on.

Source: SARI, arXiv 2504.15900; papers/sari.md, section 2. clips -> captions (`captions.py`) -> questions by a teacher
who reads captions (`mcq.py`), beside questions that exist already (AVQA in the paper) -> 16 attempts of the policy,
items at 0/16 dropped (`difficulty.py`) -> 2k with chains for SFT (`chains.py`), 30k for GRPO.

Where the paper is silent (ours): both sets are one random order by seed, the chains' set first; an item is in it if
every kind of chain for it succeeded, so that the arms of the comparison hold the same items; an item whose chain failed
is left to the other set; items at 16/16 are kept. Every step has a log in `OUT/work` and does only what is missing.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from earwise.data import manifest
from earwise.datasets.difficulty import count_bands, measure_pass_rates, with_pass_rates
from earwise.datasets.labels.collection import LabelRow
from earwise.datasets.sari import captions, chains, multiple_choice
from earwise.datasets.sari.captions import Caption
from earwise.datasets.sari.pool import (
    Count,
    Helpers,
    Settings,
    ask_questions,
    caption_clips,
    distinct,
    drawn_questions,
    inputs,
    progress,
    question_requests,
    run_teacher,
    why,
    with_captions,
)
from earwise.datasets.teachers import request_runner
from earwise.datasets.teachers.keyed_log import UNSHARDED, Shard
from earwise.errors import DataError
from earwise.files import write_json, write_jsonl
from earwise.types import Example

TEMPLATE_REPLIES: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    captions.KIND: captions.template_caption,
    multiple_choice.KIND: multiple_choice.template_questions,
    chains.KIND: chains.template_chain,
}
"""What a `Template` teacher needs to stand in for a language model here."""
WORK = "work"


def build(
    rows: Sequence[LabelRow],
    root: Path,
    items: Sequence[Example],
    out: Path,
    helpers: Helpers,
    settings: Settings | None = None,
    *,
    shard: Shard = UNSHARDED,
) -> dict[str, Any]:
    """Build the corpus; the same call again goes on where it stopped.

    Args:
        rows: Clips to write questions about, from `collection.load`; `caption` where it is known.
        root: Folder that the rows' paths start from.
        items: Multiple-choice questions that exist already, about one clip each; others are counted and left out.
        out: Folder for `sft-KIND.jsonl`, `rl.jsonl`, `unsolved.jsonl`, `failed.jsonl`, `summary.json` and the logs.
        helpers: Teacher, audio models, limits.
        settings: Sizes, kinds of chains, how the policy is tried.
        shard: Only the captions, questions and attempts of this part of the clips, and no manifests: bring the logs of
            all shards together, then run without.
    Returns:
        What `summary.json` holds.
    Raises:
        ConfigError: if clips have no caption and nobody is there to write one.
        DataError: if nothing comes out, or the disk refuses; what is finished is kept.
        EngineError: if teacher or model stay away; the same.
    """
    settings = settings or Settings()
    count, work = Count(), out / WORK
    asked, usable, left_out = inputs(rows, root, items, settings, shard)
    known = caption_clips(asked, usable, work / "captions", helpers, count, shard)
    drawn = drawn_questions(rows, settings) if helpers.teacher.is_template else None
    requests = list(question_requests(asked, known, drawn, settings))
    made = ask_questions(asked, known, requests, work / "questions", helpers, settings, count, shard)
    pool, twice = distinct([*with_captions(usable, known), *made])
    if not pool:
        write_jsonl(out / "failed.jsonl", count.failed)
        raise DataError(f"{len(rows)} clips and {len(items)} items gave no question; see {out / 'failed.jsonl'}")
    helpers.note(f"{len(pool)} items in the pool")
    pool = _tried(pool, work / "difficulty", helpers, settings, count, shard)
    summary: dict[str, Any] = {
        "clips": len(asked), "clips_unasked": len(asked) - len(requests), "items": len(usable), "left_out": left_out,
        "twice": twice, "pool": len(pool), "truncated": sum("long_clips" in example.meta for example in pool),
        "difficulty": count_bands(pool) if helpers.policy is not None else None, "teacher": helpers.teacher.name,
        "template": helpers.teacher.is_template, "captions_by": dict(Counter(c.by for c in known.values())),
    }  # fmt: skip
    if shard != UNSHARDED:
        return summary | {"shard": list(shard), "failed": count.failures(), "steps": count.steps}
    dropped = () if settings.keep_unsolved else ("unsolved",)
    unsolved = [example for example in pool if example.difficulty in dropped]
    kept = [example for example in pool if example.difficulty not in dropped and "difficulty_error" not in example.meta]
    kept = _shuffled(kept, settings.seed)
    sft = _with_chains(kept, work / "chains", helpers, settings, count)
    first = {example.id for example in sft[settings.chains[0]]}
    rl = [example for example in kept if example.id not in first][: settings.n_rl]
    files = {f"sft-{style}.jsonl": examples for style, examples in sft.items()} | {"rl.jsonl": rl}
    files["unsolved.jsonl"] = unsolved
    written = {name: manifest.write(out / name, examples) for name, examples in files.items()}
    write_jsonl(out / "failed.jsonl", count.failed)
    summary |= {
        "wanted": {"sft": settings.n_sft, "rl": settings.n_rl}, "written": written, "failed": count.failures(),
        "steps": count.steps, "settings": asdict(settings),
    }  # fmt: skip
    write_json(out / "summary.json", summary)
    return summary


def plan(
    rows: Sequence[LabelRow], root: Path, items: Sequence[Example], out: Path, helpers: Helpers, settings: Settings
) -> dict[str, Any]:
    """What `build` would ask, without asking; captions and questions that are not there yet count at typical size."""
    asked, usable, left_out = inputs(rows, root, items, settings, UNSHARDED)
    stand_in = Caption("x" * 160, "")
    bare = [clip for clip in (*asked, *(clip for _, clip in usable)) if captions.given(clip.about) is None]
    known = {clip.file: Caption(captions.given(clip.about) or stand_in.text, "") for clip in asked}
    drawn = drawn_questions(rows, settings) if helpers.teacher.is_template else None
    requests = list(question_requests(asked, known, drawn, settings))
    pool = len(usable) + len(requests) * settings.questions_per_clip
    typical = multiple_choice.example(
        {"question": "q" * 60, "choices": ["a" * 12, "b" * 12, "c" * 12, "d" * 12], "answer": "a" * 12},
        "clip.wav", Path(), {}, seed=0,
    )  # fmt: skip
    wave = [
        replace(chains.chain_request(typical, stand_in.text, style), sample_index=number)
        for number in range(min(settings.n_sft, pool))
        for style in settings.chains
    ]
    estimates = {
        "questions": request_runner.estimate_requests(
            requests, helpers.teacher, out / WORK / "questions", limits=helpers.limits
        ),
        "chains": request_runner.estimate_requests(wave, helpers.teacher, out / WORK / "chains", limits=helpers.limits),
    }
    return {
        "clips": len(asked), "items": len(usable), "left_out": left_out, "captions_to_write": len(bare),
        "pool_at_most": pool, "attempts_at_most": pool * settings.attempts.count,
        "teacher": helpers.teacher.name, "estimates": {name: asdict(value) for name, value in estimates.items()},
    }  # fmt: skip


def _tried(
    pool: list[Example], folder: Path, helpers: Helpers, settings: Settings, count: Count, shard: Shard
) -> list[Example]:
    """The pool with pass rates, if there is a policy."""
    if helpers.policy is None:
        return pool
    told = progress(helpers, "attempts")
    rows = measure_pass_rates(
        helpers.policy,
        pool,
        folder,
        settings.attempts,
        batch=helpers.batch,
        long_audio="truncate",
        shard=shard,
        on_progress=told,
    )
    for example, row in zip(pool, rows, strict=True):
        if row["status"] != "ok":
            count.fail("difficulty", example.id, *why(row))
    return list(with_pass_rates(pool, rows, settings.attempts))


def _with_chains(
    kept: Sequence[Example], folder: Path, helpers: Helpers, settings: Settings, count: Count
) -> dict[str, list[Example]]:
    """The first `n_sft` items in order for which every kind of chain can be had, once with each kind."""
    candidates = [example for example in kept if "caption" in example.meta]
    sft: dict[str, list[Example]] = {style: [] for style in settings.chains}
    at = 0
    while at < len(candidates) and len(sft[settings.chains[0]]) < settings.n_sft:
        wave = candidates[at : at + settings.n_sft - len(sft[settings.chains[0]])]
        at += len(wave)
        requests = [
            chains.chain_request(example, example.meta["caption"], style)
            for example in wave
            for style in settings.chains
        ]
        count.add("chain", run_teacher(requests, folder, helpers, "chains", UNSHARDED))
        rows = {request.id: row for request, row in request_runner.read_answers(requests, helpers.teacher, folder)}
        for identifier, row in rows.items():
            if row is None or row["status"] != "ok":
                count.fail("chain", identifier, *why(row))
        for example in wave:
            had = {style: rows[f"{example.id}:{style}"] for style in settings.chains}
            if all(row is not None and row["status"] == "ok" for row in had.values()):
                for style, row in had.items():
                    assert row is not None
                    about = {"reasoning_style": style, "reasoning_by": row["teacher"]}
                    chain = chains.rendered(row["value"], style)
                    sft[style].append(replace(example, reasoning=chain, meta={**example.meta, **about}))
    return sft


def _shuffled(pool: Sequence[Example], seed: int) -> list[Example]:
    """An order that depends on the seed and the ids alone."""
    return sorted(pool, key=lambda example: hashlib.sha256(f"{seed}:{example.id}".encode()).digest())
