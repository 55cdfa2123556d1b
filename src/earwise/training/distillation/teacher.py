"""The teacher of a distillation stage: another frozen model, or the policy as it was when the stage began.

It is opened once, scores the completions of all questions about a clip in one pass over their tree, and can sample
completions itself. What it reads may differ from what the student reads: its own chat template, and the row's answer.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from earwise.config.kinds.gkd import TeacherConfig
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import AudioError, ConfigError
from earwise.forest import TokenPath, build_tree, pack
from earwise.models.base import AudioLM, load
from earwise.models.encoder_cache import EncoderCache
from earwise.models.precision import nf4
from earwise.training.distillation.divergence import TeacherTargets, match_forests
from earwise.training.policy import MicroBatch, Policy
from earwise.training.trainable import Reference
from earwise.types import Completion, Text, Turn, Waveform

ENCODER_CACHE_MB = 1024
ANSWER_HINT = " (The right answer is: {answer})"
"""What is added to the teacher's prompt with `teacher_context: answer` (wording ours)."""


def open_teacher(config: TeacherConfig, student: AudioLM) -> AudioLM:
    """Load a teacher, frozen, and check that it can teach the student.

    Args:
        config: Which model, and how it is loaded.
        student: The policy.
    Raises:
        ModelError: if there is no such model, or its checkpoint cannot be read.
        ConfigError: if its vocabulary or sample rate differ from the student's.
    """
    device = str(next(student.module.parameters()).device)
    teacher = load(config.name, config.weights, device=device, dtype=config.dtype)
    check_same_vocabulary(student, teacher)
    if teacher.spec.sample_rate != student.spec.sample_rate:
        raise ConfigError(
            f"teacher {teacher.name} takes audio of {teacher.spec.sample_rate} Hz, {student.name} of "
            f"{student.spec.sample_rate} Hz; choose a teacher with the same sample rate"
        )
    teacher.module.requires_grad_(False).eval()
    if config.quantization == "nf4":
        nf4.quantize_decoder(teacher)
    return teacher


def check_same_vocabulary(student: AudioLM, teacher: AudioLM) -> None:
    """Refuse a teacher in whose vocabulary a token of the student's has another id; it may have further tokens.

    Raises:
        ConfigError: naming the first token that differs.
    """
    tokens, teacher_tokens = (
        {number: token for token, number in model.tokenizer.backend.get_vocab(with_added_tokens=True).items()}
        for model in (student, teacher)
    )
    shared = sorted(tokens.keys() & teacher_tokens.keys())
    differing = [number for number in shared if tokens[number] != teacher_tokens[number]]
    if differing or not shared:
        example = f"token {differing[0]} is {teacher_tokens[differing[0]]!r}, not {tokens[differing[0]]!r}; " * bool(
            differing
        )
        raise ConfigError(
            f"teacher {teacher.name} has another vocabulary than {student.name} ({len(differing)} of {len(shared)} "
            f"token ids differ): {example}distillation compares probabilities token by token, so choose a teacher with "
            "the same tokenizer"
        )


class Teacher:
    """A teacher at work.

    Args:
        model: The teacher's model; the policy itself if it is its own teacher.
        encoder_cache: Encoder states of its clips; None runs the encoder for every pass.
        active: Inside this context the model computes as the teacher.
    """

    def __init__(
        self,
        model: AudioLM,
        encoder_cache: EncoderCache | None,
        active: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model = model
        self._encoder_cache, self._active = encoder_cache, active
        self._policy = Policy(model)
        self._engine: LocalEngine | None = None

    @classmethod
    def from_config(cls, config: TeacherConfig, student: AudioLM) -> "Teacher":
        """Open another model as the teacher; raises as `open_teacher`."""
        model = open_teacher(config, student)
        return cls(model, EncoderCache(model, max_mb=ENCODER_CACHE_MB, batch_size=1))

    @classmethod
    def from_reference(cls, student: AudioLM, reference: Reference, encoder_cache: EncoderCache | None) -> "Teacher":
        """The student as it was when its reference was made.

        Args:
            student: The policy.
            reference: Its reference.
            encoder_cache: The policy's encoder states; None if the encoder is trained.
        """
        return cls(student, encoder_cache, reference.active)

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams, n: int) -> list[list[Completion]]:
        """Sample `n` completions of each prompt."""
        if self._engine is None:
            self._engine = LocalEngine(self.model, encoder_cache=self._encoder_cache)
        with self._active():
            return self._engine.generate(prompts, params, n)

    def check_length(self, waveforms: Mapping[int, Waveform], example_ids: Sequence[str]) -> None:
        """Refuse clips that the teacher cannot take whole.

        Raises:
            AudioError: naming the rows of the step.
        """
        longest_s = max((len(waveform) for waveform in waveforms.values()), default=0) / self.model.spec.sample_rate
        if longest_s > self.model.spec.max_s + 1e-3:
            raise AudioError(
                f"a clip of {longest_s:.1f} s is longer than the audio window of the teacher {self.model.name} "
                f"({self.model.spec.max_s:g} s), among rows {', '.join(example_ids[:4])}; leave such clips out"
            )

    @torch.no_grad()
    def targets(
        self,
        micro_batch: MicroBatch[None],
        trees: Sequence[list[TokenPath]],
        *,
        beta: float,
        temperature: float,
    ) -> TeacherTargets:
        """Run the teacher over the completions of a micro-batch.

        Args:
            micro_batch: The student's forward pass.
            trees: The same branches of the same trees behind the teacher's prompts.
            beta: See `generalized_jsd`.
            temperature: See `generalized_jsd`.
        """
        forest = pack([build_tree(paths) for paths in trees], micro_batch.forest.ids.device)
        clips = sorted(set(forest.audio_clips))
        encoder_states: dict[int, Tensor] = {}
        if self._encoder_cache is not None and clips:
            states = self._encoder_cache.encoder_states([micro_batch.waveforms[clip] for clip in clips])
            encoder_states = dict(zip(clips, states, strict=True))
        with self._active():
            hidden = self._policy.hidden_states(forest, encoder_states, micro_batch.waveforms)
        student_sources, teacher_sources, token_comparisons = match_forests(micro_batch.forest, forest)
        logits = partial(_scores, self.model, self._active)
        return TeacherTargets(
            hidden[teacher_sources], student_sources, token_comparisons, logits, float(beta), float(temperature)
        )


def _scores(model: AudioLM, active: Callable[[], AbstractContextManager[None]], states: Tensor) -> Tensor:
    """The teacher's scores over the vocabulary."""
    with active():
        return model.logits(states)


def with_answer(turns: tuple[Turn, ...], answer: str) -> tuple[Turn, ...]:
    """A prompt that also tells the answer, at the end of its last user turn.

    >>> with_answer((Turn("user", (Text("What is it?"),)),), "a dog")[0].parts[-1].text
    'What is it? (The right answer is: a dog)'
    """
    hint = ANSWER_HINT.format(answer=answer)
    *parts, last = turns[-1].parts
    hinted = (*parts, Text(last.text + hint)) if isinstance(last, Text) else (*parts, last, Text(hint.strip()))
    return (*turns[:-1], replace(turns[-1], parts=hinted))
