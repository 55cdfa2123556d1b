"""Options of SARI's corpus, and the models that write and rate it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from earwise.datasets.difficulty import AttemptSettings
from earwise.datasets.sari import chains
from earwise.datasets.teachers.teacher import Teacher
from earwise.engine.base import Engine
from earwise.engine.remote.openai_http import RequestLimits
from earwise.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SariOptions:
    """Size and make-up of the corpus. The names of the fields are written to `summary.json`."""

    seed: int = 0
    """Seed of the order of the pool, the order of options, and the draws from labels."""
    n_sft: int = 2000
    """Number of examples with chains, for supervised fine-tuning (SARI: 2,000)."""
    n_rl: int = 30000
    """Number of examples without chains, for GRPO (SARI: 30,000)."""
    chains: tuple[str, ...] = chains.CHAIN_STYLES
    """Styles of chains; each gets a manifest of its own with the same examples."""
    questions_per_clip: int = 1
    """Number of questions that the teacher writes for each clip."""
    n_choices: int = 4
    """Number of options of a question."""
    attempts: AttemptSettings = field(default_factory=AttemptSettings)
    """How the policy attempts the pool, which gives its pass rates."""
    keep_unsolved: bool = False
    """Whether to keep examples that no attempt answered (SARI drops them)."""
    split: str | None = "train"
    """Only clips and questions of this split; None takes all."""

    def __post_init__(self) -> None:
        chains.check_chain_styles(self.chains)
        if not self.chains:
            raise ConfigError(f"no kind of chain is named; choose from {', '.join(chains.CHAIN_STYLES)}")
        if min(self.n_sft, self.n_rl) < 0 or self.questions_per_clip < 1 or self.n_choices < 2:
            raise ConfigError(
                f"sizes {self.n_sft} and {self.n_rl} must be 0 or more, questions per clip {self.questions_per_clip} "
                f"1 or more, options {self.n_choices} 2 or more"
            )


@dataclass(frozen=True, slots=True)
class SariModels:
    """The models that build the corpus, and how they are driven."""

    teacher: Teacher
    """Writes questions and chains from captions."""
    captioner: Engine | None = None
    """Audio model that describes clips without a caption; None if there are none, or for a template teacher."""
    policy: Engine | None = None
    """Audio model whose attempts give the pass rates; None measures none and drops nothing."""
    limits: RequestLimits = field(default_factory=RequestLimits)
    """Rate limits and retries of the teacher."""
    batch: int = 16
    """Clips or examples handed to an audio model at a time; changes nothing but speed."""
    retry_failed: bool = False
    """Whether to send requests to the teacher again that failed in an earlier run."""
    notify: Callable[[str], None] = lambda line: None
    """Called with every line about progress."""
