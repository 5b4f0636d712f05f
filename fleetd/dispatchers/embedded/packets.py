"""The binary protocol's server side: each packet of a client or worker, and what it asks of the queue.

Promises: pure. Every packet is answered as gearmand 1.1.20 answers it, but for what docs/dispatcher.md lists; one that
a client or worker has no business to send costs its connection.
"""

import hmac
from collections.abc import Callable
from typing import Final

from fleetd.codecs.gearman import RES, Kind, Packet, encode
from fleetd.dispatchers.embedded.model import HIGH, LOW, NORMAL, RUNNING, Job, Peer
from fleetd.dispatchers.embedded.queue import Queue
from fleetd.dispatchers.embedded.rules import Ask, error

NO_JOB: Final = encode(Kind.NO_JOB, magic=RES)
NOT_FOUND: Final = error(b"JOB_NOT_FOUND", "Job given in work result not found")
UNKNOWN_OPTION: Final = error(b"UNKNOWN_OPTION", "Server does not recognize given option")
UNEXPECTED: Final = error(b"INVALID_COMMAND", "Command not expected")
UNPROVEN: Final = error(b"AUTHENTICATION_REQUIRED", "Send OPTION_REQ 'token:...' with this dispatcher's token first")
TOKEN: Final = b"token:"
MAX_CLIENT_ID: Final = 256
_SUBMITS: Final = {
    Kind.SUBMIT_JOB: (NORMAL, False),
    Kind.SUBMIT_JOB_HIGH: (HIGH, False),
    Kind.SUBMIT_JOB_LOW: (LOW, False),
    Kind.SUBMIT_JOB_BG: (NORMAL, True),
    Kind.SUBMIT_JOB_HIGH_BG: (HIGH, True),
    Kind.SUBMIT_JOB_LOW_BG: (LOW, True),
}
Handler = Callable[[Queue, Peer, Packet, float], None]


def receive(queue: Queue, peer: Peer, packet: Packet, now: float) -> None:
    """Do what a packet asks for."""
    if peer.proven or packet.kind is Kind.OPTION_REQ:
        _HANDLERS[packet.kind](queue, peer, packet, now)
    else:
        queue.send(peer, UNPROVEN)
        queue.close(peer, f"{packet.kind.name} without the token")


def proves(queue: Queue, peer: Peer, token: bytes) -> bool:
    """Whether this is the token, compared in a time that tells nothing about it."""
    if queue.rules.token and not hmac.compare_digest(token, queue.rules.token):
        queue.close(peer, "a wrong token")
        return False
    peer.proven = True
    return True


# ── clients


def _submit(queue: Queue, peer: Peer, packet: Packet, now: float) -> None:
    name, unique, payload = packet.args
    priority, background = _SUBMITS[packet.kind]
    queue.submit(peer, Ask(name, unique, payload, priority, background), now)


def _submit_epoch(queue: Queue, peer: Peer, packet: Packet, now: float) -> None:
    name, unique, epoch, payload = packet.args
    if not epoch.isdigit() or len(epoch) > 12:
        queue.send(peer, error(b"INVALID_ARGUMENTS", "The epoch must be whole seconds since 1970"))
    else:
        queue.submit(peer, Ask(name, unique, payload, NORMAL, background=True, epoch=float(epoch)), now)


def _get_status(queue: Queue, peer: Peer, packet: Packet, _: float) -> None:
    job = queue.by_handle(packet.args[0])
    queue.send(peer, encode(Kind.STATUS_RES, packet.args[0], *_state(job), magic=RES))


def _get_status_unique(queue: Queue, peer: Peer, packet: Packet, _: float) -> None:
    (unique,) = packet.args
    found = (function.by_key.get(unique) for function in queue.functions.values()) if unique else iter(())
    job = next((one for one in found if one is not None), None)
    clients = b"%d" % (len(job.clients) if job else 0)
    queue.send(peer, encode(Kind.STATUS_RES_UNIQUE, unique, *_state(job), clients, magic=RES))


def _state(job: Job | None) -> tuple[bytes, bytes, bytes, bytes]:
    if job is None:
        return b"0", b"0", b"0", b"0"
    return b"1", b"1" if job.state == RUNNING else b"0", *job.progress


def _echo(queue: Queue, peer: Peer, packet: Packet, _: float) -> None:
    queue.send(peer, encode(Kind.ECHO_RES, packet.args[0], magic=RES))


def _option(queue: Queue, peer: Peer, packet: Packet, _: float) -> None:
    (option,) = packet.args
    if option.startswith(TOKEN):
        if proves(queue, peer, option.removeprefix(TOKEN)):
            queue.send(peer, encode(Kind.OPTION_RES, b"token", magic=RES))
        else:
            queue.send(peer, error(b"AUTHENTICATION_FAILED", "This is not the token of this dispatcher"))
    elif not peer.proven:
        queue.send(peer, UNPROVEN)
        queue.close(peer, "OPTION_REQ without the token")
    elif option == b"exceptions":
        peer.exceptions = True
        queue.send(peer, encode(Kind.OPTION_RES, option, magic=RES))
    else:
        queue.send(peer, UNKNOWN_OPTION)


# ── workers


def _can_do(queue: Queue, peer: Peer, packet: Packet, now: float) -> None:
    queue.can(peer, packet.args[0], 0.0, now)


def _can_do_timeout(queue: Queue, peer: Peer, packet: Packet, now: float) -> None:
    name, seconds = packet.args
    queue.can(peer, name, float(seconds) if seconds.isdigit() and len(seconds) < 10 else 0.0, now)


def _cant_do(queue: Queue, peer: Peer, packet: Packet, _: float) -> None:
    queue.cannot(peer, packet.args[0])


def _reset(queue: Queue, peer: Peer, _: Packet, __: float) -> None:
    queue.forget(peer)


def _client_id(_: Queue, peer: Peer, packet: Packet, __: float) -> None:
    name = packet.args[0].decode(errors="backslashreplace")[:MAX_CLIENT_ID]
    peer.client_id = "".join(sign if sign.isprintable() else "?" for sign in name).encode() or b"-"


def _grab(queue: Queue, peer: Peer, packet: Packet, now: float) -> None:
    job = queue.grab(peer, now)
    if job is None:
        queue.send(peer, NO_JOB)
        return
    handle, name = queue.handle(job), job.function.name
    if packet.kind is Kind.GRAB_JOB:
        queue.send(peer, encode(Kind.JOB_ASSIGN, handle, name, job.payload, magic=RES))
    else:  # gearmand answers GRAB_JOB_ALL so as well, where no reducer is involved
        queue.send(peer, encode(Kind.JOB_ASSIGN_UNIQ, handle, name, job.unique, job.payload, magic=RES))


def _pre_sleep(queue: Queue, peer: Peer, _: Packet, now: float) -> None:
    queue.sleepers.sleep(peer, now)


def _own(queue: Queue, peer: Peer, packet: Packet) -> Job | None:
    """Return the job that a worker speaks of, if it is the worker's."""
    job = queue.by_handle(packet.args[0])
    if job is None or job.owner is not peer:
        queue.send(peer, NOT_FOUND)
        return None
    return job


def _pass_on(queue: Queue, peer: Peer, packet: Packet, _: float) -> None:
    """WORK_DATA, WORK_WARNING, and WORK_STATUS, which GET_STATUS is to know as well."""
    job = _own(queue, peer, packet)
    if job is not None:
        if packet.kind is Kind.WORK_STATUS:
            job.progress = packet.args[1][:20], packet.args[2][:20]
        if job.clients:
            queue.tell(job, encode(packet.kind, *packet.args, magic=RES))


def _end(queue: Queue, peer: Peer, packet: Packet, _: float) -> None:
    job = _own(queue, peer, packet)
    if job is not None:
        if job.clients:
            queue.tell(job, encode(packet.kind, *packet.args, magic=RES))
        queue.finish(job)


def _exception(queue: Queue, peer: Peer, packet: Packet, _: float) -> None:
    """It ends the job. Who did not ask for exceptions gets a WORK_FAIL (gearmand's has a NUL too many)."""
    job = _own(queue, peer, packet)
    if job is not None:
        full = encode(Kind.WORK_EXCEPTION, *packet.args, magic=RES)
        plain = encode(Kind.WORK_FAIL, packet.args[0], magic=RES)
        for client in job.clients:
            queue.send(client, full if client.exceptions else plain)
        queue.finish(job)


def _unexpected(queue: Queue, peer: Peer, packet: Packet, _: float) -> None:
    queue.send(peer, UNEXPECTED)
    queue.close(peer, f"{packet.kind.name} from a client or worker")


_TABLE: Final[dict[Kind, Handler]] = {
    **dict.fromkeys(_SUBMITS, _submit),
    Kind.SUBMIT_JOB_EPOCH: _submit_epoch,
    Kind.GET_STATUS: _get_status,
    Kind.GET_STATUS_UNIQUE: _get_status_unique,
    Kind.ECHO_REQ: _echo,
    Kind.OPTION_REQ: _option,
    Kind.CAN_DO: _can_do,
    Kind.CAN_DO_TIMEOUT: _can_do_timeout,
    Kind.CANT_DO: _cant_do,
    Kind.RESET_ABILITIES: _reset,
    Kind.SET_CLIENT_ID: _client_id,
    Kind.GRAB_JOB: _grab,
    Kind.GRAB_JOB_UNIQ: _grab,
    Kind.GRAB_JOB_ALL: _grab,
    Kind.PRE_SLEEP: _pre_sleep,
    Kind.WORK_STATUS: _pass_on,
    Kind.WORK_DATA: _pass_on,
    Kind.WORK_WARNING: _pass_on,
    Kind.WORK_COMPLETE: _end,
    Kind.WORK_FAIL: _end,
    Kind.WORK_EXCEPTION: _exception,
}
# A list, because finding an enum in a dictionary costs as much as the rest of the way.
_HANDLERS: Final[list[Handler]] = [_unexpected] * (max(Kind) + 1)
for _kind, _handler in _TABLE.items():
    _HANDLERS[_kind] = _handler
