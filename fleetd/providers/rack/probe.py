"""Whether a machine is on, by knocking at a TCP port: no privilege is needed, and any answer is one.

In the rack's own network a machine that is off is told by the kernel itself, whose ARP request finds nobody. On a
loopback address this machine answers for everybody: there only a port that opens is an answer.
"""

import asyncio
import errno
from contextlib import suppress
from ipaddress import ip_address
from typing import Final, Literal

Answer = Literal["answers", "silent", "unknown"]
KNOCK_S: Final = 2.0
_SILENT: Final = frozenset({errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ETIMEDOUT})
_ANSWERS: Final = frozenset({errno.ECONNREFUSED, errno.ECONNRESET})


async def knock(ip: str, port: int, limit_s: float = KNOCK_S) -> Answer:
    """Return whether a machine answers; `unknown` where the fault is on this side, or no address is known."""
    if not ip:
        return "unknown"
    try:
        async with asyncio.timeout(limit_s):
            _, writer = await asyncio.open_connection(ip, port)
    except TimeoutError:
        return "silent"
    except OSError as error:
        if error.errno in _ANSWERS:
            return "silent" if ip_address(ip).is_loopback else "answers"
        return "silent" if error.errno in _SILENT else "unknown"
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return "answers"
