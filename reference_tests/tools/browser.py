"""Chromium without a window, asked over its own pipe: what a page does in front of a reader.

The protocol is that of its developer tools, JSON ended by a zero byte, on descriptors 3 and 4, so
no library is needed.  Where Chromium is absent, or cannot start, a test is skipped with that word.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

SECONDS = 60  # for one answer; a machine with much to do is slow
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--remote-debugging-pipe"
).split()


class Browser:
    """One page of a headless Chromium; a context manager."""

    def __init__(self) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        if program is None:
            pytest.skip("Chromium is not installed")
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        there, self.write = os.pipe()
        self.read, back = os.pipe()
        # the shell moves the descriptors: 3 and 4 may be those of something else here
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec nice -n 10 "$@" 3<&{there} 4>&{back}', "-", program, *FLAGS]
            + [f"--user-data-dir={self.folder.name}", "about:blank"],
            pass_fds=(there, back),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(there)
        os.close(back)
        self.number, self.rest = 0, b""
        self.events: list[dict] = []
        self.session: str | None = None
        try:
            pages = self.ask("Target.getTargets")["targetInfos"]
        except EOFError:
            self.__exit__()
            pytest.skip("Chromium is installed, but does not start here")
        (page,) = (each["targetId"] for each in pages if each["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *raised: object) -> None:
        os.close(self.write)  # Chromium ends when its pipe does
        os.close(self.read)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    def ask(self, method: str, **params: object) -> dict:
        """Return the result of one call of the protocol; keep the events that come before it."""
        self.number += 1
        call = {"id": self.number, "method": method, "params": params}
        if self.session:
            call["sessionId"] = self.session
        os.write(self.write, json.dumps(call).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self.number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self.events.append(message)

    def _message(self) -> dict:
        end = time.monotonic() + SECONDS
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0, end - time.monotonic()))
            piece = os.read(self.read, 1 << 16) if ready else b""
            if not piece:
                raise EOFError("Chromium gives no answer")
            self.rest += piece
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, path, width=1100, height=800, scale=1, *, dark=False, still=True) -> None:
        """Load a file at a width in CSS pixels; forget the events of the page before."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        self.media(dark=dark, still=still)
        self.events.clear()
        self.ask("Page.navigate", url=Path(path).absolute().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())
        self.frame()

    def media(self, *, dark=False, still=True, kind="") -> None:
        """Set what the reader's system asks for: dark colours, no motion; kind "print"."""
        features = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if still else "no-preference",
        }
        self.ask(
            "Emulation.setEmulatedMedia",
            media=kind,
            features=[{"name": name, "value": value} for name, value in features.items()],
        )

    def value(self, expression: str):
        """Return the value of a JavaScript expression; a promise is awaited."""
        done = self.ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def frame(self) -> None:
        """Wait until what was asked for is drawn: two frames."""
        self.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def key(self, name: str) -> None:
        """Press and release one key by its name, as "ArrowLeft" or "Tab"."""
        codes = {"Tab": 9, "Home": 36}
        codes |= {f"Arrow{way}": 37 + i for i, way in enumerate(("Left", "Up", "Right", "Down"))}
        for kind in ("keyDown", "keyUp"):
            self.ask(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                code=name,
                windowsVirtualKeyCode=codes[name],
            )
        self.frame()

    def drag(self, x: float, y: float, right: float, down: float) -> None:
        """Press the mouse at (x, y) in CSS pixels, move it by (right, down), release it."""
        for kind, i, j in [
            ("mousePressed", x, y),
            ("mouseMoved", x + right, y + down),
            ("mouseReleased", x + right, y + down),
        ]:
            self.ask(
                "Input.dispatchMouseEvent",
                type=kind,
                x=i,
                y=j,
                button="left",
                buttons=1,
                clickCount=1,
            )
        self.frame()

    def faults(self) -> list[str]:
        """Return what the page wrote to the console, what it threw, and what it asked for."""
        found = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.consoleAPICalled":
                found.append(f"console: {params['args']}")
            elif method == "Runtime.exceptionThrown":
                found.append(f"thrown: {params['exceptionDetails']}")
            elif method == "Log.entryAdded":
                found.append(f"log: {params['entry']['text']}")
            elif method == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if params.get("type") != "Document" and not url.startswith("data:"):
                    found.append(f"request: {url}")
        return found

    def picture(self, path, *, whole=False) -> None:
        """Write a picture of the window, or of the whole page, as PNG."""
        made = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        with open(path, "wb") as file:
            file.write(base64.b64decode(made["data"]))

    def print(self, path) -> None:
        """Write the page as it is printed, as PDF."""
        made = self.ask("Page.printToPDF")
        with open(path, "wb") as file:
            file.write(base64.b64decode(made["data"]))
