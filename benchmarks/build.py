"""Speed and memory of indexing a large manifest, opening it again, and decoding clips. Prints JSON.

    python benchmarks/build.py --out benchmarks/results/build.json

The manifest is made here: a million rows, four questions per clip, each clip a link to one of the starter set. The
clips to decode are 5 s long, cut from the starter set: 44.1 kHz stereo as Ogg Vorbis, and 16 kHz mono as WAV. Every
measurement runs in a process of its own; its memory is the largest sum over itself and its workers. `cpu_ms_per_clip`
hardly depends on the load of the machine; `clips_per_s` does, and `load_average` states it.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
import soxr

from earwise.audio import decode
from earwise.data.index import open_rows
from earwise.data.manifest_path import STARTER
from earwise.data.mixture import Mixture
from earwise.datasets.checks import fingerprint
from earwise.datasets.scan.clip_stats import scan_clips
from earwise.files import cache_dir, write_json

CLIP_S = 5.0
QUESTIONS = 4  # rows per clip
WORKERS = 2


def write_manifest(folder: Path, count: int) -> Path:
    """Write a manifest with rows like those of the starter set, and its clips, into a folder."""
    starter_rows = [json.loads(line) for line in (STARTER / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    clips = sorted((STARTER / "clips").glob("*.ogg"))
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as handle:
        for number in range(count):
            clip = number // QUESTIONS
            name = f"clips/{clip // 1000:04d}/{clip:07d}.ogg"
            if number % QUESTIONS == 0:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).symlink_to(clips[clip % len(clips)])
            row = dict(starter_rows[number % len(starter_rows)])
            texts = [part for part in row["messages"][0]["content"] if part["type"] == "text"]
            row |= {"id": f"{row['id']}-{number}", "group": f"clip:{clip}"}
            row["messages"] = [{"role": "user", "content": [{"type": "audio", "audio": name}, *texts]}]
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def write_clips(folder: Path, count: int) -> dict[str, list[str]]:
    """Write clips of each format into a folder; each is another part of the starter set's audio.

    Returns:
        Format -> paths of the clips.
    """
    sources = sorted((STARTER / "clips").glob("*.ogg"))[::25]
    audio = np.concatenate([decode(path) for path in sources])
    names: dict[str, list[str]] = {"ogg_44100_stereo": [], "wav_16000_mono": []}
    for number in range(count):
        start = number * 7919 % (len(audio) - int(CLIP_S * 16000))
        waveform = audio[start : start + int(CLIP_S * 16000)]
        names["wav_16000_mono"].append(str(folder / f"{number}.wav"))
        soundfile.write(names["wav_16000_mono"][-1], waveform, 16000)
        names["ogg_44100_stereo"].append(str(folder / f"{number}.ogg"))
        stereo = np.stack([soxr.resample(waveform, 16000, 44100)] * 2, axis=1).clip(-1, 1)
        with soundfile.SoundFile(names["ogg_44100_stereo"][-1], "w", 44100, 2, format="OGG", subtype="VORBIS") as file:
            for offset in range(0, len(stereo), 44100):
                file.write(stereo[offset : offset + 44100])
    return names


def index_first(path: Path) -> dict[str, Any]:
    """Index a manifest for the first time."""
    return {"rows": len(open_rows(path, workers=WORKERS))}


def index_again(path: Path) -> dict[str, Any]:
    """Do what a training run does at its start: open, select, group, mix and draw rows."""
    began = time.perf_counter()
    rows = open_rows(path)
    opened = time.perf_counter() - began
    speech_groups = rows.select({"category": "speech"}, require_answer=True).group_by_clips()
    mixture = Mixture([(rows.group_by_clips(), 1.0), (speech_groups, 1.0)], 0)
    next(mixture)
    ready = time.perf_counter() - began
    num_drawn = sum(len(group) for group in islice(mixture, 1000))
    draw_s = time.perf_counter() - began - ready
    return {"open_s": opened, "ready_s": ready, "rows": len(rows), "drawn_rows_per_s": num_drawn / draw_s}


def decode_clips(names: list[str], repeats: int) -> dict[str, Any]:
    """Decode, measure and fingerprint clips, several times."""
    paths = (name for _ in range(repeats) for name in names)
    stats = list(scan_clips(paths, WORKERS, analysis=fingerprint.sketch))
    errors = [clip.error for clip in stats if clip.error]
    assert not errors, errors[0]
    return {"clips": len(stats)}


def _measure_in_child(work: Callable[[], dict[str, Any]], results: Any) -> None:
    """Run work in this process and send its result with time and peak memory."""
    peak, stop = [0], threading.Event()

    def watch_memory() -> None:
        this_process = psutil.Process()
        while not stop.is_set():
            total = 0
            for process in (this_process, *this_process.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # it ended meanwhile
                    continue
            peak[0] = max(peak[0], total)
            stop.wait(0.1)

    watcher = threading.Thread(target=watch_memory)
    watcher.start()
    began = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - began
    stop.set()
    watcher.join()
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(each.ru_utime + each.ru_stime for each in usage)
    results.put(result | {"seconds": seconds, "cpu_s": cpu_s, "peak_memory_mb": peak[0] / 2**20})


def measure(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run work in a process of its own.

    Returns:
        The result of the work, with seconds, processor seconds (imports included), peak memory and load.
    """
    print(name, file=sys.stderr)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_measure_in_child, args=(work, results))
    load = os.getloadavg()[0]
    process.start()
    result = results.get()
    process.join()
    return {name: round(value, 3) for name, value in result.items()} | {"load_average": round(load, 1)}


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--clips", type=int, default=1200)
    parser.add_argument("--quick", action="store_true", help="4,000 rows and 20 clips, to try it")
    arguments = parser.parse_args()
    count, clips = (4_000, 20) if arguments.quick else (arguments.rows, arguments.clips)
    result: dict[str, Any] = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "workers": WORKERS,
        }
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EARWISE_HOME"] = str(folder / "home")
        path = write_manifest(folder, count)
        result["manifest"] = {"rows": count, "mb": round(path.stat().st_size / 2**20, 1)}
        first = measure("index_first", partial(index_first, path))
        result["index_first"] = first | {"rows_per_s": round(first["rows"] / first["seconds"])}
        result["index_again"] = measure("index_again", partial(index_again, path))
        result["index_mb"] = round(sum(file.stat().st_size for file in cache_dir().rglob("*.npz")) / 2**20, 1)
        (folder / "sound").mkdir()
        for kind, names in write_clips(folder / "sound", min(clips, 120)).items():
            done = measure(f"scan {kind}", partial(decode_clips, names, -(-clips // len(names))))
            done["clips_per_s"] = round(done["clips"] / done["seconds"], 1)
            done["cpu_ms_per_clip"] = round(1000 * done["cpu_s"] / done["clips"], 2)
            result[f"scan_{kind}"] = done
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
