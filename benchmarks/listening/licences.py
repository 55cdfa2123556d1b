"""Licences of the bundled clips, as `REUSE.toml` states them file by file, and of scenes that are composed of them."""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CLIPS = "src/earwise/assets/starter/clips"
PERMISSIVE = frozenset({"CC0-1.0", "MIT"})
"""Licences that allow a mixture under any other licence."""


@dataclass(frozen=True, slots=True)
class Rights:
    """Licence of a clip, and who holds the rights."""

    licence: str
    holders: tuple[str, ...]


@cache
def _annotations() -> list[dict[str, Any]]:
    return tomllib.loads((ROOT / "REUSE.toml").read_text(encoding="utf-8"))["annotations"]


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def rights_of(clip: str) -> Rights:
    """Rights in a bundled clip: those of the last table of `REUSE.toml` whose pattern matches.

    Args:
        clip: File name, as in `assets/starter/clips`.
    """
    path = f"{CLIPS}/{clip}"
    matches = [table for table in _annotations() if any(fnmatch(path, pattern) for pattern in _as_list(table["path"]))]
    return Rights(matches[-1]["SPDX-License-Identifier"], tuple(_as_list(matches[-1]["SPDX-FileCopyrightText"])))


def mixture_rights(clips: Sequence[str]) -> Rights | None:
    """Rights in a scene that is composed of bundled clips; None if their licences do not allow the mixture.

    Args:
        clips: File names of the clips.
    """
    rights = [rights_of(clip) for clip in clips]
    licence = mixture_licence(clip_rights.licence for clip_rights in rights)
    holders = dict.fromkeys(holder for clip_rights in rights for holder in clip_rights.holders)
    return Rights(licence, tuple(holders)) if licence else None


def mixture_licence(licences: Iterable[str]) -> str | None:
    """Licence under which works of these licences can be mixed; None if we know of none.

    Permissive works take the licence of the others; what may be used under version 2 of the GPL or a later one goes
    with what must be used under version 2. Everything else is not mixed.
    """
    names = set(licences)
    bound = names - PERMISSIVE
    if not bound:
        return "MIT" if "MIT" in names else "CC0-1.0"
    if bound == {"GPL-2.0-only", "GPL-2.0-or-later"}:
        return "GPL-2.0-only"
    return bound.pop() if len(bound) == 1 else None
