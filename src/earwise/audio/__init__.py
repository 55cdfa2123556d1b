"""Audio files to waveforms: decode to the end or refuse, downmix, resample; seconds and samples. No torch.

First step of the data flow: everything above works on `Waveform` (mono float32) only. Begin reading with
`decoding.decode`; `parts.py` says which decoder reads what.
"""

from earwise.audio.decoding import (
    AudioInfo,
    DecodedSound,
    Sound,
    audio_sha256,
    clip_duration,
    clip_sha256,
    decode,
    decode_bytes,
    decode_clip,
    probe,
    read_samples,
)
from earwise.audio.mixing import CHANNELS, Channel
from earwise.audio.options import LONG_AUDIO, LONG_AUDIO_REMEDY, AudioSpec, DecodeOptions, LongAudio
from earwise.audio.suffixes import AUDIO_SUFFIXES, UNKNOWN_SUFFIX
from earwise.audio.waveforms import (
    SILENCE_PEAK,
    chunks,
    encode_ogg,
    encode_samples,
    encode_wav,
    is_silent,
    num_samples,
    seconds,
    to_waveform,
    waveform_sha256,
)

__all__ = [
    "AUDIO_SUFFIXES",
    "CHANNELS",
    "LONG_AUDIO",
    "LONG_AUDIO_REMEDY",
    "SILENCE_PEAK",
    "UNKNOWN_SUFFIX",
    "AudioInfo",
    "AudioSpec",
    "Channel",
    "DecodeOptions",
    "DecodedSound",
    "LongAudio",
    "Sound",
    "audio_sha256",
    "chunks",
    "clip_duration",
    "clip_sha256",
    "decode",
    "decode_bytes",
    "decode_clip",
    "encode_ogg",
    "encode_samples",
    "encode_wav",
    "is_silent",
    "num_samples",
    "probe",
    "read_samples",
    "seconds",
    "to_waveform",
    "waveform_sha256",
]
