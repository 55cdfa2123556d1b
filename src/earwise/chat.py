"""A conversation of several turns about sounds; `AudioModel.chat` begins one, `earwise chat` prints it."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from earwise.audio import Sound
from earwise.engine.base import Prompt, SamplingParams
from earwise.types import Audio, Part, Text, Turn, Waveform

if TYPE_CHECKING:  # importing torch waits until `load` has begun to read the weights
    from earwise.engine.local import LocalEngine
    from earwise.engine.remote.client import RemoteEngine


class Chat:
    """A conversation of several turns, in which sounds may be attached to any question.

    Args:
        engine: The engine that runs the model.
        read: Reads a clip at the engine's sample rate.
        sampling_params: Length limit and sampling of every answer.
    """

    def __init__(
        self,
        engine: "LocalEngine | RemoteEngine",
        read: Callable[[Sound], Waveform],
        sampling_params: SamplingParams,
    ) -> None:
        self._engine, self._read, self._sampling_params = engine, read, sampling_params
        self.reset()

    def reset(self) -> None:
        """Forget the conversation and its sounds."""
        self._turns: list[Turn] = []
        self._waveforms: list[Waveform] = []
        self._attached: list[Part] = []

    def attach(self, sound: Sound) -> float:
        """Attach a clip to the next question; returns its length in seconds."""
        waveform = self._read(sound)
        self._waveforms.append(waveform)
        self._attached.append(Audio(f"clip {len(self._waveforms)}"))
        return len(waveform) / self._engine.sample_rate

    def stream(self, message: str) -> Iterator[str]:
        """Send a message, and yield the reply in parts as the model writes it."""
        user_turn = Turn("user", (*self._attached, Text(message)))
        number = sum(turn.role == "user" for turn in self._turns)
        prompt = Prompt((*self._turns, user_turn), tuple(self._waveforms), f"chat {number}")
        reply = ""
        for part in self._engine.stream(prompt, self._sampling_params):
            reply += part
            yield part
        self._turns += [user_turn, Turn("assistant", (Text(reply),))]
        self._attached = []

    def send(self, message: str) -> str:
        """Send a message, and return the whole reply."""
        return "".join(self.stream(message))
