"""Translations of instructions by a teacher, for the languages that they lack."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, StringConstraints

from earwise.data.sources.row_readers import OnSkip
from earwise.datasets.teachers import request_runner
from earwise.datasets.teachers.teacher import Teacher, TeacherRequest
from earwise.datasets.xs_cot.instructions import CORE_LANGUAGE, Instruction, InstructionPair, with_translations
from earwise.datasets.xs_cot.speakable_text import unspeakable_reason
from earwise.engine.remote.openai_http import estimate_tokens

LANGUAGE_NAMES = {
    "ja": "Japanese", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "nl": "Dutch", "zh": "Chinese", "ko": "Korean", "ru": "Russian", "pl": "Polish", "tr": "Turkish",
}  # fmt: skip
"""Language code -> name in the prompt; any other code is given to the teacher as it is."""
NonEmptyText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


# The JSON schema of this model is sent to the teacher and is part of the keys of logged answers. It contains the name,
# docstring and fields of the class: changing one makes every logged translation be requested again.
class Translation(BaseModel):
    """What a teacher gives back."""

    instruction: NonEmptyText
    response: NonEmptyText


def translation_requests(
    instructions: Iterable[Instruction], languages: Sequence[str]
) -> Iterator[tuple[Instruction, str, TeacherRequest]]:
    """The requests for missing translations, each with its instruction and language code.

    Args:
        instructions: The instructions.
        languages: Codes of the languages that every instruction shall have.
    """
    for instruction in instructions:
        core = instruction.pairs[CORE_LANGUAGE]
        for language in languages:
            if language in instruction.pairs:
                continue
            name = LANGUAGE_NAMES.get(language, language)
            task = (
                f"Translate into {name}. Both texts will be spoken: write natural, plain {name} without digits, "
                'lists or markup. Answer as JSON with the fields "instruction" and "response".\n'
            )
            texts = json.dumps({"instruction": core.instruction, "response": core.response}, ensure_ascii=False)
            request = TeacherRequest(
                f"{instruction.id}:{language}",
                "translation",
                ({"role": "user", "content": task + texts},),
                Translation,
                language=language,
                expected_tokens=2 * estimate_tokens(texts),
            )
            yield instruction, language, request


def translate(
    instructions: Sequence[Instruction],
    languages: Sequence[str],
    teacher: Teacher,
    folder: Path,
    *,
    retry_failed: bool = False,
    on_skip: OnSkip,
    notify: Callable[[str], None],
) -> list[Instruction]:
    """Let a teacher translate instructions into the languages that they lack.

    Args:
        instructions: The instructions; those that cannot be spoken in English are not translated.
        languages: Codes of the languages.
        teacher: The teacher.
        folder: Folder of its log.
        retry_failed: Whether to send requests again that failed in an earlier run.
        on_skip: Called with one line about every translation that failed.
        notify: Called with a line about the requests.
    Returns:
        The instructions in their order, with the translations.
    """
    speakable = _speakable(instructions)
    asked = [request for _, _, request in translation_requests(speakable, languages)]
    summary = request_runner.ask_teacher(asked, teacher, folder, retry_failed=retry_failed, description="translations")
    notify(summary.describe())
    pending = {request.id: (item, language) for item, language, request in translation_requests(speakable, languages)}
    translations: dict[tuple[str, str], InstructionPair] = {}
    requests = (request for _, _, request in translation_requests(speakable, languages))
    for request, row in request_runner.read_answers(requests, teacher, folder):
        item, language = pending[request.id]
        if row is not None and row["status"] == "ok":
            translations[item.id, language] = InstructionPair(row["value"]["instruction"], row["value"]["response"])
        else:
            on_skip(f"{item.id}, {language}: no translation ({'not asked' if row is None else row['status']})")
    return list(with_translations(instructions, translations))


def estimate_translations(
    instructions: Sequence[Instruction], languages: Sequence[str], teacher: Teacher, folder: Path
) -> request_runner.RunEstimate:
    """Estimate what `translate` would request, without any request; the arguments are those of `translate`."""
    requests = (request for _, _, request in translation_requests(_speakable(instructions), languages))
    return request_runner.estimate_requests(requests, teacher, folder)


def _speakable(instructions: Iterable[Instruction]) -> list[Instruction]:
    """The instructions that can be spoken in English."""
    return [item for item in instructions if unspeakable_reason(item.pairs[CORE_LANGUAGE].instruction) is None]
