"""A question and its reply under keys of their own: query/response, Alpaca, prompt/completion, question/answer."""

from collections.abc import Mapping
from typing import Any

from earwise.data.formats.chat import ParsedRow, reply_texts, with_system
from earwise.data.formats.messages import Message, parse_messages, text_pieces
from earwise.errors import DataError


def read_query(row: Mapping[str, Any], location: str, *, tags: bool) -> ParsedRow:
    """ms-swift: `query`, `response`, `history` (pairs of query and response), `system`, `rejected_response`."""
    return _exchange(row, location, ("query",), "response", tags=tags)


def read_alpaca(row: Mapping[str, Any], location: str, *, tags: bool) -> ParsedRow:
    """LLaMA-Factory's Alpaca form: `instruction`, `input`, `output`, `history`, `system`; `chosen` and `rejected`."""
    return _exchange(row, location, ("instruction", "input"), "output", tags=tags)


def read_question(row: Mapping[str, Any], location: str, *, tags: bool) -> ParsedRow:
    """A question with `answer`, and with `choices` or `options`."""
    parsed = _exchange(row, location, ("question",), None, tags=tags)
    if row.get("choices") is None and isinstance(row.get("options"), list):
        return ParsedRow(parsed.messages, parsed.used_keys | {"options"}, parsed.fields | {"choices": row["options"]})
    return parsed


def read_prompt(row: Mapping[str, Any], location: str, *, tags: bool) -> ParsedRow:
    """TRL: `prompt` with `completion`, or with `chosen` and `rejected`; each a text or messages.

    Without `prompt`, the messages of `chosen` before its reply are the prompt.
    """
    prompt = row.get("prompt")
    if prompt is None:
        prompt = row["chosen"][:-1]
    messages = [Message("user", _pieces(prompt, tags))] if isinstance(prompt, str) else None
    messages = messages or parse_messages(prompt, location, tags=tags)
    used_keys, fields = {"prompt"}, dict[str, Any]()
    if row.get("completion") is not None:
        used_keys.add("completion")
        fields["answer"] = _single_reply(row["completion"], f"{location}: completion")
    for name in ("chosen", "rejected"):
        if row.get(name) is not None:
            used_keys.add(name)
            fields[name] = reply_texts(row[name], f"{location}: {name}")
    return ParsedRow(messages, frozenset(used_keys), fields)


def _exchange(
    row: Mapping[str, Any], location: str, question_keys: tuple[str, ...], reply_key: str | None, *, tags: bool
) -> ParsedRow:
    """A question whose text is the values of `question_keys`, one a line, after the exchanges of `history`."""
    texts = [row[key] for key in question_keys if row.get(key)]
    for key, text in zip(question_keys, texts, strict=False):
        if not isinstance(text, str):
            raise DataError(f"{location}: {key} is {text!r:.60}, a {type(text).__name__}; write it as a string")
    messages = [*_history(row.get("history"), location, tags), Message("user", _pieces("\n".join(texts), tags))]
    used_keys, fields = {*question_keys, "history"}, dict[str, Any]()
    if isinstance(row.get("system"), str):
        used_keys.add("system")
        messages = with_system(messages, row["system"])
    if reply_key and row.get(reply_key) is not None:
        used_keys.add(reply_key)
        fields["answer"] = _single_reply(row[reply_key], f"{location}: {reply_key}")
    for key, name in (("rejected_response", "rejected"), ("chosen", "chosen"), ("rejected", "rejected")):
        if row.get(key):
            used_keys.add(key)
            fields[name] = reply_texts(row[key], f"{location}: {key}")
    return ParsedRow(messages, frozenset(used_keys), fields)


def _history(history: Any, location: str, tags: bool) -> list[Message]:
    """Earlier exchanges: pairs of question and reply."""
    if not history:
        return []
    messages: list[Message] = []
    for number, pair in enumerate(history if isinstance(history, list | tuple) else [history], 1):
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise DataError(f"{location}: history {number} is {pair!r:.60}; write pairs of question and reply")
        messages += [Message("user", _pieces(pair[0], tags)), Message("assistant", (pair[1],))]
    return messages


def _single_reply(value: Any, location: str) -> str:
    replies = reply_texts(value, location)
    if len(replies) != 1:
        raise DataError(f"{location}: {len(replies)} replies where one is expected; write a string")
    return replies[0]


def _pieces(text: str, tags: bool) -> Any:
    return text_pieces(text) if tags else (text,)
