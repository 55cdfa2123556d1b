"""What a training stage keeps in memory beside the weights and one forward pass; input of the memory planner. No torch.

The classes in `training/stages/` describe themselves with this dataclass (`memory`), and `models/memory` turns it into
bytes.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RolloutSize:
    """Completions that are sampled together by the trained model.

    Attributes:
        prompts: Number of prompts.
        group_size: Completions per prompt.
        max_new_tokens: Longest completion, in tokens.
    """

    prompts: int
    group_size: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class StageMemory:
    """What a stage keeps in memory beside the weights and one forward pass.

    Attributes:
        keeps_reference: Whether a copy of the fully trained parameters is kept as the frozen reference.
        rollout: The completions of a training step; None if it samples none.
        decodes_in_batches: Whether the decoder runs while the batches of a step are made (sampling, reference,
            measurements). Under FSDP2 every process then holds all layers for that time.
        teacher_bytes: Bytes of another model that is held beside the policy and frozen.
        moment_bytes: Bytes of the optimizer's state for one trained parameter.
        clips: Largest number of clips that one process uses in a step; None if it is not known.
    """

    keeps_reference: bool = False
    rollout: RolloutSize | None = None
    decodes_in_batches: bool = False
    clips: int | None = None
    teacher_bytes: float = 0.0
    moment_bytes: float = 8.0
