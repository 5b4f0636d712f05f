"""What becomes of the job that a slot died in.

Promises: it is given back to its dispatcher or, at its last attempt, written down as a dead letter and answered. Under
a generation on trial its first death costs it nothing.
"""

import asyncio
import logging
from typing import Any

from fleetd.dispatchers.work import failure
from fleetd.errors import UnreachableError
from fleetd.worker import dead
from fleetd.worker.attempts import Books, describe
from fleetd.worker.cell import Running
from fleetd.worker.children import SlotProcess
from fleetd.worker.logs import event
from fleetd.worker.settings import Settings


async def bury(slot: SlotProcess, job: Running, code: int, books: Books, settings: Settings, *, on_trial: bool) -> None:
    """Count the attempt. Give the job back or, at the last attempt, speak its last word."""
    try:
        function, most = slot.names[job.row], slot.attempts[job.row]
        key, reason = (function, job.unique, job.handle), slot.sentence or describe(code)
        if books.crashed.add(key, settings.digest) and on_trial:
            event(logging.ERROR, "job crashed new code and goes back", function=function, reason=reason)
            return
        count = books.attempts.add(key)
        fields: dict[str, Any] = {"function": function, "job": job.handle.decode(errors="replace")}
        event(logging.ERROR, "job crashed", **fields, attempt=f"{count} of {most}", reason=reason)
        # Over TLS the last word cannot be spoken, and the job may be given out again: one letter is enough.
        if count == most or (count > most and not settings.servers[job.link].tls):
            letter = dead.make_letter(
                function,
                (job.handle, job.unique),
                slot.cell.payload(),
                attempts=count,
                reason=reason,
                traceback=slot.stack(),
            )
            if await asyncio.to_thread(dead.write, settings.spool, letter):  # else it goes back to be kept later
                await asyncio.to_thread(slot.answer, job.link, failure(job.handle, reason))
    except UnreachableError as error:
        event(logging.WARNING, "last word not heard", slot=slot.index, error=error)
    finally:
        slot.close()
