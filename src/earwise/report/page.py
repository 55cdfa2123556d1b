"""The frame of one self-contained HTML file: style sheet, title, sections.

Part of `earwise.report`. The page loads no script, font or picture: the file opens offline and can be sent by mail.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

STYLE = Path(__file__).parent.parent / "assets" / "report.css"


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page."""

    title: str
    """Heading, plain text."""
    body: str
    """Content as HTML; a section with an empty body is left out."""
    intro: str = ""
    """A sentence below the heading, plain text."""


def tile(label: str, value: str, note: str = "") -> str:
    """A number for the top of the page, with a label above and a note below it (HTML). All three are escaped."""
    return f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b><span>{escape(note)}</span></div>'


def page(title: str, lead: str, tiles: Sequence[str], sections: Sequence[Section], foot: str) -> str:
    """The whole file.

    Args:
        title: Title of the page, plain text.
        lead: The result in one or two sentences, as HTML.
        tiles: The numbers below the lead, as HTML, see `tile`.
        sections: The sections in order.
        foot: Last line, plain text.
    """
    body = "".join(map(_section, sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body>"
        f'<header class="top"><div><p class="kicker">earwise report</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{lead}</p><div class="tiles">{"".join(tiles)}</div></div></header>'
        f'<main>{body}</main><p class="foot">{escape(foot)}</p></body></html>\n'
    )


def _section(section: Section) -> str:
    """HTML of a section; empty if it has no body."""
    if not section.body:
        return ""
    intro = f'<p class="sub">{escape(section.intro)}</p>' if section.intro else ""
    return f"<section><h2>{escape(section.title)}</h2>{intro}{section.body}</section>"
