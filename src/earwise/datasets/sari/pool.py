"""The pool of SARI's corpus: questions about clips, each with the caption of its clip.

First half of `build_sari`: clips -> captions (`captions.py`) -> questions by the teacher (`multiple_choice.py`), beside
the questions that exist already. Every step has a log of its own and does only the work that is missing. What fails is
counted and listed in the report.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from earwise.datasets.labels.clip_questions import ClipQuestionOptions, build_clip_questions
from earwise.datasets.labels.collection import LabelRow
from earwise.datasets.sari import captions, multiple_choice
from earwise.datasets.sari.build_report import BuildReport
from earwise.datasets.sari.captions import Caption
from earwise.datasets.sari.inputs import Clip, SelectedInputs
from earwise.datasets.sari.options import SariModels, SariOptions
from earwise.datasets.teachers import request_runner
from earwise.datasets.teachers.keyed_log import Shard
from earwise.datasets.teachers.teacher import TeacherRequest
from earwise.errors import ConfigError, DataError
from earwise.types import Example

DrawnQuestions = Mapping[str, Sequence[Mapping[str, Any]]]
"""Path of a clip -> questions drawn from its labels, with `question`, `choices` and `answer`."""


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What every step of a build needs."""

    models: SariModels
    options: SariOptions
    work: Path
    """Folder of the steps' logs."""
    shard: Shard
    """Shard of this process."""
    report: BuildReport
    """Collects counts and failures."""

    def ask_teacher(self, requests: Sequence[TeacherRequest], step: str, shard: Shard) -> Path:
        """Send the requests of one step to the teacher and add their counts to the report.

        Args:
            requests: The requests.
            step: Name of the step; its log and its lines of progress are called by the plural.
            shard: Shard that names the log's file.
        Returns:
            Folder of the log.
        """
        folder = self.work / f"{step}s"
        summary = request_runner.ask_teacher(
            requests,
            self.models.teacher,
            folder,
            limits=self.models.limits,
            log_shard=shard,
            retry_failed=self.models.retry_failed,
            description=folder.name,
        )
        self.models.notify(f"{folder.name}: {summary.describe()}")
        self.report.add_run(step, summary)
        return folder


def caption_clips(selected: SelectedInputs, context: BuildContext) -> dict[Path, Caption]:
    """Caption every clip that can be captioned.

    Returns:
        File of a clip -> its caption: the one in its row, else one by the audio model, else, for a template teacher,
        one filled in from its labels.
    Raises:
        ConfigError: if a clip has no caption, the teacher is a language model, and there is no audio model.
    """
    clips = {clip.file: clip for clip in (*selected.clips, *(clip for _, clip in selected.questions))}
    captions_by_file: dict[Path, Caption] = {}
    uncaptioned: list[Clip] = []
    for file, clip in clips.items():
        if (text := captions.row_caption(clip.row)) is not None:
            captions_by_file[file] = Caption(text, captions.PROVIDED)
        else:
            uncaptioned.append(clip)
    if not uncaptioned:
        return captions_by_file
    if context.models.captioner is not None:
        return captions_by_file | _captions_by_model(uncaptioned, context)
    if context.models.teacher.is_template:
        return captions_by_file | _captions_by_template(uncaptioned, context)
    raise ConfigError(
        f"{len(uncaptioned)} clips have no caption (first: {uncaptioned[0].path}), and the teacher "
        f"{context.models.teacher.name} gets no audio; add a field caption to the rows, or name an audio model with "
        "--captioner"
    )


def _captions_by_model(clips: Sequence[Clip], context: BuildContext) -> dict[Path, Caption]:
    """Captions that the audio model writes; clips without one are reported."""
    assert context.models.captioner is not None
    files = [clip.file for clip in clips]
    answers = captions.write_captions(
        context.models.captioner,
        files,
        context.work / "captions",
        batch=context.models.batch,
        shard=context.shard,
    )
    captions_by_file: dict[Path, Caption] = {}
    for file, (caption, error) in zip(files, answers, strict=True):
        if caption is not None:
            captions_by_file[file] = caption
        else:
            status = "empty" if error == "empty" else "error"
            context.report.add_failure("caption", file.as_posix(), status, error)
    return captions_by_file


def _captions_by_template(clips: Sequence[Clip], context: BuildContext) -> dict[Path, Caption]:
    """Captions filled in from labels; clips whose labels state nothing are reported."""
    models, folder = context.models, context.work / "captions"
    requests = [captions.template_request(clip.file.as_posix(), clip.facts) for clip in clips if clip.facts]
    summary = request_runner.ask_teacher(
        requests, models.teacher, folder, log_shard=context.shard, retry_failed=models.retry_failed
    )
    context.report.add_run("caption", summary)
    captions_by_file = {
        Path(request.id): Caption(row["value"], row["teacher"])
        for request, row in request_runner.read_answers(requests, models.teacher, folder)
        if row is not None and row["status"] == "ok"
    }
    for clip in clips:
        if not clip.facts:
            message = "the labels say nothing that can be heard"
            context.report.add_failure("caption", clip.file.as_posix(), "unknown", message)
    return captions_by_file


def with_captions(questions: Sequence[tuple[Example, Clip]], captions_by_file: Mapping[Path, Caption]) -> list[Example]:
    """The existing questions with the captions of their clips; without a caption a question gets no chain."""
    examples = []
    for example, clip in questions:
        caption = captions_by_file.get(clip.file)
        fields = {"caption": caption.text, "caption_by": caption.by} if caption else {}
        examples.append(replace(example, reasoning=None, meta={**example.meta, **fields}))
    return examples


def write_questions(
    selected: SelectedInputs,
    captions_by_file: Mapping[Path, Caption],
    requests: Sequence[TeacherRequest],
    context: BuildContext,
) -> list[Example]:
    """Let the teacher write questions.

    Args:
        selected: The clips.
        captions_by_file: The clips' captions.
        requests: Requests from `question_requests`.
        context: The build.
    Returns:
        One example for each question, with its caption and the authors of both. Failed requests are reported.
    """
    if not requests:
        return []
    clips = {clip.file.as_posix(): clip for clip in selected.clips}
    teacher = context.models.teacher
    folder = context.ask_teacher(requests, "question", context.shard)
    examples = []
    for request, row in request_runner.read_answers(requests, teacher, folder):
        if row is None or row["status"] != "ok":
            context.report.add_failed_row("question", request.id, row)
            continue
        clip = clips[request.id]
        caption = captions_by_file[clip.file]
        meta = {"caption": caption.text, "caption_by": caption.by, "question_by": row["teacher"]}
        for value in row["value"]["questions"]:
            example = multiple_choice.question_example(
                value, clip.path, clip.root, clip.row, seed=context.options.seed,
                shuffle=not teacher.is_template,  # positions in questions drawn from labels are balanced already
            )  # fmt: skip
            examples.append(replace(example, meta=meta))
    return examples


def questions_from_labels(rows: Sequence[LabelRow], options: SariOptions) -> dict[str, list[dict[str, Any]]]:
    """Draw questions that the labels answer, balanced over all clips, for a template teacher to return.

    Args:
        rows: Rows of all clips, since wrong options are the labels of other clips.
        options: Options of the corpus.
    Returns:
        Path of a clip -> its questions; empty if the labels have too few classes to ask about.
    """
    try:
        question_options = ClipQuestionOptions(
            seed=options.seed, tasks=("recognition",), n_choices=options.n_choices, split=options.split
        )
        examples = build_clip_questions(rows, Path(), question_options)
    except DataError:  # too few classes
        return {}
    questions_by_path: dict[str, list[dict[str, Any]]] = {}
    for example in examples:
        question = {"question": example.question, "choices": list(example.choices), "answer": example.answer[0]}
        questions_by_path.setdefault(example.audio_paths[0].as_posix(), []).append(question)
    return {
        path: random.Random(f"{options.seed}:{path}").sample(questions, min(options.questions_per_clip, len(questions)))
        for path, questions in questions_by_path.items()
    }


def question_requests(
    clips: Sequence[Clip],
    captions_by_file: Mapping[Path, Caption],
    drawn: DrawnQuestions | None,
    options: SariOptions,
) -> Iterator[TeacherRequest]:
    """The requests for questions: one for each clip with a caption.

    Args:
        clips: The clips.
        captions_by_file: The clips' captions.
        drawn: Questions drawn from labels, for a template teacher; clips without any are left out. None for a language
            model.
        options: Options of the corpus.
    """
    for clip in clips:
        caption = captions_by_file.get(clip.file)
        path = Path(clip.path).as_posix()
        if caption is None or (drawn is not None and path not in drawn):
            continue
        yield multiple_choice.question_request(
            clip.file.as_posix(),
            clip.path,
            caption.text,
            count=options.questions_per_clip,
            n_choices=options.n_choices if drawn is None else None,
            drawn=() if drawn is None else drawn[path],
        )
