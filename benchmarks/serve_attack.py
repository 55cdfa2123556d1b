"""Attack a running server and measure what it costs: mutated requests, hostile audio, oversized and slow ones.

    earwise serve --port 8000 &
    python benchmarks/serve_attack.py --url http://127.0.0.1:8000 --pid $! --out benchmarks/results/serve-attack.json

Nothing that is sent may get a status of 5xx, reset the connection, make the server print a traceback, cost it more than
300 MB, or delay `/health` by more than 0.2 s. A second thread asks for `/health` every 50 ms all the while; the memory
is the server's peak resident size, reset before each group of requests (Linux: `/proc/PID/clear_refs`). All requests
follow from `--seed`. The log of the server, if `--log` names it, is searched for tracebacks.

A mutated request that is valid and names no length gets 256 tokens; a server with `--max-tokens 4` shortens the run.
"""

import argparse
import base64
import io
import json
import platform
import random
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import soundfile

MB = 2**20
CHAT = "/v1/chat/completions"
Body = dict[str, Any]


def tone(seconds: float, rate: int = 16000, channels: int = 1) -> np.ndarray:
    """A tone of 440 Hz, float32 `(samples, channels)`."""
    time_s = np.arange(round(seconds * rate)) / rate
    return np.repeat(0.4 * np.sin(2 * np.pi * 440 * time_s)[:, None], channels, 1).astype(np.float32)


def audio_file(container: str = "WAV", seconds: float = 1.0, rate: int = 16000, channels: int = 1) -> bytes:
    """The bytes of an audio file in a container that libsndfile writes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(seconds, rate, channels), rate, format=container)
    return buffer.getvalue()


def request_body(*parts: Body, **fields: Any) -> Body:
    """A request with one turn of the user that asks for two tokens."""
    content = [*parts, {"type": "text", "text": "What is it?"}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2, "temperature": 0} | fields


def audio_part(data: bytes) -> Body:
    """A message part with an audio file."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


# --- measuring


class HealthProbe:
    """Asks for `/health` every 50 ms in a thread of its own, and keeps the time that each answer took.

    `late_s` is how much longer than 50 ms the thread itself slept: on a busy machine, that much of a delay is not the
    server's.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self.delays_s: list[float] = []
        self.late_s = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "HealthProbe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as client:
            asleep = time.monotonic()
            while not self._stop.wait(0.05):
                started = time.monotonic()
                self.late_s = max(self.late_s, started - asleep - 0.05)
                try:
                    client.get("/health").raise_for_status()
                except httpx.HTTPError:
                    self.delays_s.append(float("inf"))
                else:
                    self.delays_s.append(time.monotonic() - started)
                asleep = time.monotonic()


class Memory:
    """Resident size of a process, in MB; a server on another machine has none."""

    def __init__(self, pid: int | None) -> None:
        self._process = Path(f"/proc/{pid}") if pid is not None else None

    def reset_peak(self) -> None:
        """Let the peak begin at the present size."""
        if self._process is not None:
            (self._process / "clear_refs").write_text("5")

    def read(self, field: str) -> float:
        """`VmRSS` (now) or `VmHWM` (peak), in MB."""
        if self._process is None:
            return float("nan")
        lines = (self._process / "status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


@contextmanager
def measured(name: str, results: Body, url: str, memory: Memory) -> Iterator[Counter[str]]:
    """Count the outcomes of a group of requests, and measure the server meanwhile."""
    outcomes: Counter[str] = Counter()
    memory.reset_peak()
    before = memory.read("VmRSS")
    started = time.monotonic()
    with HealthProbe(url) as probe:
        yield outcomes
    delays = sorted(probe.delays_s) or [0.0]
    results[name] = {
        "outcomes": dict(sorted(outcomes.items())), "seconds": round(time.monotonic() - started, 1),
        "memory_mb": round(memory.read("VmHWM") - before, 1), "resident_mb": round(memory.read("VmRSS"), 1),
        "health_p50_s": round(delays[len(delays) // 2], 4), "health_max_s": round(delays[-1], 4),
        "health_over_200_ms": sum(delay > 0.2 for delay in delays), "health_answers": len(delays),
        "client_late_s": round(probe.late_s, 4),
    }  # fmt: skip
    print(f"{name:22} {json.dumps(results[name])}", flush=True)


def send(client: httpx.Client, outcomes: Counter[str], body: Any, **arguments: Any) -> None:
    """Send a request and count its status; a connection that breaks counts as such."""
    if not arguments:
        arguments = {"json": body} if not isinstance(body, bytes) else {"content": body}
        arguments["headers"] = {"content-type": "application/json"}
    path = arguments.pop("path", CHAT)
    try:
        outcomes[str(client.post(path, **arguments).status_code)] += 1
    except httpx.HTTPError as error:
        outcomes[type(error).__name__] += 1


# --- mutations

ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 10**30, -(10**30), 1e308, 5e-324, 1e-39, 0.5, "", "x", "\x00", "\ud800", "é\u2028",
    "<|im_end|>", "../../etc/passwd", "A" * 2000, [], {}, [[]], [{}], {"a": 1}, {"": ""}, {"\ud800": 1}, [None] * 20,
    "data:,", "data:audio/wav;base64,", "data:,\ud800", "data:,%ff%00", "file://[", "file:///%00", "http://[::1",
    "http://127.0.0.1:99999/a", "http://a b/", "ftp://x", "user", "assistant", "input_audio", "text", {"data": "===="},
]  # fmt: skip
ODD_NAMES = ["\ud800", "", "role", "x" * 200, "temprature", "messages\n", "\x00", "tools", "response_format", "n"]


def nested(depth: int) -> Any:
    """A list in a list in a list ..."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def mutate(value: Any, draw: random.Random) -> Any:
    """A copy of a JSON value with one place changed: a value replaced, a field added, renamed, removed or repeated."""
    places: list[tuple[Any, Any]] = []
    copy = json.loads(json.dumps({"root": value}))
    stack: list[Any] = [copy]
    while stack:
        container = stack.pop()
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        places += [(container, key) for key in keys if container is not copy or key == "root"]
        stack += [container[key] for key in keys if isinstance(container[key], dict | list)]
    container, key = draw.choice(places[1:] or places)
    how = draw.randrange(6)
    if how == 0 and isinstance(container, dict) and container is not copy:
        container[draw.choice(ODD_NAMES)] = container.pop(key)
    elif how == 1 and isinstance(container, dict) and container is not copy:
        container[draw.choice(ODD_NAMES)] = draw.choice(ODD_VALUES)
    elif how == 2 and container is not copy:
        del container[key]
    elif how == 3 and isinstance(container, list):
        container += [container[key]] * draw.choice((1, 30, 300))
    elif how == 4:
        container[key] = nested(draw.choice((2, 40, 970, 5000)))
    else:
        container[key] = draw.choice(ODD_VALUES)
    return copy["root"]


def mutated_bytes(draw: random.Random, seeds: list[Body]) -> bytes:
    """The JSON of a mutated request; one in ten is damaged as text as well."""
    body: Any = draw.choice(seeds)
    for _ in range(draw.choice((1, 1, 2, 4))):
        try:
            body = mutate(body, draw)
        except RecursionError:  # deeper than this process can copy
            break
    try:
        text = json.dumps(body, ensure_ascii=draw.random() < 0.5)
    except RecursionError:
        text = '{"messages": ' + "[" * 5000 + "]" * 5000 + "}"
    data = bytearray(text.encode(errors="surrogatepass"))
    if draw.random() < 0.1 and data:
        for _ in range(draw.choice((1, 5, 50))):
            data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def mutated_requests(count: int, draw: random.Random) -> list[bytes]:
    """Bodies of mutated requests."""
    clip = audio_part(audio_file(seconds=0.1))
    url = f"data:audio/wav;base64,{clip['input_audio']['data']}"
    seeds = [
        request_body(),
        request_body(clip),
        request_body({"type": "audio_url", "audio_url": {"url": url}}, n=2, temperature=1.0, seed=3, logprobs=True),
        request_body(stream=True, stream_options={"include_usage": True}, stop=["a", "b"], top_p=0.9, top_k=5),
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"},
                      {"role": "assistant", "content": "yes"}, {"role": "user", "content": "and?"}],
         "max_tokens": 1, "return_token_ids": True, "model": "embedded", "user": "me", "tools": []},
    ]  # fmt: skip
    return [mutated_bytes(draw, seeds) for _ in range(count)]


def send_all(client: httpx.Client, outcomes: Counter[str], bodies: Sequence[Any]) -> None:
    """Send requests, four at a time."""
    with ThreadPoolExecutor(4) as pool:
        for result in [pool.submit(send, client, outcomes, body) for body in bodies]:
            result.result()


# --- hostile audio


def riff(sample_rate: int, channels: int, bits: int, data: bytes, stated: int | None = None) -> bytes:
    """A WAV file with any header."""
    block = max(1, channels * bits // 8)
    header = (1).to_bytes(2, "little") + channels.to_bytes(2, "little") + sample_rate.to_bytes(4, "little")
    header += (sample_rate * block % 2**32).to_bytes(4, "little") + (block % 2**16).to_bytes(2, "little")
    header += bits.to_bytes(2, "little")
    size = len(data) if stated is None else stated
    chunks = b"WAVEfmt " + (16).to_bytes(4, "little") + header + b"data" + (size % 2**32).to_bytes(4, "little") + data
    return b"RIFF" + (len(chunks) % 2**32).to_bytes(4, "little") + chunks


def bombs() -> list[bytes]:
    """Small files that are large once decoded: silence compresses to almost nothing."""
    files = []
    for container, rate, channels, seconds in (("FLAC", 8000, 1, 3600), ("FLAC", 96000, 8, 300), ("OGG", 8000, 1, 900)):
        buffer = io.BytesIO()
        with soundfile.SoundFile(buffer, "w", samplerate=rate, channels=channels, format=container) as sound:
            block = np.zeros((rate, channels), dtype=np.float32)
            for _ in range(seconds):
                sound.write(block)
        files.append(buffer.getvalue())
    silence = bytes(8 * MB)
    files += [riff(1, 1, 8, silence[:MB]), riff(4_000_000_000, 1, 16, silence[:MB]), riff(16000, 65535, 16, silence)]
    return files


def hostile_files(count: int, draw: random.Random) -> list[bytes]:
    """Audio files that are damaged, lie about themselves, or are large once decoded."""
    files = bombs()
    good = [audio_file(container, 0.5) for container in ("WAV", "FLAC", "OGG", "MP3", "AIFF")]
    headers = [(0, 1, 16), (16000, 0, 16), (16000, 1, 0), (16000, 1, 7), (2**31, 2, 24), (16000, 255, 32)]
    files += [riff(*header, bytes(4000), stated) for header in headers for stated in (None, 0, 2**32 - 1)]
    files += [b"", b"\0", b"RIFF", b"OggS", b"fLaC", b"ID3" + b"\xff" * 40, b"\xff\xfb" * 5000, b"#!AMR\n" + bytes(99)]
    files += [b"\x00\x00\x00\x20ftypM4A " + draw.randbytes(500), b"\x1aE\xdf\xa3" + draw.randbytes(500)]
    while len(files) < count:
        data = bytearray(draw.choice(good))
        how = draw.randrange(4)
        if how == 0:
            data = data[: draw.randrange(len(data))]
        elif how == 1:
            for _ in range(draw.choice((1, 10, 200))):
                data[draw.randrange(len(data))] = draw.randrange(256)
        elif how == 2:
            for _ in range(draw.choice((1, 3, 10))):  # the header
                data[draw.randrange(min(60, len(data)))] = draw.choice((0, 255, 127, 128))
        else:
            data = data[: len(data) // 2] + bytearray(draw.choice(good))
        files.append(bytes(data))
    return files[:count]


# --- requests that are large


def large_requests(max_mb: int) -> dict[str, Callable[[], bytes]]:
    """Bodies just below the largest size, each expensive in its own way."""
    size = max_mb * MB - 4096

    def fill(head: str, unit: str, tail: str) -> bytes:
        return (head + unit * (size // len(unit)) + tail).encode()

    user = '{"max_tokens": 2, "messages": [{"role": "user", "content": '
    clip = json.dumps(audio_part(riff(16000, 1, 16, b"\1\2")))
    minute = base64.b64encode(audio_file(seconds=29.9)).decode()
    thirty_seconds = json.dumps({"type": "input_audio", "input_audio": {"data": minute}})
    return {
        "words": lambda: fill(user + '"', "word ", '"}]}'),
        "one long word": lambda: fill(user + '"', "a", '"}]}'),
        "emoji in escapes": lambda: fill(user + '"', "\\ud83d\\ude00", '"}]}'),
        "percent data url": lambda: fill(user + '[{"type": "audio_url", "audio_url": "data:,', "%00", '"}]}]}'),
        "base64 of zeros": lambda: fill(user + '[{"type": "input_audio", "input_audio": {"data": "', "AAAA", '"}}]}]}'),
        "field name": lambda: fill('{"', "x", '": 1}'),
        "empty lists": lambda: fill('{"messages": [', "[],", "[]]}"),
        "empty objects": lambda: fill('{"messages": [', "{},", "{}]}"),
        "numbers": lambda: fill('{"messages": [', "1,", "1]}"),
        "fields": lambda: ("{" + ",".join(f'"f{number}": 1' for number in range(size // 14)) + "}").encode(),
        "one-sample clips": lambda: (user + "[" + ",".join([clip] * (size // (len(clip) + 1))) + "]}]}").encode(),
        "clips of 30 s": lambda: (
            user + "[" + ",".join([thirty_seconds] * min(10, size // (len(thirty_seconds) + 1))) + "]}]}"
        ).encode(),
        "stop strings": lambda: fill(user + '"hi"}], "stop": [', '"ab",', '"x"]}'),
        "brackets": lambda: fill('{"messages": ', "[", ""),
        "longest prompt": lambda: (user + json.dumps("a b c d " * 1000) + "}]}").encode(),
        "many completions": lambda: json.dumps(
            {"messages": [{"role": "user", "content": "hi"}], "n": 24, "max_tokens": 256, "temperature": 2.0}
        ).encode(),
    }


# --- slow and broken clients


def half_requests(url: str, outcomes: Counter[str], count: int, length: int) -> None:
    """Open connections that send half a header or half a body, look at whether small requests are still answered, and
    hang up."""
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or 80
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    connections = [socket.create_connection((host, port), 10) for _ in range(2 * count)]
    try:
        for number, connection in enumerate(connections):
            payload = head.encode() if number % 2 else head.encode() + b"\r\n" + b" " * (length // 2)
            connection.settimeout(5)
            try:
                connection.sendall(payload)
            except OSError:
                outcomes["refused while sending"] += 1
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            for _ in range(10):
                send(client, outcomes, request_body())
    finally:
        for connection in connections:
            connection.close()


Group = Callable[[], Callable[[Counter[str]], None]]
"""Makes the requests of a group, and returns what sends them and counts their outcomes."""


def attacks(client: httpx.Client, options: argparse.Namespace) -> dict[str, Group]:
    """The groups of requests by name."""

    def single(make: Callable[[], bytes]) -> Group:
        def prepare() -> Callable[[Counter[str]], None]:
            data = make()
            return lambda outcomes: send(client, outcomes, data)

        return prepare

    def files() -> Callable[[Counter[str]], None]:
        made = hostile_files(options.files, random.Random(options.seed))
        bodies = [json.dumps(request_body(audio_part(data))).encode() for data in made]
        return lambda outcomes: send_all(client, outcomes, bodies)

    def mutated() -> Callable[[Counter[str]], None]:
        bodies = mutated_requests(options.mutations, random.Random(options.seed))
        return lambda outcomes: send_all(client, outcomes, bodies)

    half_bytes = options.body_mb * MB - 1
    groups: dict[str, Group] = {"idle": lambda: lambda _: time.sleep(5)}
    groups |= {f"large: {name}": single(make) for name, make in large_requests(options.body_mb).items()}
    groups["half requests"] = lambda: lambda outcomes: half_requests(options.url, outcomes, 30, half_bytes)
    return groups | {"hostile files": files, "mutations": mutated}


def commit() -> str:
    """The commit of the working tree, with a mark if it was changed."""
    described = subprocess.run(
        ("git", "describe", "--always", "--dirty", "--abbrev=12"), capture_output=True, text=True, check=False
    )
    return described.stdout.strip()


def main() -> None:
    """Run all groups and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--pid", type=int, help="the server's process, for its memory")
    parser.add_argument("--log", type=Path, help="the server's stderr, to search for tracebacks")
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--body-mb", type=int, default=16, help="the server's --max-body-mb")
    parser.add_argument("--only", default="", help="run only the groups whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    memory, groups = Memory(options.pid), Body()
    with httpx.Client(base_url=options.url, timeout=300, trust_env=False) as client:
        for name, work in attacks(client, options).items():
            if options.only in name:
                send_group = work()  # what is sent is made before the measurement, which shares this process
                with measured(name, groups, options.url, memory) as outcomes:
                    send_group(outcomes)
    problems = [
        f"{name}: {outcome}" for name, group in groups.items() for outcome in group["outcomes"]
        if not (outcome.isdigit() and int(outcome) < 500) and outcome != "refused while sending"
    ]  # fmt: skip
    tracebacks = options.log.read_text(errors="replace").count("Traceback") if options.log else None
    result = {
        "commit": commit(), "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
        "seed": options.seed, "problems": problems, "tracebacks": tracebacks,
        "largest_memory_mb": max(group["memory_mb"] for group in groups.values()),
        "longest_health_s": max(group["health_max_s"] for group in groups.values()), "groups": groups,
    }  # fmt: skip
    print(json.dumps({key: value for key, value in result.items() if key != "groups"}, indent=1))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
