"""Checks of a model on a server, as far as requests can show them.

That the server counts the audio was verified before the engine was returned (`engine/remote/probe.py`); here the audio
must matter for the answers. Whether a batch or a seed changes answers depends on the server: it is reported as a
warning, because results then do not repeat exactly.
"""

from time import perf_counter

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
from earwise.engine.remote.client import RemoteEngine
from earwise.engine.remote.probe import probe_audio
from earwise.errors import EngineError
from earwise.types import Waveform


def hears(engine: Engine, clips: list[Waveform]) -> Check:
    """Silence in place of a clip must change an answer."""
    assert isinstance(engine, RemoteEngine)
    tokens_per_s = probe_audio(engine).tokens_per_s
    prompts, sampling_params = questions(clips), SamplingParams(max_new_tokens=16)
    real = engine.generate(prompts, sampling_params)
    num_different = count_different_texts(real, engine.generate(silenced(prompts), sampling_params))
    rate = "as many tokens at any length" if tokens_per_s is None else f"{tokens_per_s:g} tokens per second"
    detail = f"silence changes {num_different} of {len(prompts)} answers (at least 1); audio takes {rate}"
    remedy = "the model ignores the audio: check the served model and its chat template"
    return check_row("hears", num_different > 0, detail, remedy)


def batch_invariance(engine: Engine, clips: list[Waveform]) -> Check:
    """The answer about a clip should be the same in one request at a time and in eight at once."""
    prompts, sampling_params = questions(clips), SamplingParams(max_new_tokens=16)
    together = engine.generate(prompts, sampling_params)
    alone = [engine.generate([prompt], sampling_params)[0] for prompt in prompts]
    num_different = count_different_texts(together, alone)
    detail = (
        f"{num_different} of {len(prompts)} answers differ between one request and {len(prompts)} at once (0 is exact)"
    )
    remedy = "add ?concurrency=1 to the address for answers that repeat"
    return check_row("batch invariance", not num_different, detail, remedy, otherwise="warn")


def draws(engine: Engine, clips: list[Waveform]) -> Check:
    """The same seed should sample the same answers, another seed others."""
    prompts = questions(clips[:4])
    first, repeated, reseeded = (
        engine.generate(prompts, SamplingParams(max_new_tokens=16, temperature=1.0, seed=seed), 2) for seed in (1, 1, 2)
    )
    num_different = count_different_texts(first, repeated)
    detail = (
        f"{num_different} of {2 * len(prompts)} sampled answers change under the same seed (0 is exact), "
        f"{count_different_texts(first, reseeded)} under another"
    )
    remedy = "the server ignores seeds: results vary between runs"
    return check_row("draws", not num_different, detail, remedy, otherwise="warn")


def likelihoods(engine: Engine, clips: list[Waveform]) -> Check:
    """Whether the server returns the log-likelihood of a given answer, and whether it depends on the audio."""
    prompts = questions(clips[:2])
    options = [OPTIONS[:2]] * len(prompts)
    try:
        real, silent = (engine.score(variant, options) for variant in (prompts, silenced(prompts)))
    except EngineError as error:
        return Check("likelihoods", "warn", str(error), "everything that needs likelihoods is left out")
    effect = max_difference(real, silent)
    detail = f"available; silence changes an answer's by {effect:.2f} nats at most (more than 0)"
    remedy = "the audio does not reach the likelihoods: do not use them"
    return check_row("likelihoods", effect > 0, detail, remedy)


def speed(engine: Engine, clips: list[Waveform]) -> Check:
    """Generated tokens per second, all requests together."""
    assert isinstance(engine, RemoteEngine)
    prompts = questions(clips)
    started = perf_counter()
    exchanges = engine.generate_raw(prompts, 32)
    seconds = perf_counter() - started
    usages = [exchange.usage for exchange in exchanges if not isinstance(exchange, EngineError)]
    token_counts = [usage[1] for usage in usages if usage is not None]
    if len(token_counts) < len(prompts):
        detail = f"{len(prompts)} answers in {seconds:.1f} s"
        return Check("speed", "warn", detail, "the server does not count tokens")
    rate = sum(token_counts) / seconds
    detail = f"generates {rate:.0f} tokens per second, {len(prompts)} prompts at once (at least {MIN_TOKENS_PER_S:g})"
    remedy = "raise ?concurrency= in the address if the server is idle"
    return check_row("speed", rate >= MIN_TOKENS_PER_S, detail, remedy, otherwise="warn")


CHECKS: tuple[ModelCheck, ...] = (hears, batch_invariance, draws, likelihoods, speed)
"""The checks of a model on a server, in order."""
