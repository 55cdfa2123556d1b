"""Settings of distillation from a teacher (`kind: gkd`). No torch.

Names are those of TRL's GKDConfig where it has them: `lmbda`, `beta`, `temperature`, `seq_kd`, `max_new_tokens`.
"""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from earwise.config.stages import StageConfig
from earwise.config.strict import Strict, UserPath


class TeacherConfig(Strict):
    """The model that a student learns from. It must have the student's vocabulary."""

    name: UserPath
    """Family (see `earwise models`), folder of a model, `ORGANISATION/MODEL@REVISION` on a hub, or
    `file.py:function`."""
    weights: UserPath | None = None
    """Folder of the checkpoint or adapter, or `ORGANISATION/MODEL@REVISION` on a hub; None: the family's default."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the weights; None: the family's default."""
    quantization: Literal["nf4"] | None = None
    """`nf4`: hold the linear layers of the decoder in 4 bits (needs the extra `quantize`)."""


class GkdConfig(StageConfig):
    """Generalised knowledge distillation: the student answers, the teacher says at every token what it would have
    written. All answers about the clips of a group are branches of one tree, for the student and for the teacher."""

    has_loss_on_rows: ClassVar[bool] = False

    kind: Literal["gkd"]
    teacher: TeacherConfig | None = None
    """The teacher; None: the policy as it was when the stage began, which needs `teacher_context: answer`."""
    teacher_context: Literal["question", "answer"] = "question"
    """What the teacher reads: the student's prompt, or that prompt with the row's answer, which the student does not
    see."""
    clips_per_step: int = Field(4, gt=0)
    """Clips per optimizer step."""
    questions_per_clip: int = Field(4, gt=0)
    """Largest number of questions about a clip in one step."""
    group_size: int = Field(1, gt=0)
    """Sampled completions per question (TRL: one)."""
    lmbda: float = Field(0.5, ge=0, le=1)
    """Share of the steps in which the student samples the completions; in the others they come from the rows, or from
    the teacher (`seq_kd`)."""
    seq_kd: bool = False
    """Where the student does not sample, the teacher does."""
    beta: float = Field(0.5, ge=0, le=1)
    """Divergence: 0 is the KL divergence of the student from the teacher, 1 that of the teacher from the student,
    between them the generalised Jensen-Shannon divergence."""
    temperature: float = Field(0.9, gt=0)
    """Sampling temperature."""
    loss_temperature: float = Field(1.0, gt=0)
    """Temperature of both distributions in the divergence."""
    max_new_tokens: int = Field(128, gt=0)
    """Longest completion, in tokens."""
    log_completions_steps: int = Field(10, ge=0)
    """Steps between those whose sampled completions are logged in full; 0: none."""

    @property
    def samples(self) -> bool:
        """Whether any step samples completions."""
        return self.lmbda > 0 or self.seq_kd

    @property
    def uses_rows_replies(self) -> bool:
        """Whether some steps train on the replies of the rows."""
        return self.lmbda < 1 and not self.seq_kd

    @property
    def needs_answers(self) -> bool:
        """Whether rows without an answer are left out. A teacher can judge completions about unlabelled sound."""
        return self.uses_rows_replies or self.teacher_context == "answer"

    @model_validator(mode="after")
    def _check_there_is_something_to_learn(self) -> "GkdConfig":
        if self.teacher is None and self.teacher_context == "question":
            raise ValueError(
                "without a teacher the policy would be compared with itself; set teacher: {name: ...}, or "
                "teacher_context: answer"
            )
        if self.teacher is None and self.seq_kd:
            raise ValueError("seq_kd lets the teacher sample; set teacher: {name: ...}, or leave it out")
        return self

    @model_validator(mode="after")
    def _check_sampling(self) -> "GkdConfig":
        self.refuse_idle(self.lmbda < 1, ("seq_kd",), "lmbda 1 leaves no step to the teacher; lower it")
        keys = ("group_size", "temperature", "max_new_tokens", "log_completions_steps")
        self.refuse_idle(self.samples, keys, "lmbda 0 samples nothing; raise it, or set seq_kd")
        return self
