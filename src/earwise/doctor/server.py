"""The doctor's look at a model on a server: what can be asked over the wire.

That its sound arrives was shown before the engine was handed out (`engine/connect.py`); here it has to matter for the
answers. Whether a batch or a seed changes answers is the server's affair: said, as a warning, since results then do not
repeat to the letter.
"""

from collections.abc import Callable
from time import perf_counter

from earwise.doctor.check import Check, judged
from earwise.doctor.model import OPTIONS, SLOW, questions, silenced
from earwise.engine.base import Decoding, Engine
from earwise.engine.remote.client import RemoteEngine
from earwise.engine.remote.probe import listen
from earwise.errors import EngineError
from earwise.types import Completion, Waveform


def hears(engine: Engine, clips: list[Waveform]) -> Check:
    """Silence in place of a clip changes what the model says."""
    assert isinstance(engine, RemoteEngine)
    heard, real = listen(engine), questions(clips)
    decoding = Decoding(max_new_tokens=16)
    differ = _differ(engine.generate(real, decoding), engine.generate(silenced(real), decoding))
    rate = "as many tokens at any length" if heard.tokens_per_s is None else f"{heard.tokens_per_s:g} tokens a second"
    detail = f"silence changes {differ} of {len(real)} answers (at least 1); sound takes {rate}"
    return judged("hears", differ > 0, detail, "the model is deaf: check what is served, and its chat template")


def batch_invariance(engine: Engine, clips: list[Waveform]) -> Check:
    """Answers of a clip alone and among eight are the same."""
    prompts, decoding = questions(clips), Decoding(max_new_tokens=16)
    together = engine.generate(prompts, decoding)
    alone = [engine.generate([prompt], decoding)[0] for prompt in prompts]
    differ = _differ(together, alone)
    detail = f"{differ} of {len(prompts)} answers differ between one request and {len(prompts)} at once (0 is exact)"
    return judged(
        "batch invariance", not differ, detail, "say ?concurrency=1 for answers that repeat", otherwise="warn"
    )


def draws(engine: Engine, clips: list[Waveform]) -> Check:
    """The same seed draws the same answers, another seed others."""
    prompts = questions(clips[:4])
    first, again, other = (
        engine.generate(prompts, Decoding(max_new_tokens=16, temperature=1.0, seed=seed), 2) for seed in (1, 1, 2)
    )
    differ, moved = _differ(first, again), _differ(first, other)
    detail = (
        f"{differ} of {2 * len(prompts)} drawn answers change under the same seed (0 is exact), {moved} under another"
    )
    return judged("draws", not differ, detail, "the server does not honour seeds: results vary", otherwise="warn")


def likelihoods(engine: Engine, clips: list[Waveform]) -> Check:
    """Whether the log-likelihood of a given answer can be had, and depends on the sound."""
    prompts = questions(clips[:2])
    try:
        real, silent = (engine.score(asked, [OPTIONS[:2]] * 2) for asked in (prompts, silenced(prompts)))
    except EngineError as error:
        return Check("likelihoods", "warn", str(error), "likelihoods, and all that needs them, are left out")
    off = max(abs(a - b) for one, two in zip(real, silent, strict=True) for a, b in zip(one, two, strict=True))
    detail = f"told; silence changes an answer's by {off:.2f} nats at most (more than 0)"
    return judged("likelihoods", off > 0, detail, "the sound does not reach the likelihoods: do not use them")


def speed(engine: Engine, clips: list[Waveform]) -> Check:
    """Tokens a second of answers, all requests together."""
    assert isinstance(engine, RemoteEngine)
    prompts = questions(clips)
    started = perf_counter()
    exchanges = engine.ask_raw(prompts, 32)
    seconds = perf_counter() - started
    counted = [one.usage[1] for one in exchanges if not isinstance(one, EngineError) and one.usage is not None]
    if len(counted) < len(prompts):
        return Check("speed", "warn", f"{len(prompts)} answers in {seconds:.1f} s", "the server counts no tokens")
    rate = sum(counted) / seconds
    detail = f"answers {rate:.0f} tokens a second, {len(prompts)} prompts at once (at least {SLOW:g})"
    return judged("speed", rate >= SLOW, detail, "raise ?concurrency= if the server is idle", otherwise="warn")


CHECKS: tuple[Callable[[Engine, list[Waveform]], Check | None], ...] = (
    hears, batch_invariance, draws, likelihoods, speed,
)  # fmt: skip


def _differ(first: list[list[Completion]], second: list[list[Completion]]) -> int:
    """How many texts differ."""
    pairs = zip((c for group in first for c in group), (c for group in second for c in group), strict=True)
    return sum(a.text != b.text for a, b in pairs)
