"""Finds the controller and talks to it: by `FLEETD_URL` and `FLEETD_TOKEN`, otherwise by its state folder."""

import json
import os
from pathlib import Path
from typing import Any, Final

import httpx
from pydantic_settings import BaseSettings, SettingsConfigDict

from fleetd.errors import FleetdError, UnreachableError, UsageError

FILE: Final = "controller.json"
TIMEOUT_S: Final = 10.0


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
    url, token = _where(fleet)
    headers = {"Authorization": f"Bearer {token}"}
    try:
        answer = httpx.request(
            method, f"{url}{path}", json=body or None, headers=headers, timeout=TIMEOUT_S, trust_env=False
        )
        raw = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnreachableError(f"the controller at {url} does not answer: {error}") from None
    except ValueError:
        raise FleetdError(f"{url}{path}: the answer is not JSON; is that a fleetd controller?") from None
    if answer.is_error:
        kind = UsageError if answer.status_code == 422 else FleetdError
        raise kind(str(raw.get("error", f"HTTP {answer.status_code}")))
    return dict(raw)
