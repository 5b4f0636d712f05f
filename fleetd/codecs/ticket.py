"""The right of a worker's jobs to the fleet's store of files, and to nothing else. Sans I/O.

Promises: a ticket is made from a join token and cannot be turned back into one, so that code of an app that reads it
can neither lease nor fetch orders. It signs as a join token does (codecs/lease.py), under a scheme of its own, and
ends with the token that it was made from.
"""

import hmac
from typing import Final

from fleetd.codecs.lease import scope_token, sign, split_token
from fleetd.codecs.scope import Scope, read_scope
from fleetd.errors import ProtocolError

SCHEME: Final = "Fleetd-Files"
PURPOSE: Final = "files"


def ticket_of(token: str) -> str:
    """Return the ticket that goes with a join token; raises ProtocolError."""
    scope, key = split_token(token)
    return f"{scope}.{sign(key, PURPOSE, scope)}"


def show_ticket(ticket: str, method: str, path: str, body: bytes = b"") -> str:
    """Return the value of a request's Authorization header."""
    scope, key = split_token(ticket)
    return f"{SCHEME} {scope} {sign(key, method, path, body)}"


def check_ticket(secret: str, header: str, now: float, request: tuple[str, str, bytes]) -> Scope:
    """Return whose ticket signed the request (method, path, body); raises ProtocolError."""
    scheme, _, rest = header.partition(" ")
    text, _, signature = rest.partition(" ")
    if scheme != SCHEME or not text.isprintable():
        raise ProtocolError(f"authorization: must be '{SCHEME} SCOPE SIGNATURE'")
    scope = read_scope(text)
    _, key = split_token(ticket_of(scope_token(secret, text)))
    if not hmac.compare_digest(sign(key, *request).encode(), signature.encode(errors="replace")):
        raise ProtocolError(f"authorization: the signature for {text!r:.80} is wrong; is the ticket of this fleet?")
    scope.check(scope.node or f"{scope.pool}/", now)
    return scope
