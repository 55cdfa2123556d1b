"""Sentences, words and language of a text, by optional packages; each is missing with the command that installs it."""

from collections.abc import Callable

from earwise.config.resolve import require
from earwise.errors import ConfigError


def sentences(text: str) -> int:
    """Number of English sentences, by nltk's model.

    Raises:
        ConfigError: if nltk or its model is not installed.
    """
    require("nltk", "eval", "rules that count sentences")
    from nltk.tokenize import sent_tokenize

    return len(_with_model(sent_tokenize, text))


def capital_words(text: str) -> int:
    """Number of words in capital letters, by nltk's division into words.

    Raises:
        ConfigError: if nltk or its model is not installed.
    """
    require("nltk", "eval", "rules that count words")
    from nltk.tokenize import word_tokenize

    return sum(word.isupper() for word in _with_model(word_tokenize, text))


def is_language(text: str, code: str) -> bool:
    """Whether a text is in a language, as langdetect says; a text without any letter is in every language.

    Raises:
        ConfigError: if langdetect is not installed.
    """
    require("langdetect", "ifeval", "rules about the language of an answer")
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0
    try:
        return bool(detect(text) == code)
    except LangDetectException:
        return True


def _with_model(divide: Callable[[str], list[str]], text: str) -> list[str]:
    try:
        return divide(text)
    except LookupError as error:
        raise ConfigError(
            "rules that count sentences or words need nltk's model of English sentences: python -m nltk.downloader "
            "punkt_tab"
        ) from error
