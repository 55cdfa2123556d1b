"""How other programs word a multiple-choice question, so that their published numbers can be approached.

Each is a prompt style of every task (`earwise evaluate --style lmms-eval`). R1-AQA's wordings are the general styles
`answer` and `think` (`prompts.INSTRUCTIONS`). A question without options is asked as it is.

Sources: lmms-eval 0.7.3, tasks/mmau and tasks/mmar; UltraEval-Audio (registry/prompt/choice.yaml, `mmau`); NeMo-Skills'
documentation of MMAU-Pro; soham97/mellow, whose options are lettered and in lower case.
"""

from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase

from earwise.types import Example


def _lettered(choices: Sequence[str]) -> str:
    """Options as `A. rain`, one a line."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False))


def lmms_eval(example: Example) -> str:
    """lmms-eval's prompt of MMAU."""
    return (
        f"{example.question}\n{_lettered(example.choices)}\n"
        "Answer with the option's letter from the given choices directly."
    )


def lmms_eval_mmar(example: Example) -> str:
    """lmms-eval's prompt of MMAR."""
    return (
        "Listen to the audio and answer the following multiple-choice question. Respond with only the letter (A, B, C, "
        f"or D) of the correct option.\n{example.question}\n{_lettered(example.choices)}\nThe best answer is:"
    )


def ultraeval(example: Example) -> str:
    """UltraEval-Audio's prompt of MMAU."""
    return (
        f"{example.question}  Select one option from the provided choices without explain. "
        f"{_lettered(example.choices)}\n"
    )


def nemo_skills(example: Example) -> str:
    """NeMo-Skills' prompt of MMAU-Pro."""
    return f"{example.question}\n\n{_lettered(example.choices)}"


def mellow_letters(example: Example) -> str:
    """Mellow's wording: everything in lower case, `a) rain b) wind` after the question."""
    letters = ascii_uppercase.lower()
    options = [f"{letter}) {choice.lower()}" for letter, choice in zip(letters, example.choices, strict=False)]
    return " ".join([example.question.lower(), *options])


HARNESS_PROMPTS: Mapping[str, Callable[[Example], str]] = {
    "lmms-eval": lmms_eval,
    "lmms-eval-mmar": lmms_eval_mmar,
    "ultraeval": ultraeval,
    "nemo-skills": nemo_skills,
    "mellow-letters": mellow_letters,
}
"""Name of a prompt style -> wording of an example with options."""
