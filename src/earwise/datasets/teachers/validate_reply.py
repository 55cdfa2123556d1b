"""Decides whether a teacher's answer is usable: not empty, refused, truncated, malformed or in the wrong language.

Called by `request_runner.py` on every reply, before it becomes a row of the log. Nothing is repaired by guessing: a
JSON answer may stand in a code fence or behind a thinking block, and must otherwise be JSON and nothing else. A wrong
language is reported only on clear evidence, since a false alarm costs another request. The patterns for refusals and
languages are ours.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from earwise.datasets.teachers.teacher import TeacherReply, TeacherRequest

ReplyStatus = Literal["ok", "empty", "refusal", "truncated", "invalid", "language"]
"""Outcome of the check of a reply: it is usable, is empty, refuses the request, was cut off at the token limit, does
not fit the schema, or is in the wrong language."""
MAX_REPORTED_PROBLEMS = 4
"""Schema violations that a teacher is told about at once."""

_THINK = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"^\s*```(?:json)?[ \t]*\n(.*?)\n?\s*```\s*$", re.DOTALL | re.IGNORECASE)
# A refusal needs an apology or inability and also the refused action, so that a translation of "I'm sorry I'm late"
# passes.
_INABILITY = r"(?:can['’]?t|cannot|can not|won['’]?t|will not|must decline|am unable|am not able)"
_REFUSED_ACTION = r"(?:help|assist|comply|provide|fulfil+|answer|do that|create|generate|write|request|translate)"
_REFUSAL = re.compile(
    r"^\W*(?:"
    rf"(?:i['’]?m |i am )?(?:sorry|afraid)\b.{{0,40}}\b{_INABILITY}\b.{{0,60}}\b{_REFUSED_ACTION}"
    rf"|(?:unfortunately,? )?(?:i['’]?m unable|i {_INABILITY})\b.{{0,60}}\b{_REFUSED_ACTION}"
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
_SCRIPTS_OF_LANGUAGE: Mapping[str, tuple[str, ...]] = {
    "ja": ("kana", "Han"), "zh": ("Han",), "ko": ("Hangul",), "ru": ("Cyrillic",), "uk": ("Cyrillic",),
    "ar": ("Arabic",), "el": ("Greek",), "hi": ("Devanagari",),
}  # fmt: skip
# Words that almost every longer sentence of a language contains and other languages seldom use.
_COMMON_WORDS: Mapping[str, frozenset[str]] = {
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
# Another language is reported if the text has at least _MIN_COMMON_WORDS of its common words, and more than
# _MIN_COMMON_WORDS_RATIO times as many as of the expected language.
_MIN_COMMON_WORDS = 3
_MIN_COMMON_WORDS_RATIO = 3
_HAN_WITHOUT_KANA = 12  # a Japanese text with this many Han characters has kana too


@dataclass(frozen=True, slots=True)
class ReplyCheck:
    """The outcome of checking one reply."""

    status: ReplyStatus
    """Outcome of the check; "ok" if the reply is usable."""
    value: Any = None
    """The validated JSON value, or the text; None unless `status` is "ok"."""
    error: str = ""
    """What is wrong, as a sentence that the teacher gets when it is asked again."""


def validate_reply(reply: TeacherReply, request: TeacherRequest) -> ReplyCheck:
    """Check a reply against the schema and the language that the request asks for.

    Args:
        reply: The teacher's answer.
        request: The request that it answers.
    """
    text = _THINK.sub("", reply.text).strip()
    if reply.refused:
        return ReplyCheck("refusal", error=f"it was refused or filtered: {text[:100]}")
    if not text:
        return ReplyCheck("empty", error="it was empty.")
    value, error = (text, "") if request.schema is None else _parse_json(text, request)
    if error or request.schema is None:
        if _REFUSAL.match(text):
            return ReplyCheck("refusal", error=f"it was a refusal: {text[:100]}")
        if reply.finish_reason == "length":
            return ReplyCheck("truncated", error="it was longer than the limit; be brief.")
    if error:
        return ReplyCheck("invalid", error=error)
    if request.language and (language := wrong_language(" ".join(_texts(value)), request.language)):
        return ReplyCheck("language", error=f"it was in {language}; write all texts in {request.language}.")
    return ReplyCheck("ok", value)


def wrong_language(text: str, expected: str) -> str | None:
    """Find out whether a text is clearly not in the expected language.

    Text in quotation marks is ignored, since it may repeat somebody's words in another language.

    Args:
        text: The text.
        expected: Code of the language that the text should be in. Languages that are not known here are never
            reported as wrong.
    Returns:
        Code of the other language, or its script ("Latin script"); None without clear evidence.

    Example:
        >>> wrong_language("Der Hund bellt und die Katze ist nicht da.", "en"), wrong_language("A dog barks.", "en")
        ('de', None)
        >>> wrong_language("A dog barks.", "ja"), wrong_language("犬が吠えています。", "ja")
        ('Latin script', None)
    """
    scripts = _SCRIPTS_OF_LANGUAGE.get(expected, ("Latin",) if expected in _COMMON_WORDS else ())
    if not scripts:
        return None
    text = _QUOTED.sub(" ", text)
    counts = {name: len(letters.findall(text)) for name, letters in _SCRIPTS}
    total = sum(counts.values())
    if not total:
        return None
    if 2 * sum(counts[name] for name in scripts) < total:
        return f"{max(counts, key=lambda name: counts[name])} script"
    if expected == "ja" and not counts["kana"] and counts["Han"] >= _HAN_WITHOUT_KANA:
        return "zh"
    if expected == "zh" and counts["kana"] > counts["Han"] // 4:
        return "ja"
    if expected not in _COMMON_WORDS:
        return None
    words = Counter(re.findall(r"[^\W\d_]+", text.lower()))
    votes = {code: sum(words[word] for word in common) for code, common in _COMMON_WORDS.items()}
    winner = max(votes, key=lambda code: votes[code])
    needed = max(_MIN_COMMON_WORDS, _MIN_COMMON_WORDS_RATIO * votes[expected] + 1)
    return winner if votes[winner] >= needed else None


def _parse_json(text: str, request: TeacherRequest) -> tuple[Any, str]:
    """The JSON value in a text, validated against the request's schema, and ""; or None and its problems."""
    assert request.schema is not None
    fence = _FENCE.match(text)
    try:
        value = json.loads(fence[1] if fence else text)
    except ValueError as error:
        return None, f"it is not JSON ({error}); write one JSON object and nothing else."
    try:
        return request.schema.model_validate(value, context=dict(request.facts)).model_dump(mode="json"), ""
    except ValidationError as error:
        problems = error.errors(include_url=False)[:MAX_REPORTED_PROBLEMS]
        lines = [f"{'.'.join(map(str, problem['loc'])) or 'answer'}: {problem['msg']}" for problem in problems]
        return None, "; ".join(lines) + "."


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value, without the keys of its objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
