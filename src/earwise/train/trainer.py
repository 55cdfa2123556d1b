"""The only training loop: batches of forests, a loss, an optimizer; logging, checkpoints, exact resume. On accelerate.

A stage gives `batches(step)` (the micro batches of one optimizer step) and `loss(logprobs, micro)`; it never sees the
optimizer, and this file never sees a question. Randomness is drawn from `(seed, step)`, never from global state, so a
step is the same whether the run was interrupted or not. Whatever ends a run, the steps before are saved first.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from earwise.algorithms.losses import LossOutput
from earwise.config.stages import OptimizerConfig
from earwise.errors import DataError, ModelError
from earwise.files import append_jsonl, read_log, write_jsonl
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.train import checkpoints as state
from earwise.train.distributed import parallel, sharding
from earwise.train.logging.skip_report import told
from earwise.train.policy import Micro, Policy, check_forest, check_hearing
from earwise.train.profiler import Clock, describe
from earwise.train.signals import Stop
from earwise.train.trainable import parameter_groups

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StageWork:
    """What a stage brings to the loop.

    Attributes:
        kind: Prefix of its log keys.
        batches: Step number (from 0) -> micro batches and metrics of that step.
        loss: Log-probabilities `(branches, tokens)` and micro batch -> loss whose sum over the step's micro batches
            is minimised.
        state: Plain values for the checkpoint (data position, reference).
        restore: Takes them back.
        save_every: Steps between checkpoints.
        rest: `state` may be taken after every so many steps (the updates made from one rollout).
        fresh: Step number -> True where the optimizer's state is forgotten before the step.
        ids: Of the examples of the last batches, in the order in which they came; logged as `ids`.
        asks: Whether `batches` runs the model's decoder.
    """

    kind: str
    batches: Callable[[int], tuple[list[Micro], dict[str, float]]]
    loss: Callable[[Tensor, Micro], LossOutput]
    state: Callable[[], dict[str, Any]]
    restore: Callable[[Mapping[str, Any]], None]
    save_every: int
    rest: int = 1
    fresh: Callable[[int], bool] = lambda step: False
    ids: Callable[[], list[str]] = list
    asks: bool = True


def learning_rate(step: int, total: int, config: OptimizerConfig) -> float:
    """Factor on the base rate at a step (0-based): linear warm-up, then the schedule down to 0 at `total`.

    >>> [round(learning_rate(s, 4, OptimizerConfig(schedule="linear")), 2) for s in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def run(
    model: AudioLM,
    work: StageWork,
    *,
    optimizer_config: OptimizerConfig,
    steps: int,
    out: Path,
    log: Path,
    encoder_cache: EncoderCache,
    samples: Path | None = None,
    watch: Callable[[dict[str, Any]], None] = lambda _: None,
    max_minutes: float | None = None,
    max_bad_steps: int = 0,
    keep_checkpoints: int = 1,
    clock: Clock | None = None,
    profile: bool = False,
    tolerance: float = 1e-4,
    say: Say = lambda _: None,
) -> int:
    """Train until `steps` (or `max_minutes`), continuing from the newest checkpoint in `out` if there is one.

    Args:
        model: Trained in place; its trainable parameters are those that require gradients.
        work: The stage.
        optimizer_config: AdamW and schedule.
        steps: Optimizer steps in all.
        out: Folder of the stage.
        log: metrics.jsonl of the run.
        ears: For the hearing check.
        samples: The stage's own log, whose rows carry `stage` and `step`; None if it has none.
        watch: Takes each row of the log once it is written.
        max_minutes: Wall-clock limit of this process.
        max_bad_steps: So many steps in a row may have a loss or a gradient that is not finite; their update is left
            out.
        keep_checkpoints: How many are kept.
        clock: Shared with the stage; None makes one.
        profile: Log the seconds of every phase and say the split, every `PROFILE_EVERY` steps.
        tolerance: Limit of the forest check, nats.
        say: Progress, one line a call.
    Returns:
        Number of finished steps.
    Raises:
        ModelError: if the forest is not exact on this model, the model is deaf, or too many losses are not finite.
    """
    accelerator = Accelerator(cpu=parallel.on_cpu())
    policy = Policy(model)
    layers = sharding.shard(model)
    groups = parameter_groups(model, optimizer_config)
    optimizer = torch.optim.AdamW(
        groups,
        betas=optimizer_config.betas,
        weight_decay=optimizer_config.weight_decay,
        # Else temporaries as large as the weights; but parameters that are cut and whole ones do not go together.
        fused=True if next(model.module.parameters()).is_cuda and not layers else None,
        foreach=False if layers else None,
    )
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    # Not wrapped in DDP: gradients are added once a step, however many micro batches each process has.
    wrapped = accelerator.prepare_model(policy, evaluation_mode=True)
    optimizer_ready = accelerator.prepare_optimizer(optimizer)
    first = bad = 0
    restored = state.load(out, model.module, optimizer)
    if restored is not None:
        first, extra = restored
        work.restore(extra)
        bad = extra.get(BAD, 0)
        say(f"{work.kind}: resumed after step {first}")
    if parallel.main():
        if _forget_after(log, out.name, first) and restored is None:
            say(f"{work.kind}: nothing had been saved yet (save_every: {work.save_every}), starts anew")
        if samples:
            _forget_after(samples, out.name, first)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    began = time.monotonic()
    clock = clock or Clock()
    spent: list[dict[str, float]] = []
    every = -(-work.save_every // work.rest) * work.rest
    step, saved, checked = first, first, False
    position: dict[str, Any] | None = None
    """What a checkpoint of the weights as they are now would hold; None while there can be none."""

    def save() -> None:
        nonlocal saved
        if position is not None and step > saved:
            state.save(out, model.module, optimizer, step, position, keep=keep_checkpoints)
            saved = step

    def rescue() -> None:
        if not layers:  # else all processes would have to come here
            with suppress(DataError):  # a full disk may be what ended the run
                save()

    with Stop(say) as stop, _before_it_ends(rescue):
        while step < steps:
            resting = step % work.rest == 0
            position = work.state() | {BAD: bad} if resting else None
            if step % every == 0:
                save()
            late = bool(max_minutes and time.monotonic() - began > 60 * max_minutes)
            if resting and parallel.agreed(late or stop.asked):
                break
            started = time.monotonic()
            clock.split()
            if work.fresh(step):
                optimizer.state.clear()
            with sharding.gathered(layers if work.asks or not checked else ()):
                micros, metrics = work.batches(step)
                made = time.monotonic()
                if micros and not checked:  # a first step whose groups are all flat has nothing to check
                    with clock("checks"):
                        _checks(policy, micros[0], encoder_cache, tolerance, metrics, say)
            passes = parallel.gather(len(micros))
            checked = checked or any(passes)
            factor = learning_rate(step, steps, optimizer_config)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            model.module.train()
            sums: dict[str, float] = {}
            for micro in micros:
                with clock("forward"):
                    output = work.loss(wrapped(micro.forest, micro.heard, micro.waveforms), micro)
                if output.loss.requires_grad:  # text alone reaches no connector: nothing to learn where that is trained
                    with clock("backward"):
                        accelerator.backward(output.loss)
                for name, value in {"loss": float(output.loss.detach()), **output.metrics}.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * (1 if name == "loss" else 1 / sum(passes))
            for _ in range(len(micros), max(passes) if layers else 0):
                empty = sharding.filler(model)
                accelerator.backward(0.0 * wrapped(empty.forest, empty.heard, empty.waveforms).sum())
            with clock("optimizer"):
                parallel.add_gradients(sharding.uncut(trained))
                norm = sharding.clip(trained, optimizer_config.grad_clip) if any(passes) else 0.0
            sums = parallel.total(sums | {"tokens": float(sum(len(micro.forest) for micro in micros))})
            finite = math.isfinite(sums.get("loss", 0.0)) and math.isfinite(norm)
            bad = 0 if finite else bad + 1
            if bad > max_bad_steps:
                raise ModelError(
                    f"{work.kind}: loss {sums['loss']:g} and gradient norm {norm:g} at step {step + 1}"
                    + (f", {bad} such steps in a row" if bad > 1 else "")
                    + f"; lower optimizer.lr or set on_bad_loss: skip in {out.parent / 'recipe.json'}, then --resume"
                )
            position = None
            if any(passes):
                with clock("optimizer"):
                    if finite:
                        optimizer_ready.step()
                    optimizer_ready.zero_grad()
            model.module.eval()
            step += 1
            now = time.monotonic()
            row = {
                "step": step,
                "stage": out.name,
                "lr": rates[0] * factor,
                "seconds": now - started,
                "data_seconds": made - started,
                "tokens_per_s": sums["tokens"] / (now - started),
                "audio_s_per_s": metrics.get("audio_s", 0.0) / (now - started),
            }
            if profile:
                spent.append(clock.split())
                row |= {f"phase/{name}": seconds for name, seconds in spent[-1].items()}
            counted = metrics | sums | ({} if finite else {"bad_loss": 1.0})
            row |= {"grad_norm": norm} | {f"{work.kind}/{name}": value for name, value in counted.items()}
            row = {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
            if ids := work.ids():
                row["ids"] = ids
            if parallel.main():
                append_jsonl(log, row)
                watch(row)
                shown = ", ".join(f"{name} {value:.3f}" for name, value in counted.items() if name in SHOWN)
                say(f"{work.kind} step {step}/{steps}: {shown}, {now - started:.1f} s")
                if len(spent) == PROFILE_EVERY:
                    _tell(work.kind, step, spent, say)
        position = work.state() | {BAD: bad}
        save()
    if parallel.main():
        if spent:
            _tell(work.kind, step, spent, say)
        for line in told(read_log(log), out.name, work.kind):
            say(line)
    sharding.dissolve(layers)
    if parallel.agreed(stop.asked):
        say(f"{work.kind}: stopped after step {step}, saved; continue with --resume")
        raise KeyboardInterrupt
    return step


PROFILE_EVERY = 10
BAD = "bad_steps"
"""Under which a checkpoint counts the steps in a row without a finite loss."""
SHOWN = ("loss", "accuracy", "reward", "format", "flat_groups", "kl", "margin", "chain_tokens", "delay", "bad_loss")


@contextmanager
def _before_it_ends(rescue: Callable[[], None]) -> Iterator[None]:
    """Do something before any error or interrupt goes on."""
    try:
        yield
    except BaseException:
        rescue()
        raise


def _tell(kind: str, step: int, spent: list[dict[str, float]], say: Say) -> None:
    """Say where the time of the last steps went, and forget it."""
    total = {name: sum(one.get(name, 0.0) for one in spent) for name in dict.fromkeys(n for one in spent for n in one)}
    say(f"{kind} profile of steps {step - len(spent) + 1}-{step}: {describe(total, len(spent))}")
    spent.clear()


def _checks(policy: Policy, micro: Micro, encoder_cache: EncoderCache, tolerance: float, metrics: dict[str, float], say: Say) -> None:
    """Before the first step: is the forest exact here, and does the model hear?"""
    off = check_forest(policy, micro, tolerance=tolerance)
    clips = sorted(set(micro.forest.audio_clips))
    silent = dict(zip(clips, encoder_cache.encoder_states([micro.waveforms[clip] * 0 for clip in clips]), strict=True)) if micro.heard else {}
    gain = check_hearing(policy, micro, silent)
    metrics["hearing"] = gain
    say(
        f"checks: forest equals one-by-one within {off:.1e} nats; "
        f"silence changes the log-probability by {-gain:+.3f} nats a token"
    )


def _forget_after(log: Path, stage: str, step: int) -> bool:
    """Drop log rows of steps that the checkpoint does not know, so that no step is logged twice; True if there were
    any."""
    rows: Sequence[dict[str, Any]] = read_log(log)
    kept = [row for row in rows if row.get("stage") != stage or row["step"] <= step]
    if len(kept) < len(rows):
        write_jsonl(log, kept)
    return len(kept) < len(rows)
