"""Checks of a model in this process: does it use the audio, is it independent of the batch, is the token tree exact?

Every row says what was measured and what the limit is. The limits are those of float32 rounding, measured on the
embedded model (docs/reference/models.md); half precision is allowed more.
"""

from time import perf_counter

import torch

from earwise.doctor.check import Check, check_row
from earwise.doctor.questions import (
    MIN_TOKENS_PER_S,
    OPTIONS,
    ModelCheck,
    count_different_texts,
    max_difference,
    questions,
    silenced,
)
from earwise.engine.base import Engine, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import ModelError
from earwise.models.base import AudioLM
from earwise.models.memory import estimate
from earwise.models.memory.stage_memory import RolloutSize
from earwise.types import Completion, Waveform

MAX_SCORE_DIFFERENCE = 1e-3
"""Nats of a whole answer's log-likelihood; float32 rounding stays near 1e-5."""
MAX_TOKEN_DIFFERENCE = 3e-5
"""Difference of a sampled token's log-probability, relative to it (relative to 1 nat if it is smaller). Float32
rounding reaches 1.3e-5 on some processors; a fault in batching gives 1e-3 and more."""
HALF_PRECISION_DIFFERENCE = 0.5
"""Nats that bfloat16 rounding may change, of an answer or of a token."""
MAX_TRIMMING_DIFFERENCE = 1e-4
"""Relative difference of the encoder's output."""
MIN_AUDIO_EFFECT = 1e-2
"""Nats; a model that uses the audio changes by far more, one that ignores it by exactly nothing."""
BATCH = 16
"""Prompts that `earwise evaluate` asks together."""


def hears(engine: Engine, clips: list[Waveform]) -> Check:
    """Silence in place of a clip must change the likelihood of an answer."""
    prompts = questions(clips[:4])
    options = [OPTIONS] * len(prompts)
    effect = max_difference(engine.score(prompts, options), engine.score(silenced(prompts), options))
    detail = (
        f"silence changes an answer's log-likelihood by {_nats(effect)} nats at most (at least {MIN_AUDIO_EFFECT:g})"
    )
    remedy = "the model ignores the audio: check the connector and the audio placeholders"
    return check_row("hears", effect >= MIN_AUDIO_EFFECT, detail, remedy)


def batch_invariance(engine: Engine, clips: list[Waveform]) -> Check:
    """The answer about a clip must be the same alone and among eight."""
    prompts, sampling_params = questions(clips), SamplingParams(max_new_tokens=8)
    limit = _limit(engine, MAX_SCORE_DIFFERENCE)
    together = engine.generate(prompts, sampling_params)
    alone = [engine.generate([prompt], sampling_params)[0] for prompt in prompts]
    num_different = count_different_texts(together, alone)
    scores_together = engine.score(prompts, [OPTIONS] * len(prompts))
    difference = max_difference(scores_together, [engine.score([prompt], [OPTIONS])[0] for prompt in prompts])
    detail = (
        f"{num_different} of {len(prompts)} answers differ between batch 1 and {len(prompts)} (0 allowed), "
        f"log-likelihoods by {_nats(difference)} nats (limit {limit:g})"
    )
    passed = not num_different and difference <= limit
    return check_row("batch invariance", passed, detail, "evaluate with --batch 1 and report this model")


def branches(engine: Engine, clips: list[Waveform]) -> Check:
    """Several answers to one clip, computed in one pass of the token tree, must score as each by itself."""
    prompts, limit = questions(clips[:3]), _limit(engine, MAX_SCORE_DIFFERENCE)
    shared = engine.score(prompts, [OPTIONS] * len(prompts))
    alone = [[engine.score([prompt], [[option]])[0][0] for option in OPTIONS] for prompt in prompts]
    difference = max_difference(shared, alone)
    detail = f"branches of one clip score as each alone within {_nats(difference)} nats (limit {limit:g})"
    remedy = "this model's attention does not respect the mask of the token tree: do not train it, and report it"
    return check_row("forest", difference <= limit, detail, remedy)


def draws(engine: Engine, clips: list[Waveform]) -> Check:
    """Sampled answers must depend on seed and prompt alone, not on the size of the batch or the other prompts in it."""
    prompts, limit = questions(clips[:4]), _limit(engine, MAX_TOKEN_DIFFERENCE)
    sampling_params = SamplingParams(max_new_tokens=8, temperature=1.0, seed=1)
    alone = [engine.generate([prompt], sampling_params, 4)[0] for prompt in prompts]
    together = engine.generate(prompts, sampling_params, 4)
    (last, first), (second, third) = (
        engine.generate([prompts[a], prompts[b]], sampling_params, 4) for a, b in ((3, 0), (1, 2))
    )
    comparisons = [_compare_samples(alone, batched) for batched in (together, [first, second, third, last])]
    num_different = sum(count for count, _ in comparisons)
    difference = max(value for _, value in comparisons)
    detail = (
        f"{num_different} of {8 * len(prompts)} sampled answers change with the batch (0 allowed), "
        f"log-probabilities by {_nats(difference)} of themselves (limit {limit:g})"
    )
    passed = not num_different and difference <= limit
    if limit > MAX_TOKEN_DIFFERENCE:
        remedy = "half precision rounds: load the model in float32 for samples that repeat"
        return check_row("draws", passed, detail, remedy, otherwise="warn")
    return check_row("draws", passed, detail, "results are not reproducible: report this model")


def trimming(engine: Engine, clips: list[Waveform]) -> Check | None:
    """Encoding only the frames that exist must give what the padded window gives.

    For an encoder that does not mask its padding the two differ, and the check only measures by how much.
    """
    model = _local_model(engine)
    if model is None:
        return None
    shortest_and_longest = sorted(clips, key=len)[:: max(1, len(clips) - 1)]
    prompts, options = questions(shortest_and_longest), [OPTIONS] * len(shortest_and_longest)
    configured, states, scores = model.trims_padding, {}, {}
    try:
        for trims_padding in (True, False):
            model.trims_padding = trims_padding
            states[trims_padding] = [output.float() for output in model.encode_audio(shortest_and_longest)]
            scores[trims_padding] = LocalEngine(model).score(prompts, options)
    finally:
        model.trims_padding = configured
    pairs = zip(states[True], states[False], strict=True)
    relative = max(float((trimmed - padded).norm() / padded.norm()) for trimmed, padded in pairs)
    nats = max_difference(scores[True], scores[False])
    measured = f"{relative:.1e} relative in the encoder's output, {nats:.1e} nats in an answer"
    if not model.masks_padding:
        way = "trimmed to the frames that exist" if configured else "padded to the window"
        return Check("trimming", "ok", f"this encoder masks nothing, and hears clips {way}; the other way: {measured}")
    limit = MAX_TRIMMING_DIFFERENCE if _is_float32(model) else 100 * MAX_TRIMMING_DIFFERENCE
    detail = f"trimmed input against the padded window's: {measured} (limit {limit:g} relative)"
    return check_row("trimming", relative <= limit, detail, "load the model with trim=False, and report it")


def memory(engine: Engine, clips: list[Waveform]) -> Check | None:
    """A batch of an evaluation about the longest clips must fit into the memory that is free beside the weights."""
    from earwise.models.memory.measured_sizes import measure_loaded

    model = _local_model(engine)
    if model is None:
        return None
    try:
        sizes = measure_loaded(model)
    except ModelError as error:
        return Check("fits", "warn", str(error), "watch the memory of the first batch")
    clip_s = min(30.0, model.spec.max_s)
    rollout = RolloutSize(BATCH, group_size=1, max_new_tokens=64)
    batch = estimate.answering_memory(sizes, clip_s=clip_s, rollout=rollout)
    needed_bytes = sum(sum(parts.values()) for parts in batch.phases.values())
    free_bytes = estimate.free_memory(str(next(model.module.parameters()).device))
    free = "not known" if free_bytes is None else f"{free_bytes / 1e9:.1f} GB"
    detail = (
        f"{sizes.parameters / 1e6:.0f}M parameters are loaded; {BATCH} questions about {clip_s:g} s take about "
        f"{needed_bytes / 1e9:.2f} GB more (free: {free})"
    )
    passed = free_bytes is not None and needed_bytes <= free_bytes
    return check_row("fits", passed, detail, "evaluate with a smaller --batch", otherwise="warn")


def speed(engine: Engine, clips: list[Waveform]) -> Check:
    """Generated tokens per second, and seconds of audio that the encoder processes per second."""
    prompts, sampling_params = questions(clips), SamplingParams(max_new_tokens=16, temperature=1.0)
    model, encoder_speed = _local_model(engine), ""
    if model is not None:
        started = perf_counter()
        with torch.no_grad():
            model.encode_audio(clips)
        audio_s = sum(len(clip) for clip in clips) / engine.sample_rate
        encoder_speed = f"; encodes {audio_s / (perf_counter() - started):.0f} s of audio per second"
    started = perf_counter()
    completions = engine.generate(prompts, sampling_params, 4)
    num_tokens = sum(len(completion.token_ids) for samples in completions for completion in samples)
    rate = num_tokens / (perf_counter() - started)
    detail = (
        f"generates {rate:.0f} tokens per second, {len(prompts)} prompts x 4 together "
        f"(at least {MIN_TOKENS_PER_S:g}){encoder_speed}"
    )
    return check_row("speed", rate >= MIN_TOKENS_PER_S, detail, "use a GPU, or a smaller model", otherwise="warn")


CHECKS: tuple[ModelCheck, ...] = (hears, batch_invariance, branches, draws, trimming, memory, speed)
"""The checks of a local model, in order."""


def _compare_samples(a: list[list[Completion]], b: list[list[Completion]]) -> tuple[int, float]:
    """Number of samples whose tokens differ, and the largest relative difference of log-probabilities of the others."""
    samples_a, samples_b = ([completion for samples in side for completion in samples] for side in (a, b))
    num_different, difference = 0, 0.0
    for sample_a, sample_b in zip(samples_a, samples_b, strict=True):
        if sample_a.token_ids != sample_b.token_ids:
            num_different += 1
            continue
        pairs = zip(sample_a.logprobs, sample_b.logprobs, strict=True)
        difference = max([difference, *(abs(x - y) / max(1.0, abs(x)) for x, y in pairs)])
    return num_different, difference


def _nats(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1e}"


def _local_model(engine: Engine) -> AudioLM | None:
    """The model of an engine in this process; None for any other engine."""
    return engine.model if isinstance(engine, LocalEngine) else None


def _is_float32(model: AudioLM) -> bool:
    return all(parameter.dtype == torch.float32 for parameter in model.module.parameters())


def _limit(engine: Engine, float32_limit: float) -> float:
    """Difference that rounding may cause: `float32_limit`, or more if the weights have half precision."""
    model = _local_model(engine)
    return float32_limit if model is None or _is_float32(model) else HALF_PRECISION_DIFFERENCE
