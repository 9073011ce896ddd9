"""A headless Chromium, driven over its DevTools protocol through two pipes: no driver, no port, no package.

https://chromedevtools.github.io/devtools-protocol/ names the methods. Messages are JSON with a zero byte behind each.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEADLINE_S = 60.0
READ_BYTES = 1 << 16
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """Where Chromium is; None if there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class PageError(AssertionError):
    """The script that a test ran in the page raised something."""


class Browser:
    """One Chromium with one tab; a context manager around the process. ``folder``: for its profile and its log."""

    def __init__(self, folder: Path) -> None:
        path = executable()
        assert path is not None
        self._folder = folder
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.errors: list[str] = []
        """What the page complained of since it was opened: exceptions, and what its policy did not let it do."""
        self._log = (folder / "chromium.log").open("wb")
        flags = [
            path, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
            "--disable-extensions", "--hide-scrollbars", "--force-color-profile=srgb", "--lang=en-GB",
            f"--user-data-dir={folder / 'profile'}", "about:blank",
        ]  # fmt: skip

        def pipes() -> None:
            """The browser reads from descriptor 3 and writes to 4."""
            first, second = os.dup(to_read), os.dup(to_write)  # neither may be 3 or 4 when the other is put there
            os.dup2(os.dup(first), 3)
            os.dup2(os.dup(second), 4)

        while to_read in (3, 4) or to_write in (3, 4):
            to_read, to_write = (os.dup(each) if each in (3, 4) else each for each in (to_read, to_write))
        self._process = subprocess.Popen(
            flags, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, preexec_fn=pipes, close_fds=False
        )
        os.close(to_read)
        os.close(to_write)
        try:
            self._open_tab()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._write)  # it ends with its pipe
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        self._log.close()

    def _open_tab(self) -> None:
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    # ------------------------------------------------------------------ the protocol
    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result. Raises AssertionError for an error, and when none comes in time."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = memoryview(json.dumps(message).encode() + b"\0")
        while data:
            data = data[os.write(self._write, data) :]
        deadline = time.monotonic() + DEADLINE_S
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self._note(answer)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._read, READ_BYTES) if ready else b""
            if not data:
                log = (self._folder / "chromium.log").read_text(errors="replace")[-2000:]
                raise AssertionError(f"Chromium {'ended' if ready else 'does not answer'}:\n{log}")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:2000])
        elif message.get("method") == "Log.entryAdded" and params["entry"]["source"] in ("security", "javascript"):
            self.errors.append(params["entry"]["text"])

    # ------------------------------------------------------------------ what a test does
    def open(self, url: str) -> None:
        self.errors.clear()
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page, through JSON; a promise is waited for."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise PageError(json.dumps(done["exceptionDetails"])[:2000])
        return done["result"].get("value")

    def until(self, script: str, deadline_s: float = DEADLINE_S) -> Any:
        """Wait until an expression is true in the page; its value."""
        deadline = time.monotonic() + deadline_s
        while not (value := self.evaluate(script)):
            if time.monotonic() > deadline:
                raise AssertionError(f"did not come true: {script}\n{self.evaluate('document.body.innerText')}")
            time.sleep(0.05)
        return value

    def look(self, width: int, height: int, dark: bool = False, still: bool = False) -> None:
        """The size of the window in CSS pixels, and what its user prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if still else "no-preference",
        }
        given = [{"name": name, "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", media="screen", features=given)

    def press(self, key: str, code: int) -> None:
        """A key, down and up; ``code``: its virtual key code."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def screenshot(self, path: Path) -> None:
        """Of the whole page, as PNG."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))


def wait(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
