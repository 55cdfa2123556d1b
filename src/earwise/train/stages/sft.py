"""SFT: all chosen questions of a clip in one tree, log-likelihood of the answers. Reads top to bottom.

Flow: manifest rows -> units (rows that share their sounds) -> `clips_per_step` units a step, some questions of each
-> one tree per unit -> packs ->
token-averaged loss over the whole step. Ridge start: least squares onto the decoder's own word embeddings, before the
first step.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from earwise.algorithms.losses import LossOutput, sft_loss
from earwise.config.stages import SftStage
from earwise.data.index import Rows
from earwise.errors import ConfigError
from earwise.models.base import AudioLM
from earwise.models.embedded.model import Embedded
from earwise.models.encoder_cache import EncoderCache
from earwise.models.parts.projector import ridge_start
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.prompts import prompt_turns, target_text
from earwise.train.batches import Sounds, assemble, draw, mine, stream, targets, work_shared
from earwise.train.profiler import Clock
from earwise.train.trainable import encoder_trains
from earwise.train.trainer import Say, StageWork
from earwise.types import Example

Unit = tuple[Example, ...]


def units(examples: Sequence[Example]) -> Sequence[Unit]:
    """Group rows that ask about the same sounds, in the order of their first row."""
    if isinstance(examples, Rows):
        return examples.units()
    groups: dict[tuple[str, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(tuple(map(str, example.audio_paths)), []).append(example)
    return [tuple(group) for group in groups.values()]


def work(
    model: AudioLM,
    stage: SftStage,
    sources: Sequence[tuple[Sequence[Example], float]],
    encoder_cache: EncoderCache,
    sounds: Sounds,
    seed: int,
    say: Say,
    clock: Clock,
) -> StageWork:
    """The SFT stage for the loop.

    Args:
        model: Prepared for training.
        stage: Its settings.
        sources: Examples and weight of each manifest of the mixture.
        ears: What was heard.
        sounds: Decodes clips.
        seed: Of order, question choice and wording.
        say: Progress.
        clock: Told of the phases of a step.
    """
    mixture = stream(stage, [(units(examples), weight) for examples, weight in sources], seed, tuple)
    ids: list[str] = []
    styles, weights = list(stage.data.styles), list(stage.data.styles.values())

    def batches(step: int) -> tuple[list[Any], dict[str, float]]:
        rng = random.Random(f"{seed} sft {step}")
        drawn, waveforms, skipped = draw(mixture, stage.clips_per_step, sounds, clock)
        trees: list[list[Any]] = []
        ids.clear()
        for unit in drawn:
            paths = []
            for example in rng.sample(unit.rows, min(len(unit.rows), stage.questions_per_clip)):
                style = rng.choices(styles, weights)[0]
                ids.append(example.id)
                prompt = conversation_path(model, prompt_turns(example, style), unit.clips, unit.samples, generate=True)
                paths.append(
                    prompt
                    + answer_path(
                        model, target_text(example, style, rng.choice(example.answer) if example.answer else None)
                    )
                )
            trees.append(paths)
        micros = assemble(model, None if encoder_trains(model) else encoder_cache, mine(trees), waveforms, stage.pack_tokens)
        for micro in micros:
            micro.extra["denominator"] = torch.tensor(targets(trees))
        counts = {"clips": float(len(trees)), "skipped": float(skipped)}
        return micros, counts | work_shared(micros, trees, waveforms, model.spec.sample_rate)

    def loss(logprobs: Tensor, micro: Any) -> LossOutput:
        return sft_loss(logprobs, micro.forest.loss_mask, denominator=float(micro.extra["denominator"]))

    def restore(state: Mapping[str, Any]) -> None:
        mixture.load_state_dict(state["mixture"])

    if stage.start == "ridge":
        _ridge(model, sources, encoder_cache, sounds, say)
    return StageWork(
        "sft",
        batches,
        loss,
        lambda: {"mixture": mixture.state_dict()},
        restore,
        stage.save_every,
        ids=lambda: list(ids),
        asks=False,
    )


# One summary token each: what it is, which language, which mood, whose voice (`meta.field` of the rows that `build
# labels` writes).
RIDGE_FIELDS = (("sound", "instrument", "digit"), ("language",), ("emotion",), ("gender",))
RIDGE_LEADS = (" Sound:", " Language:", " Emotion:", " Voice:", " Audio:")


def _ridge(
    model: AudioLM, sources: Sequence[tuple[Sequence[Example], float]], encoder_cache: EncoderCache, sounds: Sounds, say: Say
) -> None:
    """Closed-form start of the connector: one summary token per kind of label, target the mean word embedding of the
    label's text."""
    if not isinstance(model, Embedded) or model.choice.kind != "mix":
        kind = f" with connector {model.choice.kind}" if isinstance(model, Embedded) else ""
        raise ConfigError(
            f"start: ridge is for the embedded model's connector mix, not for {model.name}{kind}; use start: none"
        )
    clips = units([example for examples, _ in sources for example in examples])
    heard, facts = [], []
    for number, asked in enumerate(clips):
        waveforms = sounds.load(asked[0])
        if waveforms is not None:
            heard += encoder_cache.encoder_states(waveforms)
            facts.append({example.meta.get("field"): str(example.meta.get("label")) for example in asked})
        if number % 500 == 499:
            say(f"ridge start: heard {number + 1} of {len(clips)} clips")
    targets = []
    for fields in RIDGE_FIELDS:
        names = [next((fact[field] for field in fields if field in fact), None) for fact in facts]
        if not any(names):
            raise ConfigError(
                f"start: ridge needs rows with meta.field {' or '.join(fields)}; build them with `earwise build labels`"
            )
        meanings = {name: _meaning(model, name) for name in set(names) if name}
        unknown = torch.full_like(next(iter(meanings.values())), float("nan"))
        targets.append(torch.stack([meanings[name] if name else unknown for name in names]))
    with torch.no_grad():
        leads = torch.stack([model.embed(torch.tensor(model.tokenize(lead))) for lead in RIDGE_LEADS])
    explained = ridge_start(model.module.connector, heard, targets, leads, strength=RIDGE_STRENGTH)
    shown = ", ".join(f"{fields[0]} {share:.2f}" for fields, share in zip(RIDGE_FIELDS, explained, strict=True))
    say(f"ridge start on {len(heard)} clips; share of variance explained: {shown}")


RIDGE_STRENGTH = 2.0


@torch.no_grad()
def _meaning(model: AudioLM, text: str) -> Tensor:
    """Mean embedding of a text's tokens."""
    return model.embed(torch.tensor(model.tokenize(" " + text))).mean(0)
