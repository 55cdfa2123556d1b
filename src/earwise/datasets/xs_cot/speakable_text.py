"""Which instructions can be spoken at all: no code, tables, links, formulas; short enough for one breath.

First step of `build/xs_cot.py`. Pure. Alpaca-like sets hold many instructions that point at something written ("the
following table"), which no listener can follow. What each check looks for is ours; the paper names no filter.
"""

import re

MAX_WORDS = 40
MAX_CHARS = 240  # Japanese: about 30 s of speech at 8 characters a second
_CHECKS = (
    ("link", re.compile(r"https?://|www\.|\S+@\S+\.\w", re.I)),
    ("code", re.compile(r"```|`[^`]+`|</?\w+>|[{}<>\\|]|\w\(\)|==|!=|\b(?:def|print|SELECT|#include)\b\W")),
    ("table", re.compile(r"\t|^\s*(?:[-*•]|\d+[.)])\s", re.M)),
    ("formula", re.compile(r"[=^_√∑∫±≤≥≠∞]|\d\s*[*/+×÷]\s*\d|\b[xyz]\s*[-+*/]")),
    ("blank to fill", re.compile(r"_{2,}|\.{4,}|…{2,}|\[[^\]]*\]")),
    ("digits", re.compile(r"\d{5,}")),
    (
        "points at something written",
        re.compile(
            r"\b(?:following|below|above|given) (?:text|sentences?|paragraph|passage|table|code|list|article|words?)\b",
            re.I,
        ),
    ),
    ("symbols", re.compile(r"[^\w\s.,;:!?¿¡'\"’‘“”„«»()\-–—…%&€$°/。、！？；：「」『』（）・〜ー々]")),
)


def refusal(text: str) -> str | None:
    """Why a text cannot be spoken; None if it can.

    >>> refusal("Name the four seasons."), refusal("Fix this code: print()")
    (None, 'code')
    >>> refusal("  "), refusal("Summarize the following text.")
    ('empty', 'points at something written')
    """
    if not text.strip():
        return "empty"
    if not any(letter.isalpha() for letter in text):
        return "no words"
    for reason, pattern in _CHECKS:
        if pattern.search(text):
            return reason
    if len(text.split()) > MAX_WORDS or len(text) > MAX_CHARS:
        return "too long"
    return None
