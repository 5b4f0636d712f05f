"""Dead letters, as operators handle them: look at one, hand its job in again."""

import base64
from fnmatch import fnmatchcase
from typing import Any, Final

from fleetd.client import AsyncClient
from fleetd.control.loop import Controller
from fleetd.errors import UsageError

RETRY_S: Final = 8.0


def letter_of(controller: Controller, name: str) -> dict[str, Any]:
    """Return a dead letter by its id; raises UsageError."""
    letter = controller.store.dead_letter(name)
    if letter is None:
        raise UsageError(f"dead: there is no letter {name!r}; see `fleetd dead list`")
    return letter


async def retry(controller: Controller, name: str) -> str:
    """Submit a dead letter's job again, in the background and under its unique, then forget the letter.

    Returns where it waits. Raises FleetdError, and then the letter is still there.
    """
    letter = letter_of(controller, name)
    servers = _servers(controller, str(letter["function"]))
    if not letter["payload"] and "payload is too large" in str(letter["reason"]):
        raise UsageError(f"dead: {name}: its payload was too large to come along; it is on node {letter['node']}")
    async with AsyncClient(servers) as client:
        payload = base64.b64decode(letter["payload"])
        handle = await client.submit(letter["function"], payload, unique=letter["unique"] or None, wait_s=RETRY_S)
    await controller.on_disk(controller.store.drop_dead, name)
    return f"{handle.handle} at {handle.server}"


def _servers(controller: Controller, function: str) -> list[str]:
    """Return the dispatchers of the queue that a function belongs to."""
    policy = controller.policy
    for queue in policy.queues.values():
        if fnmatchcase(function, queue.match):
            servers = getattr(policy.sources[queue.source].options, "servers", ())
            if servers:
                return [str(server) for server in servers]
    raise UsageError(f"dead: no queue of the policy matches {function!r}: nowhere to submit it again")
