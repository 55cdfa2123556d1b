"""Text of models and servers, made safe to print on a terminal.

A remote model, or a server's error message, may contain control sequences, with which it could move the cursor, change
what was printed before, or send input to the shell. They are printed as visible escapes.
"""

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    r"""The text with every control character except tab and line feed as an escape.

    >>> printable("a\x1b[2Jb\tc\n")
    'a\\x1b[2Jb\tc\n'
    """
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def printable_json(line: str) -> str:
    """A line of JSON with the control characters that JSON allows in it (C1, DEL) in JSON's own escapes."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", line)
