"""The only training loop: batches of forests, a loss, an optimizer; logging, checkpoints, exact resume. On accelerate.

A stage gives `batches(step)` (the micro batches of one optimizer step) and `loss(logprobs, micro)`; it never sees the
optimizer, and this file never sees a question. Randomness is drawn from `(seed, step)`, never from global state, so a
step is the same whether the run was interrupted or not.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from earwise.config import OptimizerConfig
from earwise.errors import ModelError
from earwise.files import append_jsonl, read_log, write_jsonl
from earwise.losses import LossOutput
from earwise.models.base import AudioLM
from earwise.models.ears import Ears
from earwise.train import state
from earwise.train.clock import Clock, describe
from earwise.train.policy import Micro, Policy, check_forest, check_hearing
from earwise.train.stop import Stop
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
    ears: Ears,
    samples: Path | None = None,
    max_minutes: float | None = None,
    clock: Clock | None = None,
    profile: bool = False,
    tolerance: float = 1e-4,
    say: Say = lambda _: None,
) -> int:
    """Train until `steps` (or `max_minutes`), continuing from `out/checkpoint` if there is one.

    Args:
        model: Trained in place; its trainable parameters are those that require gradients.
        work: The stage.
        optimizer_config: AdamW and schedule.
        steps: Optimizer steps in all.
        out: Folder of the stage.
        log: metrics.jsonl of the run.
        ears: For the hearing check.
        samples: The stage's own log, whose rows carry `stage` and `step`; None if it has none.
        max_minutes: Wall-clock limit of this process.
        clock: Shared with the stage; None makes one.
        profile: Log the seconds of every phase and say the split, every `PROFILE_EVERY` steps.
        tolerance: Limit of the forest check, nats.
        say: Progress, one line a call.
    Returns:
        Number of finished steps.
    Raises:
        ModelError: if the forest is not exact on this model, the model is deaf, or the loss is not finite.
    """
    accelerator = Accelerator()
    policy = Policy(model)
    groups = parameter_groups(model, optimizer_config)
    optimizer = torch.optim.AdamW(
        groups,
        betas=optimizer_config.betas,
        weight_decay=optimizer_config.weight_decay,
        fused=True if next(model.module.parameters()).is_cuda else None,  # else temporaries as large as the weights
    )
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    wrapped, optimizer_ready = accelerator.prepare(policy, optimizer)
    first = 0
    restored = state.load(out, model.module, optimizer)
    if restored is not None:
        first, extra = restored
        work.restore(extra)
        say(f"{work.kind}: resumed after step {first}")
    if accelerator.is_main_process:
        for kept in (log, *([samples] if samples else [])):
            _forget_after(kept, out.name, first)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    began = time.monotonic()
    clock = clock or Clock()
    spent: list[dict[str, float]] = []
    step, checked = first, False
    with Stop(say) as stop:
        while step < steps and not (max_minutes and time.monotonic() - began > 60 * max_minutes):
            if stop.asked and step % work.rest == 0:
                break
            started = time.monotonic()
            clock.split()
            if work.fresh(step):
                optimizer.state.clear()
            micros, metrics = work.batches(step)
            made = time.monotonic()
            if micros and not checked:  # a first step whose groups are all flat has nothing to check
                with clock("checks"):
                    _checks(policy, micros[0], ears, tolerance, metrics, say)
                checked = True
            factor = learning_rate(step, steps, optimizer_config)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            model.module.train()
            sums: dict[str, float] = {}
            for micro in micros:
                with clock("forward"):
                    output = work.loss(wrapped(micro.forest, micro.heard, micro.waves), micro)
                if not torch.isfinite(output.loss):
                    raise ModelError(
                        f"{work.kind}: loss is {float(output.loss.detach())} at step {step}; "
                        "lower the learning rate, then --resume"
                    )
                with clock("backward"):
                    accelerator.backward(output.loss)
                for name, value in {"loss": float(output.loss.detach()), **output.metrics}.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * (1 if name == "loss" else 1 / len(micros))
            with clock("optimizer"):
                norm = float(torch.nn.utils.clip_grad_norm_(trained, optimizer_config.grad_clip)) if micros else 0.0
            if not math.isfinite(norm):
                raise ModelError(
                    f"{work.kind}: gradient norm is {norm} at step {step}; lower the learning rate, then --resume"
                )
            if micros:
                with clock("optimizer"):
                    optimizer_ready.step()
                    optimizer_ready.zero_grad()
            model.module.eval()
            step += 1
            now = time.monotonic()
            tokens = sum(len(micro.forest) for micro in micros)
            row = {
                "step": step,
                "stage": out.name,
                "lr": rates[0] * factor,
                "grad_norm": norm,
                "seconds": now - started,
                "data_seconds": made - started,
                "tokens_per_s": tokens / (now - started),
                "audio_s_per_s": metrics.get("audio_s", 0.0) / (now - started),
            }
            if profile:
                spent.append(clock.split())
                row |= {f"phase/{name}": seconds for name, seconds in spent[-1].items()}
            row |= {
                f"{work.kind}/{name}": value for name, value in (metrics | sums | {"tokens": float(tokens)}).items()
            }
            if ids := work.ids():
                row["ids"] = ids
            if accelerator.is_main_process:
                append_jsonl(log, row)
                shown = ", ".join(f"{name} {value:.3f}" for name, value in (sums | metrics).items() if name in SHOWN)
                say(f"{work.kind} step {step}/{steps}: {shown}, {now - started:.1f} s")
                if len(spent) == PROFILE_EVERY:
                    _tell(work.kind, step, spent, say)
                if step % (-(-work.save_every // work.rest) * work.rest) == 0 and step < steps:
                    state.save(out, model.module, optimizer, step, work.state())
    if accelerator.is_main_process:
        if spent:
            _tell(work.kind, step, spent, say)
        state.save(out, model.module, optimizer, step, work.state())
    if stop.asked:
        say(f"{work.kind}: stopped after step {step}, saved; continue with --resume")
        raise KeyboardInterrupt
    return step


PROFILE_EVERY = 10
SHOWN = ("loss", "accuracy", "reward", "format", "flat_groups", "kl", "margin", "chain_tokens", "delay")


def _tell(kind: str, step: int, spent: list[dict[str, float]], say: Say) -> None:
    """Say where the time of the last steps went, and forget it."""
    total = {name: sum(one.get(name, 0.0) for one in spent) for name in dict.fromkeys(n for one in spent for n in one)}
    say(f"{kind} profile of steps {step - len(spent) + 1}-{step}: {describe(total, len(spent))}")
    spent.clear()


def _checks(policy: Policy, micro: Micro, ears: Ears, tolerance: float, metrics: dict[str, float], say: Say) -> None:
    """Before the first step: is the forest exact here, and does the model hear?"""
    off = check_forest(policy, micro, tolerance=tolerance)
    clips = sorted(set(micro.forest.clips))
    silent = dict(zip(clips, ears.heard([micro.waves[clip] * 0 for clip in clips]), strict=True)) if micro.heard else {}
    gain = check_hearing(policy, micro, silent)
    metrics["hearing"] = gain
    say(
        f"checks: forest equals one-by-one within {off:.1e} nats; "
        f"silence changes the log-probability by {-gain:+.3f} nats a token"
    )


def _forget_after(log: Path, stage: str, step: int) -> None:
    """Drop log rows of steps that the checkpoint does not know, so that no step is logged twice."""
    rows: Sequence[dict[str, Any]] = read_log(log)
    kept = [row for row in rows if row.get("stage") != stage or row["step"] <= step]
    if len(kept) < len(rows):
        write_jsonl(log, kept)
