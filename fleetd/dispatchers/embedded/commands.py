r"""The text commands: gearmand's, and fleetd's own `oldest`, `dead`, `dead retry ID`, `dead drop ID`, `token T`.

Promises: pure; answers as gearmand 1.1.20 writes them (tabs between fields, a lone dot behind a block, `OK\r\n` or
`ERR CODE text` for a line), so that gearadmin and every monitor can read them. An unknown command changes nothing.
"""

from collections.abc import Callable, Iterable
from typing import Final

from fleetd.dispatchers.embedded.model import Function, Job, Peer
from fleetd.dispatchers.embedded.packets import proves
from fleetd.dispatchers.embedded.queue import Queue
from fleetd.dispatchers.embedded.rules import text

VERSION: Final = "1.1.20+fleetd"  # the gearmand whose behaviour it follows
MAX_ROWS: Final = 100_000  # of `show jobs`: a million lines would hold up everybody else
OK: Final = b"OK\r\n"
Words = list[str]
Handler = Callable[[Queue, Peer, Words, float], bytes]


def receive(queue: Queue, peer: Peer, line: bytes, now: float, pid: int) -> None:
    """Do what a line asks for, and answer."""
    words = text(line).split()
    if not peer.proven and words[:1] != ["token"]:
        queue.send(peer, _err("AUTHENTICATION_REQUIRED", "Send 'token T' with this dispatcher's token first"))
        queue.close(peer, "a command without the token")
        return
    if words == ["getpid"]:
        queue.send(peer, b"OK %d\n" % pid)
        return
    for length in (2, 1):
        handler = _HANDLERS.get(" ".join(words[:length])) if len(words) >= length else None
        if handler is not None:
            if answer := handler(queue, peer, words[length:], now):
                queue.send(peer, answer)
            return
    queue.send(peer, _err("UNKNOWN_COMMAND", f"Unknown server command {' '.join(words)[:80]}"))


def _err(code: str, said: str) -> bytes:
    return f"ERR {code} {said.replace(' ', '+')}\r\n".encode()


def _block(rows: Iterable[str]) -> bytes:
    return "".join([f"{row}\n" for row in rows] + [".\n"]).encode()


def _each(queue: Queue, row: Callable[[Function], str | None]) -> bytes:
    return _block(line for function in queue.functions.values() if (line := row(function)) is not None)


def _status(queue: Queue, _: Peer, __: Words, ___: float) -> bytes:
    return _each(queue, lambda f: f"{text(f.name)}\t{f.total}\t{f.running}\t{f.workers}")


def _priority_status(queue: Queue, _: Peer, __: Words, ___: float) -> bytes:
    return _each(queue, lambda f: "\t".join(map(str, (text(f.name), *f.counts, f.workers))))


def _oldest(queue: Queue, _: Peer, __: Words, now: float) -> bytes:
    def row(function: Function) -> str | None:
        since = function.oldest()
        return None if since is None else f"{text(function.name)}\t{max(0.0, now - since):.3f}"

    return _each(queue, row)


def _workers(queue: Queue, _: Peer, __: Words, ___: float) -> bytes:
    def row(peer: Peer) -> str:
        names = "".join(f" {text(function.name)}" for function in peer.ring)
        return f"{peer.ident} {peer.host} {text(peer.client_id)} :{names}"

    return _block(map(row, list(queue.peers.values())))


def _jobs(queue: Queue, row: Callable[[Job], str]) -> bytes:
    return _block(row(job) for job, _ in zip(queue.jobs.values(), range(MAX_ROWS), strict=False))


def _show_jobs(queue: Queue, _: Peer, __: Words, ___: float) -> bytes:
    return _jobs(queue, lambda job: f"{text(queue.handle(job))}\t{job.attempts}\t0\t{int(job.background)}")


def _show_unique(queue: Queue, _: Peer, __: Words, ___: float) -> bytes:
    return _jobs(queue, lambda job: text(job.unique))


def _cancel(queue: Queue, _: Peer, words: Words, __: float) -> bytes:
    job = queue.by_handle(words[0].encode()) if len(words) == 1 else None
    return OK if job is not None and queue.cancel(job) else b"ERR UNKNOWN_JOB\r\n"


def _max_queue(queue: Queue, _: Peer, words: Words, __: float) -> bytes:
    """`maxqueue NAME` takes the limit off, `NAME N` sets all priorities, `NAME HIGH NORMAL LOW` each."""
    name, *numbers = words or [""]
    if not name or len(numbers) not in (0, 1, 3) or not all(n.isdigit() and len(n) < 16 for n in numbers):
        return _err("INVALID_ARGUMENTS", "maxqueue FUNCTION [JOBS | HIGH NORMAL LOW]")
    function = queue.function(name.encode())
    if function is None:
        return _err("INVALID_ARGUMENTS", "no function's name")
    limits = [int(number) for number in numbers] or [0]
    function.limits = limits if len(limits) == 3 else limits * 3
    return OK


def _create(queue: Queue, _: Peer, words: Words, __: float) -> bytes:
    if len(words) != 1 or queue.function(words[0].encode()) is None:
        return _err("INVALID_ARGUMENTS", "create function NAME")
    return OK


def _drop(queue: Queue, _: Peer, words: Words, __: float) -> bytes:
    name = words[0].encode() if len(words) == 1 else b""
    function = queue.functions.get(name)
    if function is None:
        return b"ERR function not found\r\n"
    if function.total or function.workers:
        return b"ERR there are still connected workers or executing clients\r\n"
    del queue.functions[name]
    return OK


def _version(_: Queue, __: Peer, ___: Words, ____: float) -> bytes:
    return f"OK {VERSION}\n".encode()


def _verbose(_: Queue, __: Peer, ___: Words, ____: float) -> bytes:
    return b"OK NOTICE\n"


def _shutdown(queue: Queue, _: Peer, words: Words, __: float) -> bytes:
    if words not in ([], ["graceful"]):
        return _err("INVALID_ARGUMENTS", "shutdown [graceful]")
    queue.shutdown = "graceful" if words else "now"
    return OK


def _token(queue: Queue, peer: Peer, words: Words, _: float) -> bytes:
    given = words[0].encode() if len(words) == 1 else b""
    return OK if proves(queue, peer, given) else _err("AUTHENTICATION_FAILED", "This is not the token")


def _dead(queue: Queue, _: Peer, words: Words, now: float) -> bytes:
    r"""A line a letter: id, function, unique, attempts, bytes of payload, seconds since its death, reason."""
    if words:
        return _err("INVALID_ARGUMENTS", "dead [retry ID | drop ID]; ID may be all")
    rows = zip(queue.letters.values(), range(MAX_ROWS), strict=False)
    return _block(
        "\t".join(
            (
                str(row.number),
                text(row.function),
                text(row.unique),
                str(row.attempts),
                str(len(row.payload)),
                f"{max(0.0, now - row.died):.0f}",
                row.dead,
            )
        )
        for row, _ in rows
    )


def _with_letters(act: Callable[[Queue, int, float], bool]) -> Handler:
    def handler(queue: Queue, peer: Peer, words: Words, now: float) -> bytes:
        chosen = list(queue.letters) if words == ["all"] else [int(w) for w in words if w.isdigit() and len(w) < 19]
        if len(words) != 1 or (not chosen and words != ["all"]) or not all(act(queue, n, now) for n in chosen):
            return b"ERR UNKNOWN_JOB\r\n"
        if not queue.rules.durable:
            return OK
        queue.gather.hold(peer, queue.gather.batch, OK, _err("QUEUE_ERROR", "done but not on disk yet"))
        return b""

    return handler


_HANDLERS: Final[dict[str, Handler]] = {
    "status": _status,
    "prioritystatus": _priority_status,
    "oldest": _oldest,
    "workers": _workers,
    "show jobs": _show_jobs,
    "show unique": _show_unique,
    "cancel job": _cancel,
    "maxqueue": _max_queue,
    "create function": _create,
    "drop function": _drop,
    "version": _version,
    "verbose": _verbose,
    "shutdown": _shutdown,
    "token": _token,
    "dead": _dead,
    "dead retry": _with_letters(lambda queue, number, now: queue.revive(number, now)),
    "dead drop": _with_letters(lambda queue, number, _: queue.drop(number)),
}
