"""The errors a user can meet: one line each, with the offending value and the remedy.

Lowest layer. Everything that is the user's input (a recipe, a row, a file) raises one of these and the command line
turns it into exit code 2; anything else is our own fault and exits with 1.
"""


class EarwiseError(Exception):
    """Base of all errors that earwise raises on purpose."""


class ConfigError(EarwiseError):
    """A recipe or an option is wrong."""


class DataError(EarwiseError):
    """A manifest row is wrong; the message names the file and the row."""


class AudioError(EarwiseError):
    """An audio file cannot be read, or is longer than the model hears; the message names the file."""


class ModelError(EarwiseError):
    """A checkpoint is wrong, partial or unsafe, or a model's contract is broken."""


class EngineError(EarwiseError):
    """Generation failed, or the engine's extra is not installed."""


class ServerAway(EngineError):
    """A server does not answer; unlike one that refuses, it may later."""


class ScoringError(EarwiseError):
    """A scorer was given something it cannot score."""
