"""Listen once: what the encoder said of a sound is kept, within a memory limit, and given to sampling, reference and
loss alike.

Only for a frozen encoder; a stage that trains the encoder calls `model.listen` itself.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from earwise.models.base import AudioLM
from earwise.types import Waveform


class EncoderCache:
    """Remembers `listen` per waveform, least recently used first out.

    Args:
        model: The model that listens.
        batch: Clips per encoder pass; clips of like length are put together. None: one on a CPU, where what eight clips
            fill falls out of its caches (a fifth slower), eight elsewhere.
        keep_mb: Memory limit of what is kept.
        watch: Opened around every encoder pass (a stopwatch).
    """

    def __init__(
        self, model: AudioLM, *, batch: int | None = None, keep_mb: int = 1024,
        watch: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:  # fmt: skip
        self._model = model
        on_cpu = next(model.module.parameters()).device.type == "cpu" if batch is None else False
        self._batch = batch or (1 if on_cpu else 8)
        self._watch = watch
        self._limit = keep_mb * 2**20
        self._size = 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    @torch.inference_mode(False)  # the engine listens in inference mode, but a connector is trained on what is kept
    @torch.no_grad()
    def encoder_states(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """The encoder's output of each waveform, computed at most once per distinct sound."""
        keys = [hashlib.blake2b(wave.tobytes(), digest_size=16).hexdigest() for wave in waveforms]
        new = {key: wave for key, wave in zip(keys, waveforms, strict=True) if key not in self._kept}
        found = {key: self._kept[key] for key in set(keys) - set(new)}
        order = sorted(new, key=lambda key: len(new[key]))
        for start in range(0, len(order), self._batch):
            some = order[start : start + self._batch]
            with self._watch():
                outputs = self._model.encode_audio([new[key] for key in some])
            for key, tensor in zip(some, outputs, strict=True):
                found[key] = tensor.clone()  # its own memory: a slice would keep the whole batch alive
                self._keep(key, found[key])
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
        return [found[key] for key in keys]

    def _keep(self, key: str, tensor: Tensor) -> None:
        self._kept[key] = tensor
        self._size += tensor.nbytes
        while self._size > self._limit:
            _, dropped = self._kept.popitem(last=False)
            self._size -= dropped.nbytes
