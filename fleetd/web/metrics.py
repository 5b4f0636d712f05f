"""GET /metrics: the page for Prometheus, behind a token as all that can be read."""

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response

from fleetd.control.loop import Controller
from fleetd.control.metrics import Page
from fleetd.control.metrics_names import HTTP_CODES, HTTP_REFUSED


class Metrics:
    """The call, with the page that scrapes at the same time share."""

    def __init__(self, controller: Controller) -> None:
        """Nothing is read before the first scrape."""
        self._controller, self._page = controller, Page(controller)

    async def page(self, request: Request) -> Response:
        """Give the metrics of now as text."""
        counted = dict.fromkeys(HTTP_CODES, 0) | request.app.state.refused
        refused: dict[tuple[str, ...], float] = {(str(code),): float(count) for code, count in counted.items()}
        self._controller.counts.numbers[HTTP_REFUSED.name] = refused
        return Response(await self._page.get(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
