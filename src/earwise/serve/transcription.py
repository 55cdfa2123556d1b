"""Requests of `/v1/audio/transcriptions`: Whisper base transcribes speech beside the served model (`--transcribe`).

The language is taken from the request and never detected; without one it is English. The format is OpenAI's
transcription API, with the response formats `json` and `text`. The size of the form and the time that it takes to
arrive are bounded by `access_middleware.py`; the file is decoded in a thread beside the event loop.
"""

from dataclasses import dataclass

from anyio import CapacityLimiter, to_thread
from starlette.datastructures import UploadFile
from starlette.requests import Request

from earwise.audio import decode_bytes
from earwise.datasets.xs_cot.speech_recognition import SAMPLE_RATE
from earwise.models.parts.whisper_asr import WINDOW_S
from earwise.serve.audio_inputs import SEND_SHORTER
from earwise.serve.errors import ApiError
from earwise.types import Waveform

SUPPORTED_FIELDS = ("file", "model", "language", "response_format")
DEFAULT_ONLY_FIELDS = ("temperature", "timestamp_granularities[]", "prompt", "stream")
"""Fields that are accepted only with the value that changes nothing."""
FORMATS = ("json", "text")
MAX_FIELDS = 16
MAX_FIELD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    """A parsed transcription request.

    Attributes:
        waveform: The audio, at the recogniser's 16 kHz.
        language: Language code of the speech.
        response_format: One of `FORMATS`.
    """

    waveform: Waveform
    language: str
    response_format: str


async def parse_form(request: Request, limiter: CapacityLimiter) -> TranscriptionRequest:
    """Parse the multipart form of a transcription request.

    Args:
        request: The request.
        limiter: Bounds the number of files that are decoded at once.
    Raises:
        ApiError: if the body is not such a form, has no file, or asks for something unsupported.
        AudioError: if the file is not audio, or is longer than the recogniser's window.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise ApiError("the content-type must be multipart/form-data", 415)
    async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
        file, fields = form.get("file"), {name: str(value) for name, value in form.items() if name != "file"}
        if not isinstance(file, UploadFile):
            raise ApiError("file: an audio file is required", param="file")
        data, name = await file.read(), file.filename or "file"
    for field, value in fields.items():
        is_default = field in DEFAULT_ONLY_FIELDS and value in ("", "0", "0.0", "segment", "false")
        if field not in SUPPORTED_FIELDS and not is_default:
            raise ApiError(f"{field[:40]}: {value[:40]!r} is not supported; leave it out", param=field[:40])
    response_format = fields.get("response_format") or "json"
    if response_format not in FORMATS:
        raise ApiError(
            f"response_format {response_format[:40]!r} is none of {', '.join(FORMATS)}", param="response_format"
        )
    waveform = await to_thread.run_sync(
        lambda: decode_bytes(data, name[:80], SAMPLE_RATE, max_s=WINDOW_S, long_audio_remedy=SEND_SHORTER),
        limiter=limiter,
    )
    return TranscriptionRequest(waveform, fields.get("language") or "en", response_format)
