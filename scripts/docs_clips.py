"""A hook of mkdocs: clips of the bundled starter set that the page to listen to plays become files of the site.

The page refers to them as `audio/starter/NAME.ogg`; they are taken from `src/earwise/assets/starter/clips`, so that the
repository holds them once.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CLIPS = ROOT / "src" / "earwise" / "assets" / "starter" / "clips"
PAGE = ROOT / "docs" / "results" / "listening.md"


def played_clips(text: str) -> list[str]:
    """File names of the bundled clips that a page plays, sorted.

    Args:
        text: Source of the page.
    """
    return sorted(set(re.findall(r'src="[./]*/audio/starter/([^"/]+)"', text)))


def on_files(files: Any, config: Any) -> Any:
    """Add the clips to the files of the site.

    Args:
        files: mkdocs' collection of files.
        config: mkdocs' configuration.
    Returns:
        The collection with the clips.
    """
    from mkdocs.structure.files import File  # only there where the documentation is built

    for name in played_clips(PAGE.read_text(encoding="utf-8")):
        files.append(File.generated(config, f"audio/starter/{name}", abs_src_path=str(CLIPS / name)))
    return files
