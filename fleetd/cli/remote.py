"""Finds the controller and talks to it: by `FLEETD_URL` and `FLEETD_TOKEN`, otherwise by its state folder.

Promises: whatever is wrong on the way is one clear line that names the address and the fix. `FLEETD_URL` may be https;
`FLEETD_CA` is the file of an authority that the system does not know.
"""

import json
import os
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn
from urllib.parse import urlsplit

import httpx
from pydantic_settings import BaseSettings, SettingsConfigDict

from fleetd import __version__
from fleetd.errors import FleetdError, UnreachableError, UsageError

FILE: Final = "controller.json"
TIMEOUT_S: Final = 10.0
TRANSFER_S: Final = 300.0  # between two signs of life: a large release is verified before it is answered
CHUNK: Final = 256 * 1024
MOST_ROWS: Final = 1000
VERSION_HEADER: Final = "Fleetd-Version"


class Settings(BaseSettings):
    """What the environment says: FLEETD_URL, FLEETD_TOKEN, FLEETD_CA, FLEETD_STATE."""

    model_config = SettingsConfigDict(env_prefix="FLEETD_")

    url: str = ""
    token: str = ""
    ca: str = ""
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
        return _address(settings.url), _token(settings.token)
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


def _address(url: str) -> str:
    """Return FLEETD_URL without what is too much at its end; raises UsageError where it is none."""
    shown = url.encode("unicode_escape").decode()
    try:
        parts = urlsplit(url.strip())
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError(f"FLEETD_URL: {shown}: must be http://HOST:PORT or https://HOST:PORT")
    return url.strip().rstrip("/")


def _token(token: str) -> str:
    token = token.strip()
    if not (token.isascii() and token.isprintable()):
        raise UsageError("FLEETD_TOKEN: has characters that no token has; was all of a file taken?")
    return token


def call(method: str, path: str, fleet: str | None = None, **values: Any) -> dict[str, Any]:
    """Call the API and return its answer; raises UnreachableError, or FleetdError with what the controller said.

    The values go into the query of a GET, those that are None left out, and otherwise into the body.
    """
    given = {name: value for name, value in values.items() if value is not None}
    sent = {"params": given or None} if method == "GET" else {"json": values or None}
    with _asked(method, path, fleet, TIMEOUT_S, **sent) as answer:
        return _said(answer)


def rows(path: str, key: str, fleet: str | None = None, most: int | None = None, **values: Any) -> list[dict[str, Any]]:
    """Return a list of the API, page after page: all of it, or its first `most` rows."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while most is None or len(found) < most:
        limit = MOST_ROWS if most is None else min(MOST_ROWS, most - len(found))
        page = call("GET", path, fleet, limit=limit, cursor=cursor, **values)
        found += page[key]
        cursor = page["next"]
        if cursor is None:
            break
    return found


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
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    verify = _trust(Settings().ca) if url.startswith("https:") else False
    try:
        with (
            httpx.Client(timeout=timeout_s, trust_env=False, verify=verify) as http,
            http.stream(method, f"{url}{path}", headers=headers, **body) as answer,
        ):
            yield answer
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnreachableError(f"the controller at {url} does not answer: {_why(error, timeout_s)}") from None


@cache  # `top` and `journal --follow` ask again and again
def _trust(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca or None)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
        raise UsageError(f"FLEETD_CA: {ca}: {why or 'holds no certificate in PEM'}") from None


def _why(error: Exception, timeout_s: float) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, httpx.TimeoutException):
        return f"nothing came within {timeout_s:.0f} s"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.partition("failed: ")[2].partition(" (_ssl")[0] or "its certificate"
        return f"{reason}; set FLEETD_CA to the file of its authority, or mind the name in FLEETD_URL"
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return "it speaks no TLS; is it http:// in FLEETD_URL?"
    return text or type(error).__name__


def _said(answer: httpx.Response) -> dict[str, Any]:
    answer.read()
    url = str(answer.url.copy_with(query=None))
    theirs = answer.headers.get(VERSION_HEADER)
    try:
        raw = dict(answer.json())
    except (ValueError, TypeError):
        raise FleetdError(f"{url}: the answer is not JSON; is that a fleetd controller?") from None
    if theirs is None:
        raise FleetdError(f"{url}: the answer says no version of fleetd; is that a fleetd controller?")
    if answer.is_error or answer.is_redirect:
        _refused(answer, url, theirs, str(raw.get("error", f"HTTP {answer.status_code}")))
    if not _same(theirs):
        _warn(f"fleetd: warning: the controller is fleetd {theirs}, this is {__version__}: what it says may differ")
    return raw


def _refused(answer: httpx.Response, url: str, theirs: str, line: str) -> NoReturn:
    match answer.status_code:
        case 401:
            line = f"{url}: the token was refused; set FLEETD_TOKEN to one of controller.token or controller.tokens"
        case 403:
            line = f"{url}: FLEETD_TOKEN is a viewer's token, which may look; this needs an operator's"
    other = "" if _same(theirs) else f" (the controller is fleetd {theirs}, this is {__version__})"
    kind = UsageError if answer.status_code in (404, 422) else FleetdError
    raise kind(line + other)


def _same(theirs: str) -> bool:
    """Whether a version is like ours but for fixes."""
    return theirs.split(".")[:2] == __version__.split(".")[:2]


@cache  # once is enough
def _warn(line: str) -> None:
    print(line, file=sys.stderr)
