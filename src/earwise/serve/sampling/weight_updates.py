"""Replaces the served model's weights while the server runs, for training that samples from it (`weight_sync`).

It runs in the model's thread between two batches. A folder with a PEFT adapter (`adapter_config.json`) is applied to
the weights that the server was started with, including parameters that were trained in full; a whole checkpoint
replaces all weights. The module remains the same object, so the engine and its buffers stay valid. Deviation from
vLLM's route of the same name: there is one version at a time, and it answers under the served name.
"""

from pathlib import Path

import torch

from earwise.engine.local import LocalEngine
from earwise.errors import ModelError
from earwise.models import base, lora_checkpoint, registry
from earwise.models.checkpoint import one_line
from earwise.models.detect import PEFT_CONFIG, find_checkpoint
from earwise.models.encoder_cache import EncoderCache
from earwise.models.precision import lora_beside


class WeightUpdater:
    """Loads newer weights into a served model.

    Args:
        engine: The engine of the served model.
        family: Name of the family that the model was loaded as.
    """

    def __init__(self, engine: LocalEngine, family: str) -> None:
        self._engine, self._family = engine, family
        self._revision = engine.model.revision
        self._initial_weights: dict[str, torch.Tensor] = {}
        self._initial_lora = lora_beside.attached(engine.model.module)
        self._initial_own_lora = lora_beside.attached(engine.model.module, own=True)

    @torch.no_grad()
    def load(self, folder: Path) -> str:
        """Load the weights of a folder into the served model.

        Returns:
            Their revision.
        Raises:
            ModelError: if the folder holds neither a PEFT adapter nor a checkpoint of this family. After one with other
                names or shapes, the model has the weights that the server was started with.
        """
        if not folder.is_dir():
            raise ModelError(f"{folder}: no such folder on the server's machine; write where both machines see it")
        model = self._engine.model
        if not self._initial_weights:  # a second copy of the weights, made only where weights are updated at all
            self._initial_weights = {name: value.clone() for name, value in model.module.state_dict().items()}
        try:
            if (folder / PEFT_CONFIG).is_file() and not (folder / "config.json").is_file():
                adapter = lora_checkpoint.read(folder)
                self._restore_initial_weights()
                names = registry.parameter_names(self._family)
                prefixes = model.parameter_prefixes["connector"]
                lora_checkpoint.apply(model.module, adapter, names, folder, float32_prefixes=prefixes)
                model.revision = lora_checkpoint.merged_revision(self._revision, folder)
            else:
                self._load_checkpoint(folder)
        finally:
            self._engine.revision = model.revision
            # cached encoder states belong to the old weights
            self._engine.encoder_cache = EncoderCache(model, max_mb=self._engine.encoder_cache.max_mb)
        return model.revision

    def _restore_initial_weights(self) -> None:
        module = self._engine.model.module
        lora_beside.detach(module, own=True)
        for name, value in module.state_dict().items():
            value.copy_(self._initial_weights[name])
        lora_beside.attach(module, self._initial_lora)
        lora_beside.attach(module, self._initial_own_lora, own=True)
        self._engine.model.revision = self._revision

    def _load_checkpoint(self, folder: Path) -> None:
        """Replace all weights by those of a checkpoint of the same family, which must treat padding in the same way."""
        model = self._engine.model
        family = find_checkpoint(folder)[0]
        if _base_family(family) != _base_family(self._family):
            raise ModelError(
                f"{folder}: holds a model of family {family}, this server serves {self._family}; start another server"
            )
        checkpoint = base.load(str(folder), device="cpu")
        if checkpoint.trims_padding != model.trims_padding:
            scope = "only the frames of the clip" if checkpoint.trims_padding else "the whole window"
            raise ModelError(
                f"{folder}: its encoder computes {scope}, unlike that of the served model; start another server for it"
            )
        try:
            lora_beside.detach(model.module, own=True)
            model.module.load_state_dict(checkpoint.module.state_dict())
            for own in (False, True):
                lora_beside.attach(model.module, lora_beside.attached(checkpoint.module, own=own), own=own)
        except RuntimeError as error:
            self._restore_initial_weights()
            raise ModelError(f"{folder}: does not fit the served model ({one_line(error)})") from error
        model.revision = checkpoint.revision


def _base_family(family: str) -> str:
    """The family without its variant: embedded, embedded-aligned and embedded-blank share an architecture."""
    return family.partition("-")[0]
