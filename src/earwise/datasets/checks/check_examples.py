"""Is a data set fit to train and measure with? Bias for a deaf model, leaks, copies, contradictions, silence, licences.

Run after every builder and by hand on any manifest (`earwise build check`). Rows are taken one by one; what is kept of
each is a few hashes, its id and its answer, and of each sound its facts and a sketch of 384 bytes. Everything is
counted into one report of plain values; what is wrong is said in one line each under `problems`. The listeners without
ears are in `build/bias.py`, near copies in `build/fingerprint.py`, the page in `build/check_report.py`.
"""

import hashlib
import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from earwise.audio import SILENCE_PEAK, decode
from earwise.datasets.checks import fingerprint
from earwise.datasets.checks.contamination import Asked
from earwise.datasets.checks.fingerprint import MIN_LIKENESS, Print
from earwise.datasets.checks.text_baselines import bias, blind, is_biased, rate, with_options
from earwise.datasets.scan.clip_stats import ClipFacts, scan
from earwise.errors import DataError
from earwise.types import Example

MAX_JUDGED = 20_000  # questions a split that bias is looked for in, those with the lowest hash: an interval of 1 %
MAX_LISTED = 200  # of each kind of finding; the rest is counted
MAX_ANSWERS = 100_000  # different answers counted before rare ones are forgotten
LONG_TEXT_WORDS = 8
FREE_TEXT_WORDS = 4  # an answer that long is a description, of which there can be several
CLIPPED_PEAK = 0.999
NEAR_RATE = 8000  # Hz, at which waveforms are laid over each other

Key = bytes


@dataclass(slots=True)
class _Tally:
    """What is kept of the rows that went by."""

    rows: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    judged: dict[str, list[tuple[int, int, Example]]] = field(default_factory=lambda: defaultdict(list))
    """Split -> heap of (-hash, -row number, example)."""
    units: dict[Key, set[str]] = field(default_factory=dict)
    """Group, speaker or file -> splits."""
    leaks: dict[str, set[str]] = field(default_factory=dict)
    asked: dict[Key, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    """Clips, question and options -> id and answer of the first such row."""
    said: dict[Key, str] = field(default_factory=dict)
    """The same without case, marks and articles, with the answer -> id."""
    texts: dict[Key, str] = field(default_factory=dict)
    """Long free answer -> split of the first."""
    clips: dict[Path, tuple[str, str]] = field(default_factory=dict)
    """File -> split and licence."""
    conflicts: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    rephrased: list[str] = field(default_factory=list)
    asked_elsewhere: list[str] = field(default_factory=list)
    """What benchmarks ask too."""
    texts_across: int = 0


def check(
    examples: Iterable[Example],
    *,
    listen: bool = True,
    seed: int = 0,
    strict: bool = False,
    against: Sequence[Print] = (),
    asked: Asked | None = None,
    workers: int | None = 1,
) -> dict[str, Any]:
    """Check a data set (all splits together, so that leaks between them are seen).

    Args:
        examples: From one or several manifests.
        listen: Also read every sound: copies and near copies, silence, loudness, durations, broken files.
        seed: Decides the halves that the blind listener learns from and is tested on.
        strict: Raise if there is any problem.
        against: Prints of benchmarks' sounds (`prints`), none of which may be in the data.
        asked: Their questions and videos, which may not be in it either.
        workers: Processes that decode; None for one a core.
    Returns:
        Plain JSON values: `n`, `splits`, `tasks`, `bias` (per listener: n, accuracy, chance, low, high),
        `bias_by_split` (there also `blind_from_train`: learnt from the training split), `answers` (most frequent),
        `leaks`, `copies`, `near_copies`, `benchmark`, `conflicts`, `duplicates`, `rephrased`, `silent`, `broken`,
        `licences` (licence -> clips), `sounds` (durations, loudness, counts), `unlisted` (findings beyond those
        listed), `problems`.
    Raises:
        DataError: if `strict` and something is wrong; the message holds the first problem and how many there are.
    """
    tally = _Tally()
    for number, example in enumerate(examples):
        _add(tally, example, number)
        if asked is not None and (line := asked.found(example)):
            tally.asked_elsewhere.append(line)
    report: dict[str, Any] = {
        "n": tally.rows.total(),
        "splits": dict(sorted(tally.rows.items())),
        "tasks": dict(tally.tasks.most_common()),
        **_bias(tally, seed),
        "answers": tally.answers.most_common(10),
        "leaks": [f"{name} is in {' and '.join(sorted(found))}" for name, found in sorted(tally.leaks.items())],
        "conflicts": tally.conflicts,
        "duplicates": tally.duplicates,
        "rephrased": tally.rephrased,
        "texts_across_splits": tally.texts_across,
        "licences": dict(Counter(licence for _, licence in tally.clips.values()).most_common()),
    }
    report |= _listen(tally.clips, against, workers) if listen else _unheard()
    report["benchmark"] = tally.asked_elsewhere + report["benchmark"]
    unlisted = {kind: len(report[kind]) - MAX_LISTED for kind in _LISTS if len(report[kind]) > MAX_LISTED}
    report |= {kind: report[kind][:MAX_LISTED] for kind in unlisted} | {"unlisted": unlisted}
    report["problems"] = problems(report)
    if strict and report["problems"]:
        raise DataError(f"{report['problems'][0]} ({len(report['problems'])} problems in all; see the report)")
    return report


def prints(paths: Iterable[Path], workers: int | None = 1) -> list[Print]:
    """Hash and sketch of every sound that can be read, for `against` and for `fingerprint.write`."""
    found = scan(sorted(set(paths)), workers, fingerprint=fingerprint.sketch)
    return [Print(clip.path, clip.sha256, clip.fingerprint) for clip in found if not clip.error]


def problems(report: dict[str, Any]) -> list[str]:
    """The lines of a report that need a hand."""
    found = []
    for where, listeners in [("all", report["bias"]), *report["bias_by_split"].items()]:
        for listener, seen in listeners.items():
            if is_biased(seen):
                found.append(
                    f"bias ({where}): without sound, the {listener} listener is right {seen['accuracy']:.3f} of "
                    f"{seen['n']:.0f}, chance is {seen['chance']:.3f}; draw distractors as often as they are answers "
                    "and shuffle options"
                )
    for kind, (name, remedy) in _LISTS.items():
        found += [f"{name}: {line}{remedy}" for line in report[kind]]
        if more := report["unlisted"].get(kind):
            found.append(f"{name}: {more:,} more of this kind are not listed")
    if unnamed := report["licences"].get("", 0):
        found.append(f"licence: {unnamed} clips name none; fill in the field `licence`")
    return found


_LISTS = {
    "leaks": ("leak", "; keep a group in one split"),
    "copies": ("copy", "; keep the copies in one split"),
    "near_copies": ("near copy", "; keep the copies in one split"),
    "benchmark": ("benchmark", "; leave it out of training data"),
    "conflicts": ("conflict", "; correct or drop one"),
    "duplicates": ("duplicate", "; drop one"),
    "rephrased": ("near duplicate", "; drop one"),
    "silent": ("silent", "; drop it or record it again"),
    "broken": ("broken", ""),
}


def _add(tally: _Tally, example: Example, number: int) -> None:
    split = example.split
    tally.rows[split] += 1
    tally.tasks[example.task] += 1
    if example.answer:
        tally.answers[example.answer[0]] += 1
        if len(tally.answers) > MAX_ANSWERS:
            tally.answers = Counter(dict(tally.answers.most_common(MAX_ANSWERS // 2)))
    if example.choices and example.answer:
        _judge(tally.judged[split], (-int.from_bytes(_key(example.id)), -number, example))
    paths = example.audio_paths
    for name in [*_units(example), *(f"file {path}" for path in paths)]:
        known = tally.units.setdefault(_key(name), {split})
        if split not in known:
            known.add(split)
            tally.leaks[name] = known
    for path in paths:
        tally.clips.setdefault(path, (split, example.licence))
    _compare_text(tally, example)


def _units(example: Example) -> list[str]:
    """What must not cross splits: the group (or groups, of a scene of several clips), and the speakers where known."""
    groups = {example.group, *_names(example.meta.get("clip_groups"))} - {""}
    speakers = {*_names(example.meta.get("speaker")), *_names(example.meta.get("speakers"))} - {""}
    return [f"group {group!r}" for group in sorted(groups)] + [f"speaker {one!r}" for one in sorted(speakers)]


def _names(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)] if value else []


def _judge(heap: list[tuple[int, int, Example]], entry: tuple[int, int, Example]) -> None:
    if len(heap) < MAX_JUDGED:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def _compare_text(tally: _Tally, example: Example) -> None:
    """The same question about the same clip, with answers that have nothing in common or are the same."""
    clips = "\x1f".join(map(str, example.audio_paths))
    if not example.choices and example.answer and len(example.answer[0].split()) >= LONG_TEXT_WORDS:
        first_split = tally.texts.setdefault(_key(_plain(example.answer[0])), example.split)
        tally.texts_across += first_split != example.split
    exact = _key(clips, example.question, *sorted(example.choices))
    first, answer = tally.asked.setdefault(exact, (example.id, example.answer))
    plain = [_plain(text) for text in (example.question, *sorted(example.choices), *example.answer)]
    other = tally.said.setdefault(_key(clips, *plain), example.id)
    if first == example.id:  # a new question, unless it only looks new
        if other != example.id:
            tally.rephrased.append(f"{other} and {example.id} ask the same in other letters")
    elif answer == example.answer:
        tally.duplicates.append(f"{first} and {example.id} are one question")
    elif answer and example.answer and not set(answer) & set(example.answer) and not _describes(example, answer):
        tally.conflicts.append(f"{first} says {answer[0]!r}, {example.id} says {example.answer[0]!r} to one question")


def _describes(example: Example, answer: Sequence[str]) -> bool:
    """True of free text (`answer`: of the first row): many things can be said of one sound, all of them true."""
    said = (*example.answer, *answer)
    long = not example.choices and max(len(one.split()) for one in said) >= FREE_TEXT_WORDS
    asked = not example.choices and re.search(r"\b(describe|caption|description)", example.question, re.IGNORECASE)
    return long or bool(asked) or example.task == "caption"


def _plain(text: str) -> str:
    words = re.findall(r"\w+", text.casefold())
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _key(*parts: str) -> Key:
    return hashlib.blake2b("\x1e".join(parts).encode(), digest_size=8).digest()


def _bias(tally: _Tally, seed: int) -> dict[str, Any]:
    by_split = {
        split: [example for _, _, example in sorted(tally.judged[split], key=lambda entry: -entry[1])]
        for split in sorted(tally.rows)
    }
    by_listener = {split: bias(members, seed) for split, members in by_split.items()}
    for split in set(by_split) - {"train"} if by_listener.get("train") else ():
        if by_listener[split]:
            learnt = blind(with_options(by_split["train"]))
            by_listener[split]["blind_from_train"] = rate(with_options(by_split[split]), learnt)
    everything = [example for members in by_split.values() for example in members]
    return {"bias": bias(everything, seed), "bias_by_split": by_listener}


def _unheard() -> dict[str, Any]:
    return {"copies": [], "near_copies": [], "benchmark": [], "silent": [], "broken": [], "sounds": {}}


def _listen(clips: dict[Path, tuple[str, str]], against: Sequence[Print], workers: int | None) -> dict[str, Any]:
    paths = sorted(clips)
    heard: list[tuple[Path, ClipFacts]] = []
    silent, broken = [], []
    for path, facts in zip(paths, scan(paths, workers, fingerprint=fingerprint.sketch), strict=True):
        if facts.error:
            broken.append(facts.error)
            continue
        heard.append((path, facts))
        if facts.peak < SILENCE_PEAK:
            silent.append(str(path))
    splits = [clips[path][0] for path, _ in heard]
    near, inside = _near_copies(heard, splits)
    return {
        "copies": _copies(heard, splits),
        "near_copies": near,
        "benchmark": _benchmark(heard, against),
        "silent": silent,
        "broken": broken,
        "sounds": _sounds([facts for _, facts in heard], splits) | {"near_copies_in_one_split": inside},
    }


def _copies(heard: Sequence[tuple[Path, ClipFacts]], splits: Sequence[str]) -> list[str]:
    """Files of the same bytes in several splits, one path a split."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for (path, facts), split in zip(heard, splits, strict=True):
        found[facts.sha256].setdefault(split, path)
    return sorted(
        " and ".join(f"{path} ({split})" for split, path in sorted(where.items())) + " are the same bytes"
        for where in found.values()
        if len(where) > 1
    )


def _near_copies(heard: Sequence[tuple[Path, ClipFacts]], splits: Sequence[str]) -> tuple[list[str], int]:
    """Near copies in different splits, and how many candidates there are in one; files of the same bytes are none."""
    across, inside = [], 0
    for match in fingerprint.matches([facts.fingerprint for _, facts in heard]):
        (one, first), (other, second) = heard[match.first], heard[match.second]
        if first.sha256 == second.sha256:
            continue
        if splits[match.first] == splits[match.second]:
            inside += 1
        elif (fit := fingerprint.likeness(decode(one, NEAR_RATE), decode(other, NEAR_RATE))) >= MIN_LIKENESS:
            across.append(f"{one} ({splits[match.first]}) and {other} ({splits[match.second]}) fit to {fit:.0%}")
    return across, inside


def _benchmark(heard: Sequence[tuple[Path, ClipFacts]], against: Sequence[Print]) -> list[str]:
    """Sounds of ours that are a benchmark's, by their bytes or by their sketch."""
    if not against:
        return []
    same = {entry.sha256: entry.path for entry in against}
    found = {path: f"{path} is {same[facts.sha256]}" for path, facts in heard if facts.sha256 in same}
    sketches = [facts.fingerprint for _, facts in heard] + [entry.sketch for entry in against]
    for match in fingerprint.matches(sketches, ours=len(heard)):
        path, other = heard[match.first][0], against[match.second - len(heard)].path
        found.setdefault(path, f"{path} sounds like {other} ({match.share:.0%})")
    return list(found.values())


def _sounds(facts: Sequence[ClipFacts], splits: Sequence[str]) -> dict[str, Any]:
    if not facts:
        return {"clips": 0}
    durations = np.array([one.duration_s for one in facts])
    levels = np.array([one.loudness_db for one in facts if one.peak >= SILENCE_PEAK] or [0.0])
    hours: dict[str, float] = defaultdict(float)
    for one, split in zip(facts, splits, strict=True):
        hours[split] += one.duration_s / 3600
    return {
        "clips": len(facts),
        "hours": {split: round(value, 4) for split, value in sorted(hours.items())},
        "duration_s": _spread(durations),
        "loudness_db": _spread(levels),
        "mostly_silent": sum(one.silence_share > 0.5 for one in facts),
        "clipped": sum(one.peak >= CLIPPED_PEAK for one in facts),
        "sample_rates": {str(rate): count for rate, count in Counter(one.sample_rate for one in facts).most_common()},
        "channels": {str(count): clips for count, clips in Counter(one.channels for one in facts).most_common()},
    }


def _spread(values: Any) -> dict[str, Any]:
    """Least, middle and most, and a histogram of twenty bins."""
    counts, edges = np.histogram(values, bins=20)
    low, middle, high = np.percentile(values, (5, 50, 95))
    return {
        "min": round(float(values.min()), 3),
        "p5": round(float(low), 3),
        "median": round(float(middle), 3),
        "p95": round(float(high), 3),
        "max": round(float(values.max()), 3),
        "counts": counts.tolist(),
        "edges": [round(float(edge), 3) for edge in edges],
    }
