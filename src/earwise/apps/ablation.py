"""Arms of a recipe against each other: each trained with several seeds, evaluated, and compared item by item.

Above training, evaluation and report; `earwise ablate` calls it. Steps: jobs (arms times seeds, resolved before
anything runs) -> each trained in a process of its own, so that a crash costs one run -> evaluated as the recipe's
`eval:` says, and under silence with the first seed -> compared (`ablation_comparison.py`) -> JSON, Markdown and one
HTML page. Finished runs in the folder are kept: the same command continues a stopped ablation.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earwise.apps.ablation_comparison import compare_arms
from earwise.config.recipe import Recipe, check_recipe, load_recipe
from earwise.config.recipe_files import find_recipe
from earwise.errors import ConfigError, EarwiseError
from earwise.evaluation.controls import Control
from earwise.evaluation.results import METRICS, EvalRun, read_run
from earwise.files import read_log, write_json, write_text
from earwise.report.ablation import as_markdown, as_page
from earwise.report.training import training_curves

if TYPE_CHECKING:
    from earwise.models.encoder_cache import EncoderCache

Notify = Callable[[str], None]
"""Receives one line of progress."""
INTERRUPTED = 130
"""Exit code of `earwise train` after an interrupt."""
ENCODER_CACHE_MB = 4096
"""Memory for the encoder states of the clips that all runs are evaluated on."""


@dataclass(frozen=True, slots=True)
class AblationJob:
    """One arm with one seed."""

    arm: str
    seed: int
    folder: Path
    """Folder of the run."""
    recipe: Recipe
    """The recipe with arm, profile, overrides and seed applied."""
    base: Path
    """Folder that manifests start from."""
    command: tuple[str, ...]
    """Arguments of `earwise` that train it from the start."""

    @property
    def final(self) -> Path:
        """Folder of the trained model, once it is finished."""
        return self.folder / "final"

    def eval_folder(self, entry: int) -> Path:
        """Folder of the evaluation by an `eval:` entry, named as `earwise train` names it."""
        return self.folder / "eval" / f"after-{entry}"


def plan_jobs(
    path: Path,
    arms: Sequence[str],
    seeds: int,
    out: Path,
    *,
    profile: str | None = None,
    data: Path | None = None,
    overrides: Sequence[str] = (),
) -> list[AblationJob]:
    """All runs: every arm with the first seed, then every arm with the next, so that a stopped ablation has all arms.

    Args:
        path: The recipe.
        arms: Names under its `arms:`; the others are tested against the first.
        seeds: Number of seeds: the recipe's own `seed` and those after it.
        out: Folder of the ablation; each run gets `out/ARM-seedN`.
        profile: Profile of the recipe; None: none.
        data: Folder that manifests start from; None: the recipe's.
        overrides: `dotted.key=value`, for all arms alike.
    Raises:
        ConfigError: if an arm is unknown or named twice, nothing is to be evaluated, or a folder holds a run of another
            recipe.
    """
    if len(set(arms)) < len(arms) or not arms:
        raise ConfigError(f"arms {', '.join(arms) or '(none)'}: name each arm once, the one to compare with first")
    if seeds < 1:
        raise ConfigError(f"seeds {seeds}: each arm needs at least one run")
    first = load_recipe(path, profile=profile, arm=arms[0], overrides=overrides)
    jobs = []
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
            job = AblationJob(arm, seed, folder, recipe, data or find_recipe(path)[1], command)
            _refuse_other_recipe(job)
            jobs.append(job)
    return jobs


def run_jobs(jobs: Sequence[AblationJob], notify: Notify = lambda _: None) -> dict[Path, str]:
    """Train and evaluate the jobs that are not finished yet, one after the other.

    Args:
        jobs: What `plan_jobs` returned.
        notify: Receives progress lines.
    Returns:
        Folder -> reason, of the runs that failed; all others are finished.
    Raises:
        KeyboardInterrupt: if a run was stopped; its finished work is kept.
    """
    failed: dict[Path, str] = {}
    encoder_caches: dict[str, EncoderCache] = {}
    for number, job in enumerate(jobs, 1):
        notify(f"[{number}/{len(jobs)}] {job.arm}, seed {job.seed}")
        reason = None if job.final.exists() else train(job, notify)
        if reason is None:
            try:
                blind: tuple[Control, ...] = ("silence",) if job.seed == jobs[0].seed else ()
                _evaluate(job, blind, encoder_caches, notify)
            except EarwiseError as error:
                reason = " ".join(str(error).split())
        if reason is not None:
            failed[job.folder] = reason
            notify(f"{job.folder}: failed ({reason}); the same command tries it again")
    return failed


def train(job: AblationJob, notify: Notify) -> str | None:
    """Train a job in a process of its own, or continue its run.

    Args:
        job: The job.
        notify: Receives the lines that the process prints.
    Returns:
        None if it finished, else the last line that it printed.
    Raises:
        KeyboardInterrupt: if it was interrupted.
    """
    has_begun = (job.folder / "recipe.json").exists()
    arguments = ("train", "--resume", str(job.folder), "--no-eval") if has_begun else job.command
    program = [sys.executable, "-c", "from earwise.cli import main; main()", *arguments]
    last_line = ""
    # A process group of its own: Ctrl-C and SIGTERM reach the process once, from here, and it finishes its step and
    # saves.
    previous_handler = signal.signal(signal.SIGTERM, _interrupt)
    with subprocess.Popen(
        program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", process_group=0
    ) as child:
        assert child.stderr is not None
        try:
            for line in child.stderr:
                last_line = line.strip() or last_line
                notify(f"  {line.rstrip()}")
        except KeyboardInterrupt:
            child.terminate()  # not SIGINT: a background job of a shell ignores it from the start
            child.communicate()
            raise
        finally:
            signal.signal(signal.SIGTERM, previous_handler)
    if child.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    return None if child.returncode == 0 else last_line or f"exit code {child.returncode}"


def write_results(out: Path, jobs: Sequence[AblationJob], failed: Mapping[Path, str], title: str) -> dict[str, Any]:
    """Compare the finished runs and write `ablation.json`, `ablation.md` and `ablation.html`.

    Args:
        out: Folder of the ablation.
        jobs: All jobs.
        failed: What `run_jobs` returned.
        title: Title of the page.
    Returns:
        What `ablation.json` holds: `title`, `evals` (see `compare_arms`, each with its `manifest`), `runs`.
    Raises:
        DataError: see `compare_arms`.
    """
    finished = [job for job in jobs if job.folder not in failed]
    comparisons = []
    for number, entry in enumerate(jobs[0].recipe.eval):
        arms: dict[str, dict[int, EvalRun]] = {job.arm: {} for job in jobs}
        for job in finished:
            arms[job.arm][job.seed] = read_run(job.eval_folder(number), job.arm)
        comparisons.append({"manifest": entry.manifest} | compare_arms(arms))
    result = {"title": title, "evals": comparisons, "runs": [_run_row(job, failed.get(job.folder)) for job in jobs]}
    write_json(out / "ablation.json", result)
    write_text(out / "ablation.md", as_markdown(result))
    first_seed_logs = [job.folder / "metrics.jsonl" for job in finished if job.seed == jobs[0].seed]
    write_text(out / "ablation.html", as_page(result, training_curves(first_seed_logs)))
    return result


def _refuse_other_recipe(job: AblationJob) -> None:
    """Refuse a folder that holds a run of another recipe.

    Raises:
        ConfigError: naming the folder.
    """
    path = job.folder / "recipe.json"
    if path.exists() and check_recipe(json.loads(path.read_text(encoding="utf-8"))["recipe"], str(path)) != job.recipe:
        raise ConfigError(f"{job.folder}: holds a run of another recipe; choose another --out, or delete that folder")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _evaluate(
    job: AblationJob, blind: Sequence[Control], encoder_caches: dict[str, "EncoderCache"], notify: Notify
) -> None:
    """Evaluate a trained job by every `eval:` entry, unless that is finished.

    Args:
        job: The job.
        blind: The blind controls to run.
        encoder_caches: Model configuration -> encoder states, shared by all runs whose encoder no stage trains.
        notify: Receives progress lines.
    """
    unfinished = [entry for entry in range(len(job.recipe.eval)) if not _is_evaluated(job.eval_folder(entry), blind)]
    if not unfinished:
        return
    from earwise.apps.recipe_eval import evaluate_entry
    from earwise.engine.local import LocalEngine
    from earwise.models import detect
    from earwise.models.base import load
    from earwise.models.encoder_cache import EncoderCache

    model = load(str(job.final), dtype=job.recipe.model.dtype, trim=job.recipe.model.trim)
    encoder_cache = EncoderCache(model, max_mb=ENCODER_CACHE_MB)
    if all(stage.trainable.encoder == "frozen" for stage in job.recipe.stages):
        encoder_cache = encoder_caches.setdefault(job.recipe.model.model_dump_json(), encoder_cache)
    engine = LocalEngine(model, encoder_cache=encoder_cache)
    engine.name = detect.display_name(engine.name, job.final)
    for number in unfinished:
        entry, folder = job.recipe.eval[number], job.eval_folder(number)
        notify(f"  evaluating on {entry.manifest}")
        evaluate_entry(entry, job.base, engine, folder, seed=job.recipe.seed, blind=blind, notify=notify)


def _is_evaluated(folder: Path, blind: Sequence[Control]) -> bool:
    """Whether an evaluation is finished, with all of these controls."""
    path = folder / METRICS
    if not path.exists():
        return False
    return set(blind) <= set(json.loads(path.read_text(encoding="utf-8")).get("blind") or {})


def _run_row(job: AblationJob, reason: str | None) -> dict[str, Any]:
    """One row of `runs` in `ablation.json`; `reason` is why the run failed, if it did."""
    log = [row for row in read_log(job.folder / "metrics.jsonl") if "step" in row]
    return {
        "arm": job.arm,
        "seed": job.seed,
        "folder": job.folder.name,
        "failed": reason,
        "steps": len(log),
        "steps_asked": sum(stage.max_steps for stage in job.recipe.stages),
        "train_seconds": round(sum(row["seconds"] for row in log), 1),
    }
