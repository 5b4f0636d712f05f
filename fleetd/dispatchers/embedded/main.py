"""The dispatcher's command line.

Promises: a wrong option, an address that others could reach without a credential, a journal that cannot be read and a
port that is taken are each one clear line on stderr and an exit code of their own; SIGTERM and SIGINT end it at once,
SIGUSR1 after the last running job; the exit code is then 0 and everything acknowledged is on disk.
"""

import argparse
import asyncio
import gc
import ipaddress
import logging
import re
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from fleetd.dispatchers.address import Address, tune
from fleetd.dispatchers.embedded.journal import Journal, JournalError
from fleetd.dispatchers.embedded.logs import LOG, set_up
from fleetd.dispatchers.embedded.queue import Queue
from fleetd.dispatchers.embedded.rules import Rules
from fleetd.dispatchers.embedded.server import Server, make_clock, recover
from fleetd.errors import FleetdError, UsageError

MIN_TOKEN: Final = 16
_LISTEN: Final = re.compile(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:/@\[\]]+)):([0-9]{1,5})")
_SIZE: Final = re.compile(r"([0-9]{1,12})([kKmM]?)i?[bB]?")


def main(argv: Sequence[str]) -> int:
    """Serve until told to stop; returns the exit code."""
    given = _parser().parse_args(argv)
    set_up(given.log_format)
    try:
        address = _listen(given.listen)
        token = _token(given.token_file)
        context = _tls(given)
        _admit(address, safe=bool(token) or given.tls_client_ca is not None)
        _prepare()
        return asyncio.run(_serve(given, address, token, context))
    except FleetdError as error:
        LOG.critical(error)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fleetd dispatcher",
        description="A Gearman dispatcher for a laptop, a test or one small machine.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--listen", default="127.0.0.1:4730", metavar="HOST:PORT", help="default: 127.0.0.1:4730; port 0: any free one")
    add("--data", type=Path, metavar="DIR", help="keep background jobs in this folder (default: in memory alone)")
    add(
        "--attempts",
        type=_positive,
        default=3,
        metavar="N",
        help="deaths of its worker before a job is dead (default: 3)",
    )
    add(
        "--max-payload",
        type=_size,
        default=256 * 1024,
        metavar="BYTES",
        help="of a submission (default: 256k, what fleetd's client sends)",
    )
    add(
        "--max-queue",
        type=_count,
        default=1_000_000,
        metavar="JOBS",
        help="of a function; 0: no limit (default: 1000000)",
    )
    add("--token-file", type=Path, metavar="FILE", help="clients and workers must show the token in it")
    add("--tls-cert", type=Path, metavar="FILE", help="serve TLS with this certificate (PEM, with its chain)")
    add("--tls-key", type=Path, metavar="FILE", help="its private key")
    add("--tls-client-ca", type=Path, metavar="FILE", help="let in only who has a certificate of this authority")
    add(
        "--keepalive",
        type=_keepalive,
        metavar="IDLE:EVERY:COUNT",
        help="seconds and probes until a silent host is given up (default: 30:10:3)",
    )
    add("--log-format", choices=("text", "json"), default="text")
    return parser


async def _serve(given: argparse.Namespace, address: Address, token: bytes, context: ssl.SSLContext | None) -> int:
    loop = asyncio.get_running_loop()
    clock = make_clock()
    prefix = f"H:{socket.gethostname()[:24]}:".encode()
    queue = Queue(Rules(prefix, given.attempts, given.max_payload, given.max_queue, given.data is not None, token))
    with ThreadPoolExecutor(1, "journal") as disk:  # SQLite's connection belongs to one thread
        journal = await loop.run_in_executor(disk, Journal, given.data) if given.data else None
        server = Server(queue, journal, disk, clock)
        try:
            if journal is not None:
                await loop.run_in_executor(disk, recover, queue, journal, clock())
            for number, graceful in ((signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGUSR1, True)):
                loop.add_signal_handler(number, partial(server.stop, graceful=graceful))
            await _listen_on(server, address, context, given.keepalive or tune)
            _announce(server, address, given)
            await server.run()
        finally:
            await server.close()
            if journal is not None:
                await loop.run_in_executor(disk, journal.close)
    LOG.info("dispatcher ended")
    return 0


async def _listen_on(
    server: Server, address: Address, context: ssl.SSLContext | None, keep: Callable[[socket.socket], None]
) -> None:
    try:
        await server.open(address.host, address.port, context, keep)
    except OSError as error:
        raise JournalError(f"--listen {address}: {error.strerror or error}") from None


def _announce(server: Server, address: Address, given: argparse.Namespace) -> None:
    queue = server.queue
    where = Address(address.host, server.port)
    if given.data is None:
        LOG.warning(f"dispatcher listens on {where}; nothing is durable: without --data a restart loses all jobs")
    else:
        held = f"{len(queue.jobs)} jobs and {len(queue.letters)} dead letters recovered"
        LOG.info(f"dispatcher listens on {where}; background jobs are kept in {given.data}: {held}")


def _prepare() -> None:
    """Let a million jobs and a thousand connections be held."""
    # The collector walks every job each time; it is only wanted for the few cycles that errors make.
    gc.set_threshold(50_000, 20, 100)
    # How long the event loop keeps the interpreter's lock when the journal's thread asks for it.
    sys.setswitchinterval(0.001)
    with suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    logging.raiseExceptions = False  # a log that cannot be written must not end a connection


def _listen(text: str) -> Address:
    found = _LISTEN.fullmatch(text)
    if found is None or int(found[3]) > 65535:
        raise UsageError(f"--listen {text!r:.80}: expected HOST:PORT or [IPV6]:PORT")
    return Address(found[1] or found[2], int(found[3]))


def _admit(address: Address, *, safe: bool) -> None:
    """Refuse what would let anybody in: whoever reaches the port can submit code's input, take jobs and cancel them."""
    if safe:
        return
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--listen {address}: {getattr(error, 'strerror', None) or error}") from None
    if not all(ipaddress.ip_address(str(where[4][0]).partition("%")[0]).is_loopback for where in found):
        what = "beyond loopback a credential is needed: give --token-file or --tls-client-ca"
        raise UsageError(f"--listen {address}: {what}")


def _token(path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"--token-file {path}: {error.strerror}") from None
    if len(token) < MIN_TOKEN or len(token) > 512 or not token.isalnum():
        what = f"expected {MIN_TOKEN} to 512 letters and digits, as from `openssl rand -hex 32`"
        raise UsageError(f"--token-file {path}: {what}")
    return token


def _tls(given: argparse.Namespace) -> ssl.SSLContext | None:
    if (given.tls_cert is None) != (given.tls_key is None) or (given.tls_client_ca and not given.tls_cert):
        raise UsageError("--tls-cert and --tls-key belong together, and --tls-client-ca needs both")
    if given.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(given.tls_cert, given.tls_key)
        if given.tls_client_ca:
            context.load_verify_locations(given.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"--tls-cert, --tls-key or --tls-client-ca: {error.strerror or error}") from None
    return context


def _keepalive(text: str) -> Callable[[socket.socket], None]:
    idle, every, times = map(int, text.split(":"))
    if not all(0 < value < 32768 for value in (idle, every, times)):
        raise ValueError

    def keep(sock: socket.socket) -> None:
        tune(sock)
        with suppress(OSError):  # the peer may have hung up already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, times)

    return keep


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def _count(text: str) -> int:
    if (value := int(text)) < 0:
        raise ValueError
    return value


def _size(text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError
    return int(found[1]) * {"": 1, "k": 1024, "m": 1024**2}[found[2].lower()]


_positive.__name__ = _count.__name__ = "number"  # argparse shows these
_size.__name__ = "size, as 262144, 256k or 1m"
_keepalive.__name__ = "IDLE:EVERY:COUNT"
