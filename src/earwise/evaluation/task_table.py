"""The table of tasks, and how a task is loaded by its name. It stands above the tasks, which need only the class."""

from dataclasses import replace

from earwise.config.resolve import check_parameters, resolve_entry
from earwise.errors import ConfigError
from earwise.evaluation.task import Task
from earwise.evaluation.tasks import manifest

TASKS = {
    "manifest": "earwise.evaluation.tasks.manifest:TASK",
    "mmau": "earwise.evaluation.tasks.mmau:TASK",
    "mmar": "earwise.evaluation.tasks.mmar:TASK",
    "mellow": "earwise.evaluation.tasks.mellow:TASK",
    "mmsu": "earwise.evaluation.tasks.mmsu:TASK",
    "airbench-foundation": "earwise.evaluation.tasks.airbench_foundation:TASK",
    "muchomusic": "earwise.evaluation.tasks.muchomusic:TASK",
    "adqa": "earwise.evaluation.tasks.adqa:TASK",
    "clothoaqa": "earwise.evaluation.tasks.clothoaqa:TASK",
    "entailment": "earwise.evaluation.tasks.entailment:TASK",
    "adiff": "earwise.evaluation.tasks.adiff:TASK",
    "captions": "earwise.evaluation.tasks.captions:TASK",
    "transcription": "earwise.evaluation.tasks.transcription:TASK",
    "translation": "earwise.evaluation.tasks.translation:TASK",
    "sound-labels": "earwise.evaluation.tasks.sound_labels:TASK",
    "airbench-chat": "earwise.evaluation.tasks.airbench_chat:TASK",
    "mmar-rubrics": "earwise.evaluation.tasks.mmar_rubrics:TASK",
    "mmau-pro": "earwise.evaluation.tasks.mmau_pro:TASK",
    "voicebench": "earwise.evaluation.tasks.voicebench:TASK",
    "big-bench-audio": "earwise.evaluation.tasks.big_bench_audio:TASK",
    "dcase2025": "earwise.evaluation.tasks.dcase2025:TASK",
    "multilingual-alpaca": "earwise.evaluation.tasks.multilingual_alpaca:TASK",
}


def load_task(name: str) -> Task:
    """The task of a name in `TASKS`, or a user's own.

    Args:
        name: Key of `TASKS`, or `module:object`. The object is a `Task`, or a function with the signature of `Load`,
            whose examples are scored like those of a manifest.
    Raises:
        ConfigError: if there is no such task, module or object, or the object is neither.
    """
    target = resolve_entry(TASKS, name, "task")
    if isinstance(target, Task):
        return target
    if not callable(target):
        raise ConfigError(f"task {name!r} is {target!r}, neither a Task nor a function load(path, audio_root)")
    check_parameters(target, ("path", "audio_root"), name, "task")
    return replace(manifest.TASK, name=name, load=target)
