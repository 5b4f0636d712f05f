"""Debian's chromium without a window, driven by its DevTools protocol; everything it writes is in the test's folder."""

import contextlib
import itertools
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import websocket

from tests import servers

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)


class Page:
    """One tab."""

    def __init__(self, line: Any) -> None:
        self._line, self._numbers = line, itertools.count(1)

    def go(self, url: str) -> None:
        """Open a page and wait until it is there."""
        self._ask("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page; a promise is waited for."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self, element: str) -> str:
        """Return what an element shows."""
        return str(self.run(f"(document.getElementById({element!r}) || {{textContent: ''}}).textContent"))

    def until(self, script: str, limit_s: float = 20.0) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + limit_s
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < deadline, f"not so: {script}\n{self.run('document.documentElement.outerHTML')}"
            time.sleep(0.02)

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._line.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            said = json.loads(self._line.recv())
            if said.get("id") == number:
                assert "error" not in said, said
                return dict(said["result"])


@contextlib.contextmanager
def page(folder: Path) -> Iterator[Page]:
    """A browser with one tab."""
    command = [servers.find("chromium"), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        told, deadline = folder / "DevToolsActivePort", time.monotonic() + 30
        while not (told.exists() and told.read_text().count("\n")):
            assert process.poll() is None, f"chromium ended with {process.returncode}"
            assert time.monotonic() < deadline, "chromium does not answer"
            time.sleep(0.05)
        port = told.read_text().splitlines()[0]
        tabs = httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False).json()
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        with contextlib.closing(websocket.create_connection(address, timeout=30)) as line:
            yield Page(line)
    finally:
        process.terminate()
        process.wait(20)
