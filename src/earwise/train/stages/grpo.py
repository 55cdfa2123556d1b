"""GRPO: rollouts are a generator of batches; group advantages; the loss as published by R1-AQA, later variants behind
`loss_type`.

Flow of a step: prompts -> engine (one trunk, one state per distinct beginning) -> rewards -> advantages -> one tree per
prompt whose branches are the trie of its completions -> reference log-probabilities -> loss. Deviations from R1-AQA
(papers/r1-aqa.md): no math_verify in the accuracy reward; every completion belongs to its own clip (their batches above
one prompt mix clips up).
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from earwise.algorithms.curriculum import Band, Online
from earwise.algorithms.losses import LossOutput, group_advantages, grpo_loss
from earwise.algorithms.rewards import load_reward
from earwise.config.stages import GrpoStage
from earwise.engine.base import Prompt, SamplingParams
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.models.prompt_encoding import completion_path, conversation_path
from earwise.prompts import prompt_turns
from earwise.train.batches import Sounds, assemble, per_branch, stream
from earwise.train.distributed import parallel
from earwise.train.logging.sample_log import Keep, sample
from earwise.train.policy import Micro, Policy
from earwise.train.profiler import Clock
from earwise.train.rollout import judge
from earwise.train.rollout.adaptive_rewards import Balance
from earwise.train.rollout.retry import patiently
from earwise.train.rollout.reward_runner import Bench, Function, Tally, tally_of, together
from earwise.train.rollout.rollout_engine import check_drawn, drawn_logprobs, sampler
from earwise.train.rollout.weight_sync import Refresh
from earwise.train.trainable import Reference, encoder_trains
from earwise.train.trainer import Say, StageWork
from earwise.types import Completion, Example, Waveform

TEXT_TOKENS = 50  # of a prompt, for sharing work between processes


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt, its samples, and what each of them earned."""

    id: str
    prompt: Prompt
    group: list[Completion]
    rewards: list[float]


def work(
    model: AudioLM,
    stage: GrpoStage,
    sources: Sequence[tuple[Sequence[Example], float]],
    encoder_cache: EncoderCache,
    sounds: Sounds,
    seed: int,
    keep: Keep,
    folder: Path,
    say: Say,
    clock: Clock,
) -> StageWork:
    """The GRPO stage for the loop.

    Args:
        model: Prepared for training; as it is now it becomes the reference.
        stage: Its settings.
        sources: Examples and weight of each manifest of the mixture.
        ears: What was heard, shared by sampling, reference and loss.
        sounds: Decodes clips.
        seed: Of order, wording and sampling.
        keep: Takes one row per logged completion.
        folder: Where newer weights for a server that samples are written, if the recipe names no other place.
        say: Told when a server that samples is away.
        clock: Told of the phases of a step.
    """
    curriculum = stage.curriculum
    mixture = stream(stage, sources, seed, lambda row: (row,))
    band = Band(**curriculum.band.model_dump())
    online = Online(band, curriculum.explore, seed) if curriculum.order == "online" else None
    passes = load_reward(curriculum.reward)
    engine = sampler(stage.sampler, model, encoder_cache, trees=stage.prompts_per_step)
    refresh = None
    if (wanted := stage.sampler_refresh) is not None:
        refresh = Refresh(engine, model, wanted.how, wanted.every, Path(wanted.folder) if wanted.folder else folder)
    policy = Policy(model)
    reference = Reference(model.module)
    styles, weights = list(stage.data.styles), list(stage.data.styles.values())
    made: list[Micro] = []
    heard: dict[str, float] = {}
    ids: list[str] = []

    wait_minutes = stage.sampler_wait_minutes if stage.on_sampler_error == "wait" else 0.0
    sampling_params = SamplingParams(stage.max_new_tokens, stage.temperature, stage.top_p, stage.top_k, seed)
    balance = Balance(stage.max_steps) if stage.balance_thinking else None
    own: dict[str, Function] = {"judge": judge.reward(stage.judge, stage.reward_timeout_s)} if stage.judge else {}
    own |= balance.rewards() if balance is not None else {}
    bench = Bench(stage.rewards, limit_s=stage.reward_timeout_s, on_error=stage.on_reward_error, own=own)

    def batches(step: int) -> tuple[list[Micro], dict[str, float]]:
        if step % stage.num_iterations:
            return made, dict(heard)
        rollouts, metrics = _rollouts(step)
        ids[:] = [one.id for one in rollouts]
        heard["audio_s"] = sum(len(w) for one in rollouts for w in one.prompt.waveforms) / model.spec.sample_rate
        prompts, groups = [one.prompt for one in rollouts], [one.group for one in rollouts]
        sequences = float(len(groups) * stage.group_size)
        advantages = group_advantages(
            torch.tensor([value for one in rollouts for value in one.rewards], dtype=torch.float64),
            stage.group_size,
            scale=stage.scale_rewards,
        ).tolist()
        items, start = float(sum(len(c.token_ids) for group in groups for c in group)), 0
        # Without the KL a flat group has no gradient: leaving it out is exact, but for bnpo, which counts its tokens.
        rows = [advantages[i : i + stage.group_size] for i in range(0, len(advantages), stage.group_size)]
        left_out = not stage.beta and stage.loss_type != "bnpo"
        signal = [number for number, row in enumerate(rows) if any(row) or not left_out]
        sizes = [_trunk(prompts[i]) + sum(len(one.token_ids) for one in groups[i]) for i in signal]
        signal = [signal[number] for number in parallel.share(sizes)]
        prompts, groups = [prompts[i] for i in signal], [groups[i] for i in signal]
        advantages = [value for i in signal for value in rows[i]]
        said = [one for group in groups for one in group]
        trees, waveforms = _trees(prompts, groups)
        micros = assemble(model, None if encoder_trains(model) else encoder_cache, trees, waveforms, stage.pack_tokens)
        for micro in micros:
            counts = {"items": torch.tensor(items), "sequences": torch.tensor(sequences)}
            micro.extra = counts | {"advantages": per_branch(advantages, micro, start)}
            _remember(micro, said, start)
            start += len(micro.forest.branch_trees)
        made[:] = micros
        distinct = sum(len(micro.forest) for micro in micros)
        tokens = parallel.total({"distinct": distinct, "all": sum(len(p.ids) for paths in trees for p in paths)})
        if tokens["all"]:
            metrics["distinct_share"] = tokens["distinct"] / tokens["all"]
        return micros, metrics | heard

    def _rollouts(step: int) -> tuple[list[Rollout], dict[str, float]]:
        """What the step learns from, and what to log of all that was sampled for it.

        With dynamic sampling, prompts whose samples all earned the same wait behind those that carry signal, and new
        prompts are asked in their place, as long as the rounds last; groups that could not be judged are left out.
        """
        signal: list[Rollout] = []
        flat: list[Rollout] = []
        tallies: list[Tally] = []
        rounds = skipped = away = 0
        for _ in range(stage.dynamic_sampling or 1):
            rounds += 1
            asked = sum(tally.groups for tally in tallies)
            examples, prompts, unread = _prompts(step, asked, stage.prompts_per_step - len(signal))
            skipped += unread
            own = parallel.share([_trunk(prompt) for prompt in prompts])
            if refresh is not None:
                with clock("refresh"):
                    patiently(partial(refresh.before, step), wait_minutes, say)
            with clock("rollout"):
                asking = partial(engine.generate, [prompts[i] for i in own], sampling_params, stage.group_size)
                groups, failed = patiently(asking, wait_minutes, say)
                away += failed
                if stage.sampler:
                    check_drawn(model, groups, stage.sampler)
            with clock("reward"):
                if balance is not None:
                    balance.see(groups, step)
                verdicts = bench.judge([examples[i] for i in own], groups)
            tallies += parallel.gather(tally_of(groups, verdicts))
            groups, totals = parallel.joined(own, groups), parallel.joined(own, verdicts.totals)
            if online is not None:
                for example, group in zip(examples, groups, strict=True):
                    online.observe(example, sum(passes(example, one.text) >= 1 for one in group), len(group))
            for example, prompt, group, values in zip(examples, prompts, groups, totals, strict=True):
                if values is None:
                    continue
                waits = stage.dynamic_sampling is not None and max(values) == min(values)
                (flat if waits else signal).append(Rollout(example.id, prompt, group, values))
                if step % stage.log_samples_every == 0:
                    keep(sample(step + 1, example, group, values))
            if len(signal) == stage.prompts_per_step:
                break
        metrics = together(tallies) | ({"thinking": balance.share} if balance is not None else {})
        metrics |= {"skipped": float(skipped)} | parallel.total({"sampler_errors": float(away)})
        if stage.dynamic_sampling is not None:
            metrics |= {"rounds": float(rounds), "signal_groups": float(len(signal))}
        return (signal + flat)[: stage.prompts_per_step], metrics

    def _prompts(step: int, asked: int, count: int) -> tuple[list[Example], list[Prompt], int]:
        """The next prompts of a step that has asked some already, and how many rows could not be read."""
        rng = random.Random(f"{seed} grpo {step} {asked}" if asked else f"{seed} grpo {step}")
        examples: list[Example] = []
        prompts: list[Prompt] = []
        unread = 0
        while len(prompts) < count:
            example = next(mixture)
            if online is not None and not online.admits(example):
                continue
            with clock("decode"):
                fitted = sounds.fit((example,))
            if fitted is None:
                unread += 1
                continue
            (example,), waveforms = fitted
            style = rng.choices(styles, weights)[0]
            examples.append(example)
            prompts.append(
                Prompt(prompt_turns(example, style), tuple(waveforms), f"{step} {asked + len(prompts)} {example.id}")
            )
        return examples, prompts, unread

    def _trunk(prompt: Prompt) -> int:
        """About how many tokens a prompt has; sounds have most."""
        return TEXT_TOKENS + sum(model.audio_tokens(len(wave)) for wave in prompt.waveforms)

    def _trees(prompts: list[Prompt], groups: list[list[Completion]]) -> tuple[list[list[Any]], dict[int, Waveform]]:
        trees: list[list[Any]] = []
        waveforms: dict[int, Waveform] = {}
        for prompt, group in zip(prompts, groups, strict=True):
            numbers = range(len(waveforms), len(waveforms) + len(prompt.waveforms))
            waveforms |= dict(zip(numbers, prompt.waveforms, strict=True))
            trunk = conversation_path(model, prompt.turns, numbers, [len(w) for w in prompt.waveforms], generate=True)
            trees.append([trunk + completion_path(completion.token_ids) for completion in group])
        return trees, waveforms

    def _remember(micro: Micro, said: list[Completion], start: int) -> None:
        """Log-probabilities under the reference, and at sampling time if there will be several updates or another
        sampled; `said` by all branches of the step, `start` the number of the micro batch's first."""
        if stage.beta:
            with clock("reference"):
                micro.extra["ref_logprobs"] = reference.logprobs(policy, micro)
        if stage.sampler:
            micro.extra["old_logprobs"] = drawn_logprobs(said, micro, start)
        elif stage.num_iterations > 1:
            with clock("reference"), torch.no_grad():
                micro.extra["old_logprobs"] = policy(micro.forest, micro.heard, micro.waveforms)

    def loss(logprobs: Tensor, micro: Micro) -> LossOutput:
        return grpo_loss(
            logprobs,
            micro.extra.get("old_logprobs"),
            micro.extra.get("ref_logprobs"),
            micro.extra["advantages"],
            micro.forest.loss_mask,
            loss_type=stage.loss_type,
            beta=stage.beta,
            epsilon=stage.epsilon,
            epsilon_high=stage.epsilon_high,
            delta=stage.delta,
            importance_sampling_level=stage.importance_sampling_level,
            max_completion_length=stage.max_new_tokens,
            num_items=float(micro.extra["items"]),
            num_sequences=float(micro.extra["sequences"]),
        )

    def state() -> dict[str, Any]:
        kept = {"mixture": mixture.state_dict(), "reference": reference.state_dict()}
        return kept | ({"online": online.state_dict()} if online is not None else {})

    def restore(state: Mapping[str, Any]) -> None:
        mixture.load_state_dict(state["mixture"])
        reference.load_state_dict(state["reference"])
        if online is not None:
            online.load_state_dict(state["online"])

    return StageWork(
        "grpo",
        batches,
        loss,
        state,
        restore,
        stage.save_every,
        rest=stage.num_iterations,
        ids=lambda: list(ids),
        asks=stage.sampler is None or stage.beta > 0,
    )
