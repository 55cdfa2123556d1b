"""Split text into sentences and words in four languages: English, German, French and Japanese (also Chinese).

Pure functions on text, used by `chain_compression`. The pieces always concatenate to the text that was split, so
whitespace is preserved. Word boundaries of Japanese are estimated from changes of script and from particles (ours: no
morphological analyser is needed, and the result is close to bunsetsu).
"""

import itertools
import re

_ABBREVIATIONS = {
    "en": "mr mrs ms dr prof st sr jr vs etc e.g i.e a.m p.m u.s u.k no fig vol approx dept est inc ltd co",
    "de": "z.b d.h u.a usw bzw ca dr prof hr fr frl nr st str vgl s.o s.u o.ä u.ä evtl ggf inkl max min mio mrd sog "
    "abs bd geb jh v.chr n.chr z.t i.d.r",
    "fr": "m mm mme mmes mlle mlles dr pr st ste etc p.ex c.-à-d env av apr j.-c no vol fig cf éd chap tél",
}
_ABBREVIATION_SETS = {code: frozenset(words.split()) for code, words in _ABBREVIATIONS.items()}
_STOP = re.compile(r"([.!?…]+)([\"'”’»)\]]*)(\s+|$)|(\n\s*)")
_JA_STOP = re.compile(r"[。！？!?．…]+[」』）)\"”]*\s*|\n\s*")
_WORD = re.compile(r"\S+\s*|\s+")
_JA_RUN = re.compile(
    r"(?P<hiragana>[\u3041-\u309f]+)|(?P<katakana>[\u30a0-\u30ff\uff66-\uff9f]+)|(?P<han>[\u3400-\u4dbf\u4e00-\u9fff々〆]+)"
    r"|(?P<latin>[A-Za-zÀ-ɏＡ-Ｚａ-ｚ]+)|(?P<digit>[0-9０-９.,]+)|(?P<space>\s+)|(?P<mark>.)",
    re.DOTALL,
)
# A particle at the start of a run of hiragana, followed by at least two more kana (the beginning of the next word).
_PARTICLE = re.compile(
    r"(?:から|まで|より|には|では|とは|のは|のが|のを|は|が(?!ら)|を|に|で(?![すしき])|と(?!き)|も|の(?!で)|へ)(?=[\u3041-\u309f]{2})"
)


def split_sentences(text: str, language: str = "en") -> list[str]:
    """Split a text into sentences, each with the whitespace that follows it.

    Args:
        text: Text of one language.
        language: Two-letter code; it selects abbreviations that do not end a sentence, and the Japanese rules for "ja"
            and "zh".
    Returns:
        The sentences; concatenated they are the text.

    >>> split_sentences("Dr. No came. He sat!  Why?", "en")
    ['Dr. No came. ', 'He sat!  ', 'Why?']
    >>> split_sentences("雨です。傘は？", "ja"), split_sentences("Am 3. Mai regnet es, z. B. hier.", "de")
    (['雨です。', '傘は？'], ['Am 3. Mai regnet es, z. B. hier.'])
    """
    if language in ("ja", "zh"):
        ends = [match.end() for match in _JA_STOP.finditer(text)]
    else:
        ends = _sentence_ends(text, language)
    cuts = [0, *(end for end in ends if end < len(text)), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(cuts) if start < end]
    starts_blank = len(pieces) > 1 and not pieces[0].strip()
    return [pieces[0] + pieces[1], *pieces[2:]] if starts_blank else pieces


def split_words(sentence: str, language: str = "en") -> list[str]:
    """Split a sentence into words, each with the whitespace that follows it; concatenated they are the sentence.

    >>> split_words("Où est la gare ?", "fr")
    ['Où ', 'est ', 'la ', 'gare ', '?']
    >>> split_words("フランスの首都はどこですか。", "ja")
    ['フランスの', '首都は', 'どこですか。']
    """
    return _japanese_words(sentence) if language in ("ja", "zh") else _WORD.findall(sentence)


def _sentence_ends(text: str, language: str) -> list[int]:
    """End offsets of the sentences of a text, for languages that put spaces between words."""
    abbreviations = _ABBREVIATION_SETS.get(language, _ABBREVIATION_SETS["en"])
    ends = []
    for match in _STOP.finditer(text):
        if match[4] is None and match[1] == "." and not match[2]:
            preceding = text[: match.start()].rsplit(None, 1)[-1:] or [""]
            word = preceding[0].lower().lstrip("(\"'„“«")
            following = text[match.end() :][:1]
            if word == "no" and not following.isdigit():
                ends.append(match.end())  # "No. 5" abbreviates number; "No." alone is a sentence
                continue
            if word in abbreviations or following.islower() or (len(word) == 1 and word.isalpha() and language != "fr"):
                continue
            if language == "de" and word.isdecimal() and len(word) <= 2:
                continue  # a German ordinal: "am 3. Mai"
        ends.append(match.end())
    return ends


def _japanese_words(sentence: str) -> list[str]:
    """Split Japanese text into approximate bunsetsu: a word and its kana, by changes of script and by particles."""
    parts: list[str] = []
    previous_kind = ""
    for match in _JA_RUN.finditer(sentence):
        run, kind = match[0], str(match.lastgroup)
        after_stop = bool(parts) and parts[-1][-1] in "、。，．,.！？!?…"
        joins = (
            kind in ("space", "mark")
            or (kind == "hiragana" and not after_stop)
            or (kind != "hiragana" and previous_kind == "digit")
            or (previous_kind == "mark" and bool(parts) and parts[-1][-1] in '「『（(["“')
            or bool(parts and parts[-1] in ("お", "ご"))
        )
        particle = _PARTICLE.match(run) if kind == "hiragana" and joins and previous_kind not in ("", "space") else None
        if particle:
            parts[-1] += particle[0]
            parts.append(run[particle.end() :])
        elif joins and parts:
            parts[-1] += run
        else:
            parts.append(run)
        previous_kind = kind
    return parts
