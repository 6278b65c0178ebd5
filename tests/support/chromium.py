"""Headless Chromium, controlled through the DevTools protocol over a pipe, with JSON messages ended by a zero byte."""

import base64
import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

FOUND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
OFFLINE = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe", *OFFLINE)


class Page:
    """A page. `complaints` are the errors and warnings of its console, and uncaught exceptions."""

    def __init__(self, profile: Path) -> None:
        assert FOUND
        self.complaints: list[str] = []
        self._pipe, remote = socket.socketpair()
        self._pipe.settimeout(60)
        self._answers = self._pipe.makefile("rb")
        self._calls = 0
        self._session: dict[str, str] = {}
        # Chromium reads commands from descriptor 3 and writes to 4
        pipe = [(os.POSIX_SPAWN_DUP2, remote.fileno(), 3), (os.POSIX_SPAWN_DUP2, 3, 4)]
        quiet = [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
        self._process = os.posix_spawn(
            FOUND,
            [FOUND, *OPTIONS, f"--user-data-dir={profile}"],
            os.environ,
            file_actions=[*pipe, *quiet],
            setsid=True,
        )
        remote.close()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """Kill the browser and all its processes."""
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        self._answers.close()
        self._pipe.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._calls += 1
        command = {"id": self._calls, "method": method, "params": params, **self._session}
        self._pipe.sendall(json.dumps(command).encode() + b"\0")
        while (message := self._read()).get("id") != self._calls:
            pass
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("Chromium has exited")
            text += byte
        message = json.loads(text)
        event, params = message.get("method"), message.get("params", {})
        if event in ("Runtime.exceptionThrown", "Log.entryAdded") or params.get("type") in ("error", "warning"):
            self.complaints.append(json.dumps(params))
        return message

    def open(self, file: Path, width: int = 1200, height: int = 900, *, dark: bool = False) -> None:
        """Open a file in a window of the given size, and clear the complaints."""
        self.complaints.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=file.resolve().as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """Evaluate a JavaScript expression and return its value."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Send a mouse event (mouseMoved, mousePressed or mouseReleased) at window coordinates."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click(self, selector: str) -> None:
        """Click the centre of the first element that matches a selector."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.run(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.mouse(kind, box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def press(self, key: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)

    def screenshot(self, file: Path) -> None:
        """Save the page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))
