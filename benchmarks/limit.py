"""How far each phase of earwise's GRPO step is from what this machine can do, and what the rest of its time is.

    python benchmarks/limit.py --compute auto --out benchmarks/results/limit.json

Hearing (the encoder), prefill, decoding, reference, forward, backward and optimizer of one step of R1-AQA's shape:
time, operations, share of the limit, share in products, and the largest other operators by name. The limit is the
roofline of the measured rates of products and of memory (`earwise.training.limits`); `earwise train --profile-step`
prints the same for a run of one's own. Prefill and decoding are told apart by a rollout that ends after one token. The
first step warms up; the record costs some microseconds per operator, which count as time outside of operators.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from baselines.earwise_step import PACK_TOKENS, without_end_tokens
from baselines.implementation import BETA, TEMPERATURE, adamw, update_weights
from baselines.models import load_benchmark_model, perturb, trained_parameters
from baselines.timing import machine
from baselines.workload import SHAPES, Workload, workload

from earwise.algorithms.policy_loss import group_advantages, grpo_loss
from earwise.engine.base import SamplingParams
from earwise.engine.local import LocalEngine
from earwise.files import write_json
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.models.precision.compute import COMPUTE_CHOICES, set_compute
from earwise.models.prompt_encoding import completion_path
from earwise.training.batches import branch_slice, build_micro_batches
from earwise.training.limits.operators import OperatorRecord, PhaseOperators, Total
from earwise.training.limits.report import PhaseShare, as_json, describe, measure_rates, phase_share
from earwise.training.policy import Policy
from earwise.training.profiler import Profiler
from earwise.training.trainable import Reference

PHASES = ("hearing", "prefill", "decoding", "reference", "forward", "backward", "optimizer")
GOALS = {"hearing": 0.6, "decoding": 0.7, "forward": 0.6, "backward": 0.6}
"""Share of the limit that a phase should reach: of the rate of products, for decoding of the rate of memory."""
SEED = 7


def run_step(model: AudioLM, work: Workload, profiler: Profiler) -> None:
    """One step of earwise, with a phase of the profiler around each of its parts; `rollout` includes the prefill."""
    encoder_cache = EncoderCache(model)
    engine = LocalEngine(model, encoder_cache=encoder_cache)
    with profiler.phase("hearing"):
        encoder_cache.encoder_states(list(work.waveforms.values()))
    parameters = list(trained_parameters(model).values())
    sampled = SamplingParams(work.shape.max_new_tokens, TEMPERATURE, seed=SEED)
    with without_end_tokens(model):
        engine.generate(work.prompts, replace(sampled, max_new_tokens=2), work.shape.group)  # packs the weights
        with profiler.phase("prefill"):
            engine.generate(work.prompts, replace(sampled, max_new_tokens=1), work.shape.group)
        with profiler.phase("rollout"):
            groups = engine.generate(work.prompts, sampled, work.shape.group)
    trees = [
        [path + completion_path(completion.token_ids) for completion in group]
        for path, group in zip(work.paths, groups, strict=True)
    ]
    micro_batches = build_micro_batches(model, encoder_cache, trees, work.waveforms, PACK_TOKENS)
    advantages = group_advantages(torch.tensor(work.rewards, dtype=torch.float64), work.shape.group).tolist()
    policy, reference, first = Policy(model), Reference(model.module), 0
    for micro_batch in micro_batches:
        with profiler.phase("reference"):
            ref_logprobs = reference.logprobs(policy, micro_batch)
        with profiler.phase("forward"):
            logprobs = policy(*micro_batch.policy_inputs)
            loss = grpo_loss(
                logprobs, None, ref_logprobs, branch_slice(advantages, micro_batch, first).float(),
                micro_batch.forest.loss_mask, beta=BETA, num_sequences=len(advantages),
            ).loss  # fmt: skip
        with profiler.phase("backward"):
            loss.backward()
        first += len(micro_batch.forest.branch_trees)
    optimizer = adamw(parameters)
    for parameter in parameters:  # the first update makes the moments, which is no part of a step
        optimizer.state[parameter].update(
            step=torch.tensor(1.0), exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter)
        )
    with profiler.phase("optimizer"):
        update_weights(optimizer, parameters)


def without(rollout: PhaseOperators, prefill: PhaseOperators) -> PhaseOperators:
    """The operators of a rollout without those of its prefill."""

    def difference(totals: Mapping[Any, Total], other: Mapping[Any, Total]) -> dict[Any, Total]:
        out = {}
        for key, total in totals.items():
            removed = other.get(key, Total())
            if total.calls > removed.calls:
                out[key] = Total(total.calls - removed.calls, max(0.0, total.seconds - removed.seconds))
        return out

    return PhaseOperators(
        difference(rollout.products, prefill.products),
        difference(rollout.others, prefill.others),
        max(0.0, rollout.other_bytes - prefill.other_bytes),
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The shares of all phases."""
    model = load_benchmark_model(options.model)
    perturb(model)
    plan = set_compute(model, options.compute)
    work = workload(model, SHAPES[options.shape], 1)
    run_step(model, work, Profiler())
    profiler = Profiler()
    record = OperatorRecord(lambda: profiler.current)
    with record:
        run_step(model, work, profiler)
    seconds, operators = profiler.split(), dict(record.phases)
    seconds["decoding"] = seconds["rollout"] - seconds["prefill"]
    operators["decoding"] = without(operators["rollout"], operators["prefill"])
    dtypes = {product.dtype for phase in PHASES for product in operators[phase].products}
    rates = measure_rates(tuple(sorted(dtypes | {"float32"})))
    shares: dict[str, PhaseShare] = {}
    for phase in PHASES:
        shares[phase] = phase_share(operators[phase], seconds[phase], rates)
        print(describe(phase, shares[phase]), flush=True)
    goals = [
        {"what": f"{phase}, share of the limit", "measured": shares[phase].share, "goal": goal,
         "reached": shares[phase].share >= goal}
        for phase, goal in GOALS.items()
    ]  # fmt: skip
    return {"model": options.model, "shape": options.shape, "precision": str(plan)} | as_json(rates, shares) | {
        "goals": goals
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; print a line per phase, and write the result."""
    transformers.logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--shape", choices=list(SHAPES), default="r1-aqa")
    parser.add_argument("--compute", choices=COMPUTE_CHOICES, default="float32", help="precision of the products")
    parser.add_argument("--quick", action="store_true", help="a tiny model and shape, to try it")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.shape = "qwen2audio-random:tiny", "quick"
    before = machine()
    result = {"machine": before} | measure(options)
    result["machine"]["load_average_at_end"] = machine()["load_average"]
    if options.out:
        write_json(options.out, result)
    print(json.dumps(result["goals"], indent=1))


if __name__ == "__main__":
    main()
