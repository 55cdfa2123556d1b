"""Requests of `/v1/audio/transcriptions`: Whisper base transcribes speech beside the served model (`--transcribe`).

The language is taken from the request and never detected; without one it is English. The format is OpenAI's
transcription API, with the response formats `json` and `text`.
"""

from dataclasses import dataclass

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


async def parse_form(request: Request, max_bytes: int) -> TranscriptionRequest:
    """Parse the multipart form of a transcription request.

    Raises:
        ApiError: if the body is not such a form, is too large, has no file, or asks for something unsupported.
        AudioError: if the file is not audio, or is longer than the recogniser's window.
    """
    content_length = request.headers.get("content-length", "")
    if not content_length.isdecimal():
        raise ApiError("the content-length header is missing; send it", 411)
    if int(content_length) > max_bytes:
        raise ApiError(f"the form is larger than {max_bytes / 2**20:g} MB; send shorter audio", 413)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError("the content-type must be multipart/form-data", 415)
    async with request.form() as form:
        file, fields = form.get("file"), {name: str(value) for name, value in form.items() if name != "file"}
        if not isinstance(file, UploadFile):
            raise ApiError("file: an audio file is required", param="file")
        data, name = await file.read(), file.filename or "file"
    for field, value in fields.items():
        is_default = field in DEFAULT_ONLY_FIELDS and value in ("", "0", "0.0", "segment", "false")
        if field not in SUPPORTED_FIELDS and not is_default:
            raise ApiError(f"{field}: {value[:40]!r} is not supported; leave it out", param=field)
    response_format = fields.get("response_format") or "json"
    if response_format not in FORMATS:
        raise ApiError(
            f"response_format {response_format[:40]!r} is none of {', '.join(FORMATS)}", param="response_format"
        )
    waveform = decode_bytes(data, name, SAMPLE_RATE, max_s=WINDOW_S, long_audio_remedy=SEND_SHORTER)
    return TranscriptionRequest(waveform, fields.get("language") or "en", response_format)
