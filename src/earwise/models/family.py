"""What earwise knows of a model family without loading it. No torch.

The families stand in `models/registry.py`, one row each. Everything that needs to know a family by name reads that row:
loading, recognising a folder, `earwise models`, memory plans, and the parameter names of LoRA exports.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from earwise.models.memory.sizes import ModelSizes

NamePairs = tuple[tuple[str, str], ...]
"""Beginnings of parameter names: as in the family's module here, and as in published checkpoints."""

DEFAULT_LORA_EXCLUDED = ("lm_head",)
"""`lora_excluded` of most families, and of a user's own model."""


@dataclass(frozen=True, slots=True)
class OfficialFormat:
    """The single file that a family's own released code loads.

    Attributes:
        file_name: Name of the file in an exported folder.
        writer: `module:function` that writes it; called with the model and the path.
    """

    file_name: str
    writer: str


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """Declaration of a model family.

    Attributes:
        name: What `--model` and `model.name` of a recipe call it.
        summary: One line for `earwise models`.
        loader: `module:function` that loads it. The function takes `weights` (a folder or None) and, as keywords,
            `device` and those of `dtype`, `trim`, `connector`, `decoder_init` and `seed` that it knows.
        model_types: `model_type` of a checkpoint's config.json -> the part of the checkpoint that is read. A part
            called `thinker` has its config under `thinker_config` and its tensors under `thinker.`; "" reads the whole.
        hub: Published checkpoint that is downloaded if no weights are given, as `name` or `name@revision`; "" if there
            is none to download.
        sizes: Published models, smallest first.
        build_empty: `module:function` from the content of config.json to an `EmptyModel`, to count the parameters of
            checkpoints that are not in `sizes`. "" if every checkpoint has the size of the published one.
        parameter_names: How parameter names begin here and in published checkpoints. Pairs are tried in order; the
            first that fits is used, later ones are for reading other layouts. () if the names are the same.
        lora_in_checkpoint: True if a published checkpoint contains a LoRA beside its weights, which the loader merges.
        lora_excluded: Last parts of the names of linear layers that `target_modules: all-linear` leaves out: the output
            head, and layers whose weight the model reads past the layer's forward.
        official: The format of the family's own released code, if it has one of its own.
        variant_of: Name of the family that this is another starting point of, with the same architecture; "" if none.
    """

    name: str
    summary: str
    loader: str
    model_types: Mapping[str, str] = field(default_factory=dict)
    hub: str = ""
    sizes: tuple[ModelSizes, ...] = ()
    build_empty: str = ""
    parameter_names: NamePairs = ()
    lora_in_checkpoint: bool = False
    lora_excluded: tuple[str, ...] = DEFAULT_LORA_EXCLUDED
    official: OfficialFormat | None = None
    variant_of: str = ""

    @property
    def default_sizes(self) -> ModelSizes | None:
        """The published model that is loaded if no weights are given; None if no size is declared."""
        published = self.hub.partition("@")[0]
        return next((sizes for sizes in self.sizes if sizes.weights == published), next(iter(self.sizes), None))

    @property
    def lora_target_modules(self) -> tuple[str, ...]:
        """Names of the decoder's linear layers that LoRA can be added to; () if no size is declared."""
        return self.sizes[0].decoder_shape.lora_target_modules if self.sizes else ()
