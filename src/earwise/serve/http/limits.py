"""What a request may ask for, and what a client may send. The defaults are for strangers on a small machine.

Every limit is looked at before the work that it bounds: the size of a body while it arrives, the number of its values
before it is parsed, the length of its text before it is tokenised, the number of clips before one is decoded.
"""

from dataclasses import dataclass, field
from pathlib import Path

from earwise.audio import Channel

MB = 2**20
BYTES_PER_TOKEN = 8
"""UTF-8 bytes of text allowed for each token of the longest prompt: twice what ordinary text has, in any language."""
MAX_UPLOADS = 16
"""Bodies that are being received at once, small ones not counted."""
SMALL_BODY_BYTES = 64 * 2**10
"""Bodies of up to this size are not counted."""
HEADER_TIMEOUT_S = 10.0
"""Longest time for the headers of a request, from its first byte or the opening of the connection, in seconds."""
MAX_HEADER_BYTES = 64 * 2**10
"""Largest size of a request's headers."""
MAX_CONNECTIONS = 400
"""Connections at once; further ones get status 503."""


@dataclass(frozen=True, slots=True)
class AudioAccess:
    """Which audio requests may refer to.

    Attributes:
        hosts: Names of hosts whose http(s) addresses may be fetched.
        folder: Folder below which file:// addresses may be read; None allows no files.
        max_bytes: Largest size of one file, and of all fetched files together.
    """

    hosts: tuple[str, ...] = ()
    folder: Path | None = None
    max_bytes: int = 16 * MB


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a request may ask for.

    Attributes:
        api_key: Bearer token that all routes below /v1 and /metrics require; None requires none.
        trusted_hosts: Names by which the server may be addressed, besides addresses and `localhost`; `*` allows all.
        access: Files and addresses that requests may refer to.
        max_tokens: Largest number of tokens of a completion.
        default_tokens: Number of tokens for requests that name no limit.
        max_prompt_tokens: Largest number of tokens of a prompt.
        max_request_mb: Largest memory of a request's keys and values (prompt and all completions), in MiB; None allows
            what a prompt and a completion of the largest size need, and at least 240 MiB.
        max_audio_s: Longest audio of a request, all clips together, in seconds. Each clip is also limited by what the
            model accepts.
        max_messages: Largest number of messages.
        max_clips: Largest number of clips.
        max_body_bytes: Largest body.
        channel: What the channels of a clip become: their `mean`, or the `first`.
        upload_timeout_s: Longest time for a body to arrive, in seconds.
        timeout_s: Longest time from a request's arrival to its end, in seconds.
    """

    api_key: str | None = None
    trusted_hosts: tuple[str, ...] = ()
    access: AudioAccess = field(default_factory=AudioAccess)
    max_tokens: int = 1024
    default_tokens: int = 256
    max_prompt_tokens: int = 4096
    max_request_mb: float | None = None
    max_audio_s: float = 300.0
    max_messages: int = 256
    max_clips: int = 32
    max_body_bytes: int = 16 * MB
    channel: Channel = "mean"
    upload_timeout_s: float = 30.0
    timeout_s: float = 300.0

    @property
    def max_text_bytes(self) -> int:
        """Largest size of all text of a request, in UTF-8."""
        return BYTES_PER_TOKEN * self.max_prompt_tokens
