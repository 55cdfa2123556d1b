"""Completions taken apart: reasoning, answer, option. What cannot be told stays `unparsed` or `ambiguous`.

Used by rewards and scorers; no torch, nothing is guessed. Order of reading (papers/evaluation.md, section 1): strip the
reasoning, then answer tag -> last `ANSWER: X` line -> sole option letter -> sole option text. Two different candidates
are `ambiguous`.

Rules of our own:
1. An answer that is an option's text names that option even where it also looks like a letter; where an option's own
   text is a letter of the range ("C" among musical keys), letters are not read at all.
2. Equal options are one option: the first is named. Options that differ only in case or punctuation need the exact
   text.
3. An answer tag that is opened and never closed is a cut answer: `unparsed`.
4. An option that is mentioned only to be denied ("not a dog") is not named, and words that occur in any sentence ("no",
   "one", single letters) name an option only where they stand as a phrase of their own.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from earwise.types import Parsed, Status

SECTIONS = ("planning", "caption", "reasoning", "summary")
"""The four sections of structured reasoning, in order (SARI, arXiv 2504.15900, section 3; the tag names are ours)."""

_FLAGS = re.DOTALL | re.IGNORECASE
_REASONING = re.compile(r"<(think|planning|caption|reasoning|summary)>(.*?)</\1>", _FLAGS)
_THINK_CLOSE = re.compile(r"</think>", _FLAGS)
_REASONING_OPEN = re.compile(r"<(?:think|planning|caption|reasoning|summary)>", _FLAGS)
_BLOCK = re.compile(r"<(answer|response)>((?:(?!</?\1>).)*)</\1>", _FLAGS)
_BLOCK_OPEN = re.compile(r"<(?:answer|response)>", _FLAGS)
_ANSWER_LINE = re.compile(
    r"^[ \t>#*_-]*(?:the[ \t]+)?(?:final[ \t]+)?answer[ \t*_]*[:：][ \t*_]*(\S.*?)[ \t*_]*$", re.I | re.M
)
_MARKUP = re.compile(r"</?[a-z]+>|\$?\\(?:boxed|text)\b|(?<=\})\$", re.IGNORECASE)
# XS-CoT: parts behind markers (prompts.part_marker); the last one, in the language that was spoken, is the answer.
_PARTS = re.compile(r"\s*\[[a-z]{2}\] |\s*\[[a-z]{3}\] .*?^\[en\] ", re.DOTALL | re.MULTILINE)
_LAST_PART = re.compile(r"^\[(?!en-)[a-z]{2,3}-response\] ?", re.MULTILINE)
_R1AQA_BLOCK = re.compile(r"<answer>(.*?)</answer>")

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_PIECE = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
# Quotes, brackets, sentence marks and markdown; not "#", "+", "-", "$", "%", which change what an answer means.
_OUTER = ".,;:!?\"'`*_()[]{}…“”‘’«»。，、！？；：「」（）"
_QUOTES = str.maketrans("‘’“”", "''\"\"")
_STOPS = frozenset(".,;:!?。，、！？；：")
_NO = (
    "not no never without neither nor than cannot can't don't doesn't didn't isn't aren't wasn't weren't won't 不 没 非"
)
_LEAD = "is are was be it's that's answer option choice say choose or and not nor either maybe 是 选 或"
_NEGATIONS, _LEADS = (frozenset(re.split(" ", words)) for words in (_NO, _LEAD))
_WEAK = frozenset(("no", "none", "one", "all", "any", "other", "on", "off", "in", "out", "up"))

_HEDGE = r"[\s().:\[\]{}*_\"'`]*"
_LETTER_ALONE = re.compile(
    rf"{_HEDGE}(?:(?:the\s+)?(?:(?:correct|right|final|best)\s+)*(?:answer|option|choice|letter)\b(?:\s+is\b)?{_HEDGE})?([a-z]){_HEDGE}",
    re.I,
)
_LETTER_MARKED = (
    re.compile(r"(?<!\w)[(\[]([A-Za-z])[)\]]"),
    re.compile(r"^[\s*_\"'>-]*([A-Z])[).:](?=[\s*_]|$)", re.MULTILINE),
    re.compile(
        r"\b(?:[Aa]nswer|ANSWER|[Oo]ption|[Cc]hoice|[Ll]etter)(?:\s+is)?:?\s*[\"'(\[*]*([A-Z])"
        r"(?=[\"')\]*]*\s*(?:[.,;:!?\n]|$|because\b|since\b|as\b))"
    ),
)


class _Piece(NamedTuple):
    lead: str
    core: str
    trail: str


def normalise(text: str) -> str:
    """Fold case, join whitespace, take off outer quotes, brackets and sentence marks (a text of nothing else is kept).

    >>> normalise('  "Rain  on a roof." ')
    'rain on a roof'
    >>> normalise("C#"), normalise("...")
    ('c#', '...')
    """
    joined = " ".join(_fold(text).split())
    return joined.strip(_OUTER + " ") or joined


def r1aqa_extract(text: str) -> str:
    """The answer as R1-AQA's released code takes it: first `<answer>` block on one line, else the whole text, stripped.

    >>> r1aqa_extract("so <answer> dog </answer>"), r1aqa_extract(" dog ")
    ('dog', 'dog')

    Source: xiaomi-research/r1-aqa@5d24f31, papers/r1-aqa.md sections 4 and 8.
    """
    block = _R1AQA_BLOCK.search(text)
    return (block[1] if block else text).strip()


def sections(text: str) -> dict[str, str]:
    """The sections of structured reasoning that stand in `text`, by lower-case name, in order of appearance, stripped.

    >>> sections("<think><planning>p</planning><summary> s </summary></think>")
    {'planning': 'p', 'summary': 's'}
    """
    pattern = re.compile(rf"<({'|'.join(SECTIONS)})>(.*?)</\1>", _FLAGS)
    return {found[1].lower(): found[2].strip() for found in pattern.finditer(text)}


def split_reasoning(text: str) -> tuple[str | None, str]:
    """Part a completion into its reasoning (None: there is none) and the rest.

    Reasoning is what stands in `<think>` or a section tag, what stands before a lone `</think>` (the prompt opened it),
    what follows a tag that is never closed (but not an answer block that ends the text); without any of these, what
    stands before the last answer block. In an XS-CoT chain it is all that stands before the marker of the last part.
    """
    if _PARTS.match(text):
        final = _LAST_PART.search(text)
        return (text[: final.start()].strip(), text[final.end() :].strip()) if final else (text.strip(), "")
    found = [block[2].strip() for block in _REASONING.finditer(text)]
    rest = _REASONING.sub(" ", text)
    closes = list(_THINK_CLOSE.finditer(rest))
    if closes:
        found.append(rest[: closes[-1].start()].strip())
        rest = rest[closes[-1].end() :]
    opened = _REASONING_OPEN.search(rest)
    if opened:
        head, tail = rest[: opened.start()], rest[opened.end() :].rstrip()
        last = [block for block in _BLOCK.finditer(tail) if block.end() == len(tail)]
        cut = last[0].start() if last else len(tail)
        found.append(tail[:cut].strip())
        rest = head + " " + tail[cut:]
    blocks = list(_BLOCK.finditer(rest))
    if blocks and not found:
        found.append(_BLOCK.sub(" ", rest[: blocks[-1].start()]).strip())
    return "\n".join(part for part in found if part) or None, rest.strip()


def answer_start(text: str) -> int | None:
    """Index of the first character of the answer: 0 without reasoning, None where reasoning never comes to an answer.

    >>> answer_start("dog"), answer_start("<think>It barks.</think><answer>dog</answer>"), answer_start("<think>It")
    (0, 32, None)
    """
    if _PARTS.match(text):
        final = _LAST_PART.search(text)
        return final.end() if final else None
    if split_reasoning(text)[0] is None:
        return 0
    marks = list(_BLOCK_OPEN.finditer(text)) or list(_THINK_CLOSE.finditer(text)) or list(_REASONING.finditer(text))
    return marks[-1].end() if marks else None


def answer_blocks(text: str) -> tuple[str, ...]:
    """The stripped contents of all well-formed answer blocks outside the reasoning, in order."""
    return tuple(block[2].strip() for block in _BLOCK.finditer(split_reasoning(text)[1]))


def extract_answer(text: str) -> str | None:
    """What a completion gives as its answer, word for word: answer block, else last `ANSWER:` line, else all the rest.

    Returns:
        The stripped words; None where there are none, an answer tag is left open, or two blocks say different things.
    """
    candidates, _ = _candidates(split_reasoning(text)[1])
    return candidates[0] if len(candidates) == 1 else None


def option_index(text: str, choices: tuple[str, ...]) -> int | None:
    """Index of the option whose text this is: exactly, else up to `normalise` if that leaves one. Of equal ones the
    first.

    >>> option_index("car HORN.", ("dog bark", "car horn"))
    1
    """
    exact = [index for index, choice in enumerate(choices) if choice.strip() == text.strip()]
    if exact:
        return exact[0]
    wanted = normalise(text)
    near = {
        choice.strip(): index
        for index, choice in reversed(list(enumerate(choices)))
        if wanted and normalise(choice) == wanted
    }
    return next(iter(near.values())) if len(near) == 1 else None


def mentions(text: str, phrase: str) -> bool:
    """True if the phrase stands in the text as whole words, case and outer punctuation aside.

    >>> mentions("I hear a Dog bark, loudly", "dog bark"), mentions("hotdog barking", "dog")
    (True, False)
    """
    wanted = [piece.core for piece in _pieces(phrase)]
    cores = [piece.core for piece in _pieces(text)]
    return bool(wanted) and any(cores[at : at + len(wanted)] == wanted for at in range(len(cores)))


def parse(text: str, choices: tuple[str, ...] = ()) -> Parsed:
    """Take a completion apart. Never raises, never guesses.

    Args:
        text: What the model said.
        choices: The options as the prompt listed them, as many letters as options. Empty: a free answer.
    Returns:
        `answer` is the option's text (or the free answer), `choice` its index. Both are None unless `status` is "ok".

    >>> parse("<think>It barks.</think><answer>(A) dog</answer>", ("dog", "cat"))
    Parsed(reasoning='It barks.', answer='dog', choice=0, status='ok')
    >>> parse("dog or cat", ("dog", "cat")).status, parse("a bird", ("dog", "cat")).status
    ('ambiguous', 'unparsed')
    """
    reasoning, rest = split_reasoning(text)
    candidates, status = _candidates(rest)
    if not choices:
        answer = candidates[0] if len(candidates) == 1 else None
        return Parsed(reasoning, answer, None, status)
    results = [_resolve(candidate, choices) for candidate in candidates]
    if not results:
        return Parsed(reasoning, None, None, "unparsed")
    if len(set(results)) > 1:
        return Parsed(reasoning, None, None, "ambiguous")
    index, status = results[0]
    return Parsed(reasoning, None if index is None else choices[index], index, status)


def _candidates(rest: str) -> tuple[tuple[str, ...], Status]:
    """The different answers that a text without reasoning gives, and the status they would have as free answers."""
    found = [block[2].strip() for block in _BLOCK.finditer(rest)]
    if not found:
        if _BLOCK_OPEN.search(rest):
            return (), "unparsed"
        lines = _ANSWER_LINE.findall(rest)
        found = [lines[-1]] if lines else [rest.strip()]
    distinct = {normalise(answer): answer for answer in reversed(found) if answer}
    if not distinct:
        return (), "unparsed"
    return tuple(distinct.values()), "ok" if len(distinct) == 1 else "ambiguous"


def _resolve(answer: str, choices: tuple[str, ...]) -> tuple[int | None, Status]:
    """The one option that an answer names, or the reason why there is none."""
    whole = option_index(answer, choices)
    if whole is not None:
        return whole, "ok"
    plain = _MARKUP.sub(" ", answer)
    named, denied = _mentioned(plain, choices)
    named |= _first_of_equals(_letters(plain, choices), choices)
    if len(named | denied) > 1:
        return None, "ambiguous"
    return (next(iter(named)), "ok") if named else (None, "unparsed")


def _letters(text: str, choices: tuple[str, ...]) -> set[int]:
    """Indices of the options that are named by letter, within the range of letters."""
    letters = {chr(ord("a") + index) for index in range(min(len(choices), 26))}
    if letters & {normalise(choice) for choice in choices}:
        return set()
    alone = _LETTER_ALONE.fullmatch(text)
    found = {alone[1]} if alone else {letter for pattern in _LETTER_MARKED for letter in pattern.findall(text)}
    return {ord(letter) - ord("a") for letter in map(str.lower, found) if letter in letters}


def _mentioned(text: str, choices: tuple[str, ...]) -> tuple[set[int], set[int]]:
    """Indices of the options whose text stands in the answer: asserted, and only denied. The longest wins its place."""
    pieces = _pieces(text)
    cores = [piece.core for piece in pieces]
    places: list[tuple[int, int, int]] = []
    for index, choice in enumerate(choices):
        wanted = [piece.core for piece in _pieces(choice)]
        if wanted:
            size = len(wanted)
            places += [(at, at + size, index) for at in range(len(cores) - size + 1) if cores[at : at + size] == wanted]
    asserted: set[int] = set()
    denied: set[int] = set()
    for start, end, index in places:
        if any(a <= start and end <= b and (b - a) > (end - start) for a, b, _ in places):
            continue
        if end - start == 1 and _is_weak(cores[start]) and not _stands_alone(pieces, start):
            continue
        (denied if _is_denied(pieces, start) else asserted).add(index)
    asserted, denied = _first_of_equals(asserted, choices), _first_of_equals(denied, choices)
    return asserted, denied - asserted


def _first_of_equals(found: Iterable[int], choices: tuple[str, ...]) -> set[int]:
    """Equal options are one: the first stands for all."""
    texts = [choice.strip() for choice in choices]
    return {texts.index(texts[index]) for index in found}


def _pieces(text: str) -> list[_Piece]:
    """Words (Chinese and Japanese: characters) with the punctuation around them."""
    pieces: list[_Piece] = []
    for found in _PIECE.findall(_fold(text)):
        core = found.strip(_OUTER)
        if core:
            at = found.index(core)
            pieces.append(_Piece(found[:at], core, found[at + len(core) :]))
        elif pieces:
            pieces[-1] = pieces[-1]._replace(trail=pieces[-1].trail + found)
    return pieces


def _fold(text: str) -> str:
    """One case, straight quotes."""
    return text.casefold().translate(_QUOTES)


def _is_weak(core: str) -> bool:
    """Words that occur in any sentence, so that a mention alone says nothing."""
    return core in _WEAK or (len(core) == 1 and not core.isdecimal())


def _stands_alone(pieces: list[_Piece], at: int) -> bool:
    """A phrase of its own: begun by the text, a stop, a quote or a word like "is"; ended by the text or punctuation."""
    before = (
        at == 0 or bool(pieces[at].lead) or bool(_STOPS & set(pieces[at - 1].trail)) or pieces[at - 1].core in _LEADS
    )
    return before and (at == len(pieces) - 1 or bool(pieces[at].trail))


def _is_denied(pieces: list[_Piece], at: int) -> bool:
    """A negation among the three words before, in the same clause."""
    for piece in reversed(pieces[max(0, at - 3) : at]):
        if _STOPS & set(piece.trail):
            return False
        if piece.core in _NEGATIONS:
            return True
    return False
