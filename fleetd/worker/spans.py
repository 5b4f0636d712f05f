"""An OpenTelemetry span of each job, where an exporter is configured by the usual OTEL_* variables; otherwise nothing.

Promises: without such a variable nothing is imported and no job pays for it; where the package is missing or the
exporter is wrong, that is logged once and the jobs run all the same. A payload is neither changed nor shown, and so is
the unique, which some clients take from the payload. What a job's own code traces becomes a child of the job's span;
the span itself has no parent, since a Gearman job carries no headers.

    pip install 'fleetd[otel]'; OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 fleetd worker ...
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Final

from fleetd.worker.logs import event
from fleetd.worker.run import Failure
from fleetd.worker.settings import Settings

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTER: Final = "OTEL_TRACES_EXPORTER"
OTLP: Final = "otlp_proto_http"  # what `otlp` means here: no compiler is needed to install it


def exporter_of(environment: Mapping[str, str]) -> str:
    """Return the name of the exporter that the variables ask for; "" for none."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    named = environment.get(EXPORTER, "").strip()
    if named == "none" or not (named or any(environment.get(name) for name in ENDPOINTS)):
        return ""
    return OTLP if named in ("", "otlp") else named


@cache
def make_spans(settings: Settings) -> "Spans | None":
    """Return what traces the jobs of this process; None where nothing asks for it, or it cannot be had."""
    name = exporter_of(os.environ)
    if not name:
        return None
    try:
        return Spans(settings, _exporter(name))
    except Exception as error:  # noqa: BLE001 - whatever is wrong with tracing is no reason not to work
        hint = "pip install 'fleetd[otel]'" if isinstance(error, ImportError) else f"see {EXPORTER}"
        event(logging.WARNING, "jobs are not traced", error=error, hint=hint)
        return None


def _exporter(name: str) -> Any:
    found = entry_points(group="opentelemetry_traces_exporter", name=name)
    if not found:
        raise ImportError(f"no traces exporter {name!r} is installed")
    return next(iter(found)).load()()


class Spans:
    """The tracer of one process, which its slots share."""

    def __init__(self, settings: Settings, exporter: Any) -> None:
        """The exporter sends in a thread of its own; what is left is sent at the process's orderly end."""
        from opentelemetry.context import Context  # noqa: PLC0415
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415 - only where it is used
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.trace import (  # noqa: PLC0415
            SpanKind,
            StatusCode,
            get_tracer_provider,
            set_tracer_provider,
            use_span,
        )

        own = {"service.name": settings.app_name or "fleetd-worker", "service.instance.id": settings.node}
        told = OTELResourceDetector().detect()  # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word
        provider = TracerProvider(resource=Resource.create(own).merge(told))
        provider.add_span_processor(BatchSpanProcessor(exporter))
        if not isinstance(get_tracer_provider(), TracerProvider):
            set_tracer_provider(provider)  # so that what the app's code traces goes the same way
        self._tracer = provider.get_tracer("fleetd.worker")
        self._use, self._consumer, self._error = use_span, SpanKind.CONSUMER, StatusCode.ERROR
        self._nothing = Context()  # a job is nobody's child, least of all the last one's
        self._always = {
            "messaging.system": "gearman",
            "messaging.operation.type": "process",
            "fleetd.fleet": settings.fleet,
            "fleetd.pool": settings.pool,
            "fleetd.release": settings.digest[:12],
        }

    @contextmanager
    def job(self, function: str, handle: str) -> Iterator[Any]:
        """Begin a job's span; it is the current one within, and for the tasks that are begun within."""
        attributes = {**self._always, "messaging.destination.name": function, "messaging.message.id": handle}
        span = self._tracer.start_span(
            f"process {function}", context=self._nothing, kind=self._consumer, attributes=attributes
        )
        with self._use(span, end_on_exit=False):
            yield span

    def end(self, span: Any, outcome: object) -> None:
        """End a span; of a failure it tells the kind alone, since the reason may quote the payload."""
        if isinstance(outcome, Failure):
            span.set_status(self._error, outcome.reason.partition(":")[0])
        span.end()
