"""The GRPO step of TRL 1.16's GRPOTrainer, patched so that the audio reaches the model. The patch exists only here.

As published, the trainer passes audio to `generate` at best; the log-probabilities of reference and policy are computed
without it, so training ignores the audio without an error. `AudioGRPOTrainer` carries the features along: into
generation, into both log-probability passes, and through the shuffled buffer between them. Everything else is TRL's:
`training_step` with its sampling, advantages, fused head, loss and metrics.

In favour of this implementation: mel features are computed once per distinct prompt and batch, activation checkpointing
is off, and the reference is the policy with its old weights. The loss is R1-AQA's: `loss_type` grpo, and the KL without
the importance weight that TRL applies by default.
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

from baselines.hf_models import FEATURES, HFModel
from baselines.implementation import BETA, GRAD_CLIP, NEVER, TEMPERATURE, Ids
from baselines.timing import PhaseTimer
from baselines.workload import Workload
from earwise.models.base import AudioLM
from earwise.training.trainable import Reference


class AudioGRPOTrainer(GRPOTrainer):
    """TRL's trainer with audio. Its `prompts` are indices into `prompt_table`.

    Attributes:
        prompt_table: Token ids and features of every prompt.
        fixed_completions: Completions to train on instead of sampling; None samples.
        clock: Where phases are told.
    """

    prompt_table: list[tuple[tuple[int, ...], dict[str, Tensor]]]
    fixed_completions: list[list[int]] | None = None
    timer: PhaseTimer
    _features: dict[str, Tensor]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Tensor]]:
        rows = [self.prompt_table[int(prompt)] for prompt in prompts]
        self._features = {name: torch.cat([features[name] for _, features in rows]) for name in FEATURES}
        return [list(ids) for ids, _ in rows], None, self._features

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fixed_completions is not None:
            return self.fixed_completions, None
        return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        return super()._generate_and_score_completions(inputs) | self._features

    def _compute_loss(self, model: nn.Module, inputs: Any) -> Tensor:
        self._features = {name: inputs[name] for name in FEATURES}  # they were shuffled together with the rows
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int,
        batch_size: int | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        assert batch_size is None or batch_size >= len(input_ids), "the benchmark uses one micro batch"

        def model_with_audio(**inputs: Any) -> Any:
            return model(**inputs, **self._features)

        def compute() -> Any:
            return super(AudioGRPOTrainer, self)._get_per_token_logps_and_entropies(
                model_with_audio, input_ids, attention_mask, logits_to_keep, **kwargs
            )

        if torch.is_grad_enabled():
            return compute()
        with self.timer("reference"):
            return compute()


class PolicyAsReference(nn.Module):
    """The policy with its initial weights, in place of a reference model.

    Args:
        module: The policy.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._policy = [module]  # in a list, so that its parameters are not registered here
        self._reference = Reference(module)

    def forward(self, **inputs: Any) -> Any:
        """The policy's forward with its initial weights."""
        with self._reference.active():
            return self._policy[0](**inputs)


class TrlStep:
    """TRL as a `StepImplementation`. Make it before the weights move away from the reference.

    Args:
        model: Model to train.
        work: Prompts of the step.
        hf_model: The model behind transformers' interface.
    """

    def __init__(self, model: AudioLM, work: Workload, hf_model: HFModel) -> None:
        self._work, self._hf_model, self._ends = work, hf_model, model.eos_ids
        shape, count = work.shape, len(work.prompts)
        hf_model.module.generation_config.eos_token_id = list(model.eos_ids)
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
            self._trainer = AudioGRPOTrainer(
                model=hf_model.module, reward_funcs=self._reward, args=args,
                train_dataset=Dataset.from_list(self._batch), processing_class=_tokenizer(model),
            )  # fmt: skip
        # With `beta` in its arguments, the trainer would load a reference from a hub, which does not have this model.
        self._trainer.beta, self._trainer.ref_model = BETA, PolicyAsReference(hf_model.module)
        self._trainer.prompt_table = self._build_prompt_table()
        # As `train()` does before its first step.
        self._trainer.current_gradient_accumulation_steps = 1
        self._trainer.create_optimizer()

    def rollout(self, timer: PhaseTimer, *, full: bool, seed: int) -> list[list[list[int]]]:
        """See `StepImplementation`; all groups are one batch of the trainer's own method."""
        trainer = self._trainer
        trainer.timer, trainer.fixed_completions = timer, None
        trainer.generation_config.eos_token_id = NEVER if full else list(self._ends)
        trainer.eos_token_ids = [] if full else list(self._ends)
        torch.manual_seed(seed)
        with timer("rollout"):
            trainer.prompt_table = self._build_prompt_table()
            ids, _, fields = trainer._tokenize_prompts([row["prompt"] for row in self._batch])
            flat, _ = trainer._generate_single_turn(ids, None, fields, self._work.shape.group)
        group = self._work.shape.group
        return [flat[start : start + group] for start in range(0, len(flat), group)]

    def train(self, timer: PhaseTimer, groups: Sequence[Sequence[Ids]], *, update: bool = True) -> None:
        """See `StepImplementation`; the phase `loss` is all of `training_step` except the reference."""
        trainer, inner, whole = self._trainer, PhaseTimer(), PhaseTimer()
        trainer.timer, trainer.fixed_completions = inner, [list(ids) for group in groups for ids in group]
        with timer("listen"):
            trainer.prompt_table = self._build_prompt_table()
        with whole("step"):
            trainer.training_step(trainer.model, self._batch, None)
        timer.seconds["reference"] = inner.seconds["reference"]
        timer.seconds["loss"] = whole.seconds["step"] - inner.seconds["reference"]
        if update:
            with timer("optimizer"):
                trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), GRAD_CLIP)
                trainer.optimizer.step()
                trainer.model.zero_grad()

    def _build_prompt_table(self) -> list[tuple[tuple[int, ...], dict[str, Tensor]]]:
        return [
            (path.ids, self._hf_model.features(self._work.waveforms[number]))
            for number, path in enumerate(self._work.paths)
        ]

    def _reward(self, completions: list[Any], **_: Any) -> list[float]:
        return list(self._work.rewards)


def _tokenizer(model: AudioLM) -> PreTrainedTokenizerFast:
    """A minimal tokenizer for the trainer, which only decodes completions for the reward function."""
    names = {model.eos_ids[0]: "<end>", model.eos_ids[-1]: "<pad>"}
    highest = max(names)
    vocabulary = {names.get(number, f"{number}"): number for number in range(highest + 1)}
    backend = Tokenizer(token_models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>")
