"""What viewers ask: the picture of the fleet, its parts in pages, why it is so, what happened. Changes nothing."""

import asyncio
from typing import Any, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from fleetd.control.dead import letter_of
from fleetd.control.loop import Controller
from fleetd.control.shadow import dump_glimpse
from fleetd.control.status import picture_of, status
from fleetd.core.explain import deep
from fleetd.errors import UsageError
from fleetd.web.calls import Asked, Name, Whole
from fleetd.web.pages import LIMIT, MOST_ROWS, USUAL_ROWS, Page, dump_cursor, load_cursor
from fleetd.web.wire import JSON, BusyError, InvalidError, NotFoundError, suggest

LOGS_S: Final = 10.0
LATEST_S: Final = 4e9  # the year 2096


class StatusAsked(Asked):
    """How much the picture is to hold."""

    events: Whole = Field(default=12, ge=0, le=MOST_ROWS, description="Lines of the journal to give.")


class NodesAsked(Page):
    """Which nodes."""

    pool: Name | None = Field(default=None, description="Of this pool alone.")


class JournalAsked(Page):
    """Which lines: the newest, and by the cursor those before; or, with `after`, those that follow."""

    after: Whole | None = Field(default=None, ge=0, lt=2**62, description="Lines after this number, in order.")


class WhyAsked(Asked):
    """When."""

    at: Whole = Field(default=int(LATEST_S), ge=0, le=LATEST_S, description="In seconds since 1970; default: now.")


class LogsAsked(Asked):
    """Whose log."""

    node: Name = Field(description="Its name; the process's start time may be left out.")
    limit: Whole = Field(default=USUAL_ROWS, ge=1, le=MOST_ROWS, validation_alias=LIMIT, description="Lines to give.")


class LetterAsked(Asked):
    """Which letter."""

    id: Name


class Viewers:
    """What viewers ask."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def status(self, asked: StatusAsked) -> dict[str, Any]:
        """Give the picture of the fleet, all of it at once."""
        return status(self._controller, asked.events)

    async def nodes(self, asked: NodesAsked) -> dict[str, Any]:
        """Give the nodes in pages, by pool and age."""
        of = self._controller
        if asked.pool is not None and asked.pool not in of.policy.pools:
            raise InvalidError("pool", f"no pool {asked.pool!r}{suggest(asked.pool, of.policy.pools)}")
        begin = load_cursor(asked.cursor, "nodes", str, float, str) if asked.cursor else ("", 0.0, "")
        keys = {node.id: (node.pool, node.launched_at, node.id) for node in of.memory.nodes.values()}
        rows = picture_of(of.policy, of.memory, of.plan, of.clock())["nodes"]
        rows = [row for row in rows if asked.pool in (None, row["pool"]) and keys[row["id"]] > begin]
        page = rows[: asked.limit]
        following = dump_cursor("nodes", *keys[page[-1]["id"]]) if len(rows) > asked.limit else None
        return {"nodes": page, "next": following}

    async def journal(self, asked: JournalAsked) -> dict[str, Any]:
        """Give lines of the journal: the newest, page by page into the past; or those after a number, in order."""
        before, after = None, asked.after
        if asked.cursor:
            way, seq = load_cursor(asked.cursor, "journal", str, int)
            before, after = (seq, None) if way == "before" else (None, seq)
        found = self._controller.store.journal_page(asked.limit + 1, before=before, after=after)
        more = len(found) > asked.limit
        if after is None:
            page = found[1:] if more else found
            following = dump_cursor("journal", "before", page[0].seq) if more else None
        else:
            page = found[: asked.limit]
            following = dump_cursor("journal", "after", page[-1].seq) if more else None
        rows = [{"seq": e.seq, "at": e.at, "epoch": e.epoch, "kind": e.kind, "text": e.text} for e in page]
        return {"entries": rows, "next": following}

    async def explain(self, asked: WhyAsked) -> dict[str, Any]:
        """Give what was said of each app and pool at a moment."""
        said = self._controller.store.sentences(float(asked.at))
        return {
            "why": {about: text for about, (_, text) in said.items()},
            "at": {about: at for about, (at, _) in said.items()},
        }

    async def terms(self, asked: Asked) -> dict[str, Any]:
        """Give every term of the last decision: load, margin, forecast, fill order, limits."""
        del asked
        return {"deep": list(deep(*self._controller.basis))}

    async def logs(self, asked: LogsAsked) -> dict[str, Any]:
        """Give the last lines of a node's worker, also of one that is gone."""
        known = self._controller.memory.nodes
        node = next((name for name in known if name.partition(".")[0] == asked.node), asked.node)
        pool = node.partition("/")[0]
        provider = self._controller.providers.get(pool)
        if provider is None:
            raise UsageError(f"logs: no pool {pool!r}{suggest(pool, self._controller.policy.pools)}; a node is POOL/ID")
        try:
            async with asyncio.timeout(LOGS_S):
                lines = await provider.logs(node, asked.limit)
        except TimeoutError:
            raise BusyError(f"logs: {node}: its provider did not answer within {LOGS_S:.0f} s") from None
        return {"node": node, "lines": list(lines)}

    async def letters(self, asked: Page) -> dict[str, Any]:
        """Give the dead letters in pages, newest first."""
        before = load_cursor(asked.cursor, "dead", int)[0] if asked.cursor else None
        found = self._controller.store.dead(asked.limit + 1, before=before)
        page = found[: asked.limit]
        following = dump_cursor("dead", page[-1][0]) if len(found) > asked.limit else None
        return {"letters": [letter for _, letter in page], "next": following}

    async def letter(self, asked: LetterAsked) -> dict[str, Any]:
        """Give one dead letter."""
        try:
            return letter_of(self._controller, asked.id)
        except UsageError as error:
            raise NotFoundError(str(error)) from None

    async def glimpse(self, request: Request) -> Response:
        """Give what a shadow controller needs: the whole memory, and the ages of the running jobs."""
        del request
        return Response(dump_glimpse(self._controller), media_type=JSON)
