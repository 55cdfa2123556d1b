"""JSON lines of speech toolkits, plain or compressed with gzip, as objects with their locations."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earwise.data.readers.text_lines import json_lines
from earwise.errors import DataError


def json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, as pairs `(location, object)`.

    Raises:
        DataError: if the file cannot be read, or a line holds no JSON object.
    """
    for number, value in json_lines(path):
        if not isinstance(value, dict):
            raise DataError(f"{path}:row {number}: a JSON {type(value).__name__} where an object is expected")
        yield f"{path}:row {number}", value
