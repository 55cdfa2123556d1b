"""Newer weights of the model that is served, put into its place: for training that samples here (`train/refresh.py`).

Runs in the model's thread between two rounds. A folder with an adapter (`adapter_config.json`) is added to the weights
that the server was started with, parameters trained in full beside it included; a checkpoint replaces them all. The
module stays the same object, so engine and buffers go on with it. Deviation from vLLM's route of the same name: there
is one version at a time, and it answers under the served name.
"""

from pathlib import Path

import torch

from earwise.engine.local import LocalEngine
from earwise.errors import ModelError
from earwise.models import base, lora_checkpoint
from earwise.models.checkpoint import one_line
from earwise.models.detect import ADAPTER, checkpoint
from earwise.models.encoder_cache import EncoderCache


class Weights:
    """The weights of a served model.

    Args:
        engine: Whose model it is.
        family: Key of `MODELS` that it was loaded by.
    """

    def __init__(self, engine: LocalEngine, family: str) -> None:
        self._engine, self._family = engine, family
        self._revision = engine.model.revision
        self._started: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def load(self, folder: Path) -> str:
        """Put the weights of a folder into the model's place.

        Returns:
            Their revision.
        Raises:
            ModelError: if the folder holds neither an adapter nor a checkpoint of this family. After one of other names
                or shapes the model has the weights that the server was started with.
        """
        if not folder.is_dir():
            raise ModelError(f"{folder}: no such folder on the server's machine; write where both sides see it")
        model = self._engine.model
        if not self._started:  # as much memory again, and only where weights are exchanged at all
            self._started = {name: value.clone() for name, value in model.module.state_dict().items()}
        try:
            if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
                changes = lora_checkpoint.read(folder)
                self._restore()
                lora_checkpoint.merge(model.module, changes, lora_checkpoint.PUBLISHED.get(self._family, ()), folder)
                model.revision = lora_checkpoint.revision(self._revision, folder)
            else:
                self._replace(folder)
        finally:
            self._engine.revision = model.revision
            self._engine.encoder_cache = EncoderCache(model)  # what was heard was heard by other weights
        return model.revision

    def _restore(self) -> None:
        """Back to what the server was started with."""
        for name, value in self._engine.model.module.state_dict().items():
            value.copy_(self._started[name])
        self._engine.model.revision = self._revision

    def _replace(self, folder: Path) -> None:
        model = self._engine.model
        family = checkpoint(folder)[0]
        if _stem(family) != _stem(self._family):
            raise ModelError(f"{folder}: is of the family {family}, {self._family} is served; start another server")
        fresh = base.load(str(folder), device="cpu")
        if fresh.trims != model.trims:
            heard = "only frames that exist" if fresh.trims else "the whole window"
            raise ModelError(f"{folder}: was trained to hear {heard}, the served model was not; serve it by itself")
        try:
            model.module.load_state_dict(fresh.module.state_dict())
        except RuntimeError as error:
            self._restore()
            raise ModelError(f"{folder}: does not fit the served model ({one_line(error)})") from error
        model.revision = fresh.revision


def _stem(family: str) -> str:
    """embedded, embedded-aligned and embedded-blank are one model."""
    return family.partition("-")[0]
