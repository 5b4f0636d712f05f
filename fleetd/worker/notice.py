"""What an EC2 instance is told of its own end: a spot interruption, or that one has become likely.

Promises: what is told is passed on once, and so is that it holds no more; only a clear answer counts, so that no
failure of the metadata service fences a worker or frees one. No clock of this machine is trusted where the service
shows its own. Asked every 5 s, of the two minutes that a notice leaves.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from fleetd.errors import UnreachableError
from fleetd.worker.imds import Imds, Said
from fleetd.worker.logs import event

EVERY_S: Final = 5.0
NOTICE_S: Final = 120.0  # no notice comes earlier than this before the end
INTERRUPTION: Final = "/latest/meta-data/spot/instance-action"
REBALANCE: Final = "/latest/meta-data/events/recommendations/rebalance"


@dataclass(frozen=True, slots=True)
class Notice:
    """Why the instance goes. `at` names the end or the warning, as it was told; `left_s` is None where none is set."""

    why: str
    at: str
    left_s: float | None = None


async def watch(imds: Imds, tell: Callable[[Notice | None], None], every_s: float = EVERY_S) -> None:
    """Call `tell` with every new notice, and with None once there is none any more. Runs for ever."""
    told: Notice | None = None
    trouble = ""
    while True:
        try:
            notice = await look(imds)
        except UnreachableError as error:
            if not trouble:
                event(logging.WARNING, "metadata: no answer; notices are not seen; work goes on", error=f"{error}")
            trouble = f"{error}"
        else:
            if trouble:
                event(logging.INFO, "metadata: answers again")
            trouble = ""
            if _name(notice) != _name(told):
                told = notice
                tell(notice)
        await asyncio.sleep(every_s)


async def look(imds: Imds) -> Notice | None:
    """Return what the instance is told now; an end weighs more than a warning. Raises UnreachableError."""
    said = await imds.get(INTERRUPTION)
    found = _object(said, "action")
    if found is not None:
        return _interruption(found, said.date)
    found = _object(await imds.get(REBALANCE), "noticeTime")
    return None if found is None else Notice("rebalance recommendation", str(found["noticeTime"])[:40])


def _object(said: Said, key: str) -> dict[str, Any] | None:
    """Return what a notice says; None where there is none. Raises UnreachableError for what cannot be understood."""
    if said.status == 404:
        return None
    try:
        raw = json.loads(said.body)
        return {key: raw[key], **raw}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UnreachableError(f"the metadata service says what is no notice: {said.body[:60]!r}") from None


def _interruption(raw: dict[str, Any], date: str) -> Notice:
    """Return the notice of an end. Without a readable time it has just come; none leaves more than two minutes."""
    action, at = str(raw["action"])[:20], str(raw.get("time", ""))[:40]
    what = "spot interruption" if action == "terminate" else f"spot interruption ({action})"
    try:
        end, now = datetime.fromisoformat(at), parsedate_to_datetime(date) if date else datetime.now(UTC)
        left_s = (end - now).total_seconds()
    except (ValueError, TypeError):
        left_s = NOTICE_S
    if action == "hibernate":  # begins at once
        left_s = 0.0
    return Notice(what, at, min(max(left_s, 0.0), NOTICE_S))


def _name(notice: Notice | None) -> tuple[str, str] | None:
    return None if notice is None else (notice.why, notice.at)
