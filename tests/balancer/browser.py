# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Chromium without a window, driven over its debugging pipe (Chrome DevTools Protocol)."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import time
from typing import Any


class Browser:
    """One browser process; `page()` opens tabs in it."""

    def __init__(self) -> None:
        self.profile = tempfile.mkdtemp(prefix="llm-browser-")
        to_browser, self.writer = os.pipe()
        self.reader, from_browser = os.pipe()
        # The protocol's pipes are descriptors 3 and 4, so ours must be none of these; Chromium's sandbox refuses root.
        flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"
        inner, outer = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_browser, from_browser))
        command = f"exec chromium {flags} --user-data-dir={self.profile} 3<&{inner} 4>&{outer}"
        self.process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(inner, outer),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (to_browser, from_browser, inner, outer):
            os.close(fd)
        self.numbers = itertools.count(1)
        self.buffer = b""
        self.events: list[dict[str, Any]] = []

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.reader], [], [], max(0, deadline - time.monotonic()))
            data = os.read(self.reader, 1 << 20) if ready else b""
            assert data, f"the browser says nothing (exit status {self.process.poll()})"
            self.buffer += data
        text, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """Call a method of the protocol; events that arrive meanwhile are kept."""
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 20
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def page(self, width: int, height: int, dark: bool = False) -> Page:
        return Page(self, width, height, dark)

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.reader)
        os.close(self.writer)
        shutil.rmtree(self.profile, ignore_errors=True)


class Page:
    """A tab of a given size."""

    def __init__(self, browser: Browser, width: int, height: int, dark: bool) -> None:
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=width < 600
        )

    def call(self, method: str, **params: Any) -> Any:
        return self.browser.call(method, self.session, **params)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def text(self) -> str:
        """What is to be read."""
        text: str = self.run("document.body?.innerText || ''")
        return text

    def complaints(self) -> list[str]:
        """What the console says: errors, violations of the content security policy."""
        self.run("1")  # so that what was said before has arrived
        out = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                out.append(str(params["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                out.append(str(params["args"]))
            elif event["method"] == "Log.entryAdded":
                out.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return out

    def asked(self) -> list[str]:
        """The addresses of everything the page has loaded."""
        self.run("1")
        return [
            event["params"]["request"]["url"]
            for event in self.browser.events
            if event.get("sessionId") == self.session and event["method"] == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: pathlib.Path) -> None:
        """Keep a picture of the whole page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
