"""Decides which instructions can be spoken: no code, tables, links or formulas, and no longer than one breath.

First filter of the XS-CoT corpus. Alpaca-like sets contain many instructions that refer to something written ("the
following table"), which no listener can follow. The paper (arXiv:2504.20835) publishes no filter; these checks are
ours.
"""

import re

MAX_WORDS = 40
MAX_CHARS = 240  # in Japanese about 30 s of speech, at 8 characters a second
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


def unspeakable_reason(text: str) -> str | None:
    """The reason why a text cannot be spoken; None if it can.

    Example:
        >>> unspeakable_reason("Name the four seasons."), unspeakable_reason("Fix this code: print()")
        (None, 'code')
        >>> unspeakable_reason("  "), unspeakable_reason("Summarize the following text.")
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
