"""DPO: better and worse replies to one sound in one tree, held to the weights that the stage started from.

Flow: manifest rows -> units (rows that share their sounds) -> `clips_per_step` units a step, some questions of each
-> one tree per unit, two branches a question, chosen before rejected -> packs -> log-probabilities under the reference
-> loss. The sound is computed once for all branches, by policy and reference alike.

Source: DPO (arXiv 2305.18290); Qwen2-Audio's third stage (papers/qwen2-audio.md, section 5), whose figures are not
published. Losses and their names as in TRL 1.16.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from earwise.algorithms.losses import LossOutput, PreferenceKind, dpo_loss
from earwise.config.stages import DpoStage
from earwise.errors import DataError
from earwise.forest import TokenPath
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.prompts import prompt_turns, target_text
from earwise.train.batches import Sounds, assemble, draw, mine, stream, work_shared
from earwise.train.policy import Micro, Policy
from earwise.train.profiler import Clock
from earwise.train.stages.sft import units
from earwise.train.trainable import Reference, encoder_trains
from earwise.train.trainer import StageWork
from earwise.types import Example

LOSSES: dict[str, tuple[PreferenceKind, bool]] = {
    "sigmoid": ("sigmoid", False),
    "sigmoid_norm": ("sigmoid", True),
    "robust": ("robust", False),
    "ipo": ("ipo", True),
}
"""TRL's name -> `dpo_loss`'s kind, and whether log-ratios are means over an answer's tokens."""


def pair(example: Example, style: str, negatives: str, rng: random.Random) -> tuple[str, str]:
    """A better and a worse reply to a row's question, as the model would say them.

    Args:
        example: The row.
        style: Wording of the question, and of replies that are answers only.
        negatives: `rows`: one of the row's own `rejected`; `options`: one of the wrong options.
        rng: Draws where there are several.
    Raises:
        DataError: if the row has nothing better, or nothing to reject.
    """
    if negatives == "options":
        losing = [choice for choice in example.choices if choice not in example.answer]
        if not losing or not example.answer:
            raise DataError(f"example {example.id!r} has no wrong option to reject; use `negatives: rows`")
        return target_text(example, style), target_text(example, style, rng.choice(losing))
    if not example.rejected or not (example.chosen or example.answer):
        raise DataError(
            f"example {example.id!r} holds no preference; add `rejected` (`earwise build preferences`), "
            "or use `negatives: options`"
        )
    if example.chosen:
        return rng.choice(example.chosen), rng.choice(example.rejected)
    worded = replace(example, answer=(rng.choice(example.answer),))
    return target_text(worded, style), target_text(worded, style, rng.choice(example.rejected))


def work(
    model: AudioLM,
    stage: DpoStage,
    sources: Sequence[tuple[Sequence[Example], float]],
    encoder_cache: EncoderCache,
    sounds: Sounds,
    seed: int,
    clock: Clock,
) -> StageWork:
    """The DPO stage for the loop.

    Args:
        model: Prepared for training; as it is now it becomes the reference.
        stage: Its settings.
        sources: Examples and weight of each manifest of the mixture.
        ears: What was heard, shared by reference and loss.
        sounds: Decodes clips.
        seed: Of order, question choice, wording and pairing.
        clock: Told of the phases of a step.
    """
    mixture = stream(stage, [(units(examples), weight) for examples, weight in sources], seed, tuple)
    ids: list[str] = []
    policy, reference = Policy(model), Reference(model.module)
    styles, weights = list(stage.data.styles), list(stage.data.styles.values())
    kind, normalised = LOSSES[stage.loss_type]

    def batches(step: int) -> tuple[list[Micro], dict[str, float]]:
        rng = random.Random(f"{seed} dpo {step}")
        drawn, waveforms, skipped = draw(mixture, stage.clips_per_step, sounds, clock)
        trees: list[list[TokenPath]] = []
        ids.clear()
        for unit in drawn:
            paths: list[TokenPath] = []
            for example in rng.sample(unit.rows, min(len(unit.rows), stage.questions_per_clip)):
                style = rng.choices(styles, weights)[0]
                ids.append(example.id)
                trunk = conversation_path(model, prompt_turns(example, style), unit.clips, unit.samples, generate=True)
                paths += [trunk + answer_path(model, reply) for reply in pair(example, style, stage.negatives, rng)]
            trees.append(paths)
        micros = assemble(model, None if encoder_trains(model) else encoder_cache, mine(trees), waveforms, stage.pack_tokens)
        pairs = sum(len(paths) for paths in trees) // 2
        for micro in micros:
            micro.extra["pairs"] = torch.tensor(pairs)
            with clock("reference"):
                micro.extra["ref_logprobs"] = reference.logprobs(policy, micro)
        counts = {"clips": float(len(trees)), "pairs": float(pairs), "skipped": float(skipped)}
        return micros, counts | work_shared(micros, trees, waveforms, model.spec.sample_rate)

    def loss(logprobs: Tensor, micro: Micro) -> LossOutput:
        mask, ref = micro.forest.loss_mask, micro.extra["ref_logprobs"]
        return dpo_loss(
            logprobs[0::2], logprobs[1::2], ref[0::2], ref[1::2], mask[0::2], mask[1::2],
            beta=stage.beta, kind=kind, length_normalised=normalised, label_smoothing=stage.label_smoothing,
            num_pairs=float(micro.extra["pairs"]),
        )  # fmt: skip

    def restore(state: Mapping[str, Any]) -> None:
        mixture.load_state_dict(state["mixture"])
        reference.load_state_dict(state["reference"])

    return StageWork(
        "dpo",
        batches,
        loss,
        lambda: {"mixture": mixture.state_dict(), "reference": reference.state_dict()},
        restore,
        stage.save_every,
        ids=lambda: list(ids),
    )
