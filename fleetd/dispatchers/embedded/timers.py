"""What is to be done later, without a clock: the server tells the time.

Promises: pure; things are done in the order of their time, and those of one time in the order they were asked for.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count


@dataclass(slots=True, eq=False)
class Timers:
    """A heap of acts."""

    _heap: list[tuple[float, int, Callable[[float], None]]] = field(default_factory=list)
    _order: "count[int]" = field(default_factory=count)

    def later(self, due: float, act: Callable[[float], None]) -> None:
        """Do something once `tick` is called at or after `due`."""
        heapq.heappush(self._heap, (due, next(self._order), act))

    def tick(self, now: float) -> None:
        """Do what is due."""
        while self._heap and self._heap[0][0] <= now:
            heapq.heappop(self._heap)[2](now)

    @property
    def due(self) -> float | None:
        """When `tick` is to be called next."""
        return self._heap[0][0] if self._heap else None
