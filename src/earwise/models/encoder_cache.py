"""Encoder states of each clip, computed once: kept within a memory limit and shared by sampling, reference and loss.

With a folder, the states are also kept on disk in float16, so that a long training encodes each clip once, in whichever
of its runs and epochs it comes first. Only for a frozen encoder; a stage that trains the encoder calls
`model.encode_audio` itself.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from earwise.files import atomic_write
from earwise.models.base import AudioLM
from earwise.types import Waveform


def encoder_fingerprint(model: AudioLM) -> str:
    """Name of the encoder that a model has: equal for models whose encoder states can be exchanged.

    It is made of the encoder's weights, the shape of the states of one second of sound, and whether clips are padded.
    """
    digest = hashlib.blake2b(digest_size=8)
    prefixes = model.parameter_prefixes["encoder"]
    for name, parameter in sorted(model.module.named_parameters()):
        if name.startswith(prefixes):
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    with torch.no_grad():
        (states,) = model.encode_audio([np.zeros(model.spec.sample_rate, np.float32)])
    return f"{digest.hexdigest()}-{'x'.join(map(str, states.shape))}-{'trimmed' if model.trims_padding else 'padded'}"


class EncoderCache:
    """Stores the result of `encode_audio` per waveform and drops the least recently used first.

    Args:
        model: The model whose encoder is used.
        batch_size: Clips per encoder pass; clips of similar length are encoded together. None: one on a CPU, where the
            activations of eight clips no longer fit into its caches (a fifth slower), eight elsewhere.
        max_mb: Memory limit of the stored states, MiB.
        measure: Called for a context manager around every encoder pass (a stopwatch).
        folder: Folder for the states of this encoder alone; a clip that is not in it is added. States that come from
            the folder and those that go there are rounded to float16, so that both are equal. None: memory only.
    """

    def __init__(
        self, model: AudioLM, *, batch_size: int | None = None, max_mb: int = 1024,
        measure: Callable[[], AbstractContextManager[None]] = nullcontext, folder: Path | None = None,
    ) -> None:  # fmt: skip
        self._model = model
        self._folder = folder
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
        for key in list(new) if self._folder is not None else ():
            if (from_disk := self._read(key)) is not None:
                states[key] = from_disk
                self._store(key, from_disk)
                del new[key]
        by_length = sorted(new, key=lambda key: len(new[key]))
        for start in range(0, len(by_length), self._batch_size):
            batch = by_length[start : start + self._batch_size]
            with self._measure():
                outputs = self._model.encode_audio([new[key] for key in batch])
            for key, output in zip(batch, outputs, strict=True):
                # a slice would keep the memory of the whole batch
                states[key] = output.clone() if self._folder is None else self._write(key, output)
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

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / key[:2] / f"{key}.npy"

    def _read(self, key: str) -> Tensor | None:
        """The states of a clip from the folder; None if it holds none, or a file that cannot be read."""
        try:
            return torch.from_numpy(np.load(self._path(key))).float()
        except (OSError, ValueError, EOFError):
            return None

    def _write(self, key: str, states: Tensor) -> Tensor:
        """Write the states of a clip into the folder, and return them as they will be read."""
        rounded = states.half().cpu()
        with atomic_write(self._path(key), "wb") as file:
            np.save(file, rounded.numpy())
        return rounded.to(states.device).float()
