"""The questions of the page to listen to: about the bundled validation clips, evenly spread over skills.

They are built by the package (`earwise build labels`) from `assets/starter/labels.jsonl`, in wordings that are held
back from training. Of each skill a number of questions is drawn, alternating between its tasks and fields, and between
yes and no. Scenes are stored as Ogg files, which is what the model hears and what the page plays; scenes whose clips
have licences that do not allow a mixture are left out.
"""

import hashlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import soundfile

from earwise.data import manifest
from earwise.data.manifest_path import STARTER
from earwise.datasets.labels.build_questions import TASKS, QuestionOptions, build_questions
from earwise.types import Audio, Example, Turn
from listening.licences import mixture_rights

WANTED_TASKS = (
    "recognition", "yes_no", "open", "varied", "refusal", "same",
    "order", "count", "louder", "odd_one_out", "overlap",
)  # fmt: skip
"""Tasks to build, as far as this version of the package knows them."""
SCENES_PER_TASK = 40
SKILL_OF_TASK = {
    "yes_no": "Yes or no", "open": "Open questions", "refusal": "What is not there", "same": "Two recordings",
    "presence": "Is it in the scene?", "order": "Order in scenes", "before": "Order in scenes",
    "list": "Order in scenes", "nth": "Order in scenes", "count": "Counting in scenes",
    "different": "Counting in scenes", "events": "Counting in scenes", "louder": "Comparing in scenes",
    "quieter": "Comparing in scenes", "longer": "Comparing in scenes", "shorter": "Comparing in scenes",
    "odd_one_out": "Comparing in scenes", "overlap": "Comparing in scenes",
}  # fmt: skip
SKILL_OF_FIELD = {
    "sound": "Sounds", "instrument": "Instruments", "kind": "Kind of recording", "language": "Languages",
    "words": "Spoken words", "digit": "Digits",
}  # fmt: skip
SKILLS = tuple(dict.fromkeys((*SKILL_OF_FIELD.values(), *SKILL_OF_TASK.values(), "Other")))
"""All skills, in the order of the page."""


def skill_of(task: str, field: str | None) -> str:
    """The skill that a question asks for, a heading of the page.

    Args:
        task: Task of the question.
        field: What it asks about, where the manifest says so.
    """
    return SKILL_OF_TASK.get(task) or SKILL_OF_FIELD.get(field or "") or "Other"


def draw_key(seed: int, example_id: str) -> str:
    """A number that orders ids at random, in the same way each time."""
    return hashlib.sha256(f"{seed}\x1f{example_id}".encode()).hexdigest()


def build(out: Path, per_skill: int, seed: int, notify: Callable[[str], None] = print) -> Path:
    """Build the questions, and the Ogg files of their scenes in `out/scenes`.

    Args:
        out: Folder to write.
        per_skill: Maximum number of questions of each skill.
        seed: Seed of the questions and of the draw.
        notify: Receives lines about progress.
    Returns:
        The manifest, `out/questions.jsonl`; it is not built again if it exists.
    """
    target = out / "questions.jsonl"
    if target.exists():
        return target
    built = out / "built" / "all.jsonl"
    options = QuestionOptions(
        tasks=tuple(task for task in WANTED_TASKS if task in TASKS), split="val", limit=SCENES_PER_TASK, seed=seed
    )
    build_questions(STARTER / "labels.jsonl", built, options, notify)
    chosen = spread((example for example in manifest.read(built) if is_shareable(example)), per_skill, seed)
    manifest.write(target, [_with_ogg(example, out / "scenes") for example in chosen])
    shutil.rmtree(built.parent)
    skills = Counter(skill_of(example.task, example.meta.get("field")) for example in chosen)
    notify(f"{target}: {len(chosen)} questions ({', '.join(f'{skill} {n}' for skill, n in skills.items())})")
    return target


def scene_clips(example: Example) -> list[str]:
    """File names of the clips that a scene is composed of; empty for a question about recordings."""
    return [PurePosixPath(event["clip"]).name for event in example.meta.get("events", ())]


def is_shareable(example: Example) -> bool:
    """Whether the audio of a question may be published: bundled clips, or a mixture that their licences allow."""
    clips = scene_clips(example)
    return not clips or mixture_rights(clips) is not None


def spread(examples: Iterable[Example], per_skill: int, seed: int) -> list[Example]:
    """Draw questions of each skill, alternating between tasks, fields and answers, on different audio if possible.

    Args:
        examples: Questions to draw from.
        per_skill: Maximum number of questions of each skill.
        seed: Seed of the draw.
    Returns:
        The drawn questions, skill by skill.
    """
    strata: dict[str, dict[tuple[str, ...], list[Example]]] = defaultdict(lambda: defaultdict(list))
    for example in sorted(examples, key=lambda example: draw_key(seed, example.id)):
        field = str(example.meta.get("field"))
        answer = example.answer[0] if set(example.choices) == {"yes", "no"} else ""
        strata[skill_of(example.task, field)][example.task, field, answer].append(example)
    uses = Counter[Path]()
    chosen = []
    for skill in (skill for skill in SKILLS if skill in strata):
        groups = [group for _, group in sorted(strata[skill].items())]
        drawn: list[Example] = []
        while any(groups) and len(drawn) < per_skill:
            for group in groups[: per_skill - len(drawn)]:
                if group:
                    example = min(group, key=lambda example: max(uses[path] for path in example.audio_paths))
                    group.remove(example)
                    uses.update(example.audio_paths)
                    drawn.append(example)
        chosen += drawn
    return chosen


def _with_ogg(example: Example, folder: Path) -> Example:
    """The question about a scene with its audio as an Ogg file in `folder`; other questions as they are."""
    if not example.meta.get("events"):
        return example
    (source,) = example.audio_paths
    target = folder / f"{source.stem}.ogg"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        samples, rate = soundfile.read(source, dtype="float32")
        soundfile.write(target, samples, rate, format="OGG", subtype="VORBIS")
    return replace(example, root=folder, turns=_with_audio(example, target.name))


def _with_audio(example: Example, name: str) -> tuple[Turn, ...]:
    """The turns of a question with another file in place of its audio."""
    return tuple(
        replace(turn, parts=tuple(Audio(name) if isinstance(part, Audio) else part for part in turn.parts))
        for turn in example.turns
    )
