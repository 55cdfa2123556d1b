"""The option letter that VoiceBench's program reads in an output, for its subsets openbookqa and mmsu.

The program looks for fixed texts with a letter in them, one after the other, and takes the first that occurs with any
of a to d, in this order. Case does not matter, so "the answer is difficult" is D. Where no text occurs, an output that
is a letter, or begins with one and a mark, names it. Whatever names none gets a random letter there, and is wrong here.

Source: MatthewCYM/VoiceBench@5338154, src/evaluator/mcq.py (Apache-2.0); compared case by case (`tests/golden`).
"""

CHOICES = "abcd"
MARKS = ".,:)"
TAGS = ("<1>", "<2>", "<3>")
"""Tags that some models write at the beginning of a text; they are removed."""

_NOTATION = r"""
答案是@ 答案是·@ 答案是选项@ 答案应该是@ 答案应该是·@ 答案就是选项@ 答案是‘@ 是@： 答案选@ @是正确 选项@是最合适的
answer·is:·**@ answer·is·**@ the·answer·to·the·question·is:·**@ the·answer·to·the·multiple-choice·question·is·**@
the·answer·is·'@' @·is·the·best·answer the·answer·is·@ the·correct·answer·is·@ would·select·@ would·choose·@
would·select·option·@ would·choose·option·@ is·"@" is·"@. is:·**@) is·**@, is·**@: is·**@) is:·**@. is:·**@: is·**@.
be·**@, is:·**@** is·therefore·option·**@: is:·¶¶**@) as·**@: be·**@) be·**@: is:·¶¶**@** suggests·**@)
be·option·**@: with·**@) is·typically·"@) be·to·**@) is:·¶¶@) is·likely·to·be:·**@. is·**@·( is·option·**@**
is·likely·**@** is:¶**@. is:¶¶**@. would·be·@ would·be·option·@ would·be·(@) would·be·option·(@) is·@,
is·typically·@, is·typically·@. i'd·say·@. option·@. option·@: option·@, the·answer·is:¶**@ is·@: is·@. is·@, is:·@.
is·(@) is:¶**@) is·likely·**@: is·the·**@) :¶@. :¶@) :¶@, :·¶@. :··¶@. :¶¶@. :¶¶@) is·most·likely·**@: :¶¶@, :·¶¶@.
is·option·@, (@)·would·be is·(@). is·@) is:·@) is:¶¶@: is:·**@, (option·@) answer·is·(@) select·option·"@" is:·@
is·typically·**@, is·**@** is·likely·'@' is·option·'@' is:¶**@: is·\(·\boxed{@· would·be·'@' is·the·**@**·
question·is·@·( is:¶¶**@) closest·to·option·**@** is·most·likely·**@) the·answer·to·the·question·is·'@'
question·is·**@** known·as·'@' is·'@) is·typically·**@: is·\(·\boxed{\text{@}}·\) is·\(·\text{@)·} is·\(·\text{@}·\)
is·\(·\text{@: is·\(·\text{@) is·\(\text{@. is:¶¶**@ is·\(·\text{@.} is·\(·\text{@. is·\(·\boxed{@}
is:¶\[·\boxed{\text{@}} is:¶\[·\text{@) is:¶¶\[·\text{@) is·\(·\textbf{@) is·\(·\text{@} is:·\(·\text{@.
corresponds·to:¶-·**@: would·be:·**@**. is·\(·@·\) is:¶**@· corresponds·to·option·**@** be·**@** be:·¶¶@)
is:¶\[·\boxed{@} is:··¶**@: is:·\(·\text{@) is·likely:·**@, is·}·\mathbf{@. is·\(·\boxed{@) is·\(·\textbf{@}
is·\(@\) is:¶··¶**@: is·option·**@· is:¶\(·\textbf{@. is·\(·\mathbf{@} was·option·**@** is·likely·"@) option·**@:
is·"@) is·most·likely·**@, is·often·**@: is:··¶@) ·@. ·@, ·@: ·@) **@. **@) "@. "@, "@: (@) "@"
"""
"""The texts in order, separated by blanks or line breaks; `@` is the letter, `·` a blank, `¶` a line break."""
PATTERNS = tuple(pattern.replace("·", " ").replace("¶", "\n") for pattern in _NOTATION.split())


def option_letter(output: str) -> str | None:
    """The letter that the official program reads, A to D, or None.

    >>> option_letter("The answer is B."), option_letter("Option A"), option_letter("the answer is difficult")
    ('B', None, 'D')
    """
    text = output.lower()
    if text.startswith(TAGS):
        text = text[3:].strip()
    for pattern in PATTERNS:
        for choice in CHOICES:
            if pattern.replace("@", choice) in text:
                return choice.upper()
    named = (choice for choice in CHOICES if text == choice or text.startswith(tuple(choice + mark for mark in MARKS)))
    return next((choice.upper() for choice in named), None)
