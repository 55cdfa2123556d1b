"""Errors with a message for the user: one line with the offending value and the remedy.

Lowest layer. Problems with the user's input (a recipe, a row, a file) raise one of these, and the command line ends
with exit code 2. Any other exception is a fault of earwise, and the command line ends with exit code 1.
"""


class EarwiseError(Exception):
    """Base of all errors that earwise raises on purpose."""


class ConfigError(EarwiseError):
    """A recipe or an option is wrong."""


class DataError(EarwiseError):
    """A manifest row is wrong; the message names the file and the row."""


class AudioError(EarwiseError):
    """An audio file cannot be read, or is longer than the model accepts; the message names the file."""


class ModelError(EarwiseError):
    """A checkpoint is wrong, incomplete or unsafe, or a model breaks the `AudioLM` contract."""


class EngineError(EarwiseError):
    """Generation failed, or the engine's extra is not installed."""


class ServerUnavailable(EngineError):
    """A server does not answer. Unlike a refusal this may pass, so the request may be sent again."""


class ScoringError(EarwiseError):
    """A scorer got input that it cannot score."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory is full: Python's, NumPy's, or torch's on any device.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    True
    """
    # The last two are oneDNN's and Python's words where memory is limited.
    texts = ("DefaultCPUAllocator", "out of memory", "allocate memory", "create a primitive", "can't start new thread")
    is_torch = isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in texts)
    return isinstance(error, MemoryError) or is_torch


def location_in_module(error: BaseException, module: str) -> str:
    """Where in a user's module an exception arose, as `FILE:LINE`, or "" if the exception did not pass through it.

    Args:
        error: The exception, with its traceback.
        module: Dotted name of the module.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    location, traceback = "", error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__") == module:
            location = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return location
