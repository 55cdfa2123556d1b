"""The file of judgements: one line for every reply of a judge, in a file that only grows.

A line is found again by its key, a hash of the judge's name, the messages and the part, so that a stopped run, started
again, asks only what is missing.
"""

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from earwise.evaluation.judge.judging import JudgeRequest
from earwise.evaluation.judge.models import JudgeReply
from earwise.files import append_jsonl, read_log

FILE = "judgements.jsonl"
Judgement = dict[str, Any]
"""One line: `key, judge, prompt, item, part, status` (ok, unreadable or failed), `text, value, error, tokens, time`."""


def judgement_key(judge: str, request: JudgeRequest) -> str:
    """Hash of everything that decides a reply; 32 hexadecimal digits."""
    content = [judge, list(request.messages), request.part, request.max_tokens, request.seed]
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


class JudgementLog:
    """The judgements of a run.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._usable = {row["key"]: row for row in read_log(self.path) if row["status"] == "ok"}

    def get(self, key: str) -> Judgement | None:
        """The usable judgement with this key, if there is one."""
        return self._usable.get(key)

    def missing(self, judge: str, requests: Iterable[JudgeRequest]) -> list[JudgeRequest]:
        """The requests without a usable judgement, each once."""
        by_key = {judgement_key(judge, request): request for request in requests}
        return [request for key, request in by_key.items() if key not in self._usable]

    def add(self, judge: str, request: JudgeRequest, reply: JudgeReply, value: Any) -> Judgement:
        """Append what became of a request.

        Args:
            judge: Name of the judge.
            request: The request.
            reply: Its reply.
            value: What was read from the reply; None if that was nothing.
        Raises:
            DataError: if the file cannot be written.
        """
        status = "failed" if reply.error else "unreadable" if value is None else "ok"
        row: Judgement = {
            "key": judgement_key(judge, request), "judge": judge, "prompt": request.prompt, "item": request.item,
            "part": request.part, "status": status, "text": reply.text, "value": value, "error": reply.error,
            "tokens": reply.tokens, "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        append_jsonl(self.path, row)
        if status == "ok":
            self._usable[row["key"]] = row
        return row
