"""Schema of what a stage does beside its updates: its length, checkpoints, evaluations, what ends it early. No torch.

The base of every kind of stage (`config/stages.py`). Names are those of transformers' TrainingArguments and of its
EarlyStoppingCallback where these have one.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from earwise.config.strict import Strict

RowFilter = dict[Literal["task", "category", "source", "split", "language", "field"], str | tuple[str, ...]]
"""Field of a manifest row -> the value that the field must have, or a list of values of which it must have one."""


class EvalConfig(Strict):
    """Rows that a model is evaluated on, and how it is asked."""

    manifest: str
    """Path of the manifest, or of the file of another task, relative to the recipe's folder, or `starter:val`. `path`
    is another name of it."""
    task: str = "manifest"
    """Task that reads the file and scores the answers: a name that `earwise tasks` lists, or `file.py:NAME`."""
    audio_root: str | None = None
    """Folder of the clips of another task's file, relative to the recipe's folder; None: the file's own."""
    where: RowFilter = Field(default_factory=dict)
    """Use only rows whose fields have these values; a list names several."""
    allow_text_only: bool = False
    """As in `data.mixture`: use rows without a clip as they are."""
    style: str = "answer"
    """Prompt style: of the task, or a key of `prompts.INSTRUCTIONS`. Empty: the task's own, which is the default of all
    tasks but `manifest`."""
    max_new_tokens: int = Field(32, ge=0)
    """Longest answer, in tokens. 0: the task's own, which is the default of all tasks but `manifest`."""
    channel: Literal["mean", "first"] = "mean"
    """Clips of several channels: their mean (the loudest channel where they cancel each other), or the first."""
    limit: int | None = Field(None, gt=0)
    """Number of rows, evenly spaced over the manifest; None: all."""

    @model_validator(mode="before")
    @classmethod
    def _fill_task(cls, values: Any) -> Any:
        """Read `path` as `manifest`, and leave style and length of another task to the task."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if "path" in values:
            if "manifest" in values:
                raise ValueError("path and manifest are two names of one key; give one of them")
            values["manifest"] = values.pop("path")
        if values.get("task", "manifest") != "manifest":
            values = {"style": "", "max_new_tokens": 0} | values
        return values


class RunControl(Strict):
    """Length, checkpoints, evaluations and failures of a stage.

    Three facts are the same for all stages of a kind and are no keys of a recipe: `has_loss_on_rows` (whether the stage
    computes a loss on given rows, also on held-out ones), `samples_completions` (whether the policy samples in
    training), and `measures_at_eval_steps` (whether `eval_steps` has a meaning without `eval_dataset`).
    """

    has_loss_on_rows: ClassVar[bool] = True
    samples_completions: ClassVar[bool] = False
    measures_at_eval_steps: ClassVar[bool] = False

    kind: str
    """Kind of the stage."""
    max_steps: int = Field(0, ge=0)
    """Optimizer steps; 0: as many as `num_train_epochs` needs. It overrides `num_train_epochs`."""
    num_train_epochs: float | None = Field(None, gt=0)
    """Passes over the data, in place of `max_steps`. A pass draws as many items as there are: rows in grpo and with
    `rows_per_step`, otherwise clips."""
    max_minutes: float | None = Field(None, gt=0)
    """End the stage, as finished, after this many minutes of the running process; None: no limit."""
    save_steps: int = Field(50, gt=0)
    """Steps from one checkpoint to the next."""
    save_total_limit: int = Field(1, gt=0)
    """Number of checkpoints that are kept, the newest; a run resumes from the last. The best one is kept too."""
    eval_dataset: EvalConfig | None = None
    """Held-out rows on which the model is evaluated every `eval_steps` steps and at the end; None: no evaluation."""
    eval_steps: int | None = Field(None, gt=0)
    """Steps between evaluations on `eval_dataset`."""
    predict_with_generate: bool = True
    """Answer the rows of `eval_dataset` and score the answers. False: only the loss on them, in the stages that have
    one."""
    metric_for_best_model: str | None = None
    """Metric of the evaluations that decides which checkpoint is best: `loss`, `accuracy`, `format`, or the name of a
    score. None: `loss` in stages that have one on given rows, `accuracy` in grpo."""
    greater_is_better: bool | None = None
    """Whether larger values of `metric_for_best_model` are better; None: yes, except for the loss and for scores that
    count errors (`wer`, also as `accuracy` of the task `transcription`)."""
    load_best_model_at_end: bool = False
    """End the stage with the weights of the best checkpoint instead of the last ones."""
    early_stopping_patience: int | None = Field(None, gt=0)
    """End the stage after this many evaluations in a row without an improvement; None: never."""
    early_stopping_threshold: float = Field(0.0, ge=0)
    """Improvement of the metric below which an evaluation counts as none."""
    on_nonfinite_loss: Literal["stop", "skip", "rollback"] = "stop"
    """A loss or gradient that is not finite: end the run, skip the update of this step, or go back to the newest
    checkpoint and on from there with the rows that come next."""
    on_loss_spike: Literal["log", "stop", "skip", "rollback"] = "log"
    """A loss or gradient norm far above those of the last steps (`spike_std`): count it in the log, or do as under
    `on_nonfinite_loss`."""
    spike_std: float = Field(6.0, gt=0)
    """A spike lies this many standard deviations above the mean of the last 128 accepted steps (from the 32nd on)."""
    max_skipped_steps: int = Field(10, gt=0)
    """With `skip`: number of consecutive skipped steps; one more ends the run."""
    max_rollbacks: int = Field(3, gt=0)
    """With `rollback`: number of rollbacks in a stage; one more ends the run."""

    @property
    def needs_answers(self) -> bool:
        """Whether rows without an answer are left out, in a stage that does not train on preferences."""
        return True

    @property
    def best_metric(self) -> str:
        """Metric that decides which checkpoint is best."""
        return self.metric_for_best_model or ("loss" if self.has_loss_on_rows else "accuracy")

    @property
    def best_is_greatest(self) -> bool:
        """Whether larger values of `best_metric` are better."""
        if self.greater_is_better is not None:
            return self.greater_is_better
        return not self.best_metric.endswith(("loss", "wer", "cer"))

    @property
    def keeps_best(self) -> bool:
        """Whether the best checkpoint is kept."""
        return self.load_best_model_at_end or self.metric_for_best_model is not None

    @model_validator(mode="after")
    def _check_length(self) -> "RunControl":
        if not self.max_steps and self.num_train_epochs is None:
            raise ValueError("max_steps is missing; set it, or num_train_epochs")
        return self

    @model_validator(mode="after")
    def _check_evaluation(self) -> "RunControl":
        if self.eval_dataset is not None and self.eval_steps is None:
            raise ValueError("eval_dataset is never evaluated; set eval_steps")
        keys: tuple[str, ...] = (
            "predict_with_generate", "metric_for_best_model", "greater_is_better", "load_best_model_at_end",
            "early_stopping_patience", "early_stopping_threshold",
        )  # fmt: skip
        keys += () if self.measures_at_eval_steps else ("eval_steps",)
        self.refuse_idle(self.eval_dataset is not None, keys, "set eval_dataset, or leave it out")
        uses_metric = self.keeps_best or self.early_stopping_patience is not None
        self.refuse_idle(uses_metric, ("greater_is_better",), "set metric_for_best_model")
        self.refuse_idle(
            self.early_stopping_patience is not None, ("early_stopping_threshold",), "set early_stopping_patience"
        )
        if not self.has_loss_on_rows and not self.predict_with_generate:
            raise ValueError(f"predict_with_generate false leaves nothing to evaluate: {self.kind} has no loss on rows")
        if uses_metric and (self.best_metric == "loss") > self.has_loss_on_rows:
            raise ValueError(f"metric_for_best_model loss: {self.kind} has no loss on held-out rows; use accuracy")
        if uses_metric and self.best_metric != "loss" and not self.predict_with_generate:
            raise ValueError(f"metric_for_best_model {self.best_metric} needs answers; set predict_with_generate true")
        return self

    @model_validator(mode="after")
    def _check_failure_limits(self) -> "RunControl":
        policies = (self.on_nonfinite_loss, self.on_loss_spike)
        self.refuse_idle(
            "skip" in policies, ("max_skipped_steps",), "it is for on_nonfinite_loss or on_loss_spike: skip"
        )
        self.refuse_idle("rollback" in policies, ("max_rollbacks",), "it is for on_nonfinite_loss: rollback")
        return self
