"""The frame of one self-contained HTML file: style sheet, title, contents, sections, script.

Part of `earwise.report`. The page loads no script, font or picture: the file opens offline and can be sent by mail. A
content security policy names the hash of the page's own script, so that no other one can run, whatever a model wrote.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from earwise.report.table_files import page_tables, slug, table_forms

ASSETS = Path(__file__).parent.parent / "assets" / "report"
STYLES = ("page.css", "samples.css")
SCRIPTS = ("dom.js", "tables.js", "filters.js", "list.js", "sound.js", "detail.js", "samples.js")
"""Parts of the page's script, in order."""
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data: blob:; "
    "media-src 'self' data: file:; connect-src 'self' data: file:; base-uri 'none'; form-action 'none'"
)
"""What the page may load: its own script and style, and clips that it embeds or that lie beside it."""


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page."""

    title: str
    """Heading, plain text."""
    body: str
    """Content as HTML; a section with an empty body is left out."""
    intro: str = ""
    """A sentence below the heading, plain text."""
    data: str = ""
    """Data blocks for the page's script (HTML), see `data_block`."""


def tile(label: str, value: str, note: str = "") -> str:
    """A number for the top of the page, with a label above and a note below it (HTML). All three are escaped."""
    return f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b><span>{escape(note)}</span></div>'


def data_block(identifier: str, value: object) -> str:
    """A JSON value as a data block of the page (HTML). No text in it can end the block or become markup.

    >>> print(data_block("a", "</script>"))
    <script type="application/json" id="a">"\\u003c/script\\u003e"</script>

    Args:
        identifier: The block's id in the page.
        value: A value that JSON can hold; numbers that it cannot hold (NaN) become null.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
        text = json.dumps(finite, ensure_ascii=False, separators=(",", ":"))
    text = text.encode("utf-8", "replace").decode("utf-8")  # half surrogates cannot be written
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{identifier}">{text}</script>'


def page(title: str, lead: str, tiles: Sequence[str], sections: Sequence[Section], foot: str) -> str:
    """The whole file.

    Args:
        title: Title of the page, plain text.
        lead: The result in one or two sentences, as HTML.
        tiles: The numbers below the lead, as HTML, see `tile`.
        sections: The sections in order.
        foot: Last line, plain text.
    """
    shown = [section for section in sections if section.body]
    anchors = _anchors([section.title for section in shown])
    body = "".join(map(_section, shown, anchors))
    links = "".join(
        f'<a href="#{anchor}">{escape(section.title)}</a>' for section, anchor in zip(shown, anchors, strict=True)
    )
    contents = f'<nav class="contents" aria-label="Sections"><div>{links}</div></nav>' if len(shown) > 2 else ""
    blocks = data_block("table-data", table_forms(page_tables(body))) + "".join(section.data for section in shown)
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = "".join((ASSETS / name).read_text(encoding="utf-8") for name in STYLES)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY.format(digest=digest)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f'<header class="top"><div><p class="kicker">earwise report</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{lead}</p><div class="tiles">{"".join(tiles)}</div></div></header>'
        f'{contents}<main>{body}</main><footer class="foot">{escape(foot)}</footer>'
        f"{blocks}<script>{script}</script></body></html>\n"
    )


def _script() -> str:
    """The page's script in one function, so that it defines no global names."""
    parts = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}\n}})();'


def _anchors(titles: Sequence[str]) -> list[str]:
    """Ids of sections from their titles, each once.

    >>> _anchors(["Does it hear?", "Does it hear!"])
    ['does-it-hear', 'does-it-hear-2']
    """
    anchors: list[str] = []
    for title in titles:
        count = sum(slug(title) == slug(previous) for previous in titles[: len(anchors)])
        anchors.append(slug(title) if not count else f"{slug(title)}-{count + 1}")
    return anchors


def _section(section: Section, anchor: str) -> str:
    """HTML of a section.

    Args:
        section: The section.
        anchor: Its id in the page.
    """
    intro = f'<p class="sub">{escape(section.intro)}</p>' if section.intro else ""
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{escape(section.title)}</h2>'
        f"{intro}{section.body}</section>"
    )
