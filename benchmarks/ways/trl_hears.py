"""TRL 1.16's GRPOTrainer, made to hear. The patch lives here only.

As published the trainer gives audio to `generate` at best; reference and policy log-probabilities are computed without
it, and it trains deaf without an error (papers/peers.md section 1). `HearingTrainer` carries the features along: into
generation, into both log-probability passes, and through the shuffled buffer between them. All else is TRL's:
`training_step` with its sampling, advantages, fused head, loss and metrics.

In its favour: mel features are made once per distinct prompt and batch, activation checkpointing is off, and the
reference is the policy with its old weights switched in. The loss is set to R1-AQA's: `loss_type` grpo, and the KL
without the importance weight that TRL multiplies it with by default.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers import models as token_models
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from earwise.models.base import AudioLM
from earwise.train.trainable import Reference
from ways.hears import FEATURES, Hearing
from ways.shapes import Workload
from ways.timing import Clock
from ways.way import BETA, GRAD_CLIP, NEVER, TEMPERATURE, Ids


class HearingTrainer(GRPOTrainer):
    """The trainer with audio; `prompts` are row numbers of `table`.

    Attributes:
        table: Ids and features of every prompt.
        given: Completions to learn from instead of sampling; None samples.
        clock: Where phases are told.
    """

    table: list[tuple[tuple[int, ...], dict[str, Tensor]]]
    given: list[list[int]] | None = None
    clock: Clock
    _features: dict[str, Tensor]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Tensor]]:
        rows = [self.table[int(prompt)] for prompt in prompts]
        self._features = {name: torch.cat([features[name] for _, features in rows]) for name in FEATURES}
        return [list(ids) for ids, _ in rows], None, self._features

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if self.given is not None:
            return self.given, None
        return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        return super()._generate_and_score_completions(inputs) | self._features

    def _compute_loss(self, model: nn.Module, inputs: Any) -> Tensor:
        self._features = {name: inputs[name] for name in FEATURES}  # shuffled with the rows
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int,
        batch_size: int | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        assert batch_size is None or batch_size >= len(input_ids), "the benchmark's batch is one micro batch"

        def listening(**inputs: Any) -> Any:
            return model(**inputs, **self._features)

        def compute() -> Any:
            return super(HearingTrainer, self)._get_per_token_logps_and_entropies(
                listening, input_ids, attention_mask, logits_to_keep, **kwargs
            )

        if torch.is_grad_enabled():
            return compute()
        with self.clock("reference"):
            return compute()


class AsReference(nn.Module):
    """The policy with its starting weights, in the reference model's place."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._call = [module]  # in a list: its parameters are not this module's
        self._reference = Reference(module)

    def forward(self, **inputs: Any) -> Any:
        """The policy's own forward under the starting weights."""
        with self._reference.active():
            return self._call[0](**inputs)


class Trl:
    """`Way` of TRL; made before the weights move away from the reference."""

    def __init__(self, model: AudioLM, work: Workload, ears: Hearing) -> None:
        self._work, self._ears, self._ends = work, ears, model.eos_ids
        shape, count = work.shape, len(work.prompts)
        ears.module.generation_config.eos_token_id = list(model.eos_ids)
        self._batch = [{"prompt": str(number)} for number in range(count) for _ in range(shape.group)]
        with tempfile.TemporaryDirectory() as folder:
            args = GRPOConfig(
                output_dir=folder, per_device_train_batch_size=len(self._batch), num_generations=shape.group,
                max_completion_length=shape.max_new_tokens, temperature=TEMPERATURE, loss_type="grpo",
                beta=0.0, learning_rate=0.0, weight_decay=0.0, max_grad_norm=GRAD_CLIP,
                # TRL's default multiplies the KL by the ratio, which adds to its gradient; R1-AQA's does not.
                use_bias_correction_kl=False, gradient_checkpointing=False, use_cpu=True, bf16=False,
                report_to="none", disable_tqdm=True,
            )  # fmt: skip
            self._trainer = HearingTrainer(
                model=ears.module, reward_funcs=self._reward, args=args,
                train_dataset=Dataset.from_list(self._batch), processing_class=_tokenizer(model),
            )  # fmt: skip
        # With `beta` in its arguments the trainer would load a reference from a hub, where a model built here is not.
        self._trainer.beta, self._trainer.ref_model = BETA, AsReference(ears.module)
        self._trainer.table = self._heard()
        # What `train()` sets before its first step.
        self._trainer.current_gradient_accumulation_steps = 1
        self._trainer.create_optimizer()

    def rollout(self, clock: Clock, *, full: bool, seed: int) -> list[list[list[int]]]:
        """See `Way`; all groups as one batch, by the trainer's own method."""
        trainer = self._trainer
        trainer.clock, trainer.given = clock, None
        trainer.generation_config.eos_token_id = NEVER if full else list(self._ends)
        trainer.eos_token_ids = [] if full else list(self._ends)
        torch.manual_seed(seed)
        with clock("rollout"):
            trainer.table = self._heard()
            ids, _, fields = trainer._tokenize_prompts([row["prompt"] for row in self._batch])
            flat, _ = trainer._generate_single_turn(ids, None, fields, self._work.shape.group)
        group = self._work.shape.group
        return [flat[start : start + group] for start in range(0, len(flat), group)]

    def train(self, clock: Clock, groups: Sequence[Sequence[Ids]], *, update: bool = True) -> None:
        """See `Way`; `loss` is all of `training_step` but the reference."""
        trainer, inner, whole = self._trainer, Clock(), Clock()
        trainer.clock, trainer.given = inner, [list(ids) for group in groups for ids in group]
        with clock("listen"):
            trainer.table = self._heard()
        with whole("step"):
            trainer.training_step(trainer.model, self._batch, None)
        clock.seconds["reference"] = inner.seconds["reference"]
        clock.seconds["loss"] = whole.seconds["step"] - inner.seconds["reference"]
        if update:
            with clock("optimizer"):
                trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), GRAD_CLIP)
                trainer.optimizer.step()
                trainer.model.zero_grad()

    def _heard(self) -> list[tuple[tuple[int, ...], dict[str, Tensor]]]:
        return [
            (trunk.ids, self._ears.features(self._work.waves[number])) for number, trunk in enumerate(self._work.trunks)
        ]

    def _reward(self, completions: list[Any], **_: Any) -> list[float]:
        return list(self._work.rewards)


def _tokenizer(model: AudioLM) -> PreTrainedTokenizerFast:
    """Enough of a tokenizer for the trainer, which only turns completions into text for the reward function."""
    names = {model.eos_ids[0]: "<end>", model.eos_ids[-1]: "<pad>"}
    highest = max(names)
    vocabulary = {names.get(number, f"{number}"): number for number in range(highest + 1)}
    backend = Tokenizer(token_models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>")
