"""How much memory a model needs: to answer, and to be trained as a recipe says. Arithmetic on `Sizes`, no weights.

The one planner: `earwise models`, `earwise train --plan` and `earwise doctor` ask it. What autograd keeps for a token
was read off transformers' decoder layers and checked tensor by tensor against a training step of the embedded model
(float32 and bfloat16, LoRA and full; `docs/models.md` has the figures). No torch.

Left out: attention masks of dense attention (a number per pair of tokens of a tree and layer, on devices without
FlexAttention), rotary tables, and what the allocator holds beside (up to two fifths more on a CPU).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from earwise.config.stages import DpoStage, GrpoStage, Stage, TrainableConfig
from earwise.models.memory.published_sizes import LARGEST_PACKED_BYTES, Decoder, Sizes

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LIBRARIES = 0.5e9  # torch and transformers, imported
LOSS_CHUNK = 512  # positions whose scores are alive at once (`forest.target_logprobs`)
ANSWERED = 4  # of so many packed tokens, one predicts something wanted
TRUNK = 100  # tokens of a prompt beside its sound
TOLD_CLIP_S = 10.0  # length of a clip, where only the recipe is known
CLIPS = 8  # heard in one encoder pass (`models/ears.py`)
_ENCODER_LORA = {"q_proj", "k_proj", "v_proj"}  # of LoRA's usual targets, those that encoders have too


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by what holds them."""

    lasting: Mapping[str, float]
    """All the time: weights, gradients, optimizer, reference, libraries."""
    phases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What a phase adds while it lasts; one phase at a time."""

    @property
    def peak(self) -> float:
        """Bytes at the worst moment."""
        return sum(self.lasting.values()) + max((sum(parts.values()) for parts in self.phases.values()), default=0.0)

    @property
    def parts(self) -> dict[str, float]:
        """Bytes at the worst moment, by what holds them; they add up to `peak`."""
        worst = max(self.phases.values(), key=lambda parts: sum(parts.values()), default={})
        return {name: size for name, size in {**self.lasting, **worst}.items() if size}

    @property
    def dominates(self) -> str:
        """What holds most."""
        return max(self.parts, key=lambda name: self.parts[name])


def answering(
    sizes: Sizes,
    *,
    dtype: str | None = None,
    clip_s: float = 30.0,
    prompts: int = 1,
    samples: int = 1,
    tokens: int = 64,
    cpu: bool = True,
) -> Memory:
    """Memory to answer prompts together.

    Args:
        sizes: Of the model.
        dtype: Of the weights; None as published.
        clip_s: Length of each clip, seconds.
        prompts: Asked together, each about another clip.
        samples: Answers of each.
        tokens: Of an answer.
        cpu: Whether it runs on a CPU.
    """
    size = BYTES[dtype or sizes.dtype]
    lasting = {"weights": float(sizes.parameters * size), "libraries": LIBRARIES}
    lasting |= {"packed weights": _packed(sizes, size)} if cpu else {}
    return Memory(lasting, {"answering": _rollout(sizes, size, clip_s, prompts, samples, tokens)})


def training(
    sizes: Sizes, trainable: TrainableConfig, *, dtype: str | None = None, pack_tokens: int = 1024,
    checkpoint: bool = False, reference: bool = False, rollout: tuple[int, int, int] | None = None,
    clip_s: float = TOLD_CLIP_S, cpu: bool = True,
) -> Memory:  # fmt: skip
    """Memory of a training step with AdamW.

    Args:
        sizes: Of the model.
        trainable: What is trained, and how.
        dtype: Of the weights; None as published. LoRA and the connector are trained in float32 whatever it is.
        pack_tokens: Of one forward pass.
        checkpoint: Whether activations are computed again in the backward pass.
        reference: Whether a copy of what is trained directly is kept (GRPO).
        rollout: Prompts, samples of each and tokens of an answer that are drawn together; None draws none.
        clip_s: Length of a clip, seconds.
        cpu: Whether it runs on a CPU.
    """
    size = BYTES[dtype or sizes.dtype]
    full = trained(sizes, trainable, lora=False)
    connector_extra = sizes.connector * (4 - size) if trainable.connector == "full" else 0
    direct = {"encoder": full["encoder"] * size, "connector": full["connector"] * 4, "decoder": full["decoder"] * size}
    lora = 4 * (sum(trained(sizes, trainable).values()) - sum(full.values()))
    updated = sum(direct.values()) + lora
    lasting = {
        "weights": sizes.parameters * size + connector_extra + lora,
        "gradients": updated,
        "optimizer": 2 * updated,
        "reference": sum(direct.values()) if reference else 0.0,
        "libraries": LIBRARIES,
    }
    wanted = min(LOSS_CHUNK, max(1, pack_tokens // ANSWERED))
    update = {
        "activations": pack_tokens * _kept(sizes.says, size, trainable, checkpoint),
        "scores": wanted * sizes.says.vocab * (3 * 4 + (size if size < 4 else 0)),
    }
    if trainable.encoder != "frozen":
        states = CLIPS * sizes.heard_s(clip_s) * sizes.hears.states_per_s
        update["encoder activations"] = (
            states * sizes.hears.layers * (10 * sizes.hears.width + 2 * sizes.hears.ffn) * size
        )
    phases = {"update": update}
    if rollout is not None:
        phases["rollout"] = _rollout(sizes, size, clip_s, *rollout)
        lasting |= {"packed weights": _packed(sizes, size)} if cpu else {}
    return Memory(lasting, phases)


def of_stage(sizes: Sizes, stage: Stage, *, dtype: str | None = None, cpu: bool = True) -> Memory:
    """Memory of a stage of a recipe."""
    drawn = (stage.prompts_per_step, stage.group_size, stage.max_new_tokens) if isinstance(stage, GrpoStage) else None
    return training(
        sizes,
        stage.trainable,
        dtype=dtype,
        pack_tokens=stage.pack_tokens,
        checkpoint=stage.gradient_checkpointing,
        reference=isinstance(stage, GrpoStage | DpoStage),
        rollout=drawn,
        cpu=cpu,
    )


def trained(sizes: Sizes, trainable: TrainableConfig, *, lora: bool = True) -> dict[str, int]:
    """Parameters that are trained, by group.

    Args:
        sizes: Of the model.
        trainable: What is trained, and how.
        lora: False leaves LoRA's matrices out.
    """
    rank, targets = trainable.lora.r, trainable.lora.target_modules
    decoder = sizes.says.layers * rank * sum(sum(sizes.says.linears.get(name, (0, 0))) for name in targets)
    encoder = sizes.hears.layers * rank * 2 * sizes.hears.width * len(_ENCODER_LORA.intersection(targets))
    return {
        "encoder": {"full": sizes.encoder, "lora": encoder if lora else 0, "frozen": 0}[trainable.encoder],
        "connector": sizes.connector if trainable.connector == "full" else 0,
        "decoder": {"full": sizes.decoder, "lora": decoder if lora else 0, "frozen": 0}[trainable.decoder],
    }


def _kept(shape: Decoder, size: int, trainable: TrainableConfig, checkpoint: bool) -> float:
    """Bytes that autograd keeps for one packed token, all layers.

    The last norm keeps its input. A layer keeps: the residual before each of its two norms (float32), queries, keys,
    values and the output of attention, gate, up and the activated gate. Full training adds the input of every linear
    layer, and the normed states for the norms' weights; LoRA adds the input of every adapted layer (one copy in float32
    for each where the weights are half precision, since LoRA is trained in float32) and its own narrow one.
    """
    width, inner = shape.width, shape.heads * shape.head_dim
    layer = 4.0 * 2 * width + size * (3 * shape.ffn + 2 * inner + 2 * shape.kv_heads * shape.head_dim)
    if trainable.decoder == "full":
        layer += size * (4 * width + inner + shape.ffn)
    if trainable.decoder == "lora":
        adapted = {name: shape.linears[name][0] for name in trainable.lora.target_modules if name in shape.linears}
        shared = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
        copies = adapted if size < 4 else {shared.get(name, name): width for name, width in adapted.items()}
        layer += 4 * (sum(copies.values()) + trainable.lora.r * len(adapted))
    return 4 * width + (shape.layers * size * width + layer if checkpoint else shape.layers * layer)


def _packed(sizes: Sizes, size: int) -> float:
    """A second copy of a decoder that is packed for decoding, kept while its weights do not change."""
    return float(sizes.decoder * size) if size == 4 and sizes.decoder * size <= LARGEST_PACKED_BYTES else 0.0


def _rollout(sizes: Sizes, size: int, clip_s: float, prompts: int, samples: int, tokens: int) -> dict[str, float]:
    """Keys and values of all trees, and the widest moment of hearing or reading."""
    heard_s = sizes.heard_s(clip_s)
    trunk = round(heard_s * sizes.tokens_per_s) + TRUNK
    says, hears = sizes.says, sizes.hears
    cache = 2 * says.layers * says.kv_heads * says.head_dim * size * prompts * (trunk + samples * tokens)
    reading = prompts * trunk * size * (2 * says.ffn + 4 * says.width)
    hearing = min(prompts, CLIPS) * heard_s * hears.states_per_s * size * (2 * hears.ffn + 4 * hears.width)
    scores = 4 * 3 * prompts * samples * says.vocab
    return {"keys and values": float(cache), "hearing and reading": max(reading, hearing) + scores}


def free_memory(device: str = "cpu") -> float | None:
    """Bytes that a program can have: of a CUDA device, or of the machine; None where its kernel does not say."""
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024.0
    except (OSError, StopIteration, ValueError):
        return None
