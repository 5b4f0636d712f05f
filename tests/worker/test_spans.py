"""Spans of jobs reach a real OTLP receiver, say nothing of payloads, and cost nothing where nobody asked for them."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fleetd.worker.settings import Settings
from fleetd.worker.spans import Spans, exporter_of
from tests import servers
from tests.worker.conftest import Connect, StartWorker
from tests.worker.harness import until

APP = """
import asyncio
from opentelemetry import trace
from fleetd.worker import job

def step(name):
    with trace.get_tracer("app").start_as_current_span(name):
        pass

@job
def plain(payload):
    step("in plain")
    return payload

@job
async def later(payload):
    await asyncio.sleep(0.01)
    step("in later")
    return payload

@job
def fail(payload):
    raise ValueError("no good: " + payload.decode())
"""


class Receiver:
    """Takes what OTLP over HTTP brings."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.bodies = b""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.take(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, body: bytes) -> None:
        self.bodies += body
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({pair.key: pair.value.string_value for pair in group.resource.attributes})
            self.spans += [span for scope in group.scope_spans for span in scope.spans]

    def named(self, name: str) -> Any:
        return next((span for span in self.spans if span.name == name), None)


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        thread.join()
        receiver.server.server_close()


def attributes(span: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in span.attributes}


def traced(receiver: Receiver) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}


@pytest.mark.real
@pytest.mark.parametrize("together", [1, 2], ids=["a process each", "two share a process"])
def test_each_job_is_a_span_of_its_own_with_what_its_code_traces_below(
    start: StartWorker, app: Path, connect: Connect, gearmand: servers.Server, together: int
) -> None:
    (app / "jobs.py").write_text(APP)
    with receiving() as receiver:
        more = () if together == 1 else ("--per-process", "2")
        worker = start("--server", gearmand.address, *more, slots=1, env=traced(receiver))
        client = connect()
        handles = {name: client.submit(name, b"s3cret", unique=b"s3cret") for name in ("plain", "later", "fail")}
        for _ in handles:
            client.end()
        assert client.run("plain", b"s3cret").args[1] == b"s3cret", "payloads are not wrapped"
        until(lambda: len(receiver.spans) >= 6, hint=lambda: worker.log)
        for name, handle in handles.items():
            span = receiver.named(f"process {name}")
            assert span.parent_span_id == b""
            assert attributes(span)["messaging.message.id"] in {handle.decode(), *said(receiver, name)}
            assert attributes(span)["messaging.system"] == "gearman"
            assert 0 <= span.end_time_unix_nano - span.start_time_unix_nano < 10e9
        for name in ("plain", "later"):
            assert receiver.named(f"in {name}").parent_span_id in parents(receiver, name)
        failed = receiver.named("process fail")
        assert (failed.status.code, failed.status.message) == (2, "ValueError")
        assert b"s3cret" not in receiver.bodies
        assert {one["service.instance.id"] for one in receiver.resources} != {""}


def said(receiver: Receiver, name: str) -> set[str]:
    return {attributes(s)["messaging.message.id"] for s in receiver.spans if s.name == f"process {name}"}


def parents(receiver: Receiver, name: str) -> set[bytes]:
    return {span.span_id for span in receiver.spans if span.name == f"process {name}"}


@pytest.mark.real
def test_a_receiver_that_is_not_there_and_a_wrong_exporter_stop_no_job(
    start: StartWorker, app: Path, connect: Connect, gearmand: servers.Server
) -> None:
    (app / "jobs.py").write_text(APP)
    gone = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{servers.free_port()}"}
    worker = start("--server", gearmand.address, env=gone)
    assert connect().run("plain", b"x").args[1] == b"x"
    worker.close()
    worker = start("--server", gearmand.address, env={"OTEL_TRACES_EXPORTER": "no_such_exporter"})
    assert connect().run("plain", b"x").args[1] == b"x"
    assert "jobs are not traced" in worker.log
    assert "no traces exporter 'no_such_exporter' is installed" in worker.log


@pytest.mark.parametrize(
    ("environment", "exporter"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "otlp_proto_http"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, "otlp_proto_http"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp_proto_http"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ""),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ""),
    ],
)
def test_the_usual_variables_decide(environment: dict[str, str], exporter: str) -> None:
    assert exporter_of(environment) == exporter


def test_a_job_that_is_begun_at_the_end_of_another_is_not_its_child() -> None:
    """As it happens where a slot holds a job of one dispatcher while it ends one of another."""
    spans = Spans(Settings((), None, 1, Path()), InMemorySpanExporter())
    with spans.job("first", "H:1") as first:
        spans.end(first, b"")
        with spans.job("second", "H:2") as second:
            spans.end(second, b"")
    assert first.parent is second.parent is None


def test_without_them_nothing_is_imported() -> None:
    code = (
        "import sys, os; from pathlib import Path\n"
        "from fleetd.worker.settings import Settings; from fleetd.worker.spans import make_spans\n"
        "import fleetd.worker.slot\n"
        "assert make_spans(Settings((), None, 1, Path())) is None\n"
        "print(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    environment = {"PATH": "/usr/bin", "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout == "False\n"
