"""Is a teacher's answer usable? Empty, refused, cut, malformed, in the wrong language: each is told apart and counted.

Between a `Reply` and a row of the log (`build/llm.py`). Pure. Nothing is repaired by guessing: a JSON answer may stand
in a code fence or after a thinking block, and must otherwise be JSON and nothing else. A wrong language is only called
so on clear evidence, since a false alarm costs another request.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from earwise.datasets.teachers.teacher import Reply, Request

Kind = Literal["ok", "empty", "refusal", "truncated", "invalid", "language"]

_THINK = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"^\s*```(?:json)?[ \t]*\n(.*?)\n?\s*```\s*$", re.DOTALL | re.IGNORECASE)
# Both an apology or inability and what is refused, so that a translation of "I'm sorry I'm late" passes.
_CANNOT = r"(?:can['’]?t|cannot|can not|won['’]?t|will not|must decline|am unable|am not able)"
_DO = r"(?:help|assist|comply|provide|fulfil+|answer|do that|create|generate|write|request|translate)"
_REFUSAL = re.compile(
    r"^\W*(?:"
    rf"(?:i['’]?m |i am )?(?:sorry|afraid)\b.{{0,40}}\b{_CANNOT}\b.{{0,60}}\b{_DO}"
    rf"|(?:unfortunately,? )?(?:i['’]?m unable|i {_CANNOT})\b.{{0,60}}\b{_DO}"
    r"|as an ai\b"
    r"|(?:es )?tut mir leid.{0,60}\bnicht\b.{0,40}(?:helfen|beantworten|erfüllen|möglich|übersetzen|erstellen)"
    r"|(?:(?:je suis )?désolée?.{0,40})?je ne (?:peux|suis) pas.{0,60}(?:aider|répondre|mesure|fournir|traduire)"
    r"|申し訳(?:ありません|ございません).{0,60}(?:できません|いたしかねます)"
    r"|(?:抱歉|对不起|很遗憾).{0,40}(?:无法|不能)"
    r")",
    re.IGNORECASE | re.DOTALL,
)

_SCRIPTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(f"[{ranges}]"))
    for name, ranges in (
        ("Latin", "A-Za-z\u00c0-\u024f"),
        ("kana", "\u3040-\u30ff"),
        ("Han", "\u3400-\u4dbf\u4e00-\u9fff"),
        ("Hangul", "\uac00-\ud7af"),
        ("Cyrillic", "\u0400-\u04ff"),
        ("Arabic", "\u0600-\u06ff"),
        ("Greek", "\u0370-\u03ff"),
        ("Devanagari", "\u0900-\u097f"),
    )
)
_WRITTEN_IN: Mapping[str, tuple[str, ...]] = {
    "ja": ("kana", "Han"), "zh": ("Han",), "ko": ("Hangul",), "ru": ("Cyrillic",), "uk": ("Cyrillic",),
    "ar": ("Arabic",), "el": ("Greek",), "hi": ("Devanagari",),
}  # fmt: skip
# Words that hardly a sentence of the language is without, and that others seldom use.
_COMMON: Mapping[str, frozenset[str]] = {
    code: frozenset(words.split())
    for code, words in {
        "en": "the and is of with this that are what which it was you there heard by",
        "de": "der die das und ist nicht ein eine mit ich auf den dem von wird zu sich im",
        "fr": "le les et est une des dans que pas pour qui avec du ce sur il",
        "es": "el los las y es una que con por del se para un muy",
        "it": "il che è una di con per non della sono gli si nel",
        "pt": "os as é uma que com não do da em um são para",
        "nl": "de het een en van niet met dat op zijn wordt voor te",
    }.items()
}
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»|「[^」]*」")
_ENOUGH_WORDS = 3
_CLEARLY = 3  # times as many common words of another language
_HAN_WITHOUT_KANA = 12  # a Japanese sentence of this many characters has kana


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one answer."""

    status: Kind
    value: Any = None
    """The validated JSON value, or the text; None unless `status` is "ok"."""
    error: str = ""
    """What is wrong, as it is told to the teacher."""


def judge(reply: Reply, request: Request) -> Verdict:
    """Take an answer apart, check it against the request's schema and language."""
    text = _THINK.sub("", reply.text).strip()
    if reply.refused:
        return Verdict("refusal", error=f"it was refused or filtered: {text[:100]}")
    if not text:
        return Verdict("empty", error="it was empty.")
    value, error = (text, "") if request.schema is None else _validated(text, request)
    if error or request.schema is None:
        if _REFUSAL.match(text):
            return Verdict("refusal", error=f"it was a refusal: {text[:100]}")
        if reply.finish == "length":
            return Verdict("truncated", error="it was longer than the limit; be brief.")
    if error:
        return Verdict("invalid", error=error)
    if request.language and (found := wrong_language(" ".join(_texts(value)), request.language)):
        return Verdict("language", error=f"it was in {found}; write all texts in {request.language}.")
    return Verdict("ok", value)


def wrong_language(text: str, expected: str) -> str | None:
    """What a text is clearly written in other than the expected language; None if there is no clear evidence.

    What stands in quotes (somebody's words in another language) is not looked at.

    >>> wrong_language("Der Hund bellt und die Katze ist nicht da.", "en"), wrong_language("A dog barks.", "en")
    ('de', None)
    >>> wrong_language("A dog barks.", "ja"), wrong_language("犬が吠えています。", "ja")
    ('Latin script', None)
    """
    written = _WRITTEN_IN.get(expected, ("Latin",) if expected in _COMMON else ())
    if not written:
        return None
    text = _QUOTED.sub(" ", text)
    counts = {name: len(letters.findall(text)) for name, letters in _SCRIPTS}
    total = sum(counts.values())
    if not total:
        return None
    if 2 * sum(counts[name] for name in written) < total:
        return f"{max(counts, key=lambda name: counts[name])} script"
    if expected == "ja" and not counts["kana"] and counts["Han"] >= _HAN_WITHOUT_KANA:
        return "zh"
    if expected == "zh" and counts["kana"] > counts["Han"] // 4:
        return "ja"
    if expected not in _COMMON:
        return None
    words = Counter(re.findall(r"[^\W\d_]+", text.lower()))
    votes = {code: sum(words[word] for word in common) for code, common in _COMMON.items()}
    best = max(votes, key=lambda code: votes[code])
    return best if votes[best] >= max(_ENOUGH_WORDS, _CLEARLY * votes[expected] + 1) else None


def _validated(text: str, request: Request) -> tuple[Any, str]:
    assert request.schema is not None
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except ValueError as error:
        return None, f"it is not JSON ({error}); write one JSON object and nothing else."
    try:
        return request.schema.model_validate(value, context=dict(request.facts)).model_dump(mode="json"), ""
    except ValidationError as error:
        first = error.errors(include_url=False)
        lines = [f"{'.'.join(map(str, one['loc'])) or 'answer'}: {one['msg']}" for one in first[:4]]
        return None, "; ".join(lines) + "."


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value, not its keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
