"""How a foreign worker is told to finish: the policy's signals, from the gentlest to the hardest it allows.

Promises: the first is sent at once and the next only after the deadline, each further one after STEP_S; nothing harder
than the policy names is ever sent, and that it would be needed is said once, in one line.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from typing import Final

from fleetd.worker.logs import event

STEP_S: Final = 10.0
HARD: Final = (signal.SIGKILL, signal.SIGQUIT)  # no program finishes its jobs by these


class Ladder:
    """Of one run. `send` reaches the program, `busy` tells what it runs, for the log."""

    def __init__(
        self, rungs: Sequence[signal.Signals], send: Callable[[signal.Signals], None], busy: Callable[[], object]
    ) -> None:
        self._rungs, self._send, self._busy = rungs, send, busy
        self._at = -1
        self._timer: asyncio.TimerHandle | None = None
        self._complained = False

    @property
    def begun(self) -> bool:
        """Whether the program has been told to finish."""
        return self._at >= 0

    @property
    def gentle(self) -> bool:
        """Whether nothing but the first signal was sent."""
        return self._at <= 0

    def begin(self, deadline_s: float | None) -> None:
        """Tell it to finish, if that has not been done; the newest deadline holds as long as none has passed."""
        if not self.begun:
            self._at = 0
            event(logging.INFO, "told to finish", by=self._rungs[0].name, deadline_s=deadline_s)
            self._send(self._rungs[0])
        if self.gentle:
            self._wait(deadline_s)

    def hurry(self) -> None:
        """Go on to the next rung now."""
        if not self.begun:
            self.begin(None)
        self._climb()

    def idle(self) -> None:
        """It runs nothing and has not ended: a program that was only quieted is told to end, if gently."""
        if self._at == 0 and len(self._rungs) > 1 and self._rungs[1] not in HARD:
            self._at = 1
            event(logging.INFO, "quiet and idle: told to end", by=self._rungs[1].name)
            self._send(self._rungs[1])
            self._wait(STEP_S)

    def close(self) -> None:
        """Send nothing any more."""
        self._wait(None)

    def _wait(self, after_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if after_s is None else asyncio.get_running_loop().call_later(after_s, self._climb)

    def _climb(self) -> None:
        before = self._rungs[self._at].name
        if self._at + 1 == len(self._rungs):
            self._complain(before)
            return
        self._at += 1
        number = self._rungs[self._at]
        event(logging.WARNING, f"did not end by {before}: sent {number.name}", busy=self._busy())
        if number in HARD:
            event(logging.WARNING, f"{number.name} may cut jobs off: those run again if their dispatcher sees to it")
        self._send(number)
        self._wait(STEP_S)

    def _complain(self, before: str) -> None:
        if not self._complained:
            self._complained = True
            left = "it may take a moment" if before == "SIGKILL" else "waiting on: `drain.then` allows nothing harder"
            event(logging.WARNING, f"did not end by {before}: {left}", busy=self._busy())
