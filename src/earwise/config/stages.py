"""Schema of the training stages of a recipe: one pydantic model per kind of stage. No torch.

`config/recipe.py` reads these from YAML; `training/stages/*` take the values out and pass them on as plain arguments.
`config/stage_kinds.py` says which model belongs to a `kind`. Names of settings are those of TRL, transformers and PEFT
where these have one. `config/deprecated.py` lists the names that earlier versions used.
"""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from earwise.config.control.run_control import RowFilter, RunControl
from earwise.config.curriculum import CurriculumConfig
from earwise.config.kinds.completions import ConfidenceConfig, PauseConfig
from earwise.config.optimizer import OptimizerConfig
from earwise.config.servers import JudgeConfig, WeightSyncConfig
from earwise.config.strict import Strict


class Source(Strict):
    """One manifest of a mixture."""

    manifest: str
    """Path of the manifest, relative to the recipe's folder, or `starter:train` / `starter:val` for the bundled
    clips."""
    weight: float = Field(1.0, gt=0)
    """Relative share of this manifest in the mixture; see `DataConfig.weight_by_size`."""
    where: RowFilter = Field(default_factory=dict)
    """Use only rows whose fields have these values; a list names several."""
    allow_text_only: bool = False
    """Use rows without a clip as they are. False refuses them, unless the row itself says `text_only: true`."""
    optional: bool = False
    """Leave this manifest out, and say so, if it is not there or none of its rows meets `where`. False: that is an
    error."""


class DataConfig(Strict):
    """The training data of a stage."""

    mixture: tuple[Source, ...] = Field(min_length=1)
    """The manifests that rows are drawn from, with their shares."""
    styles: dict[str, PositiveFloat] = Field({"answer": 1.0}, min_length=1)
    """Prompt style (a key of `prompts.INSTRUCTIONS`) -> weight; one style is drawn per question."""
    long_audio: Literal["error", "truncate", "chunk"] = "error"
    """Clips longer than the model's audio window: stop, use the beginning only, or pass consecutive chunks."""
    channel: Literal["mean", "first"] = "mean"
    """Clips of several channels: their mean (the loudest channel where they cancel each other), or the first channel,
    as in R1-AQA's released code."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A row whose audio file is missing or cannot be read: stop the run, or leave the row out and report it."""
    weight_by_size: bool = False
    """Multiply the weight of a manifest by its number of items (clips in stages that ask several questions per clip,
    rows otherwise)."""
    mixture_temperature: float = Field(1.0, gt=0)
    """T: a manifest is drawn in proportion to weight^(1/T). Values above 1 make the shares more equal."""


ALL_LINEAR = "all-linear"
"""PEFT's word for all linear layers except the output head."""


class LoraConfig(Strict):
    """Low-rank update of linear layers; names as in PEFT."""

    r: int = Field(16, gt=0)
    """Rank."""
    lora_alpha: float = Field(32.0, gt=0)
    """The update is scaled by `lora_alpha / r`."""
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    """Layers that get a LoRA, within the parts that are set to `lora`: `all-linear` is every linear layer but the
    output head; a list has last parts of module names, each of which must match; another string is a regular expression
    for whole module names."""
    exclude_modules: tuple[str, ...] = ()
    """Last parts of the names of layers that are left out."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a LoRA's inputs that are set to 0 in a training step."""
    use_rslora: bool = False
    """Scale the update by `lora_alpha / sqrt(r)`."""
    rank_pattern: dict[str, PositiveInt] = {}
    """Regular expression for the end of module names -> rank of these layers, in place of `r`."""
    alpha_pattern: dict[str, PositiveFloat] = {}
    """The same for `lora_alpha`."""


TrainMode = Literal["frozen", "full", "lora"]


class TrainableConfig(Strict):
    """How each part of the model is trained."""

    encoder: TrainMode = "frozen"
    """Audio encoder."""
    connector: Literal["frozen", "full"] = "full"
    """Layers between encoder and decoder."""
    decoder: TrainMode = "lora"
    """Language model."""
    lora: LoraConfig = LoraConfig()
    """Used by the parts that are set to `lora`."""

    @model_validator(mode="after")
    def _check_something_is_trained(self) -> "TrainableConfig":
        if self.encoder == self.connector == self.decoder == "frozen":
            raise ValueError(
                "nothing to train: encoder, connector and decoder are all frozen; set one of them to full or lora"
            )
        return self


class StageConfig(RunControl):
    """Settings that all kinds of stages share. The settings of a stage outside the package are a class derived from
    this one, or from one of those below."""

    name: str | None = None
    """Name in overrides (`stages.NAME.max_steps`) and folders; None: the folder is named by the kind, and overrides use
    the number."""
    data: DataConfig
    """Training data."""
    curriculum: CurriculumConfig = CurriculumConfig()
    """Order of the rows."""
    trainable: TrainableConfig = TrainableConfig()
    """Parts of the model that are trained."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer and learning rates."""
    pack_tokens: int = Field(1024, gt=0)
    """Tokens of one forward pass (a micro-batch of packed sequences)."""
    gradient_checkpointing: bool = False
    """Keep only the input of each layer and recompute the rest in the backward pass: about a third more computation,
    and memory that hardly grows with the number of layers."""

    @property
    def short_kind(self) -> str:
        """The kind in names of folders, messages and random generators: without the file or module of a stage that is
        named as `file.py:name`."""
        return self.kind.rpartition(":")[2]

    @property
    def label(self) -> str:
        """What the stage is called in messages and in the name of its folder."""
        return self.name or self.short_kind

    @model_validator(mode="after")
    def _check_learning_rates(self) -> "StageConfig":
        optimizer, length = self.optimizer, self.optimizer.lr_scheduler_steps
        if length is None and 0 < self.max_steps < optimizer.warmup_steps:
            raise ValueError(
                f"optimizer.warmup_steps {optimizer.warmup_steps} is more than max_steps {self.max_steps}, so the "
                "learning rate never reaches its value; lower it, or set optimizer.lr_scheduler_steps"
            )
        if length is not None and length < self.max_steps:
            raise ValueError(
                f"optimizer.lr_scheduler_steps {length} is less than max_steps {self.max_steps}: the schedule would "
                "end before the stage; raise it, or leave it out"
            )
        optimizer.refuse_idle_rates(
            {part: getattr(self.trainable, part) for part in ("encoder", "connector", "decoder")}
        )
        return self

    @model_validator(mode="after")
    def _check_online_has_completions(self) -> "StageConfig":
        if self.curriculum.order == "online" and not self.samples_completions:
            raise ValueError(
                "curriculum.order online needs rewards of completions that the policy samples, and a stage of kind "
                f"{self.kind} has none; use easy_to_hard"
            )
        return self


class SupervisedConfig(StageConfig):
    """Settings of the stages that train on given replies and sample nothing by themselves."""

    clips_per_step: int = Field(16, gt=0)
    """Clips per optimizer step."""
    questions_per_clip: int = Field(4, gt=0)
    """Largest number of questions about a clip in one step."""
    log_completions_steps: int = Field(50, ge=0)
    """Steps between greedy answers to a few fixed training rows, logged for a person to read; 0: none."""


class SftConfig(SupervisedConfig):
    """Supervised fine-tuning; all questions about a clip share one tree."""

    kind: Literal["sft"]
    rows_per_step: int | None = Field(None, gt=0)
    """Rows per optimizer step, drawn one by one (rows about the same clips still share a tree), in place of
    `clips_per_step` and `questions_per_clip`; None: clips are drawn."""
    assistant_turns: Literal["last", "all"] = "last"
    """Assistant turns of a conversation that the loss counts: the reply that is the answer, or all of them."""
    connector_init: Literal["none", "ridge"] = "none"
    """`ridge`: before the first step, set the connector to the ridge regression from encoder states onto the decoder's
    word embeddings of the answers; `none`: use the connector as it was loaded."""

    @model_validator(mode="after")
    def _check_unit_of_a_step(self) -> "SftConfig":
        clip_keys = ("clips_per_step", "questions_per_clip")
        self.refuse_idle(self.rows_per_step is None, clip_keys, "rows_per_step draws rows; leave one of them out")
        return self


class GrpoConfig(StageConfig):
    """Group relative policy optimisation; names as in TRL's GRPOConfig."""

    has_loss_on_rows: ClassVar[bool] = False
    samples_completions: ClassVar[bool] = True

    kind: Literal["grpo"]
    prompts_per_step: int = Field(8, gt=0)
    """Prompts per rollout, each with `group_size` completions."""
    group_size: int = Field(8, gt=1)
    """Completions per prompt (TRL: num_generations)."""
    max_new_tokens: int = Field(32, gt=0)
    """Longest completion, in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature. The log-probabilities in the loss, of policy and reference, are those at this temperature,
    as in TRL."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the most probable tokens that together have this probability."""
    top_k: int = Field(0, ge=0)
    """Sample from this number of most probable tokens; 0: all."""
    rewards: dict[str, float] = Field({"accuracy": 1.0, "format_answer": 1.0})
    """Reward, by its name or as `file.py:function` -> weight in the sum."""
    balance_thinking: bool = False
    """For `adaptive_thinking` and `adaptive_consistent`: the larger the share of a step's completions that think, the
    lower the reward of thinking, and likewise for answering at once; the effect fades towards `max_steps`."""
    log_completions_steps: int = Field(10, ge=0)
    """Steps between rollouts that are logged in full; 0: none."""
    rollout_server: str | None = None
    """Server that samples the completions, `http://127.0.0.1:8000/v1#NAME`; None: the policy in this process."""
    weight_sync: WeightSyncConfig | None = None
    """How newer weights are sent to the rollout server; None: it keeps those it was started with."""
    on_rollout_error: Literal["stop", "retry"] = "stop"
    """A rollout server that does not answer: end the run, or send the request again until it does."""
    rollout_retry_minutes: float = Field(30.0, gt=0)
    """With `retry`: minutes without an answer after which the run ends."""
    judge: JudgeConfig | None = None
    """The model behind the reward `judge`."""
    reward_timeout_s: float = Field(60.0, gt=0)
    """Seconds for one call of a reward that is not built in."""
    on_reward_error: Literal["stop", "zero", "skip_group"] = "stop"
    """A reward that raises an error, returns no number or exceeds its time: end the run, count it as 0, or leave its
    prompt out."""
    dynamic_sampling: int | None = Field(None, gt=1)
    """Largest number of sampling rounds in which prompts whose completions all have the same reward are replaced; None:
    one round, nothing is replaced."""
    beta: float = Field(0.04, ge=0)
    """Weight of the KL divergence from the reference."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimate of the KL divergence from a sampled token, by Schulman's names; `k3` is that of GRPO and TRL."""
    mask_truncated_completions: bool = False
    """Leave completions that were cut at `max_new_tokens` out of the loss; their rewards still count in the advantages
    of their group."""
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "gspo"] = "grpo"
    """Form of the ratio and of the average over tokens."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """One importance ratio per token, or one per completion."""
    epsilon: float = Field(0.2, gt=0)
    """The importance ratio is clipped from below at 1 - epsilon."""
    epsilon_high: float | None = None
    """The ratio is clipped from above at 1 + epsilon_high; None: `epsilon`. In `cispo`, the largest ratio itself."""
    delta: float | None = None
    """Upper bound of the unclipped ratio (two-sided clipping); None: no bound."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of the group's rewards, of the batch's, or not at all."""
    num_iterations: int = Field(1, gt=0)
    """Updates per rollout."""
    pause: PauseConfig | None = None
    """Pause tokens in the completions, where the policy is unsure; None: none."""
    confidence: ConfidenceConfig | None = None
    """Selection and weights of completions by the policy's confidence in them; None: all count alike."""

    @model_validator(mode="after")
    def _check_cispo_limit(self) -> "GrpoConfig":
        if self.loss_type == "cispo" and self.epsilon_high is None:
            raise ValueError("loss_type cispo needs epsilon_high, the largest ratio it keeps (5.0 is usual)")
        self.refuse_idle(self.loss_type != "cispo", ("delta",), "cispo bounds the ratio by epsilon_high alone")
        self.refuse_idle(self.beta > 0, ("kl_estimator",), "beta 0 leaves the KL divergence out")
        return self

    @model_validator(mode="after")
    def _check_balanced_reward(self) -> "GrpoConfig":
        if self.balance_thinking and not {"adaptive_thinking", "adaptive_consistent"} & set(self.rewards):
            raise ValueError("balance_thinking is for the rewards adaptive_thinking and adaptive_consistent; add one")
        return self

    @model_validator(mode="after")
    def _check_synced_server(self) -> "GrpoConfig":
        if self.weight_sync is not None and self.rollout_server is None:
            raise ValueError("weight_sync is for a server that samples; set rollout_server, or leave it out")
        if self.weight_sync is not None:
            self.weight_sync.check_staleness(self.num_iterations, self.temperature)
        server_keys = ("on_rollout_error", "rollout_retry_minutes")
        self.refuse_idle(self.rollout_server is not None, server_keys, "it is for a rollout_server")
        self.refuse_idle(self.on_rollout_error == "retry", server_keys[1:], "it is for on_rollout_error: retry")
        return self

    @model_validator(mode="after")
    def _check_pause(self) -> "GrpoConfig":
        if self.pause is not None and self.rollout_server is not None:
            raise ValueError("pause needs the policy to sample in this process; leave out pause or rollout_server")
        if self.pause is not None and self.pause.tokens_per_pause >= self.max_new_tokens:
            raise ValueError(
                f"pause.tokens_per_pause {self.pause.tokens_per_pause} leaves no token of max_new_tokens "
                f"{self.max_new_tokens}; lower it"
            )
        return self

    @model_validator(mode="after")
    def _check_server_temperature(self) -> "GrpoConfig":
        synced_steps = self.weight_sync.steps if self.weight_sync else None
        if self.rollout_server is not None and self.temperature != 1 and synced_steps != self.num_iterations:
            raise ValueError(
                f"temperature {self.temperature:g} with rollout_server: servers return log-probabilities at "
                "temperature 1, so the policy's own are used, which needs the server's weights to be the policy's: set "
                f"weight_sync.steps: {self.num_iterations}"
            )
        return self

    @model_validator(mode="after")
    def _check_judge(self) -> "GrpoConfig":
        if ("judge" in self.rewards) != (self.judge is not None):
            raise ValueError("the reward `judge` and the setting `judge: {server: ...}` need each other")
        return self


class DpoConfig(SupervisedConfig):
    """Direct preference optimisation: chosen and rejected replies to one clip are branches of one tree."""

    kind: Literal["dpo"]
    clips_per_step: int = Field(8, gt=0)
    """Clips per optimizer step."""
    questions_per_clip: int = Field(4, gt=0)
    """Largest number of questions about a clip in one step, each with a chosen and a rejected reply."""
    negatives: Literal["rows", "options"] = "rows"
    """Rejected replies: those in the row's `rejected`, or a wrong option in the wording of the right one."""
    beta: float = Field(0.1, gt=0)
    """Weight of the margin."""
    loss_type: Literal["sigmoid", "sigmoid_norm", "robust", "ipo"] = "sigmoid"
    """Loss, by TRL's name."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed share of pairs whose replies are swapped."""

    @model_validator(mode="after")
    def _check_ipo_smoothing(self) -> "DpoConfig":
        if self.loss_type == "ipo" and self.label_smoothing:
            raise ValueError(f"label_smoothing {self.label_smoothing} does nothing in ipo; set it to 0")
        return self
