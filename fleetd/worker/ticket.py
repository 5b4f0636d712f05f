"""The supervisor's side of the right to files: it leaves a ticket in the spool, where the slots read it.

By a file, because a token is renewed while slots live; a ticket is good for files and results alone.
"""

import logging
from pathlib import Path

from fleetd.codecs.ticket import ticket_of
from fleetd.worker.credential import write_token
from fleetd.worker.files import TICKET
from fleetd.worker.logs import event


def leave_ticket(spool: Path, token: str) -> None:
    """Leave the right to files where the slots find it, also anew once the token it is made from was renewed."""
    try:
        spool.mkdir(parents=True, exist_ok=True)
        write_token(spool / TICKET, ticket_of(token))
    except OSError as error:
        event(logging.WARNING, "jobs have no right to files", spool=spool, error=error.strerror)
