"""What a stage of a recipe may say: one schema a kind of stage, a union on `kind`. No torch.

Config ends at the door: stages unpack it and pass plain values on.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Where = dict[Literal["task", "category", "source", "split", "language"], str]
"""Field of a row -> the value it must have."""


class Source(Strict):
    """One manifest of a mixture."""

    manifest: str
    """Path relative to the recipe, or `starter:train` / `starter:val` for the bundled clips."""
    weight: float = Field(1.0, gt=0)
    where: Where = {}
    """Only rows whose fields have these values."""


class DataConfig(Strict):
    """What a stage trains on."""

    mixture: tuple[Source, ...] = Field(min_length=1)
    styles: dict[str, float] = {"answer": 1.0}
    """Prompt wording -> weight; one is drawn per question."""
    long_audio: Literal["error", "truncate", "chunk"] = "error"
    """For clips longer than the model hears: refuse, hear the beginning, or hear several clips one after the other."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    by_size: bool = False
    """Weights are per item: a manifest counts as its weight times the items that it holds (clips for stages that ask
    several questions of each, else rows)."""
    temperature: float = Field(1.0, gt=0)
    """T: a manifest is drawn in proportion to its weight to the power of 1/T. Above 1 evens manifests out."""


class LoraConfig(Strict):
    """Low-rank update of linear layers."""

    r: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


Mode = Literal["frozen", "full", "lora"]


class TrainableConfig(Strict):
    """What of each part is trained."""

    encoder: Mode = "frozen"
    connector: Literal["frozen", "full"] = "full"
    decoder: Mode = "lora"
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="after")
    def _something_is_trained(self) -> "TrainableConfig":
        if self.encoder == self.connector == self.decoder == "frozen":
            raise ValueError(
                "nothing to train: encoder, connector and decoder are all frozen; set one of them to full or lora"
            )
        return self


class OptimizerConfig(Strict):
    """AdamW and its schedule."""

    lr: float = Field(2e-4, gt=0)
    encoder_lr: float | None = Field(None, gt=0)
    """None: the same as `lr`."""
    connector_lr: float | None = Field(None, gt=0)
    """None: the same as `lr`."""
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    grad_clip: float = Field(1.0, gt=0)


class BandConfig(Strict):
    """Pass counts from `low` to `high` of `of` attempts; rows tried more or less often are compared by their rate."""

    low: int = Field(3, ge=0)
    high: int = Field(6, ge=0)
    of: int = Field(8, gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> "BandConfig":
        if not self.low <= self.high <= self.of:
            raise ValueError(
                f"a band goes from low to high of so many attempts, not {self.low} to {self.high} of {self.of}"
            )
        return self


class CurriculumConfig(Strict):
    """In which order the rows of each manifest come; all but `shuffled` and `online` want rows with pass rates."""

    order: Literal["shuffled", "easy_to_hard", "banded", "online"] = "shuffled"
    """`banded` leaves out what is not in the band, `online` what is not in it as the policy is now."""
    band: BandConfig = BandConfig()
    reward: str = "accuracy"
    """`online`: a sample has passed if this reward is 1."""
    explore: float = Field(0.1, gt=0, le=1)
    """`online`: chance of a row outside the band, each time it comes up."""


class _Stage(Strict):
    kind: str
    name: str | None = None
    data: DataConfig
    curriculum: CurriculumConfig = CurriculumConfig()
    trainable: TrainableConfig = TrainableConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    max_steps: int = Field(gt=0)
    max_minutes: float | None = Field(None, gt=0)
    """Stop (as finished) after so many minutes of this process; None: never."""
    pack_tokens: int = Field(1024, gt=0)
    """Tokens of one forward pass."""
    checkpoint_activations: bool = False
    """Keep only the input of each layer and compute the rest again in the backward pass: a third more work, and
    memory that hardly grows with the number of layers."""
    save_every: int = Field(50, gt=0)
    keep_checkpoints: int = Field(1, gt=0)
    """How many, the newest; a run continues from the last."""
    on_bad_loss: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite: end the run, or leave this step's update out."""
    max_bad_steps: int = Field(10, gt=0)
    """`skip`: so many in a row are left out, one more ends the run."""
    log_samples_every: int = Field(10, gt=0)

    @model_validator(mode="after")
    def _online_wants_samples(self) -> "_Stage":
        if self.curriculum.order == "online" and self.kind != "grpo":
            raise ValueError(
                f"curriculum.order online watches the policy's own samples, {self.kind} has none; use easy_to_hard"
            )
        return self


class _Taught(_Stage):
    """A stage that is told the right replies, so that it would never say anything itself."""

    show_every: int = Field(50, ge=0)
    """Steps between greedy answers to a few fixed rows of its data, in the log to look at; 0: none."""


class SftStage(_Taught):
    """Supervised training: all questions of a clip in one tree."""

    kind: Literal["sft"]
    clips_per_step: int = Field(16, gt=0)
    questions_per_clip: int = Field(4, gt=0)
    start: Literal["none", "ridge"] = "none"
    """`ridge`: before the first step, set the connector to the ridge regression onto the decoder's word embeddings of
    the answers."""


class JudgeConfig(Strict):
    """A language model behind a server that judges thoughts, as reward `judge`."""

    server: str
    """Its address as in `--model`: http://127.0.0.1:8000/v1#NAME."""
    rubric: str = (
        "You judge a short argument about a sound that you cannot hear. Is it coherent, does each step follow, and "
        "does it lead to the answer that is given? Ignore whether the answer is right."
    )
    points: int = Field(5, gt=1)
    """Of the scale, from 1; the reward is 0 to 1."""


class RefreshConfig(Strict):
    """Newer weights for a server that samples."""

    how: Literal["lora", "weights"] = "lora"
    """The adapter alone (vLLM, SGLang, earwise serve), or all weights with LoRA merged in (SGLang, earwise serve)."""
    every: int = Field(1, gt=0)
    """Steps from one version to the next; the first goes before the first rollout."""
    folder: str | None = None
    """Where versions are written, as this machine and the server both see it; None: `sampler` in the stage's folder."""


class GrpoStage(_Stage):
    """Group relative policy optimisation; names as in TRL."""

    kind: Literal["grpo"]
    prompts_per_step: int = Field(8, gt=0)
    group_size: int = Field(8, gt=1)
    max_new_tokens: int = Field(32, gt=0)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    rewards: dict[str, float] = {"accuracy": 1.0, "format_answer": 1.0}
    balance_thinking: bool = False
    """Of `adaptive_thinking` and `adaptive_consistent`: the more often a step's completions think, the less thinking
    is worth, and the same of answering at once; fades away towards `max_steps`."""
    sampler: str | None = None
    """A server that samples, `http://127.0.0.1:8000/v1#NAME`, with the weights that it was started with; None: the
    policy itself, here."""
    sampler_refresh: RefreshConfig | None = None
    """None: the server keeps the weights that it was started with."""
    on_sampler_error: Literal["stop", "wait"] = "stop"
    """A server that samples and does not answer (any more): end the run, or ask it again and again."""
    sampler_wait_minutes: float = Field(30.0, gt=0)
    """`wait`: so long, then the run ends."""
    judge: JudgeConfig | None = None
    """Who answers for the reward `judge`."""
    reward_timeout_s: float = Field(60.0, gt=0)
    """Time for one call of a reward that is not built in."""
    on_reward_error: Literal["stop", "zero", "skip_group"] = "stop"
    """A reward that throws, gives no number or takes too long: end the run, count as 0, or leave its prompt out."""
    dynamic_sampling: int | None = Field(None, gt=1)
    """Rounds of sampling at most, in which prompts whose samples all earned the same are replaced; None: no more than
    one, and nothing is replaced."""
    beta: float = Field(0.04, ge=0)
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "gspo"] = "grpo"
    importance_sampling_level: Literal["token", "sequence"] = "token"
    epsilon: float = Field(0.2, gt=0)
    epsilon_high: float | None = None
    delta: float | None = None
    scale_rewards: Literal["group", "batch", "none"] = "group"
    num_iterations: int = Field(1, gt=0)
    """Updates per rollout."""

    @model_validator(mode="after")
    def _cispo_knows_its_limit(self) -> "GrpoStage":
        if self.loss_type == "cispo" and self.epsilon_high is None:
            raise ValueError("loss_type cispo needs epsilon_high, the largest ratio it keeps (5.0 is usual)")
        return self

    @model_validator(mode="after")
    def _something_is_balanced(self) -> "GrpoStage":
        if self.balance_thinking and not {"adaptive_thinking", "adaptive_consistent"} & set(self.rewards):
            raise ValueError("balance_thinking is for the rewards adaptive_thinking and adaptive_consistent; add one")
        return self

    @model_validator(mode="after")
    def _someone_is_refreshed(self) -> "GrpoStage":
        if self.sampler_refresh is not None and self.sampler is None:
            raise ValueError("sampler_refresh is for a server that samples; set sampler, or leave it out")
        return self

    @model_validator(mode="after")
    def _judge_is_known(self) -> "GrpoStage":
        if ("judge" in self.rewards) != (self.judge is not None):
            raise ValueError("the reward `judge` and the setting `judge: {server: ...}` need each other")
        return self


class DpoStage(_Taught):
    """Preferences: chosen and rejected replies to one sound as branches of one tree."""

    kind: Literal["dpo"]
    clips_per_step: int = Field(8, gt=0)
    questions_per_clip: int = Field(4, gt=0)
    negatives: Literal["rows", "options"] = "rows"
    """What is rejected: the row's own `rejected`, or a wrong option, worded like the right one."""
    beta: float = Field(0.1, gt=0)
    loss_type: Literal["sigmoid", "sigmoid_norm", "robust", "ipo"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)

    @model_validator(mode="after")
    def _ipo_is_not_smoothed(self) -> "DpoStage":
        if self.loss_type == "ipo" and self.label_smoothing:
            raise ValueError(f"label_smoothing {self.label_smoothing} does nothing in ipo; set it to 0")
        return self


class CompressStage(_Taught):
    """Semi-implicit reasoning: supervised training on chains that get shorter as training goes on."""

    kind: Literal["compress"]
    clips_per_step: int = Field(8, gt=0)
    questions_per_clip: int = Field(4, gt=0)
    pieces: Literal["sentences", "tokens"] = "sentences"
    """What is taken out: sentences, of which a stub stays, or tokens, of which nothing stays."""
    k: int = Field(3, ge=0)
    group: int = Field(1, gt=0)
    ellipsis: str = "..."
    """A stub is the first `k` groups of `group` words, and the ellipsis."""
    order: Literal["left", "right", "random"] = "left"
    rate: float = Field(1.0, gt=0)
    """Pieces more an epoch."""
    every_steps: int | None = Field(None, gt=0)
    """A piece more every so many steps, in place of `rate`."""
    cutover: int | None = Field(None, ge=0)
    """Progress from which everything is taken out; None: the 95th percentile of pieces a chain (sentences), or never
    (tokens)."""
    smoothing: float | None = Field(None, gt=0)
    """Take out some pieces more, at random: so many with a probability that falls by exp(-smoothing); None: none."""
    reset_optimizer: bool = False
    """Forget the optimizer's state whenever more is taken out."""
    held_out: Source | None = None
    """Rows that token delay is measured on; none: it is not. Their answers are shown in place of `show_every`'s."""
    held_out_limit: int = Field(8, gt=0)
    measure_every: int = Field(25, gt=0)
    max_new_tokens: int = Field(256, gt=0)
    """Of a held-out answer."""

    @model_validator(mode="after")
    def _chains_only(self) -> "CompressStage":
        if strange := set(self.data.styles) - {"think", "short-think", "xs-cot"}:
            raise ValueError(f"data.styles {sorted(strange)[0]!r} has no chain to shorten; think, short-think, xs-cot")
        if self.pieces == "tokens" and self.order == "random":
            raise ValueError("order random takes sentences out; with pieces tokens it is left or right")
        return self


Stage = Annotated[SftStage | GrpoStage | DpoStage | CompressStage, Field(discriminator="kind")]
