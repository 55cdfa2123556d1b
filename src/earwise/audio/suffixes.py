"""Endings of the names of audio files. What a file holds is recognised by its content; an ending only selects files."""

AUDIO_SUFFIXES = frozenset(
    {
        ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".m4a", ".m4b", ".mp4", ".mov", ".3gp", ".aac",
        ".wma", ".webm", ".mkv", ".mka", ".amr", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64",
        ".ac3", ".ape", ".wv", ".spx", ".tta",
    }
)  # fmt: skip
"""Endings in lower case. Files with one of them are taken from a folder of sounds, and out of an archive."""
UNKNOWN_SUFFIX = ".audio"
"""Ending that an audio file without one gets when it is packed."""
