"""The doctor's look at a model in this process: does it hear, does the batch leave answers alone, is the forest exact.

Every row says what was found and what is allowed. Limits are those of float32 rounding, measured on the embedded model
(docs/models.md); half precision is allowed more.
"""

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch

from earwise.audio import decode
from earwise.data.manifest_path import STARTER
from earwise.doctor.check import Check, judged
from earwise.engine.base import Engine, Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import ModelError
from earwise.models.base import AudioLM
from earwise.models.memory import estimate
from earwise.types import Audio, Text, Turn, Waveform

TOLERANCE = 1e-3  # nats, of a whole answer's log-likelihood; float32 rounding stays near 1e-5
DRAWN = 1e-5  # of a drawn token's log-probability, relative to it (to 1 nat where it is smaller)
HALF = 0.5  # nats, of either; what bfloat16 rounding may leave
TRIMMED = 1e-4  # of the encoder's output, relative
HEARS = 1e-2  # nats; a model that hears changes by far more, a deaf one by exactly nothing
SLOW = 1.0  # tokens a second
BATCH = 16  # prompts that `earwise evaluate` asks together
OPTIONS = ("a dog", "a dog barking", "music", "a person speaking", "<answer>music</answer>")
QUESTION = "What do you hear?"


def waveforms(engine: Engine) -> list[Waveform]:
    """Eight clips of different lengths: bundled ones, or tones where there are none."""
    found = sorted(STARTER.rglob("*.ogg"))
    chosen = [found[number * len(found) // 8] for number in range(8)] if len(found) >= 8 else []
    longest = min(3.0, engine.max_audio_s)
    clips = [decode(path, engine.sample_rate, long_audio="truncate", max_s=longest) for path in chosen]
    rate = engine.sample_rate
    times = [np.arange(int(rate * longest * (k + 2) / 9)) / rate for k in range(8)]
    tones = [0.3 * np.sin(2 * np.pi * (200 + 150 * k) * time).astype(np.float32) for k, time in enumerate(times)]
    return clips or tones


def questions(clips: list[Waveform]) -> list[Prompt]:
    """The same question about every clip."""
    turns = (Turn("user", (Audio("clip"), Text(QUESTION))),)
    return [Prompt(turns, (wave,), f"doctor {number}") for number, wave in enumerate(clips)]


def silenced(prompts: list[Prompt]) -> list[Prompt]:
    """The same prompts about silence of the same length."""
    return [replace(prompt, waveforms=tuple(wave * 0 for wave in prompt.waveforms)) for prompt in prompts]


def hears(engine: Engine, clips: list[Waveform]) -> Check:
    """Silence in place of a clip changes what the model finds likely."""
    real = questions(clips[:4])
    options = [OPTIONS] * len(real)
    off = _furthest(engine.score(real, options), engine.score(silenced(real), options))
    detail = f"silence changes an answer's log-likelihood by {_size(off)} nats at most (at least {HEARS:g})"
    return judged("hears", off >= HEARS, detail, "the model is deaf: check connector and placeholders")


def batch_invariance(engine: Engine, clips: list[Waveform]) -> Check:
    """Answers of a clip alone and among eight are the same."""
    prompts, sampling_params, limit = questions(clips), SamplingParams(max_new_tokens=8), _limit(engine, TOLERANCE)
    together = engine.generate(prompts, sampling_params)
    alone = [engine.generate([prompt], sampling_params)[0] for prompt in prompts]
    differ = sum(a[0].text != b[0].text for a, b in zip(together, alone, strict=True))
    options = [OPTIONS] * len(prompts)
    off = _furthest(engine.score(prompts, options), [engine.score([prompt], [OPTIONS])[0] for prompt in prompts])
    detail = (
        f"{differ} of {len(prompts)} answers differ between batch 1 and {len(prompts)} (0 allowed), "
        f"log-likelihoods by {_size(off)} nats (limit {limit:g})"
    )
    fine = not differ and off <= limit
    return judged("batch invariance", fine, detail, "evaluate with --batch 1 and report this model")


def branches(engine: Engine, clips: list[Waveform]) -> Check:
    """The forest: several answers to one clip in one pass score as each by itself."""
    prompts, limit = questions(clips[:3]), _limit(engine, TOLERANCE)
    shared = engine.score(prompts, [OPTIONS] * len(prompts))
    alone = [[engine.score([prompt], [[option]])[0][0] for option in OPTIONS] for prompt in prompts]
    off = _furthest(shared, alone)
    detail = f"branches of one clip score as each alone within {_size(off)} nats (limit {limit:g})"
    remedy = "this model's attention does not honour the forest: do not train it, and report it"
    return judged("forest", off <= limit, detail, remedy)


def draws(engine: Engine, clips: list[Waveform]) -> Check:
    """Sampled answers depend on seed and prompt alone: not on the size of the batch, nor on who shares it."""
    prompts, limit = questions(clips[:4]), _limit(engine, DRAWN)
    sampling_params = SamplingParams(max_new_tokens=8, temperature=1.0, seed=1)
    alone = [engine.generate([prompt], sampling_params, 4)[0] for prompt in prompts]
    together = engine.generate(prompts, sampling_params, 4)
    pairs = [engine.generate([prompts[one], prompts[other]], sampling_params, 4) for one, other in ((3, 0), (1, 2))]
    paired = [pairs[0][1], pairs[1][0], pairs[1][1], pairs[0][0]]
    differ, off = 0, 0.0
    for other in (together, paired):
        for a, b in zip((c for group in alone for c in group), (c for group in other for c in group), strict=True):
            same = a.token_ids == b.token_ids
            differ += not same
            if same:
                parts = [abs(x - y) / max(1.0, abs(x)) for x, y in zip(a.logprobs, b.logprobs, strict=True)]
                off = max([off, *parts])
    detail = (
        f"{differ} of {8 * len(prompts)} drawn answers change with the batch (0 allowed), "
        f"log-probabilities by {_size(off)} of themselves (limit {limit:g})"
    )
    fine = not differ and off <= limit
    if limit > DRAWN:
        remedy = "half precision rounds: load it in float32 for draws that repeat"
        return judged("draws", fine, detail, remedy, otherwise="warn")
    return judged("draws", fine, detail, "results are not reproducible: report this model")


def trimming(engine: Engine, clips: list[Waveform]) -> Check | None:
    """Hearing only the frames that exist gives what the padded window gives, where the encoder masks padding; where it
    does not, this measures what the choice changes."""
    model = _inside(engine)
    if model is None:
        return None
    some = sorted(clips, key=len)[:: max(1, len(clips) - 1)]  # the shortest and the longest
    chosen, heard, scores = model.trims, {}, {}
    try:
        for trim in (True, False):
            model.trims = trim
            heard[trim] = [states.float() for states in model.encode_audio(some)]
            scores[trim] = LocalEngine(model).score(questions(some), [OPTIONS] * len(some))
    finally:
        model.trims = chosen
    off = max(float((short - full).norm() / full.norm()) for short, full in zip(heard[True], heard[False], strict=True))
    nats = _furthest(scores[True], scores[False])
    found = f"{off:.1e} relative in what the encoder says, {nats:.1e} nats in an answer"
    way = "trimmed to the frames that exist" if chosen else "padded to the window"
    if not model.masks:
        return Check("trimming", "ok", f"this encoder masks nothing, and hears clips {way}; the other way: {found}")
    limit = TRIMMED if _full(model) else 100 * TRIMMED
    detail = f"trimmed input against the padded window's: {found} (limit {limit:g} relative)"
    return judged("trimming", off <= limit, detail, "load it with trim=False, and report it")


def needs(engine: Engine, clips: list[Waveform]) -> Check | None:
    """A batch of an evaluation about the longest clips fits into what is free beside the weights."""
    from earwise.models.memory import config_shapes

    model = _inside(engine)
    if model is None:
        return None
    try:
        sizes = config_shapes.of_model(model)
    except ModelError as error:
        return Check("fits", "warn", str(error), "watch the memory of the first batch")
    clip_s = min(30.0, model.spec.max_s)
    more = sum(sum(parts.values()) for parts in estimate.answering(sizes, clip_s=clip_s, prompts=BATCH).phases.values())
    free = estimate.free_memory(str(next(model.module.parameters()).device))
    detail = (
        f"{sizes.parameters / 1e6:.0f}M parameters are loaded; {BATCH} questions about {clip_s:g} s take about "
        f"{more / 1e9:.2f} GB more (free: {'not known' if free is None else f'{free / 1e9:.1f} GB'})"
    )
    return judged(
        "fits", free is not None and more <= free, detail, "evaluate with a smaller --batch", otherwise="warn"
    )


def speed(engine: Engine, clips: list[Waveform]) -> Check:
    """Tokens a second of answers, and seconds of sound a second of the encoder."""
    prompts, sampling_params = questions(clips), SamplingParams(max_new_tokens=16, temperature=1.0)
    model, heard = _inside(engine), ""
    if model is not None:
        started = perf_counter()
        with torch.no_grad():
            model.encode_audio(clips)
        seconds = sum(len(clip) for clip in clips) / engine.sample_rate
        heard = f"; hears {seconds / (perf_counter() - started):.0f} s of sound a second"
    started = perf_counter()
    said = engine.generate(prompts, sampling_params, 4)
    rate = sum(len(one.token_ids) for group in said for one in group) / (perf_counter() - started)
    detail = f"answers {rate:.0f} tokens a second, {len(prompts)} prompts x 4 together (at least {SLOW:g}){heard}"
    return judged("speed", rate >= SLOW, detail, "use a GPU, or a smaller model", otherwise="warn")


CHECKS: tuple[Callable[[Engine, list[Waveform]], Check | None], ...] = (
    hears, batch_invariance, branches, draws, trimming, needs, speed,
)  # fmt: skip


def _furthest(first: list[list[float]], second: list[list[float]]) -> float:
    return max(abs(a - b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True))


def _size(nats: float) -> str:
    return f"{nats:.2f}" if nats >= 0.01 else f"{nats:.1e}"


def _inside(engine: Engine) -> AudioLM | None:
    """The model of an engine in this process; None for any other."""
    return engine.model if isinstance(engine, LocalEngine) else None


def _full(model: AudioLM) -> bool:
    return all(parameter.dtype == torch.float32 for parameter in model.module.parameters())


def _limit(engine: Engine, exact: float) -> float:
    """What rounding may change: `exact`, or more where the weights are of half precision."""
    model = _inside(engine)
    return exact if model is None or _full(model) else HALF
