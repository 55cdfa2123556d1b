"""How much memory a model needs, to answer and to be trained: arithmetic on `ModelSizes`, without weights.

Used by `earwise models`, `earwise train --plan` (through `plan.py`) and `earwise doctor`. What autograd keeps per token
was read off transformers' decoder layers and checked tensor by tensor against a training step of the embedded model
(float32 and bfloat16, LoRA and full; `docs/reference/models.md` has the figures). No torch.

Not counted: attention masks of dense attention (one number per pair of tokens of a tree and layer, on devices without
FlexAttention), rotary tables, and the allocator's overhead (up to two fifths more on a CPU).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from earwise.config.stages import ALL_LINEAR, TrainableConfig
from earwise.models.memory.sizes import LARGEST_PREPACKED_BYTES, DecoderShape, EncoderShape, ModelSizes
from earwise.models.memory.stage_memory import RolloutSize, StageMemory

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number, by dtype."""
PACKED_BYTES = {"bfloat16": 2.0, "int8": 1.0}
"""Bytes of a float32 number that is packed for products of lower precision (`compute`)."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in bitsandbytes' nf4: half a byte, a scale of one byte for 64, and a scale of those for 256."""
LIBRARY_BYTES = 0.5e9
"""torch and transformers, imported."""
LOSS_CHUNK_TOKENS = 512
"""Positions whose scores over the vocabulary exist at the same time (`forest.target_logprobs`)."""
TOKENS_PER_TARGET = 4
"""Packed tokens per token that is predicted for the loss."""
PROMPT_TEXT_TOKENS = 100
"""Text tokens of a prompt."""
ASSUMED_CLIP_S = 10.0
"""Length of a clip if only the recipe is known, seconds."""
CLIPS_PER_PASS = 8
"""Clips of one encoder pass (`encoder_cache.py`)."""
ONE_ANSWER = RolloutSize(prompts=1, group_size=1, max_new_tokens=64)
PLAIN_STAGE = StageMemory()
"""A stage without reference and rollouts."""
_ENCODER_TARGET_MODULES = {"q_proj", "k_proj", "v_proj"}
"""Those of LoRA's usual target modules that encoders have too."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by what they hold.

    Attributes:
        permanent: What is held all the time: weights, gradients, optimizer, reference, libraries.
        phases: What each phase adds while it lasts; phases follow one another.
    """

    permanent: Mapping[str, float]
    phases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def peak(self) -> float:
        """Bytes at the largest moment."""
        largest_phase = max((sum(parts.values()) for parts in self.phases.values()), default=0.0)
        return sum(self.permanent.values()) + largest_phase

    @property
    def parts(self) -> dict[str, float]:
        """Bytes at the largest moment by what they hold; they add up to `peak`."""
        largest_phase = max(self.phases.values(), key=lambda parts: sum(parts.values()), default={})
        return {name: size for name, size in {**self.permanent, **largest_phase}.items() if size}

    @property
    def largest_part(self) -> str:
        """Name of the largest of `parts`."""
        return max(self.parts, key=lambda name: self.parts[name])


def answering_memory(
    sizes: ModelSizes,
    *,
    dtype: str | None = None,
    clip_s: float = 30.0,
    rollout: RolloutSize = ONE_ANSWER,
    cpu: bool = True,
    compute: str = "float32",
) -> MemoryEstimate:
    """Memory to answer prompts in one batch.

    Args:
        sizes: Sizes of the model.
        dtype: Dtype of the weights; None is the published one.
        clip_s: Length of each prompt's clip, seconds.
        rollout: Number of prompts, answers per prompt and tokens per answer.
        cpu: Whether the model runs on a CPU.
        compute: Precision of products with float32 weights on a CPU, see `models.precision.compute`; `auto` counts as
            float32, which takes the most. In bfloat16 and int8 the layers of the decoder are packed alone.
    """
    number_bytes = BYTES[dtype or sizes.dtype]
    permanent = {"weights": float(sizes.parameters * number_bytes), "libraries": LIBRARY_BYTES}
    if cpu and number_bytes == 4 and compute in PACKED_BYTES:
        shape, packed = sizes.decoder_shape, PACKED_BYTES[compute]
        permanent["weights"] += shape.parameters_in_layers * (packed - 4)
        permanent["packed weights"] = packed * shape.vocabulary * shape.width  # the head, beside the embeddings
    elif cpu:
        permanent["packed weights"] = _prepacked_bytes(sizes, number_bytes)
    return MemoryEstimate(permanent, {"answering": _rollout_bytes(sizes, number_bytes, clip_s, rollout)})


def training_memory(
    sizes: ModelSizes, trainable: TrainableConfig, stage: StageMemory = PLAIN_STAGE, *, dtype: str | None = None,
    pack_tokens: int = 1024, gradient_checkpointing: bool = False, clip_s: float = ASSUMED_CLIP_S, cpu: bool = True,
    compute: str = "float32",
) -> MemoryEstimate:  # fmt: skip
    """Memory of a training step with AdamW.

    Args:
        sizes: Sizes of the model.
        trainable: Which parts are trained, and how.
        stage: The stage's reference and rollouts.
        dtype: Dtype of the weights; None is the published one. LoRA and the connector are trained in float32 in any
            case.
        pack_tokens: Tokens of one forward pass.
        gradient_checkpointing: Whether the backward pass recomputes activations.
        clip_s: Length of a clip, seconds.
        cpu: Whether the model runs on a CPU.
        compute: Precision of products with frozen float32 weights on a CPU; `auto` counts as bfloat16, whose copies
            come on top of the weights.
    """
    number_bytes = BYTES[dtype or sizes.dtype]
    rounds = cpu and number_bytes == 4 and compute != "float32"
    full = trained_parameters(sizes, trainable, lora=False)
    connector_extra = sizes.connector * (4 - number_bytes) if trainable.connector == "full" else 0
    in_model_dtype = full["encoder"] + full["decoder"]  # trained in full, computed with in the model's dtype
    lora_bytes = 4 * (sum(trained_parameters(sizes, trainable).values()) - sum(full.values()))
    updated = in_model_dtype + full["connector"] + lora_bytes // 4
    permanent = {
        "weights": weight_bytes(sizes, number_bytes) + connector_extra + lora_bytes,
        "masters": 4.0 * in_model_dtype if number_bytes < 4 else 0.0,
        "gradients": 4.0 * updated,
        "optimizer": stage.moment_bytes * updated,
        "reference": in_model_dtype * number_bytes + 4.0 * full["connector"] if stage.keeps_reference else 0.0,
        "teacher": stage.teacher_bytes,
        "bfloat16 copies": _copied_bytes(sizes, trainable) if rounds else 0.0,
        "libraries": LIBRARY_BYTES,
    }
    encoder, decoder = sizes.encoder_shape, sizes.decoder_shape
    targets = min(LOSS_CHUNK_TOKENS, max(1, pack_tokens // TOKENS_PER_TARGET))
    update = {
        "activations": pack_tokens * _activation_bytes(decoder, number_bytes, trainable, gradient_checkpointing),
        "scores": targets * decoder.vocabulary * (3 * 4 + (number_bytes if number_bytes < 4 else 0)),
    }
    if trainable.decoder == "full" and number_bytes < 4:  # of the largest parameter, on its way to the master
        update["gradient in transit"] = float(number_bytes * decoder.vocabulary * decoder.width)
    if trainable.encoder != "frozen":
        states = _clips_of_a_pack(sizes, stage, pack_tokens, clip_s) * sizes.encoded_s(clip_s) * encoder.states_per_s
        lora = trainable.encoder == "lora"
        update["encoder activations"] = states * _encoder_bytes(encoder, number_bytes, gradient_checkpointing, lora)
    phases = {"update": update}
    if sizes.quantization is not None:  # whole weights are loaded first
        unquantized = float(sizes.parameters * number_bytes) - weight_bytes(sizes, number_bytes)
        not_yet = permanent["gradients"] + permanent["optimizer"] + permanent["reference"]
        phases["loading"] = {"weights before quantization": max(0.0, unquantized - not_yet)}
    if stage.rollout is not None:
        phases["rollout"] = _rollout_bytes(sizes, number_bytes, clip_s, stage.rollout)
        packed = _prepacked_bytes(sizes, number_bytes) / (2 if rounds else 1)
        permanent |= {"packed weights": packed} if cpu else {}
    return MemoryEstimate(permanent, phases)


def trained_parameters(sizes: ModelSizes, trainable: TrainableConfig, *, lora: bool = True) -> dict[str, int]:
    """Number of trained parameters of `encoder`, `connector` and `decoder`.

    Args:
        sizes: Sizes of the model.
        trainable: Which parts are trained, and how.
        lora: Whether LoRA's matrices count.
    """
    rank, target_modules = trainable.lora.r, _target_names(sizes.decoder_shape, trainable)
    encoder, decoder = sizes.encoder_shape, sizes.decoder_shape
    linear_layers = decoder.linear_layers
    decoder_lora = decoder.layers * rank * sum(sum(linear_layers.get(name, (0, 0))) for name in target_modules)
    encoder_lora = encoder.layers * rank * 2 * encoder.width * len(_ENCODER_TARGET_MODULES.intersection(target_modules))
    return {
        "encoder": {"full": sizes.encoder, "lora": encoder_lora if lora else 0, "frozen": 0}[trainable.encoder],
        "connector": sizes.connector if trainable.connector == "full" else 0,
        "decoder": {"full": sizes.decoder, "lora": decoder_lora if lora else 0, "frozen": 0}[trainable.decoder],
    }


def weight_bytes(sizes: ModelSizes, number_bytes: int) -> float:
    """Bytes of all weights; the linear layers of a decoder in 4 bits take `NF4_BYTES` each."""
    if sizes.quantization is None:
        return float(sizes.parameters * number_bytes)
    in_layers = sizes.decoder_shape.parameters_in_layers
    return in_layers * NF4_BYTES + (sizes.parameters - in_layers) * float(number_bytes)


def _copied_bytes(sizes: ModelSizes, trainable: TrainableConfig) -> float:
    """Bytes of the bfloat16 copies of frozen weights: the encoder's, for the forward pass alone, and two of the
    decoder's layers, one for each direction. Layers with LoRA have frozen weights too."""
    decoder = 0.0 if trainable.decoder == "full" else 4.0 * sizes.decoder_shape.parameters_in_layers
    return decoder + (0.0 if trainable.encoder == "full" else 2.0 * sizes.encoder)


def _clips_of_a_pack(sizes: ModelSizes, stage: StageMemory, pack_tokens: int, clip_s: float) -> int:
    """Largest number of clips in one forward pass: as many as fit into its tokens with a short prompt each, and not
    more than the step has."""
    clip_tokens = round(sizes.encoded_s(clip_s) * sizes.audio_tokens_per_s) + PROMPT_TEXT_TOKENS
    clips = max(1, pack_tokens // clip_tokens)
    return clips if stage.clips is None else min(clips, stage.clips)


def _encoder_bytes(shape: EncoderShape, number_bytes: int, gradient_checkpointing: bool, lora: bool) -> float:
    """Bytes that autograd keeps for one state of a trained encoder, in all layers.

    A layer keeps the inputs of its two norms, of its linear layers, queries, keys and values, and the feed-forward part
    before and after its activation. LoRA in half precision keeps a float32 copy of each linear layer's input. The
    convolutions in front compute twice as many states, before and after two activations.
    """
    layer = number_bytes * (8.0 * shape.width + 2 * shape.ffn)
    if lora and number_bytes < 4:
        layer += 4 * (5 * shape.width + shape.ffn)
    front = number_bytes * 8 * shape.width
    if gradient_checkpointing:
        return front + shape.layers * number_bytes * shape.width + layer
    return front + shape.layers * layer


def _target_names(shape: DecoderShape, trainable: TrainableConfig) -> tuple[str, ...]:
    """Last parts of the names of the layers that get LoRA."""
    targets = trainable.lora.target_modules
    names = shape.lora_target_modules if targets == ALL_LINEAR else targets
    if isinstance(names, str):
        names = tuple(name for name in shape.lora_target_modules if re.search(rf"\b{name}\b|\.\*$", names))
    return tuple(name for name in names if name not in trainable.lora.exclude_modules)


def _activation_bytes(
    shape: DecoderShape, number_bytes: int, trainable: TrainableConfig, gradient_checkpointing: bool
) -> float:
    """Bytes that autograd keeps for one packed token, in all layers.

    The last norm keeps its input. A layer keeps: the residual before each of its two norms (float32), queries, keys,
    values and the output of attention, gate, up and the activated gate. Full training adds the input of every linear
    layer, and the normed states for the norms' weights; LoRA adds the input of every adapted layer (one float32 copy
    each where the weights are half precision, since LoRA is trained in float32) and its own low-rank state.
    """
    attention_width = shape.heads * shape.head_dim
    key_value_width = shape.kv_heads * shape.head_dim
    layer = 4.0 * 2 * shape.width + number_bytes * (3 * shape.ffn + 2 * attention_width + 2 * key_value_width)
    if trainable.decoder == "full":
        layer += number_bytes * (4 * shape.width + attention_width + shape.ffn)
    if trainable.decoder == "lora":
        linear_layers = shape.linear_layers
        target_modules = _target_names(shape, trainable)
        inputs = {name: linear_layers[name][0] for name in target_modules if name in linear_layers}
        same_input = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
        # In float32 the layers with the same input keep it once.
        distinct = {same_input.get(name, name): width for name, width in inputs.items()}
        copies = distinct if number_bytes == 4 else inputs
        layer += 4 * (sum(copies.values()) + trainable.lora.r * len(inputs))
    if gradient_checkpointing:
        return 4 * shape.width + shape.layers * number_bytes * shape.width + layer
    return 4 * shape.width + shape.layers * layer


def _prepacked_bytes(sizes: ModelSizes, number_bytes: int) -> float:
    """Bytes of the second copy of a decoder that is packed for decoding, kept while its weights do not change."""
    decoder_bytes = sizes.decoder * number_bytes
    return float(decoder_bytes) if number_bytes == 4 and decoder_bytes <= LARGEST_PREPACKED_BYTES else 0.0


def _rollout_bytes(sizes: ModelSizes, number_bytes: int, clip_s: float, rollout: RolloutSize) -> dict[str, float]:
    """Bytes of the keys and values of all prompts, and of the largest moment of encoding or prefilling."""
    encoder, decoder = sizes.encoder_shape, sizes.decoder_shape
    prompts, encoded_s = rollout.prompts, sizes.encoded_s(clip_s)
    prompt_tokens = round(encoded_s * sizes.audio_tokens_per_s) + PROMPT_TEXT_TOKENS
    tokens = prompts * (prompt_tokens + rollout.group_size * rollout.max_new_tokens)
    cache = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * number_bytes * tokens
    prefill = prompts * prompt_tokens * number_bytes * (2 * decoder.ffn + 4 * decoder.width)
    states = min(prompts, CLIPS_PER_PASS) * encoded_s * encoder.states_per_s
    encoding = states * number_bytes * (2 * encoder.ffn + 4 * encoder.width)
    scores = 4 * 3 * prompts * rollout.group_size * decoder.vocabulary
    return {"keys and values": float(cache), "hearing and reading": max(prefill, encoding) + scores}


def free_memory(device: str = "cpu") -> float | None:
    """Free bytes of a CUDA device or of the machine; None if the operating system does not report them."""
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024.0
    except (OSError, StopIteration, ValueError):
        return None
