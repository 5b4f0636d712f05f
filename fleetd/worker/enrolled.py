"""How a node that has just booted gets its credential: its single-use token for a join token of its own.

Promises: the token leaves this machine only to the holder of the pinned certificate's key; which dates the certificate
bears is of no account, since a machine that has just been woken may not know the time. The standard library alone.
"""

import http.client
import json
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fleetd.codecs.lease import split_token
from fleetd.errors import FleetdError, ProtocolError, UnreachableError, UsageError
from fleetd.worker.backoff import backoff_s

PATH: Final = "/v1/enrol"
TIMEOUT_S: Final = 10.0
TRY_S: Final = 60.0  # the boot service may be starting anew
BACKOFF_CAP_S: Final = 5.0
MOST: Final = 64 * 1024


class RefusedError(FleetdError):
    """The boot service said no. The token is of no more use: asking again does not help."""


def enrol(controller: str, token: str, ca: str, macs: Sequence[str] = (), try_s: float = TRY_S) -> str:
    """Return the join token for a single-use token; `ca` is the pinned certificate in PEM.

    Raises RefusedError where the token is used, late or unknown, UnreachableError where nobody answered in `try_s`,
    and UsageError for an address or a certificate that is none. `macs`: of this machine's cards (default: all).
    """
    parts = urlsplit(controller)
    if parts.scheme != "https" or not parts.hostname:
        raise UsageError(f"controller {controller!r:.100}: a node is enrolled at https://HOST:PORT")
    pinned = _der(ca)
    body = json.dumps({"token": token.strip(), "macs": list(macs or cards())}).encode()
    failures, until = 0, time.monotonic() + try_s
    while True:
        try:
            status, content = _ask(parts.hostname, parts.port or 443, pinned, body)
            return _credential(status, content)
        except UnreachableError:
            failures += 1
            pause_s = backoff_s(failures, BACKOFF_CAP_S)
            if time.monotonic() + pause_s > until:
                raise
        time.sleep(pause_s)


def cards(folder: Path = Path("/sys/class/net")) -> list[str]:
    """Return the MACs of this machine's network cards; the loopback device has none."""
    found = {path.read_text().strip() for path in folder.glob("*/address")}
    return sorted(found - {"", "00:00:00:00:00:00"})


def _der(ca: str) -> bytes:
    try:
        return ssl.PEM_cert_to_DER_cert(ca)
    except ValueError:
        raise UsageError("ca.pem: holds no certificate in PEM") from None


def _ask(host: str, port: int, pinned: bytes, body: bytes) -> tuple[int, bytes]:
    """Call once; raises UnreachableError, or RefusedError before anything is sent to whoever is not the pinned one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # held against the pin, byte by byte, below
    connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    try:
        connection.connect()
        assert isinstance(connection.sock, ssl.SSLSocket)
        if connection.sock.getpeercert(binary_form=True) != pinned:
            raise RefusedError(f"{host}:{port} shows another certificate than the one that came with the boot")
        connection.request("POST", PATH, body, {"Content-Type": "application/json", "Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read(MOST)
    except (OSError, http.client.HTTPException) as error:
        reason = "nothing came in time" if isinstance(error, socket.timeout) else f"{error}" or type(error).__name__
        raise UnreachableError(f"the boot service at {host}:{port} does not answer: {reason}") from None
    finally:
        connection.close()


def _credential(status: int, content: bytes) -> str:
    if status >= 500 or status == 429:
        raise UnreachableError(f"the boot service answered {status}: {_line(content)}")
    try:
        answer = json.loads(content)
        if status == 200:
            split_token(answer["credential"])
            return str(answer["credential"])
        reason = str(answer["error"])
    except (ValueError, KeyError, TypeError, AttributeError, ProtocolError):
        reason = f"answered {status}: {_line(content)}"
    raise RefusedError(f"not enrolled: {reason}")


def _line(text: bytes) -> str:
    return " ".join(text[:200].decode(errors="replace").split())
