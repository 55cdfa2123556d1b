"""Which precision a CPU computes the products of frozen weights in: float32, bfloat16 where that is faster, or int8.

Processors with AMX or AVX512-BF16 multiply bfloat16 matrices two to six times faster than float32 ones; on others it is
slower. `auto` therefore measures each phase (`models.precision.probe`), once per machine and model size:

- `encoder`: hundreds of rows (a clip) through the encoder's widest layer;
- `prefill`: hundreds of rows (prompts, and whole trees in training) through the decoder's widest layer;
- `decode`: eight rows, which mostly waits for the weights to be read.

`int8` is for answering only, and has to be asked for: it rounds more than `auto` may (99 % equal greedy answers).

`apply` changes a loaded model accordingly; what exactly is rounded is told in `models.precision.bfloat16_products` and
`models.precision.int8_products`. A model that only answers (`for_answers`) holds nothing but the packed weights of its
decoder (`models.precision.packed_linear`). Models that are not float32, or not on a CPU, are left as they are.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from torch import nn

from earwise.errors import ModelError
from earwise.models.base import AudioLM
from earwise.models.cpu_decode.free_memory import release_freed_memory
from earwise.models.precision import bfloat16_products, packed_linear, probe

ComputeDtype = Literal["float32", "bfloat16", "int8"]
COMPUTE_CHOICES = ("float32", "bfloat16", "int8", "auto")
"""Values of `--compute`; those of a recipe's `model.compute` are the same without int8."""
_MARK = "earwise_compute_plan"
PACKED_MARK = "earwise_packed_for_answers"
"""Attribute of a module whose decoder holds packed weights alone."""


@dataclass(frozen=True, slots=True)
class ComputePlan:
    """The precision of each phase; see above.

    Attributes:
        encoder: Precision of the encoder's linear layers.
        prefill: Precision of the decoder's linear layers for many rows: prompts, scoring, training.
        decode: Precision of the decoder's linear layers and output head for few rows.
    """

    encoder: ComputeDtype = "float32"
    prefill: ComputeDtype = "float32"
    decode: ComputeDtype = "float32"

    def __str__(self) -> str:
        phases: dict[str, ComputeDtype] = asdict(self)
        if len(set(phases.values())) == 1:
            return self.encoder
        return ", ".join(f"{phase} {dtype}" for phase, dtype in phases.items())


FLOAT32 = ComputePlan()
BFLOAT16 = ComputePlan("bfloat16", "bfloat16", "bfloat16")
INT8 = ComputePlan("float32", "int8", "int8")
PLANS: Mapping[str, ComputePlan] = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8}
"""Choice -> plan, but for `auto`."""


def set_compute(
    model: AudioLM, choice: str, *, for_answers: bool = False, measure: probe.Probe | None = None
) -> ComputePlan:
    """Choose the precision of a model's products and change the model accordingly, in place.

    Args:
        model: A loaded model.
        choice: One of `COMPUTE_CHOICES`; `auto` measures on this machine, once.
        for_answers: The model only answers: float32 weights that are packed need not be kept.
        measure: Times the products of a phase, for `auto`; None is `probe.measure`.
    Returns:
        What was chosen; `float32` for models on other devices or in other dtypes, which compute in their own.
    Raises:
        ModelError: if the choice is unknown, or `bfloat16` or `int8` is asked for where it cannot act.
    """
    if choice not in COMPUTE_CHOICES:
        raise ModelError(f"compute {choice!r} is none of {', '.join(COMPUTE_CHOICES)}")
    if is_packed(model.module):
        plan = plan_of(model.module)
        if choice == "auto" or PLANS[choice].prefill == plan.prefill:
            return plan
        raise ModelError(
            f"{model.name} is in {plan.prefill}, its float32 weights are gone; load it again for compute {choice}"
        )
    shapes = {part: _widest_layer(model, part) for part in ("encoder", "decoder")}
    if choice in ("bfloat16", "int8") and shapes["decoder"] is None:
        raise ModelError(
            f"compute {choice} is for float32 weights on a CPU, and {model.name} has none; leave compute at float32, "
            "and choose the dtype of the weights instead"
        )
    plan = measured_plan(shapes["encoder"], shapes["decoder"], measure) if choice == "auto" else PLANS[choice]
    apply(model, plan, for_answers=for_answers)
    return plan


def measured_plan(
    encoder: tuple[int, int] | None, decoder: tuple[int, int] | None, measure: probe.Probe | None = None
) -> ComputePlan:
    """What `auto` chooses on this machine for a model whose widest layers have these shapes `(out, in)`; None for a
    part without float32 layers on the CPU."""
    if decoder is None:
        return FLOAT32
    shapes: probe.Shapes = {"encoder": encoder, "prefill": decoder, "decode": decoder}
    return ComputePlan(**probe.faster_precisions(shapes, measure))


def apply(model: AudioLM, plan: ComputePlan, *, for_answers: bool = False) -> None:
    """Change the products of a model's frozen layers to the precisions of a plan; decoding reads it by `plan_of`.

    Packed weights alone are for good: int8, and bfloat16 in a model that only answers, if nothing but whole decoder
    layers reads the weights.

    Args:
        model: A loaded model.
        plan: The precisions.
        for_answers: See `set_compute`.
    """
    bfloat16_products.uninstall(model.module)
    setattr(model.module, _MARK, plan)
    decoder = model.parameter_prefixes["decoder"][:1]
    if plan.encoder == "bfloat16":
        bfloat16_products.install(model.module, model.parameter_prefixes["encoder"])
    if plan.prefill == "int8" or (for_answers and can_pack(plan) and _has_whole_layers(model)):
        packed_linear.install(model.module, decoder, packed_dtype(plan))
        for parameter in model.module.parameters():
            parameter.data = parameter.data.clone()  # one tensor mapped from a weights file keeps all of it in memory
        mark_packed(model.module, plan)
    elif plan.prefill == "bfloat16":
        bfloat16_products.install(model.module, decoder)


def can_pack(plan: ComputePlan) -> bool:
    """Whether one packed copy of the decoder's weights serves all phases of a plan."""
    return plan.prefill == plan.decode != "float32"


def packed_dtype(plan: ComputePlan) -> packed_linear.PackedDtype:
    """The precision of the packed weights of a plan that `can_pack`."""
    return "int8" if plan.prefill == "int8" else "bfloat16"


def mark_packed(module: nn.Module, plan: ComputePlan, encoder: tuple[str, ...] = ()) -> None:
    """Note that a module's decoder was packed for a plan, and holds nothing else.

    Args:
        module: The model.
        plan: The plan.
        encoder: Beginnings of the names of encoder layers whose weights nothing but the layers reads; they are packed
            now, if the plan rounds them.
    """
    setattr(module, _MARK, plan)
    setattr(module, PACKED_MARK, True)
    if encoder and plan.encoder == "bfloat16":
        packed_linear.install(module, encoder, "bfloat16")
    release_freed_memory()


def is_packed(module: nn.Module) -> bool:
    """Whether a module's decoder holds packed weights alone."""
    return bool(getattr(module, PACKED_MARK, False))


def _has_whole_layers(model: AudioLM) -> bool:
    """Whether all linear layers of the decoder are inside layers that are computed as a whole, without LoRA beside."""
    decoder = model.parameter_prefixes["decoder"][:1]
    has_lora = any(hasattr(layer, "lora_A") for layer in model.module.modules())
    return not has_lora and packed_linear.only_supported_layers(model.module, decoder)


def plan_of(module: nn.Module) -> ComputePlan:
    """The plan that `apply` has put into effect; float32 in all phases for any other module."""
    plan: ComputePlan = getattr(module, _MARK, FLOAT32)
    return plan


def _widest_layer(model: AudioLM, part: str) -> tuple[int, int] | None:
    """Shape `(out, in)` of the widest frozen float32 linear layer of a part on the CPU; None if there is none. Of the
    decoder's prefixes only the first counts, as the others are the output head."""
    prefixes = model.parameter_prefixes[part][:1] if part == "decoder" else model.parameter_prefixes[part]
    shapes = [
        (layer.out_features, layer.in_features)
        for name, layer in model.module.named_modules()
        if f"{name}.".startswith(prefixes) and isinstance(layer, nn.Linear) and bfloat16_products.is_suitable(layer)
    ]
    return max(shapes, key=lambda shape: shape[0] * shape[1], default=None)
