"""Whose turn it is: which of a slot's dispatchers is asked for the next job.

Promises: one GRAB is out at a time, so that no job waits in a busy slot; a dispatcher with jobs keeps its turn for a
batch, in which answer and GRAB share a send, and then the next one that may have some gets it; one that has owed its
answer for a second or two holds the others up no longer.
"""

from typing import Final

from fleetd.dispatchers.work import State, WorkConnection

BATCH: Final = 8


class Turns:
    """The slot's connections, by the index of their dispatcher; None where there is none now."""

    __slots__ = ("_last", "_late", "_seen", "_streak", "links")

    def __init__(self, count: int) -> None:
        self.links: list[WorkConnection | None] = [None] * count
        self._late: set[int] = set()
        self._seen = [0] * count
        self._last = 0
        self._streak = 0

    def next(self, *, answering: WorkConnection | None = None) -> int | None:
        """Return whom to ask now, or None where nobody may have a job or an answer is owed.

        `answering` is the connection whose job is about to be answered: it may be asked in the same send.
        """
        for at, link in enumerate(self.links):
            if link is not None and link.state is State.GRABBING and at not in self._late:
                return None
        self._streak += 1
        first = self._last if self._streak < BATCH else self._last + 1
        for step in range(len(self.links)):
            at = (first + step) % len(self.links)
            link = self.links[at]
            if link is not None and (link.state is State.IDLE or link is answering):
                if at != self._last or self._streak >= BATCH:
                    self._streak = 0
                self._last = at
                return at
        return None

    def answered(self, at: int) -> None:
        """The dispatcher owes nothing any more."""
        self._late.discard(at)

    def owing(self) -> list[tuple[int, WorkConnection]]:
        """The connections whose GRAB has not been answered."""
        return [(at, link) for at, link in enumerate(self.links) if link and link.state is State.GRABBING]

    def note_late(self) -> bool:
        """Called every second: whether some dispatcher has owed the same answer since the last call."""
        for at, link in self.owing():
            if self._seen[at] == link.grabs:
                self._late.add(at)
        self._seen = [link.grabs if link is not None else 0 for link in self.links]
        return bool(self._late)
