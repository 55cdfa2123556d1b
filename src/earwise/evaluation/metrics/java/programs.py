"""The programs of METEOR and SPICE: where they are, why they cannot run, and what they print about captions.

Both belong to the COCO tool kit: `pip install pycocoevalcap` brings METEOR whole, and SPICE without the two files of
Stanford CoreNLP 3.6.0 that belong into its folder `lib`. They are looked for in the folder that
`EARWISE_CAPTION_PROGRAMS` names, otherwise in the installed package; Java is looked for on the PATH.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from earwise.errors import ConfigError
from earwise.evaluation.metrics.java.meteor import NUM_STATISTICS, Floats, added_up

VARIABLE = "EARWISE_CAPTION_PROGRAMS"
OFF = "off"
"""Value of the variable that leaves both scores out."""
METEOR_FILES = ("meteor/meteor-1.5.jar",)
SPICE_FILES = (
    "spice/spice-1.0.jar", "spice/lib/stanford-corenlp-3.6.0.jar", "spice/lib/stanford-corenlp-3.6.0-models.jar",
)  # fmt: skip
SEPARATOR = " ||| "


@dataclass(frozen=True, slots=True)
class CaptionPrograms:
    """Java and the folder of the programs, as far as they are there."""

    java: str | None
    folder: Path | None
    is_off: bool = False

    def missing(self, files: Sequence[str]) -> str:
        """What is missing to run a program, in a few words; empty if it can run.

        Args:
            files: Its files, relative to the folder.
        """
        if self.is_off:
            return f"{VARIABLE} is {OFF}"
        if self.java is None:
            return "there is no Java"
        if self.folder is None:
            return f"pycocoevalcap is not installed, and {VARIABLE} names no folder"
        absent = [name for name in files if not (self.folder / name).is_file()]
        return f"{self.folder.name} holds no {', '.join(absent)}" if absent else ""


def find_programs() -> CaptionPrograms:
    """The programs on this machine."""
    value = os.environ.get(VARIABLE, "")
    java = shutil.which("java")
    if value == OFF:
        return CaptionPrograms(java, None, is_off=True)
    if value:
        return CaptionPrograms(java, Path(value).expanduser())
    spec = find_spec("pycocoevalcap")
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    return CaptionPrograms(java, Path(locations[0]) if locations else None)


def missing_scores(programs: CaptionPrograms) -> str | None:
    """A sentence about the scores that cannot be computed here; None if all can."""
    meteor, spice = programs.missing(METEOR_FILES), programs.missing(SPICE_FILES)
    if meteor:
        return f"METEOR, SPICE and SPIDEr are not computed: {meteor}"
    return f"SPICE and SPIDEr are not computed: {spice}" if spice else None


def meteor_counts(programs: CaptionPrograms, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """The statistics of each caption, which `meteor.meteor` makes a score of.

    Args:
        programs: Where METEOR is.
        hypotheses: Tokenised captions of the model.
        references: Tokenised reference captions of each item.
    Returns:
        `(captions, 23)`, prepared to be added up.
    Raises:
        ConfigError: if the program fails.
    """
    if not hypotheses:
        return np.zeros((0, NUM_STATISTICS))
    lines = [
        SEPARATOR.join(["SCORE", *item, hypothesis.replace("|||", "").replace("  ", " ")])
        for hypothesis, item in zip(hypotheses, references, strict=True)
    ]
    options = ["-", "-", "-stdio", "-l", "en", "-norm"]
    text = _run(programs, "2G", METEOR_FILES[0], options, "".join(f"{line}\n" for line in lines))
    rows = [line.split() for line in text.splitlines()]
    if len(rows) != len(hypotheses) or any(len(row) != NUM_STATISTICS for row in rows):
        raise ConfigError(f"METEOR's program printed {text[:80]!r}; set {VARIABLE}={OFF} to score captions without it")
    return added_up(np.array(rows, np.float64))


def spice_scores(
    programs: CaptionPrograms, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """SPICE of each caption: the F1 of all parts of the scene, in [0, 1].

    Args:
        programs: Where SPICE is.
        hypotheses: Tokenised captions of the model.
        references: Tokenised reference captions of each item.
    Raises:
        ConfigError: if the program fails.
    """
    items = [
        {"image_id": number, "test": hypothesis, "refs": list(item)}
        for number, (hypothesis, item) in enumerate(zip(hypotheses, references, strict=True))
    ]
    if not items:
        return []
    with tempfile.TemporaryDirectory(prefix="earwise-spice-") as name:
        asked, written = Path(name) / "captions.json", Path(name) / "scores.json"
        asked.write_text(json.dumps(items), encoding="utf-8")
        _run(programs, "8G", SPICE_FILES[0], [str(asked), "-out", str(written), "-subset", "-silent"], "")
        try:
            results = json.loads(written.read_text(encoding="utf-8"))
            by_number = {int(row["image_id"]): float(row["scores"]["All"]["f"]) for row in results}
            return [by_number[number] for number in range(len(items))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"SPICE's program wrote no usable scores ({error}); set {VARIABLE}={OFF} to score captions without it"
            ) from error


def _run(programs: CaptionPrograms, memory: str, jar: str, options: Sequence[str], text: str) -> str:
    """Run a program on a text and return what it prints.

    Raises:
        ConfigError: if it ends with an error.
    """
    assert programs.java is not None and programs.folder is not None, "ask missing() first"
    command = [programs.java, "-Dfile.encoding=UTF-8", f"-Xmx{memory}", "-jar", str(programs.folder / jar), *options]
    done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ConfigError(
            f"{Path(jar).name} ended with code {done.returncode} ({lines[0][:120]}); set {VARIABLE}={OFF} to score "
            "captions without it"
        )
    return done.stdout
