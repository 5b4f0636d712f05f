"""Finds the controller and talks to it: by `FLEETD_URL` and `FLEETD_TOKEN`, otherwise by its state folder."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import httpx
from pydantic_settings import BaseSettings, SettingsConfigDict

from fleetd.errors import FleetdError, UnreachableError, UsageError

FILE: Final = "controller.json"
TIMEOUT_S: Final = 10.0
TRANSFER_S: Final = 300.0  # between two signs of life: a large release is verified before it is answered
CHUNK: Final = 256 * 1024


class Settings(BaseSettings):
    """What the environment says: FLEETD_URL, FLEETD_TOKEN, FLEETD_STATE."""

    model_config = SettingsConfigDict(env_prefix="FLEETD_")

    url: str = ""
    token: str = ""
    state: Path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "fleetd"


def state_folder(fleet: str) -> Path:
    """Return the folder that a fleet's controller keeps its state in."""
    return Settings().state / fleet


def announce(folder: Path, url: str, token: str, *, shadow: bool = False) -> None:
    """Leave word where this controller is; readable by its user alone. A shadow is found only by its name."""
    handle = os.open(folder / f"{FILE}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump({"url": url, "token": token, "pid": os.getpid(), "shadow": shadow}, file)
    (folder / f"{FILE}.new").rename(folder / FILE)


def _where(fleet: str | None) -> tuple[str, str]:
    settings = Settings()
    if settings.url:
        return settings.url, settings.token
    found = sorted(settings.state.glob(f"{fleet or '*'}/{FILE}"))
    alive = [path for path in found if _alive(path)]
    if fleet is None and len(alive) > 1:
        alive = [path for path in alive if not json.loads(path.read_text()).get("shadow")] or alive
    if not alive:
        hint = f"no controller of fleet {fleet!r}" if fleet else "no controller"
        raise UnreachableError(f"{hint} runs here (looked in {settings.state}); start `fleetd run`, or set FLEETD_URL")
    if len(alive) > 1:
        names = ", ".join(path.parent.name for path in alive)
        raise UsageError(f"several fleets run here ({names}); say which with --fleet")
    word = json.loads(alive[0].read_text())
    return str(word["url"]), str(word["token"])


def _alive(path: Path) -> bool:
    try:
        os.kill(int(json.loads(path.read_text())["pid"]), 0)
    except (OSError, ValueError, KeyError):
        return False
    return True


def call(method: str, path: str, fleet: str | None = None, **body: Any) -> dict[str, Any]:
    """Call the API and return its answer; raises UnreachableError, or FleetdError with what the controller said."""
    with _asked(method, path, fleet, TIMEOUT_S, json=body or None) as answer:
        return _said(answer)


def upload(path: str, file: BinaryIO, fleet: str | None = None) -> dict[str, Any]:
    """Send a file's bytes and return the answer; raises as `call` does."""
    parts = iter(lambda: file.read(CHUNK), b"")
    with _asked("POST", path, fleet, TRANSFER_S, content=parts) as answer:
        return _said(answer)


def download(path: str, file: BinaryIO, fleet: str | None = None) -> None:
    """Write an answer's bytes into a file; raises as `call` does."""
    with _asked("GET", path, fleet, TRANSFER_S) as answer:
        if answer.is_error:
            _said(answer)
        file.writelines(answer.iter_bytes(CHUNK))


@contextmanager
def _asked(method: str, path: str, fleet: str | None, timeout_s: float, **body: Any) -> Iterator[httpx.Response]:
    url, token = _where(fleet)
    headers = {"Authorization": f"Bearer {token}"}
    try:
        with (
            httpx.Client(timeout=timeout_s, trust_env=False) as http,
            http.stream(method, f"{url}{path}", headers=headers, **body) as answer,
        ):
            yield answer
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnreachableError(f"the controller at {url} does not answer: {error}") from None


def _said(answer: httpx.Response) -> dict[str, Any]:
    answer.read()
    try:
        raw = dict(answer.json())
    except (ValueError, TypeError):
        raise FleetdError(f"{answer.url}: the answer is not JSON; is that a fleetd controller?") from None
    if answer.is_error:
        kind = UsageError if answer.status_code == 422 else FleetdError
        raise kind(str(raw.get("error", f"HTTP {answer.status_code}")))
    return raw
