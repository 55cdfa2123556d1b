"""The page around the tables: typography, light and dark, and the frame of one self-contained HTML file.

Part of `earwise.report`. No script, no font, no picture from anywhere: the file opens offline and can be mailed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

STYLE = Path(__file__).parent.parent / "assets" / "report.css"


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page; `body` is HTML already, an empty one is left out."""

    title: str
    body: str
    intro: str = ""


def tile(label: str, value: str, note: str = "") -> str:
    """A number for the top of the page."""
    return f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b><span>{escape(note)}</span></div>'


def page(title: str, lead: str, tiles: Sequence[str], sections: Sequence[Section], foot: str) -> str:
    """The whole file.

    Args:
        title: Plain text.
        lead: The result in one sentence or two, as HTML.
        tiles: The numbers under it, as HTML.
        sections: What follows, in order.
        foot: Last line, plain text.
    """
    body = "".join(
        f"<section><h2>{escape(s.title)}</h2>"
        f'{f"""<p class="sub">{escape(s.intro)}</p>""" if s.intro else ""}{s.body}</section>'
        for s in sections
        if s.body
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body>"
        f'<header class="top"><div><p class="kicker">earwise report</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{lead}</p><div class="tiles">{"".join(tiles)}</div></div></header>'
        f'<main>{body}</main><p class="foot">{escape(foot)}</p></body></html>\n'
    )
