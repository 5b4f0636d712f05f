"""Job states as server-sent events, for a page that waits: one event for each change, the last one ends the stream.

    return Response(sse(client.follow(handle)), mimetype=MEDIA)             # WSGI
    return StreamingResponse(asse(client.follow(handle)), media_type=MEDIA)  # ASGI

In the page: `new EventSource(url).addEventListener("state", event => show(JSON.parse(event.data)))`.
"""

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import asdict
from typing import Final

from fleetd.client.outcomes import JobState

MEDIA: Final = "text/event-stream"


def encode(state: JobState) -> bytes:
    """Return one event: `state` with the state as JSON."""
    return f"event: state\ndata: {json.dumps(asdict(state) | {'over': state.over})}\n\n".encode()


def sse(states: Iterable[JobState]) -> Iterator[bytes]:
    """Turn the states of `Client.follow` into a stream."""
    return map(encode, states)


async def asse(states: AsyncIterable[JobState]) -> AsyncIterator[bytes]:
    """Turn the states of `AsyncClient.follow` into a stream."""
    async for state in states:
        yield encode(state)
