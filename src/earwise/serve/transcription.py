"""A form of `/v1/audio/transcriptions`, read: Whisper base writes down what is said, beside the model that is served.

For clients that want the words as well (`--transcribe`; the page does not). The language is told, not guessed: English
where a form says none. Form: OpenAI's reference of transcriptions, `json` and `text` only.
"""

from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.requests import Request

from earwise.audio import decode_bytes
from earwise.datasets.xs_cot.speech_recognition import SAMPLE_RATE
from earwise.models.parts.whisper_asr import WINDOW_S
from earwise.serve.errors import Refusal
from earwise.types import Waveform

READ = ("file", "model", "language", "response_format")
IDLE = ("temperature", "timestamp_granularities[]", "prompt", "stream")  # taken where they say nothing new
FORMATS = ("json", "text")


@dataclass(frozen=True, slots=True)
class Form:
    """What is to be written down."""

    wave: Waveform
    """At the recogniser's 16 kHz."""
    language: str
    form: str
    """One of `FORMATS`."""


async def read_form(request: Request, max_bytes: int) -> Form:
    """The form of a request.

    Raises:
        Refusal: if it is no form, too long, without a file, or asks for what is not done.
        AudioError: if the file is no sound, or longer than the recogniser hears.
    """
    stated = request.headers.get("content-length", "")
    if not stated.isdecimal():
        raise Refusal("content-length is wanted", 411)
    if int(stated) > max_bytes:
        raise Refusal(f"the form is larger than {max_bytes / 2**20:g} MB; send a shorter sound", 413)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refusal("content-type multipart/form-data is wanted", 415)
    async with request.form() as form:
        file, told = form.get("file"), {name: str(value) for name, value in form.items() if name != "file"}
        if not isinstance(file, UploadFile):
            raise Refusal("file: a sound is wanted", param="file")
        data, name = await file.read(), file.filename or "file"
    for field, value in told.items():
        if field not in READ and not (field in IDLE and value in ("", "0", "0.0", "segment", "false")):
            raise Refusal(f"{field}: {value[:40]!r} is not supported; leave it out", param=field)
    wanted = told.get("response_format") or "json"
    if wanted not in FORMATS:
        raise Refusal(f"response_format {wanted[:40]!r} is none of {', '.join(FORMATS)}", param="response_format")
    return Form(decode_bytes(data, name, SAMPLE_RATE, max_s=WINDOW_S), told.get("language") or "en", wanted)
