"""A headless Chromium for tests, driven by the WebDriver protocol through `chromedriver`; nothing to install in Python.

Tests that use it are skipped where the two programs are not installed (Debian: `chromium`, `chromium-driver`).
"""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
IS_INSTALLED = CHROMIUM is not None and DRIVER is not None
KEYS = {
    "ArrowDown": "\ue015",
    "ArrowUp": "\ue013",
    "Enter": "\ue007",
    "Escape": "\ue00c",
    "End": "\ue010",
    "Tab": "\ue004",
}
"""Keys of the WebDriver protocol."""


class Browser:
    """One window."""

    def __init__(self, url: str, session: str) -> None:
        self.client = httpx.Client(base_url=f"{url}/session/{session}", timeout=60)

    def open(self, path: Path, fragment: str = "") -> None:
        """Open a file."""
        self._post("url", {"url": path.resolve().as_uri() + fragment})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script returns."""
        return self._post("execute/sync", {"script": script, "args": list(arguments)})

    def run_async(self, script: str, *arguments: Any) -> Any:
        """The value that a script passes to its last argument, a function."""
        return self._post("execute/async", {"script": script, "args": list(arguments)})

    def press(self, *keys: str) -> None:
        """Press keys one after the other, names of `KEYS` or single characters."""
        actions = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self._post("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def click(self, selector: str) -> None:
        """Click the first element that a selector matches."""
        (element,) = self._post("element", {"using": "css selector", "value": selector}).values()
        self._post(f"element/{element}/click", {})

    def text(self, selector: str) -> str:
        """The visible text of the first element that a selector matches."""
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def wait(self, script: str, seconds: float = 20) -> Any:
        """Wait until a script returns something true; returns it."""
        limit = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < limit, f"never true: {script}"
            time.sleep(0.05)
        return value

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page in pixels; narrower than a window can be, too."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )

    def dark(self, is_dark: bool) -> None:
        """Choose the dark or the light theme."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.command("Emulation.setEmulatedMedia", {"features": [scheme]})

    def command(self, name: str, values: Mapping[str, Any]) -> Any:
        """A command of Chromium's own protocol."""
        return self._post("goog/cdp/execute", {"cmd": name, "params": values})

    def picture(self, path: Path) -> None:
        """Save what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.client.get("screenshot").json()["value"]))

    def messages(self) -> list[str]:
        """Errors and warnings of the console since the last call."""
        entries = self._post("se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def _post(self, path: str, values: Mapping[str, Any]) -> Any:
        reply = self.client.post(path, content=json.dumps(values)).json()["value"]
        if isinstance(reply, dict) and "error" in reply:
            raise RuntimeError(f"{path}: {reply['error']}: {reply['message'][:500]}")
        return reply


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A browser whose profile lies in a folder; it is ended with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "HOME": str(folder)}
    driver = subprocess.Popen([str(DRIVER), f"--port={port}", "--silent"], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url)
        options = {
            "binary": CHROMIUM,
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio",
                     "--window-size=1280,900", f"--user-data-dir={folder / 'profile'}"],
        }  # fmt: skip
        capabilities = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        reply = httpx.post(f"{url}/session", json={"capabilities": capabilities}, timeout=60).json()["value"]
        session = reply["sessionId"]
        try:
            yield Browser(url, session)
        finally:
            httpx.delete(f"{url}/session/{session}", timeout=20)
    finally:
        driver.terminate()
        driver.wait(10)


def _wait_for(url: str) -> None:
    """Wait until the driver answers."""
    limit = time.monotonic() + 20
    while True:
        try:
            if httpx.get(f"{url}/status").json()["value"]["ready"]:
                return
        except httpx.HTTPError:
            if time.monotonic() > limit:
                raise
        time.sleep(0.05)
