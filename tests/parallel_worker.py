"""One of several processes in `test_parallel.py`: runs recipes one after the other, all in one process group.

python parallel_worker.py JOBS.json; rank, number of processes and address are in the environment, as launchers set
them.
"""

import json
import os
import signal
import sys
from pathlib import Path

from builders import tiny_qwen2_audio
from earwise.config.recipe import check_recipe
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.training import run
from earwise.training.distributed import parallel
from earwise.types import Example


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """The model of all jobs."""
    return tiny_qwen2_audio(3)


def likes_e(_: Example, completion: str) -> float:
    """A reward that a byte model can earn: the number of frequent letters."""
    return float(sum(character in "etaoinshrdlu" for character in completion))


def likes_a(example: Example, completion: str) -> float:
    """The same reward, but 0 for most rows, so that their groups are flat."""
    return likes_e(example, completion) if example.id.startswith("a") else 0.0


def stops_second(example: Example, completion: str) -> float:
    """The same reward, with Ctrl-C sent to the second process only, once, in its third step."""
    rewarded_texts.append(completion)
    if parallel.rank() == 1 and len(rewarded_texts) == STOPS_AT:
        os.kill(os.getpid(), signal.SIGINT)
    return likes_e(example, completion)


rewarded_texts: list[str] = []
STOPS_AT = 10


def run_jobs(jobs: list[dict]) -> None:
    """Run all jobs; one that is interrupted is resumed."""
    for job in jobs:
        recipe, out, base = check_recipe(job["recipe"], "test"), Path(job["out"]), Path(job["base"])
        os.environ["FSDP_RESHARD_AFTER_FORWARD"] = job.get("reshard", "true")
        try:
            run.start(recipe, out, base)
        except KeyboardInterrupt:
            if parallel.is_main_process():
                (out / "interrupted").touch()
            run.resume(out)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    sys.modules["parallel_worker"] = sys.modules["__main__"]
    run_jobs(json.loads(Path(sys.argv[1]).read_text()))
    parallel.leave_processes()
