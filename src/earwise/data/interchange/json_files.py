"""JSON lines of speech toolkits, plain or compressed with gzip."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earwise.errors import DataError


def json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, as pairs `(location, object)`; blank lines are skipped.

    Raises:
        DataError: if the file cannot be read, or a line holds no JSON object.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                location = f"{path}:row {number}"
                try:
                    value = json.loads(line.decode("utf-8-sig"))
                except ValueError as error:
                    raise DataError(f"{location}: not JSON ({error}); the file holds one object a line") from error
                if not isinstance(value, dict):
                    raise DataError(f"{location}: a JSON {type(value).__name__} where an object is expected")
                yield location, value
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); check the path") from error
