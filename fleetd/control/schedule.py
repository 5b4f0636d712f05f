"""Which schedules hold now: their floors, early enough for the nodes to have booted. Time is passed in."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from fleetd.core.model import Policy, Seconds


@lru_cache(maxsize=256)
def _trigger(cron: str, timezone: str) -> Any:
    # Imported only by a fleet that has schedules: it costs memory that others need not pay.
    from apscheduler.triggers.cron import CronTrigger  # noqa: PLC0415

    return CronTrigger.from_crontab(cron, timezone=ZoneInfo(timezone))  # type: ignore[no-untyped-call]


def floors(policy: Policy, wall_s: float, lead_s: Mapping[str, Seconds]) -> dict[str, int]:
    """Return the slots per app that the schedules ask for at `wall_s` (seconds since 1970).

    `lead_s` is how long before its start an app's floor begins: the time that its nodes take to boot.
    """
    result: dict[str, int] = {}
    for schedule in policy.schedules.values():
        for app, slots in schedule.floor.items():
            if _holds(schedule.cron, policy.timezone, schedule.for_s, wall_s, lead_s.get(app, 0.0)):
                result[app] = max(result.get(app, 0), slots)
    return result


def month(policy: Policy, wall_s: float) -> str:
    """Return the calendar month in the policy's time zone, as "2026-11"."""
    return f"{datetime.fromtimestamp(wall_s, ZoneInfo(policy.timezone)):%Y-%m}"


def _holds(cron: str, timezone: str, for_s: Seconds, wall_s: float, lead_s: Seconds) -> bool:
    """Whether a firing of `cron` lies in (now - for_s, now + lead_s]."""
    opens = datetime.fromtimestamp(wall_s - for_s, UTC) + timedelta(microseconds=1)
    fires = _trigger(cron, timezone).get_next_fire_time(None, opens)
    return fires is not None and fires.timestamp() <= wall_s + lead_s
