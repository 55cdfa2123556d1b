"""Parses completions: reasoning, answer, and the option that the answer names.

Used by rewards and scorers. `parse` first removes the reasoning, then looks for the answer in this order: answer tag,
last `ANSWER: X` line, sole option letter, sole option text. Nothing is ever guessed: an answer that names no option is
`unparsed`, and one that names two different options is `ambiguous`; both score 0.

Rules that decide the difficult cases (all ours):
1. An answer that equals an option's text names that option, even where it also looks like a letter. Where the text of
   an option is itself a letter in use ("C" among musical keys), letters are not read at all.
2. Options with equal texts count as one option; the first of them is named. Options that differ only in case or
   punctuation must be repeated exactly.
3. An answer tag that is opened but never closed means that the completion was cut off: `unparsed`.
4. An option that is only mentioned to be ruled out ("not a dog") is not named. Words that occur in any sentence ("no",
   "one", single letters) name an option only where they stand as a phrase of their own.
5. Texts are compared as people mean them: composed and decomposed letters (NFC), full-width forms and case are the
   same, and invisible characters do not count. The official scorers do not go through these rules.
6. Where all options carry letters of their own ("(A) Man", "(D) Robot"), a letter means the option that carries it;
   where only some do, or two carry the same one, letters are not read. Such an option is also named by its text alone.
7. A letter that is declared ("the answer is B", "Final answer: D") outweighs letters that are only mentioned ("option A
   is a distractor"). Two different declarations are ambiguous.

No torch.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from earwise.answers.option_texts import OUTER_PUNCTUATION, canonical, fold, normalise, places_by_letter, without_labels
from earwise.types import Parsed, Status

SECTIONS = ("planning", "caption", "reasoning", "summary")
"""The four sections of structured reasoning, in order (SARI, arXiv:2504.15900; the tag names are ours)."""

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
# An XS-CoT completion has parts behind markers (`prompts.part_marker`); the last part, in the spoken language, is the
# answer.
_XS_COT_START = re.compile(r"\s*\[[a-z]{2}\] |\s*\[[a-z]{3}\] .*?^\[en\] ", re.DOTALL | re.MULTILINE)
_XS_COT_ANSWER = re.compile(r"^\[(?!en-)[a-z]{2,3}-response\] ?", re.MULTILINE)
_R1AQA_BLOCK = re.compile(r"<answer>(.*?)</answer>")

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
_CLAUSE_ENDS = frozenset(".,;:!?。，、！？；：")
_NEGATION_WORDS = (
    "not no never without neither nor than cannot can't don't doesn't didn't isn't aren't wasn't weren't won't 不 没 非"
)
_INTRODUCING_WORDS = (
    "is are was be it's that's answer option choice say choose or and not nor either maybe 是 为 選 选 或 は"
)
_NEGATIONS = frozenset(_NEGATION_WORDS.split(" "))
_INTRODUCTIONS = frozenset(_INTRODUCING_WORDS.split(" "))
_COMMON_WORDS = frozenset(("no", "none", "one", "all", "any", "other", "on", "off", "in", "out", "up"))

_CJK_PHRASE_ENDS = ("です", "だ", "である", "でした", "吧", "呢")
"""What may follow a single Chinese or Japanese character that is the whole answer (答えは犬です)."""
_CJK_DENIALS = re.compile("(?:では|じゃ|で)?(?:ない|なく|無い|ありません)")
"""Japanese denies behind the word: 犬ではありません."""

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
    re.compile(
        r"(?:答案|答え|回答|选项|選項|选择|選擇|正解|选|選)(?:应该|應該)?[是为為选選は:\s]*[\"'「『(\[*]*([A-Za-z])"
        r"(?=[\"'」』)\]*]*(?:$|[\s.,;:!?。，、！？；]|です|だ))"
    ),
)
_LETTER_DECLARED = re.compile(
    r"\b(?:(?:correct|right|final|best)\s+)*answer(?:\s+is\b\s*:?|\s*[:：])\s*[\"'(\[*]*([A-Za-z])"
    r"(?=[\"')\]*]*\s*(?:[.,;:!?\n]|$|because\b|since\b|as\b))",
    re.I,
)


class _Word(NamedTuple):
    """A word of a text and the punctuation attached to it."""

    before: str
    core: str
    after: str


def extract_answer_r1aqa(text: str) -> str:
    """Extract the answer as R1-AQA's released code does: the first `<answer>` block on one line, else the whole text.

    Example:
        >>> extract_answer_r1aqa("so <answer> dog </answer>"), extract_answer_r1aqa(" dog ")
        ('dog', 'dog')

    Source: R1-AQA (arXiv:2503.11197), released code xiaomi-research/r1-aqa@5d24f31 (accuracy reward and evaluation).
    """
    block = _R1AQA_BLOCK.search(text)
    return (block[1] if block else text).strip()


def parse_sections(text: str) -> dict[str, str]:
    """Contents of the structured-reasoning sections in a text, stripped.

    Returns:
        Lower-case section name (see `SECTIONS`) -> content, in order of appearance. A section that occurs twice has
        its last content.

    Example:
        >>> parse_sections("<think><planning>p</planning><summary> s </summary></think>")
        {'planning': 'p', 'summary': 's'}
    """
    pattern = re.compile(rf"<({'|'.join(SECTIONS)})>(.*?)</\1>", _FLAGS)
    return {match[1].lower(): match[2].strip() for match in pattern.finditer(text)}


def split_reasoning(text: str) -> tuple[str | None, str]:
    """Split a completion into its reasoning and the text that is left.

    Reasoning is, in a completion with reasoning tags, the content of every `<think>` and section block, the text before
    a lone `</think>` (whose opening tag was part of the prompt), and the text after a tag that is never closed, up to
    an answer block that ends the text. In a completion without such tags it is the text before the last answer block.
    In an XS-CoT completion it is everything before the marker of the last part.

    Returns:
        The reasoning, None if there is none, and the remaining text; both stripped.
    """
    if _XS_COT_START.match(text):
        marker = _XS_COT_ANSWER.search(text)
        return (text[: marker.start()].strip(), text[marker.end() :].strip()) if marker else (text.strip(), "")
    reasoning = [block[2].strip() for block in _REASONING.finditer(text)]
    remaining = _REASONING.sub(" ", text)
    closing_tags = list(_THINK_CLOSE.finditer(remaining))
    if closing_tags:
        reasoning.append(remaining[: closing_tags[-1].start()].strip())
        remaining = remaining[closing_tags[-1].end() :]
    opening_tag = _REASONING_OPEN.search(remaining)
    if opening_tag:
        head, tail = remaining[: opening_tag.start()], remaining[opening_tag.end() :].rstrip()
        final_blocks = [block for block in _BLOCK.finditer(tail) if block.end() == len(tail)]
        cut = final_blocks[0].start() if final_blocks else len(tail)
        reasoning.append(tail[:cut].strip())
        remaining = head + " " + tail[cut:]
    blocks = list(_BLOCK.finditer(remaining))
    if blocks and not reasoning:
        reasoning.append(_BLOCK.sub(" ", remaining[: blocks[-1].start()]).strip())
    return "\n".join(part for part in reasoning if part) or None, remaining.strip()


def answer_start(text: str) -> int | None:
    """Index of the first character of the answer in a completion.

    Returns:
        The index: 0 if there is no reasoning. None if there is reasoning that never arrives at an answer.

    Example:
        >>> answer_start("dog"), answer_start("<think>It barks.</think><answer>dog</answer>"), answer_start("<think>It")
        (0, 32, None)
    """
    if _XS_COT_START.match(text):
        marker = _XS_COT_ANSWER.search(text)
        return marker.end() if marker else None
    if split_reasoning(text)[0] is None:
        return 0
    tags = list(_BLOCK_OPEN.finditer(text)) or list(_THINK_CLOSE.finditer(text)) or list(_REASONING.finditer(text))
    return tags[-1].end() if tags else None


def answer_blocks(text: str) -> tuple[str, ...]:
    """Contents of all well-formed answer blocks outside the reasoning, stripped, in order."""
    return tuple(block[2].strip() for block in _BLOCK.finditer(split_reasoning(text)[1]))


def extract_answer(text: str) -> str | None:
    """Extract a completion's answer word for word: answer block, else last `ANSWER:` line, else all but the reasoning.

    Returns:
        The answer, stripped. None if it is empty, an answer tag is left open, or two blocks hold different answers.
    """
    candidates, _ = _candidates(split_reasoning(text)[1])
    return candidates[0] if len(candidates) == 1 else None


def option_index(text: str, choices: tuple[str, ...]) -> int | None:
    """Index of the option that a text repeats: exactly, or up to `normalise` if only one option then matches.

    Args:
        text: A text without reasoning or tags.
        choices: Texts of the options.
    Returns:
        The index; the first one of several options with the same text. None if the text is not an option.

    Example:
        >>> option_index("car HORN.", ("dog bark", "car horn"))
        1
    """
    for same_form in (str.strip, lambda option: canonical(option).strip()):
        exact_matches = [index for index, choice in enumerate(choices) if same_form(choice) == same_form(text)]
        if exact_matches:
            return exact_matches[0]
    normalised = normalise(text)
    for options in (choices, without_labels(choices)):
        matches = {
            choice.strip(): index
            for index, choice in reversed(list(enumerate(options)))
            if normalised and normalise(choice) == normalised
        }
        if matches:
            return next(iter(matches.values())) if len(matches) == 1 else None
    return None


def mentions(text: str, phrase: str) -> bool:
    """Whether a phrase occurs in a text as whole words, ignoring case and punctuation around the words.

    Example:
        >>> mentions("I hear a Dog bark, loudly", "dog bark"), mentions("hotdog barking", "dog")
        (True, False)
    """
    phrase_words = [word.core for word in _words(phrase)]
    text_words = [word.core for word in _words(text)]
    size = len(phrase_words)
    return bool(size) and any(text_words[start : start + size] == phrase_words for start in range(len(text_words)))


def parse(text: str, choices: tuple[str, ...] = ()) -> Parsed:
    """Parse a completion. Never raises, never guesses.

    Args:
        text: The completion.
        choices: Texts of the options in the order in which the prompt listed them; letter A names the first one. Empty
            for a question without options.
    Returns:
        The parts of the completion. `answer` is the text of the named option, or the free answer of a question without
        options; `choice` is the index of the option. Both are None unless `status` is "ok".

    Example:
        >>> parse("<think>It barks.</think><answer>(A) dog</answer>", ("dog", "cat"))
        Parsed(reasoning='It barks.', answer='dog', choice=0, status='ok')
        >>> parse("dog or cat", ("dog", "cat")).status, parse("a bird", ("dog", "cat")).status
        ('ambiguous', 'unparsed')
    """
    reasoning, remaining = split_reasoning(text)
    candidates, status = _candidates(remaining)
    if not choices:
        answer = candidates[0] if len(candidates) == 1 else None
        return Parsed(reasoning, answer, None, status)
    results = [_named_option(candidate, choices) for candidate in candidates]
    if not results:
        return Parsed(reasoning, None, None, "unparsed")
    if len(set(results)) > 1:
        return Parsed(reasoning, None, None, "ambiguous")
    index, status = results[0]
    return Parsed(reasoning, None if index is None else choices[index], index, status)


def _candidates(text: str) -> tuple[tuple[str, ...], Status]:
    """The different answers in a text without reasoning, and the status that they have as free answers."""
    answers = [block[2].strip() for block in _BLOCK.finditer(text)]
    if not answers:
        if _BLOCK_OPEN.search(text):
            return (), "unparsed"
        answer_lines = _ANSWER_LINE.findall(text)
        answers = [answer_lines[-1]] if answer_lines else [text.strip()]
    distinct = {normalise(answer): answer for answer in reversed(answers) if answer}
    if not distinct:
        return (), "unparsed"
    return tuple(distinct.values()), "ok" if len(distinct) == 1 else "ambiguous"


def _named_option(answer: str, choices: tuple[str, ...]) -> tuple[int | None, Status]:
    """Index of the one option that an answer names and "ok", or None and the reason why there is none."""
    index = option_index(answer, choices)
    if index is not None:
        return index, "ok"
    plain_text = _MARKUP.sub(" ", canonical(answer))
    named, denied = _mentioned_options(plain_text, without_labels(choices))
    named |= _merge_equal_options(_options_by_letter(plain_text, choices), choices)
    if len(named | denied) > 1:
        return None, "ambiguous"
    return (next(iter(named)), "ok") if named else (None, "unparsed")


def _options_by_letter(text: str, choices: tuple[str, ...]) -> set[int]:
    """Indices of the options that a text names by letter; letters that no option has are ignored."""
    places = places_by_letter(choices)
    if places.keys() & {normalise(choice) for choice in choices}:
        return set()
    alone = _LETTER_ALONE.fullmatch(text)
    matches = {alone[1]} if alone else set(_LETTER_DECLARED.findall(text))
    if matches and (first := _LETTER_MARKED[1].match(text)):
        matches.add(first[1])
    if not {letter.lower() for letter in matches} & places.keys():
        matches = {letter for pattern in _LETTER_MARKED for letter in pattern.findall(text)}
    return {places[letter] for letter in map(str.lower, matches) if letter in places}


def _mentioned_options(text: str, choices: tuple[str, ...]) -> tuple[set[int], set[int]]:
    """Indices of the options whose texts occur in a text: those that are asserted, and those that are only denied.

    Where the text of one option is part of a longer option's text, only the longer one counts at that place.
    """
    words = _words(text)
    cores = [word.core for word in words]
    occurrences: list[tuple[int, int, int]] = []  # first word, end (exclusive), index of the option
    for index, choice in enumerate(choices):
        choice_words = [word.core for word in _words(choice)]
        if choice_words:
            size = len(choice_words)
            occurrences += [
                (start, start + size, index)
                for start in range(len(cores) - size + 1)
                if cores[start : start + size] == choice_words
            ]
    asserted: set[int] = set()
    denied: set[int] = set()
    for start, end, index in occurrences:
        if any(first <= start and end <= last and last - first > end - start for first, last, _ in occurrences):
            continue
        if end - start == 1 and _is_common_word(cores[start]) and not _stands_alone(words, start):
            continue
        (denied if _is_denied(words, start, end) else asserted).add(index)
    asserted, denied = _merge_equal_options(asserted, choices), _merge_equal_options(denied, choices)
    return asserted, denied - asserted


def _merge_equal_options(indices: Iterable[int], choices: tuple[str, ...]) -> set[int]:
    """Replace the index of each option by that of the first option with the same text."""
    texts = [choice.strip() for choice in choices]
    return {texts.index(texts[index]) for index in indices}


def _words(text: str) -> list[_Word]:
    """The words of a text, each with its punctuation; a Chinese or Japanese character is a word of its own."""
    words: list[_Word] = []
    for match in _WORD.findall(fold(text)):
        core = match.strip(OUTER_PUNCTUATION)
        if core:
            start = match.index(core)
            words.append(_Word(match[:start], core, match[start + len(core) :]))
        elif words:
            words[-1] = words[-1]._replace(after=words[-1].after + match)
    return words


def _is_common_word(core: str) -> bool:
    """Whether a word occurs in so many sentences that its mention alone names no option."""
    return core in _COMMON_WORDS or (len(core) == 1 and not core.isdecimal())


def _stands_alone(words: list[_Word], index: int) -> bool:
    """Whether a word is a phrase of its own.

    It is if it follows the start of the text, a clause end, a quote or a word like "is", and the text or punctuation
    ends it.
    """
    starts_phrase = (
        index == 0
        or bool(words[index].before)
        or bool(_CLAUSE_ENDS & set(words[index - 1].after))
        or words[index - 1].core in _INTRODUCTIONS
    )
    following = "".join(word.core for word in words[index + 1 : index + 4])
    ends_phrase = index == len(words) - 1 or bool(words[index].after) or following.startswith(_CJK_PHRASE_ENDS)
    return starts_phrase and ends_phrase


def _is_denied(words: list[_Word], start: int, end: int) -> bool:
    """Whether one of the three words before, within the same clause, is a negation, or a Japanese one follows.

    Args:
        words: All words.
        start: First word of the phrase in question.
        end: Word after it.
    """
    if not words[end - 1].after and _CJK_DENIALS.match("".join(word.core for word in words[end : end + 8])):
        return True
    for word in reversed(words[max(0, start - 3) : start]):
        if _CLAUSE_ENDS & set(word.after):
            return False
        if word.core in _NEGATIONS:
            return True
    return False
