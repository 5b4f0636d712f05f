"""The example pages in a real browser: the page is back at once, shows how far the job is, and then its result."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.blobs.rig import Rig, rig
from tests.examples.browser import Page, page

pytestmark = [pytest.mark.real, pytest.mark.slow]
JOBS = Path(__file__).parents[2] / "examples" / "web" / "jobs.py"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    more = JOBS.read_text().replace("from fleetd.worker import Cancelled, Context, File, job", "")
    with rig(tmp_path_factory.mktemp("fleet") / "rig", more=more) as made:
        yield made


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with page(tmp_path_factory.mktemp("browser")) as made:
        yield made


@contextlib.contextmanager
def served(of: Rig, kind: str) -> Iterator[str]:
    env = {**of.env, "FLEETD_URL": of.url, "FLEETD_TOKEN": of.files.token}
    command = [sys.executable, "-m", f"examples.web.{kind}", "--port", "0", "--server", of.server.address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def handed_away(tab: Page, url: str, text: str) -> float:
    """Fill the form in and send it; return how long it took until the waiting page was there."""
    tab.go(url)
    begun = time.monotonic()
    tab.run(f"document.querySelector('textarea').value = {text!r}; document.querySelector('button').click()")
    tab.until("document.getElementById('bar')")
    return time.monotonic() - begun


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_a_page_hands_work_away_shows_progress_and_then_the_result(fleet: Rig, tab: Page, kind: str) -> None:
    with served(fleet, kind) as url:
        took = handed_away(tab, url, "\n".join(["three words here"] * 8))
        assert took < 2.0  # the job takes 2.4 s and more
        assert tab.text("result") == ""
        seen: set[tuple[str, float]] = set()
        while tab.text("state") not in ("done", "failed"):
            seen.add((tab.text("state"), tab.run("document.getElementById('bar').value")))
            time.sleep(0.05)
        tab.until("document.getElementById('result').textContent")
        assert tab.text("result") == "24 words in 8 lines"
        assert len({value for state, value in seen if state == "running" and value > 1}) >= 3, seen


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_the_page_of_a_job_outlives_its_web_server(fleet: Rig, tab: Page, kind: str) -> None:
    with served(fleet, kind) as url:
        handed_away(tab, url, "a b\n" * 3)
        path = str(tab.run("location.pathname"))
    with served(fleet, kind) as url:
        tab.go(url.rstrip("/") + path)
        tab.until("document.getElementById('result').textContent")
        assert tab.text("result") == "6 words in 3 lines"


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_a_job_can_be_cancelled_and_a_fault_is_shown(fleet: Rig, tab: Page, kind: str) -> None:
    with served(fleet, kind) as url:
        handed_away(tab, url, "x\n" * 100)
        tab.until("document.getElementById('state').textContent === 'running'")
        tab.run("document.getElementById('cancel').click()")
        tab.until("document.getElementById('state').textContent === 'cancelled'")
        handed_away(tab, url, "a\ncrash <b>now</b>")
        tab.until("document.getElementById('state').textContent.startsWith('failed')")
        assert tab.text("state") == "failed: ValueError: line 2 cannot be counted"
