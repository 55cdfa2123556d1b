"""What the XS-CoT corpus shall speak: one job for every instruction and language, with the reason if it is not
spoken."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from earwise.algorithms.chain_compression import MARKER
from earwise.datasets.teachers.keyed_log import UNSHARDED, Shard, content_key, in_shard
from earwise.datasets.teachers.validate_reply import wrong_language
from earwise.datasets.xs_cot.instructions import CORE_LANGUAGE, Instruction, InstructionPair
from earwise.datasets.xs_cot.speakable_text import unspeakable_reason
from earwise.datasets.xs_cot.speech_recognition import Recogniser
from earwise.datasets.xs_cot.text_to_speech import Voice
from earwise.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class SpeechJob:
    """One instruction to be spoken in one language."""

    instruction: Instruction
    """The instruction in all languages."""
    language: str
    """Code of the language to speak."""
    key: str
    """Key of the job's row in the log: a hash of the text, the voice and the recogniser."""
    rejection: str | None
    """The reason why it is not spoken; None if it is."""

    @property
    def id(self) -> str:
        """Id of the row and its clip."""
        return f"{self.instruction.id}-{self.language}"

    @property
    def pair(self) -> InstructionPair:
        """Instruction and response in the language to speak; only for jobs that are not rejected."""
        return self.instruction.pairs[self.language]

    @property
    def clip_path(self) -> str:
        """Path of the clip in the output folder, safe whatever characters the instruction's id has."""
        return f"clips/{self.language}/{self.key[:20]}.ogg"


def plan_jobs(
    instructions: Sequence[Instruction],
    languages: Sequence[str],
    voices: Mapping[str, Voice],
    recogniser: Recogniser,
    *,
    shard: Shard = UNSHARDED,
) -> list[SpeechJob]:
    """List the jobs, those that will not be spoken included.

    Args:
        instructions: The instructions, with different ids.
        languages: Codes of the languages. English is the core language and needs no chain through itself.
        voices: Language code -> voice.
        recogniser: The recogniser that will check the speech.
        shard: The part of the instructions that this process speaks, all languages of an instruction together.
    Raises:
        ConfigError: for English, for a language without a voice, or without any language.
        DataError: if two instructions have the same id.
    """
    if not languages or CORE_LANGUAGE in languages:
        raise ConfigError(
            f"languages {', '.join(languages) or 'none'}: name others than {CORE_LANGUAGE}, for example ja,de,fr"
        )
    if voiceless := [code for code in languages if code not in voices]:
        raise ConfigError(f"language {voiceless[0]!r} has no voice; name one with --voice {voiceless[0]}=NAME")
    repeated = [name for name, count in Counter(instruction.id for instruction in instructions).items() if count > 1]
    if repeated:
        raise DataError(f"instruction id {repeated[0]!r} occurs twice; ids must differ")
    jobs = []
    for instruction in instructions:
        if not in_shard(hashlib.sha256(instruction.id.encode()).hexdigest(), shard):
            continue
        for code in languages:
            pair = instruction.pairs.get(code, InstructionPair("", ""))
            # The layout of the hashed value must not change: old logs are read by it.
            key = content_key(
                [instruction.id, code, pair.instruction, pair.reading, voices[code].name, recogniser.name]
            )
            jobs.append(SpeechJob(instruction, code, key, rejection_reason(instruction, code)))
    return jobs


def rejection_reason(instruction: Instruction, language: str) -> str | None:
    """The reason why an instruction is not spoken in a language; None if it is.

    Example:
        >>> english, german = InstructionPair("Say hello.", "Hello."), InstructionPair("Sag hallo.", "Hallo.")
        >>> rejection_reason(Instruction("a", {"en": english, "de": german}), "de")
        >>> rejection_reason(Instruction("a", {"en": english, "de": InstructionPair("Sag hallo.", "")}), "de")
        'empty translation'
    """
    core = instruction.pairs[CORE_LANGUAGE]
    if reason := unspeakable_reason(core.instruction):
        return f"instruction: {reason}"
    if not core.response:
        return "no English answer"
    if language not in instruction.pairs:
        return "no translation"
    pair = instruction.pairs[language]
    if not pair.instruction or not pair.response:
        return "empty translation"
    if reason := unspeakable_reason(pair.instruction):
        return f"translation: {reason}"
    if pair.instruction == core.instruction:
        return "not translated"
    if wrong := wrong_language(pair.instruction, language) or wrong_language(pair.response, language):
        return f"wrong language: {wrong}"
    if any(MARKER.search(text) for text in (*_texts(core), *_texts(pair))):
        return "holds a part marker"
    return None


def _texts(pair: InstructionPair) -> Iterator[str]:
    """All texts of a pair."""
    return iter((pair.instruction, pair.response, pair.reading))
