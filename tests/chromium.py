"""A real browser for tests: Chromium without a window, told what to do over a pipe in its own DevTools protocol.

No driver, no port, no package: two file descriptors and JSON texts that end with a NUL. What a page asks of the network
and what it complains about are kept.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_ANSWER_SECONDS = 60.0
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--force-color-profile=srgb", "--remote-debugging-pipe",
)  # fmt: skip


def find_chromium() -> str | None:
    """The program, where one is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


class Page:
    """One open page. `complaints` are its errors, warnings and exceptions, `blocked` what its own policy refused it."""

    def __init__(self, width: int = 1360, height: int = 900, dark: bool = False) -> None:
        program = find_chromium()
        assert program is not None
        self._folder = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        command = [program, *_FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"]
        # The browser takes descriptors 3 and 4, whatever the pipes' own numbers are.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash", *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._last_id = 0
        self._session: str | None = None
        self._loaded = False
        self._asked: dict[str, str] = {}
        self.blocked: list[str] = []
        self.complaints: list[str] = []
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
            self.look(width, height, dark)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        self._folder.cleanup()

    @property
    def requests(self) -> list[str]:
        """What the page has asked for beside its own file."""
        return list(self._asked.values())

    def look(self, width: int, height: int, dark: bool = False, scale: float = 1.0) -> None:
        """The window's size, and whether its user prefers dark pages."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: Path) -> None:
        """Load a file and wait until all of it is there."""
        self._loaded = False
        self._own = path.resolve().as_uri()
        self.call("Page.navigate", url=self._own)
        deadline = time.monotonic() + _ANSWER_SECONDS
        while not self._loaded:
            self._take(self._message(deadline))

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, as JSON can hold it. Raises AssertionError for what it throws."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key, down and up, for whatever has the focus."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            codes = {"Tab": 9, "Enter": 13, "Escape": 27, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **text)

    def picture(self, path: Path, of: str | None = None) -> None:
        """A PNG of what the window shows, or of one element and a little around it."""
        clip = {}
        if of is not None:
            box = self.run(
                f"(() => {{ const b = document.querySelector({json.dumps(of)}).getBoundingClientRect();"
                "return [b.left + scrollX, b.top + scrollY, b.width, b.height]; })()"
            )
            x, y, width, height = box
            clip = {"clip": {"x": x - 8, "y": y - 8, "width": width + 16, "height": height + 16, "scale": 1}}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=of is not None, **clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; its answer. Raises AssertionError for a refusal."""
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _ANSWER_SECONDS
        while (answer := self._message(deadline)).get("id") != self._last_id:
            self._take(answer)
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser is silent for {_ANSWER_SECONDS:.0f} s"
            more = os.read(self._read, 1 << 20)
            assert more, "the browser is gone"
            self._buffer += more
        one, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(one)
        return message

    def _take(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith("data:") and url.partition("#")[0] != self._own:
                    self._asked[params["requestId"]] = url
            case "Network.loadingFailed" if params.get("blockedReason") == "csp":  # asked of nobody
                self.blocked.append(self._asked.pop(params["requestId"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.complaints.append(json.dumps(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.complaints.append(params["entry"]["text"])


__all__ = ["Page", "find_chromium"]
