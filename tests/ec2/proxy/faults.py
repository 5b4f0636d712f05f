"""Faults of any call: "Error codes for the Amazon EC2 API" and "Common errors" (Amazon EC2 API Reference; Amazon EC2
Auto Scaling API Reference): RequestLimitExceeded, Throttling, InternalError, Unavailable; and an answer that is lost.

An error may come before a call is carried out or, where its answer is lost, after: "Ensuring idempotency in Amazon EC2
API requests" tells to send the same ClientToken again.
"""

from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from tests.ec2.proxy.plumbing import Call, Proxy, Reply


class Fault(NamedTuple):
    what: str
    reply: "Reply"
    carried_out: bool = False


def error(service: str, code: str, message: str, status: int = 400) -> "Reply":
    """An error answer in the service's own form."""
    from tests.ec2.proxy.plumbing import Reply  # noqa: PLC0415 - the two know each other

    told = f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
    if service == "autoscaling":
        kind = "Receiver" if status >= 500 else "Sender"
        whole = f"<ErrorResponse><Error><Type>{kind}</Type>{told}</Error><RequestId>r</RequestId></ErrorResponse>"
    else:
        whole = f"<Response><Errors><Error>{told}</Error></Errors><RequestID>r</RequestID></Response>"
    return Reply(status, f'<?xml version="1.0" encoding="UTF-8"?>\n{whole}'.encode())


def draw(proxy: "Proxy", call: "Call") -> Fault | None:
    """What goes wrong with this call, if anything does."""
    from tests.ec2.proxy.plumbing import Reply  # noqa: PLC0415 - as above

    if proxy.chance.random() >= proxy.error_share:
        return None
    limit = "Throttling" if call.service == "autoscaling" else "RequestLimitExceeded"
    inner = "InternalFailure" if call.service == "autoscaling" else "InternalError"
    out = "ServiceUnavailable" if call.service == "autoscaling" else "Unavailable"
    return proxy.chance.choice(
        (
            Fault("throttled", error(call.service, limit, "Request limit exceeded.", 503)),
            Fault("throttled", error(call.service, limit, "Request limit exceeded.", 400)),
            Fault("internal error", error(call.service, inner, "An internal error has occurred", 500)),
            Fault("unavailable", error(call.service, out, "The server is overloaded", 503)),
            Fault("answer lost", Reply(0, b""), carried_out=True),
            Fault("no answer", Reply(0, b"")),
        )
    )
