"""Arms of a recipe against each other: each trained with several seeds, measured, paired item by item; resumable.

Above training, evaluation and report; `earwise ablate` calls it. Parts in order: jobs (arms times seeds, resolved
before anything runs) -> each trained by a process of its own, so that a crash costs one run -> measured as the recipe's
`eval:` says, with sound, and under silence with the first seed -> one table -> JSON, Markdown, one HTML page. What is
finished in the folder is kept; the same command goes on from there. Intervals and tests resample items and seeds
together (crossed bootstrap, Owen 2007, Annals of Applied Statistics 1); p values are also given corrected for the
number of arms (Holm 1979).
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from earwise.config.recipe import Recipe, check_recipe, load_recipe
from earwise.errors import ConfigError, DataError, EarwiseError
from earwise.evaluate.controls import Control
from earwise.evaluate.metrics import stats
from earwise.evaluate.results import METRICS, EvalRun, read_run
from earwise.files import read_log, write_json, write_text
from earwise.report import tables, training_curves
from earwise.report.ablation import as_markdown, as_page

if TYPE_CHECKING:
    from earwise.models.encoder_cache import EncoderCache

Say = Callable[[str], None]
INTERRUPTED = 130
HEARD_MB = 4096
"""Memory for what the encoder said of the clips that all runs are measured on."""
DRAWS = 10_000
BLOCK = 500
"""Resamples made at a time."""


@dataclass(frozen=True, slots=True)
class Job:
    """One arm with one seed."""

    arm: str
    seed: int
    folder: Path
    recipe: Recipe
    base: Path
    command: tuple[str, ...]
    """What follows `earwise` to train it from the start."""

    @property
    def final(self) -> Path:
        """Where the trained model will be."""
        return self.folder / "final"

    def measured_in(self, entry: int) -> Path:
        """Folder of the measurement of an `eval:` entry, as `earwise train` names it."""
        return self.folder / "eval" / f"after-{entry}"


def jobs(
    path: Path,
    arms: Sequence[str],
    seeds: int,
    out: Path,
    *,
    profile: str | None = None,
    data: Path | None = None,
    overrides: Sequence[str] = (),
) -> list[Job]:
    """All runs, first every arm with the first seed, then with the next: what is stopped early compares all arms.

    Args:
        path: Recipe.
        arms: Names under its `arms:`; the first is what the others are tested against.
        seeds: How many: the recipe's own `seed` and those after it.
        out: Folder of the ablation; each run gets `out/ARM-seedN`.
        profile: Scale of the recipe.
        data: Folder that manifests start from; None is the recipe's.
        overrides: `dotted.key=value`, for all arms alike.
    Raises:
        ConfigError: if an arm is unknown or named twice, nothing is to be measured, or a folder holds another recipe.
    """
    if len(set(arms)) < len(arms) or not arms:
        raise ConfigError(f"arms {', '.join(arms) or '(none)'}: name each arm once, the one to compare with first")
    if seeds < 1:
        raise ConfigError(f"seeds {seeds}: each arm needs at least one run")
    first = load_recipe(path, profile=profile, arm=arms[0], overrides=overrides)
    found = []
    for seed in range(first.seed, first.seed + seeds):
        for arm in arms:
            settings = [*overrides, f"seed={seed}"]
            recipe = load_recipe(path, profile=profile, arm=arm, overrides=settings)
            if not recipe.eval or len(recipe.eval) != len(first.eval):
                raise ConfigError(
                    f"{path}: arm {arm!r} has {len(recipe.eval)} entries under eval:; give all arms the same"
                )
            folder = out / f"{arm}-seed{seed}"
            options: tuple[str, ...] = ("--profile", profile) if profile else ()
            options += ("--data", str(data)) if data else ()
            command = ("train", str(path), *options, "--arm", arm, "--out", str(folder), "--no-eval", *settings)
            found.append(Job(arm, seed, folder, recipe, data or path.parent, command))
            _refuse_another(found[-1])
    return found


def _refuse_another(job: Job) -> None:
    at = job.folder / "recipe.json"
    if at.exists() and check_recipe(json.loads(at.read_text(encoding="utf-8"))["recipe"], str(at)) != job.recipe:
        raise ConfigError(f"{job.folder}: holds a run of another recipe; choose another --out, or delete that folder")


def run(all_jobs: Sequence[Job], say: Say = lambda _: None) -> dict[Path, str]:
    """Train and measure what is not finished yet, one after the other.

    Returns:
        Folder -> why it failed, of the runs that did; the others are finished.
    Raises:
        KeyboardInterrupt: if a run was stopped; what it had done is kept.
    """
    failed: dict[Path, str] = {}
    heard: dict[str, EncoderCache] = {}
    for number, job in enumerate(all_jobs, 1):
        say(f"[{number}/{len(all_jobs)}] {job.arm}, seed {job.seed}")
        reason = None if job.final.exists() else train(job, say)
        if reason is None:
            try:
                blind: tuple[Control, ...] = ("silence",) if job.seed == all_jobs[0].seed else ()
                _measure(job, blind, heard, say)
            except EarwiseError as error:
                reason = " ".join(str(error).split())
        if reason is not None:
            failed[job.folder] = reason
            say(f"{job.folder}: failed ({reason}); the same command tries it again")
    return failed


def train(job: Job, say: Say) -> str | None:
    """Train in a process of its own, or go on with what is there; what it said last if it failed, else None."""
    begun = (job.folder / "recipe.json").exists()
    arguments = ("train", "--resume", str(job.folder), "--no-eval") if begun else job.command
    program = [sys.executable, "-c", "from earwise.cli import main; main()", *arguments]
    last = ""
    # A group of its own: Ctrl-C and SIGTERM reach it once, from here, and it finishes its step and saves.
    before = signal.signal(signal.SIGTERM, _interrupt)
    with subprocess.Popen(
        program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", process_group=0
    ) as child:
        assert child.stderr is not None
        try:
            for line in child.stderr:
                last = line.strip() or last
                say(f"  {line.rstrip()}")
        except KeyboardInterrupt:
            child.terminate()  # not SIGINT, which a shell's background job is born deaf to
            child.communicate()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    if child.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    return None if child.returncode == 0 else last or f"exit code {child.returncode}"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _measure(job: Job, blind: Sequence[Control], heard: dict[str, "Ears"], say: Say) -> None:
    """Every `eval:` entry, with sound and under the controls, unless it is finished.

    What an encoder that no stage trains makes of a clip is the same for all runs: `heard` keeps it.
    """
    waiting = [entry for entry in range(len(job.recipe.eval)) if not _is_measured(job.measured_in(entry), blind)]
    if not waiting:
        return
    from earwise.apps.recipe_eval import evaluate_entry
    from earwise.engine.local import LocalEngine
    from earwise.models import detect as folder
    from earwise.models.base import load
    from earwise.models.encoder_cache import EncoderCache

    model = load(str(job.final), dtype=job.recipe.model.dtype, trim=job.recipe.model.trim)
    encoder_cache = EncoderCache(model, keep_mb=HEARD_MB)
    if all(stage.trainable.encoder == "frozen" for stage in job.recipe.stages):
        encoder_cache = heard.setdefault(job.recipe.model.model_dump_json(), encoder_cache)
    engine = LocalEngine(model, encoder_cache=encoder_cache)
    engine.name = folder.named(engine.name, job.final)
    for entry in waiting:
        one = job.recipe.eval[entry]
        say(f"  measuring {one.manifest}")
        evaluate_entry(one, job.base, engine, job.measured_in(entry), seed=job.recipe.seed, blind=blind, say=say)


def _is_measured(folder: Path, blind: Sequence[Control]) -> bool:
    at = folder / METRICS
    return at.exists() and set(blind) <= set(json.loads(at.read_text(encoding="utf-8")).get("blind") or {})


# The table -----------------------------------------------------------------------------------------------------------


def compared(arms: Mapping[str, Mapping[int, EvalRun]], *, seed: int = 0) -> dict[str, Any]:
    """Arms on the same items: accuracy of each over items and seeds, and the rest tested against the first.

    Args:
        arms: Arm -> seed -> finished run; the first arm is the one to compare with.
        seed: Of the resampling.
    Returns:
        `kind` of score, `n` items, `chance`, and under `arms` a row each: `arm`, `seeds`, `accuracy`, `low`, `high`,
        `by_seed`, `blind` (mean of what was measured under silence), `format` (mean) and `delay` (tokens before the
        answer), and `against` the first arm (None for itself, or without a common seed): `difference`, `low`, `high`,
        `p`, `p_holm`, `wins`, `losses` (items on which the mean over seeds is higher, lower), `seeds`, `method`.
    Raises:
        DataError: if there is no run, or two are on different items.
    """
    everything = [one for members in arms.values() for one in members.values()]
    if not everything:
        raise DataError("no run of the ablation is finished; see what they said, and start it again")
    kind = tables.shared_headline(everything)
    items = _items(everything[0])
    rows: list[dict[str, Any]] = []
    verdicts = {
        arm: {number: _verdicts(one, items, kind) for number, one in members.items()} for arm, members in arms.items()
    }
    first = next(iter(arms))
    for arm, members in arms.items():
        if not members:
            continue
        controls = [tables.controls_of(one).get("silence") for one in members.values()]
        blind = [row["accuracy"][kind]["accuracy"] for row in controls if row]
        shown = [one.metrics["format"]["accuracy"] if one.metrics["format"] else None for one in members.values()]
        common = [number for number in members if number in verdicts[first]]
        against = None
        if arm != first and common:
            mine, other = (np.stack([verdicts[name][number] for number in common]) for name in (arm, first))
            against = difference(mine, other, seed=seed)
        rows.append(
            {
                "arm": arm,
                "seeds": list(members),
                **accuracy(np.stack(list(verdicts[arm].values())), seed=seed),
                "by_seed": {str(number): float(row.mean()) for number, row in verdicts[arm].items()},
                "blind": _mean(blind),
                "format": _mean(shown),
                "delay": _mean([tables.delay_of(one) for one in members.values()]),
                "against": against,
            }
        )
    tested = [row["against"] for row in rows if row["against"]]
    for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = corrected
    return {"kind": kind, "n": len(items), "chance": everything[0].metrics["chance"], "first": first, "arms": rows}


def accuracy(verdicts: NDArray[np.float64], *, seed: int) -> dict[str, float]:
    """Mean of verdicts `(seeds, items)` with its 95 % interval: crossed bootstrap, or Wilson's on items where there is
    one seed or nearly all items come out alike."""
    each = verdicts.mean(axis=0)
    mean = float(each.mean())
    if len(verdicts) == 1 or _nearly_all_alike(each):
        low, high = stats.wilson(round(mean * len(each)), len(each))
        return {"accuracy": mean, "low": min(low, mean), "high": max(high, mean)}
    low, high = np.quantile(crossed(verdicts, seed=seed), [0.025, 0.975])
    return {"accuracy": mean, "low": float(low), "high": float(high)}


def difference(mine: NDArray[np.float64], other: NDArray[np.float64], *, seed: int) -> dict[str, Any]:
    """Mean difference of two arms' verdicts `(seeds, items)`, paired over both.

    With one seed this is `stats.paired_difference`. With several and few items that differ, the test is the sign test
    on items (higher or lower in the mean over seeds), and the interval that of the shares of such items.
    """
    gaps = mine - other
    each = gaps.mean(axis=0)
    signs = [value > 0 for value in each], [value < 0 for value in each]
    counts = {"wins": sum(map(bool, signs[0])), "losses": sum(map(bool, signs[1])), "seeds": len(gaps)}
    if len(gaps) == 1 or _nearly_all_alike(each):
        found = stats.paired_difference(*signs, seed=seed)
        mean = float(each.mean())
        found |= {"difference": mean, "low": min(found["low"], mean), "high": max(found["high"], mean)}
        return {name: found[name] for name in ("difference", "low", "high", "p", "method")} | counts
    means = crossed(gaps, seed=seed)
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (len(means) + 1))
    named = {"difference": float(each.mean()), "low": float(low), "high": float(high), "p": p, "method": "bootstrap"}
    return named | counts


def crossed(values: NDArray[np.float64], *, seed: int, draws: int = DRAWS) -> NDArray[np.float64]:
    """Means of `values` `(seeds, items)` with seeds and items drawn anew, each with replacement, `draws` times."""
    seeds, items = values.shape
    rng = np.random.default_rng(seed)
    means = []
    for at in range(0, draws, BLOCK):
        count = min(BLOCK, draws - at)
        by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), count) / seeds
        by_item = rng.multinomial(items, np.full(items, 1 / items), count) / items
        means.append(((by_seed @ values) * by_item).sum(axis=1))
    return np.concatenate(means)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several tests, corrected for their number (Holm 1979)."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[number]))
        corrected[number] = highest
    return corrected


def _nearly_all_alike(values: NDArray[np.float64]) -> bool:
    _, counts = np.unique(values, return_counts=True)
    return len(values) - int(counts.max()) < stats.FEW


def _items(one: EvalRun) -> list[str]:
    return sorted(name for name, row in one.first.items() if row["scores"] is not None)


def _verdicts(one: EvalRun, items: list[str], kind: str) -> NDArray[np.float64]:
    if _items(one) != items:
        raise DataError(f"{one.path}: is on other items than the first run; give all arms the same eval: entries")
    return np.array([float(one.first[name]["scores"][kind] >= 1) for name in items])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


# What is written -----------------------------------------------------------------------------------------------------


def write(out: Path, all_jobs: Sequence[Job], failed: Mapping[Path, str], title: str) -> dict[str, Any]:
    """Write `ablation.json`, `ablation.md` and `ablation.html` into `out` from what is finished.

    Returns:
        What `ablation.json` holds: `title`, `evals` (see `compared`, each with its `manifest`), `runs`.
    Raises:
        DataError: as `compared`.
    """
    done = [job for job in all_jobs if job.folder not in failed]
    evals = []
    for entry, one in enumerate(all_jobs[0].recipe.eval):
        arms: dict[str, dict[int, EvalRun]] = {job.arm: {} for job in all_jobs}
        for job in done:
            arms[job.arm][job.seed] = read_run(job.measured_in(entry), job.arm)
        evals.append({"manifest": one.manifest} | compared(arms))
    runs = [_row(job, failed.get(job.folder)) for job in all_jobs]
    result = {"title": title, "evals": evals, "runs": runs}
    write_json(out / "ablation.json", result)
    write_text(out / "ablation.md", as_markdown(result))
    first = [job.folder / "metrics.jsonl" for job in done if job.seed == all_jobs[0].seed]
    write_text(out / "ablation.html", as_page(result, training_curves(first)))
    return result


def _row(job: Job, reason: str | None) -> dict[str, Any]:
    log = [row for row in read_log(job.folder / "metrics.jsonl") if "step" in row]
    asked = sum(stage.max_steps for stage in job.recipe.stages)
    seconds = round(sum(row["seconds"] for row in log), 1)
    named = {"arm": job.arm, "seed": job.seed, "folder": job.folder.name}
    return named | {"failed": reason, "steps": len(log), "steps_asked": asked, "train_seconds": seconds}
