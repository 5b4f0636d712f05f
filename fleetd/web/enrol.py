"""What instances of a cloud call, once each: for a proof of who they are, the credential of their node."""

from dataclasses import asdict
from typing import Annotated, Any, Final

from pydantic import Field

from fleetd.control.enrol import Desk, NoProofError, NotYetError
from fleetd.control.loop import Controller
from fleetd.web.calls import Asked, Name, Told
from fleetd.web.wire import BusyError, ForbiddenError

MOST: Final = 16_384  # characters; AWS's documents are of some 500


class EnrolAsked(Asked):
    """Whose instance this is, and its identity document with AWS's signature, both as the metadata service has them."""

    pool: Name
    document: Annotated[str, Field(max_length=MOST)]
    signature: Annotated[str, Field(max_length=MOST)]


class Enrolled(Told):
    """The credential and for how long it is good, for which node; and what its worker is to run with."""

    credential: str
    node: str
    for_s: float
    app: str
    key: str
    arguments: list[str]


class Instances:
    """What instances call."""

    def __init__(self, controller: Controller, secret: str) -> None:
        self._desk = Desk(controller, secret)

    async def enrol(self, asked: EnrolAsked) -> dict[str, Any]:
        """Enrol an instance that AWS vouches for, that is a node of the pool, and whose worker has not spoken yet."""
        try:
            found = self._desk.enrol(asked.pool, asked.document, asked.signature)
        except NoProofError as error:
            raise ForbiddenError(str(error)) from None
        except NotYetError as error:
            raise BusyError(str(error)) from None
        return asdict(found) | {"arguments": list(found.arguments)}
