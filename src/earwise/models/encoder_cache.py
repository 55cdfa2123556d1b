"""Encoder states of each clip, computed once: kept within a memory limit and shared by sampling, reference and loss.

Only for a frozen encoder; a stage that trains the encoder calls `model.encode_audio` itself.
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
    """Stores the result of `encode_audio` per waveform and drops the least recently used first.

    Args:
        model: The model whose encoder is used.
        batch_size: Clips per encoder pass; clips of similar length are encoded together. None: one on a CPU, where the
            activations of eight clips no longer fit into its caches (a fifth slower), eight elsewhere.
        max_mb: Memory limit of the stored states, MiB.
        measure: Called for a context manager around every encoder pass (a stopwatch).
    """

    def __init__(
        self, model: AudioLM, *, batch_size: int | None = None, max_mb: int = 1024,
        measure: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:  # fmt: skip
        self._model = model
        on_cpu = next(model.module.parameters()).device.type == "cpu" if batch_size is None else False
        self._batch_size = batch_size or (1 if on_cpu else 8)
        self._measure = measure
        self.max_mb = max_mb
        self._stored_bytes = 0
        self._stored: OrderedDict[str, Tensor] = OrderedDict()

    # The engine encodes in inference mode, but a connector is trained on the stored states.
    @torch.inference_mode(False)
    @torch.no_grad()
    def encoder_states(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """The encoder states of each waveform, computed at most once per distinct waveform."""
        keys = [hashlib.blake2b(waveform.tobytes(), digest_size=16).hexdigest() for waveform in waveforms]
        new = {key: waveform for key, waveform in zip(keys, waveforms, strict=True) if key not in self._stored}
        states = {key: self._stored[key] for key in set(keys) - set(new)}
        by_length = sorted(new, key=lambda key: len(new[key]))
        for start in range(0, len(by_length), self._batch_size):
            batch = by_length[start : start + self._batch_size]
            with self._measure():
                outputs = self._model.encode_audio([new[key] for key in batch])
            for key, output in zip(batch, outputs, strict=True):
                states[key] = output.clone()  # a slice would keep the memory of the whole batch
                self._store(key, states[key])
        for key in keys:
            if key in self._stored:
                self._stored.move_to_end(key)
        return [states[key] for key in keys]

    def _store(self, key: str, states: Tensor) -> None:
        self._stored[key] = states
        self._stored_bytes += states.nbytes
        while self._stored_bytes > self.max_mb * 2**20:
            _, dropped = self._stored.popitem(last=False)
            self._stored_bytes -= dropped.nbytes
