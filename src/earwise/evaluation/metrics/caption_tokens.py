"""Captions into tokens as the COCO tool kit's tokenizer gives them, without Java.

The tool kit runs Stanford's PTB tokenizer (3.4.1), lower-cases its tokens and drops punctuation. This is the part of it
that English captions need: clitics ("it 's", "ca n't", "gon na"), abbreviations that keep their full stop, numbers with
their points, and punctuation as tokens of its own, which is then dropped.

Source: Marcus et al. 1993 (Penn Treebank's conventions); compared with the Java program's output on all captions of
AudioCaps and Clotho (see docs).
"""

import re

DROPPED = {*"'`.?!,:-;\"“”‘’", "''", "``", "--", "..."}
"""Tokens that the tool kit drops. Brackets stay: it looks for the names of capital letters, after lower-casing them."""
RENAMED = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "£": "#"}
"""The Treebank's names of brackets, and its sign for pounds."""
ABBREVIATIONS = frozenset({
    "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "etc", "inc", "ltd", "co", "corp", "no", "fig", "gen",
    "col", "capt", "lt", "sgt", "rev", "hon", "gov", "sen", "rep", "jan", "feb", "mar", "apr", "jun", "jul", "aug",
    "sep", "sept", "oct", "nov", "dec", "ave", "blvd", "rd", "mt", "ft", "approx", "dept", "est",
})  # fmt: skip
"""Words that keep a full stop inside a sentence."""

_PIECE = re.compile(
    r"""
    (?:[a-z]\.){2,}                      # a.m., u.s.
  | \d+(?:[.,:]\d+)+ | \d+/\d+          # 3.5, 10:30, 1/2
  | [^\W_]+(?:['’](?![a-z]*['’]|\W|$)[^\W_]+|[-_/&.@](?=[^\W_])[^\W_]+)*   # words, joined by -, _, ', /
  | 'n' | <[a-z]+> | @[a-z]+ | '(?:s|re|ve|ll|d|m)\b   # tags, handles, a clitic that stands alone
  | \.\.\. | -{2,} | ['’‘`]{2}
  | \S
    """,
    re.VERBOSE,
)
_CLITIC = re.compile(r"^(.+)(n['’]t|['’](?:s|re|ve|ll|d|m))$")
_SPLIT_WORDS = {
    "cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me", "lemme": "lem me",
}  # fmt: skip


def caption_tokens(caption: str) -> str:
    """A caption as lower-case tokens with blanks between them, without punctuation.

    >>> caption_tokens("A well-known man can't hear it; Mr. Smith's dog barks, twice.")
    "a well-known man ca n't hear it mr. smith 's dog barks twice"
    """
    text = " ".join(caption.lower().split())
    pieces = list(_PIECE.finditer(text))
    tokens: list[str] = []
    for place, match in enumerate(pieces):
        piece = match.group().replace("’", "'")
        is_stop = piece == "." and place and pieces[place - 1].end() == match.start()
        if is_stop and pieces[place - 1].group() in ABBREVIATIONS and tokens:
            tokens[-1] += "."
            continue
        tokens += _split_clitics(piece)
    return " ".join(RENAMED.get(token, token) for token in tokens if token not in DROPPED)


def _split_clitics(piece: str) -> list[str]:
    """A word and its clitics."""
    if piece in _SPLIT_WORDS:
        return _SPLIT_WORDS[piece].split()
    clitic = _CLITIC.match(piece)
    return [*_split_clitics(clitic[1]), clitic[2]] if clitic else [piece]
