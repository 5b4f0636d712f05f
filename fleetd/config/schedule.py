"""Which schedules hold now: their floors, early enough for the nodes to have booted. Time is passed in."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from fleetd.core.model import Policy, SchedulePolicy, Seconds


class Schedules:
    """The schedules of one policy. Of each, the firing that matters is worked out once and kept while it matters."""

    def __init__(self, policy: Policy) -> None:
        self._schedules = [_Schedule(schedule, policy.timezone) for schedule in policy.schedules.values()]

    def floors(self, wall_s: float, lead_s: Mapping[str, Seconds]) -> dict[str, int]:
        """Return the slots per app that the schedules ask for at `wall_s` (seconds since 1970).

        `lead_s` is how long before its start an app's floor begins: the time that its nodes take to boot.
        """
        result: dict[str, int] = {}
        for schedule in self._schedules:
            fires_s = schedule.fires(wall_s)
            for app, slots in schedule.policy.floor.items():
                if fires_s is not None and fires_s <= wall_s + lead_s.get(app, 0.0):
                    result[app] = max(result.get(app, 0), slots)
        return result


class _Schedule:
    """One schedule, with its next firing, or the last where its time is not over yet."""

    def __init__(self, policy: SchedulePolicy, timezone: str) -> None:
        # Imported only by a fleet that has schedules: it costs memory that others need not pay.
        from apscheduler.triggers.cron import CronTrigger  # noqa: PLC0415

        self.policy = policy
        self._trigger: Any = CronTrigger.from_crontab(policy.cron, timezone=ZoneInfo(timezone))  # type: ignore[no-untyped-call]
        self._known: tuple[float, float | None] | None = None  # when it was worked out, and the firing

    def fires(self, wall_s: float) -> float | None:
        """Return the first firing after `wall_s - for_s`; None where there is none any more."""
        if self._known is not None:
            at, fires_s = self._known
            if at <= wall_s and (fires_s is None or wall_s < fires_s + self.policy.for_s):
                return fires_s
        opens = datetime.fromtimestamp(wall_s - self.policy.for_s, UTC) + timedelta(microseconds=1)
        fires = self._trigger.get_next_fire_time(None, opens)
        self._known = (wall_s, fires.timestamp() if fires is not None else None)
        return self._known[1]


def month(policy: Policy, wall_s: float) -> str:
    """Return the calendar month in the policy's time zone, as "2026-11"."""
    return f"{datetime.fromtimestamp(wall_s, ZoneInfo(policy.timezone)):%Y-%m}"
