"""A server that answers as a Hugging Face hub does for one data set, `org/name`, whose files lie in a folder."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

COMMIT = "a" * 40
API, FILES = "/api/datasets/org/name", "/datasets/org/name/resolve/"


@contextmanager
def serve_hub(folder: Path) -> Iterator[str]:
    """Serve the data set on the loopback address.

    Args:
        folder: Folder with the data set's files.
    Yields:
        Address of the server.
    """
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlparse(self.path).path
            if path.startswith(f"{API}/tree/"):
                self._send_tree(path.removeprefix(f"{API}/tree/").partition("/")[2])
            elif path == API or path.startswith(f"{API}/revision/"):
                siblings = [{"rfilename": name} for name in files]
                self._send_json({"id": "org/name", "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
            elif path.startswith(FILES) and (name := path.removeprefix(FILES).partition("/")[2]) in files:
                data = files[name].read_bytes()
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
                self._send(200, data, headers)
            else:
                code = "EntryNotFound" if path.startswith(FILES) else "RepoNotFound"
                self._send(404, b"", {"X-Error-Code": code})

        def _send_tree(self, place: str) -> None:
            prefix = f"{place}/" if place else ""
            names = [name.removeprefix(prefix) for name in files if name.startswith(prefix)]
            folders = sorted({name.partition("/")[0] for name in names if "/" in name})
            entries: list[Any] = [
                {"type": "directory", "path": prefix + name, "size": 0, "oid": "0" * 40} for name in folders
            ]
            for name in (name for name in names if "/" not in name):
                size = files[prefix + name].stat().st_size
                entries.append({"type": "file", "path": prefix + name, "size": size, "oid": "0" * 40})
            self._send_json(entries if entries else {"error": "none"}, 200 if entries else 404)

        def _send_json(self, value: Any, status: int = 200) -> None:
            self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
