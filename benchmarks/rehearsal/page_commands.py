"""The commands of the papers' pages, read from the pages themselves, so that a page and a run of it cannot differ."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

PAGES = Path(__file__).parents[2] / "docs" / "papers"
HEADING = "From downloads to the table"
_SECTION = re.compile(rf"^##+ {HEADING}\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_RUN = re.compile(r"runs/([\w-]+)")


@dataclass(frozen=True, slots=True)
class PageCommand:
    """One command of a page.

    Attributes:
        line: The command as the page has it, on one line.
        words: Its words as a shell splits them.
    """

    line: str
    words: tuple[str, ...]

    @property
    def earwise(self) -> tuple[str, ...]:
        """The arguments of `earwise`, also behind a launcher; empty for another program."""
        if self.words[0] == "earwise":
            return self.words[1:]
        if "-m" in self.words and "earwise" in self.words:
            return self.words[self.words.index("earwise") + 1 :]
        return ()

    @property
    def is_training(self) -> bool:
        """Whether the command trains; with `--plan` it only estimates."""
        return self.earwise[:1] == ("train",) and "--plan" not in self.words

    @property
    def is_launched(self) -> bool:
        """Whether a launcher starts several processes."""
        return self.words[0] in ("accelerate", "torchrun")

    def option(self, name: str) -> str | None:
        """The value behind an option; None without it."""
        return self.words[self.words.index(name) + 1] if name in self.words else None

    @property
    def recipe(self) -> str | None:
        """The recipe that a command of `earwise train` names."""
        return self.earwise[1] if self.earwise[:1] == ("train",) else None


def pages() -> list[str]:
    """Names of the pages that have the section with commands, in alphabetical order."""
    sections = {path.stem: _SECTION.search(path.read_text(encoding="utf-8")) for path in PAGES.glob("*.md")}
    return sorted(name for name, section in sections.items() if section and _BLOCK.search(section[1]))


def commands(page: str) -> list[PageCommand]:
    """The commands of a page's section, continuation lines joined.

    Args:
        page: Name of the page, without its suffix.
    Raises:
        ValueError: if the page has no such section.
    """
    section = _SECTION.search((PAGES / f"{page}.md").read_text(encoding="utf-8"))
    if section is None:
        raise ValueError(f"{page}.md has no section {HEADING!r}")
    lines = "".join(_BLOCK.findall(section[1])).replace("\\\n", " ").splitlines()
    lines = [" ".join(line.removeprefix("$ ").split()) for line in lines if line.startswith("$ ")]
    return [PageCommand(line, tuple(shlex.split(line))) for line in lines]


def recipes_of(page: str) -> list[str]:
    """Recipes that the commands of a page train, in the order of the page."""
    names = [command.recipe for command in commands(page) if command.recipe]
    return list(dict.fromkeys(names))


def belongs_to_other(command: PageCommand, recipe: str, page: str) -> bool:
    """Whether a command is for another recipe of the same page: it trains that recipe, or reads or writes its runs."""
    if command.recipe is not None:
        return command.recipe != recipe
    others = sorted((name for name in recipes_of(page) if name != recipe), key=len, reverse=True)
    runs = _RUN.findall(command.line)
    own = any(run.startswith(recipe) for run in runs)
    return not own and any(run.startswith(other) for run in runs for other in others)
