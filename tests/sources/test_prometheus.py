"""The Prometheus source: the suite of its port over a real Prometheus and a tiny exporter, and servers that lie."""

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr, ValidationError

from fleetd.core.model import Reading
from fleetd.core.ports import Source
from fleetd.errors import SourceError, UsageError
from fleetd.sources import prometheus
from fleetd.sources.prometheus import PrometheusOptions, PrometheusSource
from tests import servers
from tests.conformance.source import TIMEOUT_S, Rig, SourceConformance, comes
from tests.dispatchers.peers import Behaviour, Liar, liar, silent

SCRAPE_MS = 200
NOW = 1234567890.5  # stands for the time of the answer
SECRET = "s3cret-bearer"


def source_of(port: int, queues: Mapping[str, str] | None = None, **options: Any) -> PrometheusSource:
    made = PrometheusOptions(**{"url": f"http://127.0.0.1:{port}", "timeout": 1.0, **options})
    return PrometheusSource("metrics", made, queues or {"q": "jobs"})


# ── the suite


class Exporter:
    """Metrics by the name of a job function: `jobs_waiting`, `jobs_running`, and whole lines of a test's own."""

    def __init__(self) -> None:
        self.waiting: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.lines: list[str] = []
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = exporter.text().encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def text(self) -> str:
        counts = (("waiting", self.waiting), ("running", self.running))
        lines = [f'jobs_{what}{{function="{f}"}} {n}' for what, by in counts for f, n in list(by.items())]
        return "\n".join([*lines, *self.lines, ""])

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class PrometheusRig(Rig):
    """A Prometheus that scrapes the exporter. It takes five seconds until it scrapes for the first time."""

    settle_s = 15.0
    has_logins = False  # Prometheus leaves that to a proxy: see the lying servers below

    def __init__(self, folder: Path) -> None:
        self.exporter = Exporter()
        self.config, self.data = folder / "prometheus.yml", folder / "data"
        target = f"127.0.0.1:{self.exporter.server.server_port}"
        self.config.write_text(
            f"global: {{scrape_interval: {SCRAPE_MS}ms, scrape_timeout: {SCRAPE_MS}ms}}\n"
            f"scrape_configs: [{{job_name: jobs, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        self.server = contextlib.ExitStack()
        self.running = self.server.enter_context(servers.prometheus(self.config, self.data))

    @property
    def port(self) -> int:
        return self.running.port

    def source(self, queues: Mapping[str, str], port: int | None = None) -> Source:
        def sum_of(what: str, glob: str) -> str:
            return f'sum(jobs_{what}{{function=~"{glob.replace("*", ".*")}"}})'

        return source_of(
            port or self.port,
            {queue: sum_of("waiting", glob) for queue, glob in queues.items()},
            running={queue: sum_of("running", glob) for queue, glob in queues.items()},
            empty="zero",
            timeout=TIMEOUT_S,
        )

    async def put(self, function: str, count: int) -> None:
        self.exporter.waiting[function] += count

    async def start(self, function: str, count: int) -> None:
        self.exporter.waiting[function] -= count
        self.exporter.running[function] += count

    async def finish(self) -> None:
        self.exporter.running.clear()

    async def stop_server(self) -> None:
        self.running.kill()

    async def start_server(self) -> None:
        self.running = self.server.enter_context(servers.prometheus(self.config, self.data, self.port))

    async def ready(self) -> None:
        """As new: no jobs, and scraped since."""
        self.exporter.waiting.clear()
        self.exporter.running.clear()
        self.exporter.lines = [f"mark {time.monotonic()}"]
        if self.running.process.poll() is not None:
            await self.start_server()
        async with httpx.AsyncClient(trust_env=False) as client:
            while self.exporter.lines[0].split()[1] not in (await self.ask(client, "mark")):
                await asyncio.sleep(0.05)

    async def ask(self, client: httpx.AsyncClient, query: str) -> str:
        with contextlib.suppress(httpx.HTTPError):
            answer = await client.get(f"http://127.0.0.1:{self.port}/api/v1/query", params={"query": query})
            return answer.text
        return ""

    def close(self) -> None:
        self.server.close()
        self.exporter.close()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusRig]:
    rig = PrometheusRig(tmp_path_factory.mktemp("prometheus"))
    try:
        yield rig
    finally:
        rig.close()


@pytest.fixture
async def rig(scraped: PrometheusRig) -> PrometheusRig:
    await scraped.ready()
    return scraped


@pytest.mark.real
@pytest.mark.slow
class TestConformance(SourceConformance):
    """Over one Prometheus, since each takes its time to begin."""


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "url"),
        ({"url": "redis://a"}, "expected http://HOST:PORT"),
        ({"url": "http://"}, "expected http://HOST:PORT"),
        ({"url": "http://a:b"}, "expected http://HOST:PORT"),
        ({"url": "http://u:pw@a"}, "a password is never written into the policy; give bearer: {env: NAME}"),
        ({"url": "http://a/?x=1"}, "nothing after it but a path"),
        ({"url": "http://a", "empty": "max"}, "empty"),
        ({"url": "http://a", "max_age": "500"}, None),
        ({"url": "http://a", "max_age": 0}, "greater than or equal to 1"),
        ({"url": "http://a", "timeout": "2h"}, "less than or equal to 60"),
    ],
)
def test_wrong_options_say_what_is_wrong(options, says):
    if says is None:
        assert PrometheusOptions.model_validate(options).max_age == 500
        return
    with pytest.raises(ValidationError) as caught:
        PrometheusOptions.model_validate(options)
    assert says in str(caught.value)


def test_running_of_a_queue_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="source metrics: running: no queue of this source is called 'x'"):
        source_of(1, {"q": "f"}, running={"x": "y"})


# ── what a real server answers


async def blind(source: PrometheusSource) -> str:
    with pytest.raises(SourceError) as caught:
        await source.read()
    await source.close()
    said = str(caught.value)
    assert said.startswith("source metrics: prometheus http://127.0.0.1:")
    assert "\n" not in said
    assert SECRET not in said
    assert len(said) < 500
    return said


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("no_such_metric", "'no_such_metric': finds nothing of the last 60 s; see `empty`"),
        ("pair", "gives 2 series, which one? Write sum(…) around it"),
        ("0 / 0", "is nan, which is no number of jobs"),
        ("vector(0) / 0", "is nan, which is no number of jobs"),
        ("1 / 0", "is inf, which is no number of jobs"),
        ("0 - sum(pair)", "is -5, which is no number of jobs"),
        ("1e300", "is 1e+300, which is no number of jobs"),
        ("pair[1m]", "is a matrix; an expression for one number is needed"),
        ('"text"', "is a string; an expression for one number is needed"),
        ("sum(", "parse error"),
        ("vector(time() - 1e9) or\nsum by (", "parse error"),
    ],
)
async def test_what_is_no_number_of_jobs_is_an_error_with_the_expression(rig, expression, says):
    rig.exporter.lines += ['pair{a="1"} 2', 'pair{a="2"} 3']
    ready = source_of(rig.port, {"q": "count(pair) == 2"})
    await comes_to(ready, [Reading("q", 2, 0)])
    said = await blind(source_of(rig.port, {"q": expression}))
    assert says in said
    assert f"queue q: {expression!r}: " in said


async def comes_to(source: PrometheusSource, wanted: list[Reading]) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            found = await source.read()
        except SourceError:
            found = []
        if found == wanted or time.monotonic() > deadline:
            assert found == wanted
            await source.close()
            return
        await asyncio.sleep(0.05)


@pytest.mark.real
@pytest.mark.slow
async def test_scalars_fractions_comments_and_zero_are_numbers(rig):
    queues = {"scalar": "7", "fraction": "vector(0.2)", "comment": "vector(3) # three", "zero": "vector(0)"}
    queues |= {what: f'sum({what}) or sum(0 * (up{{job="jobs"}} == 1))' for what in ("up", "nothing")}  # as in the docs
    source = source_of(rig.port, queues, running={"zero": "vector(2)"})
    assert [(r.waiting, r.running) for r in await source.read()] == [(7, 0), (1, 0), (3, 0), (0, 2), (1, 0), (0, 0)]
    await source.close()


@pytest.mark.real
@pytest.mark.slow
async def test_a_sample_that_is_too_old_is_an_error_whatever_empty_means(rig):
    old_ms = int(time.time() * 1000) - 20_000
    rig.exporter.lines += [f"old 5 {old_ms}", f"new 5 {old_ms + 20_000}"]
    await comes_to(source_of(rig.port, {"q": "old"}, max_age="5m"), [Reading("q", 5, 0)])
    for empty in ("error", "zero"):
        said = await blind(source_of(rig.port, {"q": "old"}, max_age="10s", empty=empty))
        assert "s old, more than 10 s, by the server's clock" in said or "finds" in said
    source = source_of(rig.port, {"q": "new"}, max_age="10s")
    await comes_to(source, [Reading("q", 5, 0)])


@pytest.mark.real
@pytest.mark.slow
async def test_an_exporter_that_is_gone_is_blind(rig):
    rig.exporter.lines.append("depth 4")
    source = source_of(rig.port, {"q": "sum(depth)"})
    await comes_to(source, [Reading("q", 4, 0)])
    rig.exporter.lines.remove("depth 4")
    blinded = asyncio.Event()

    async def until_blind() -> None:
        while True:
            try:
                assert await source.read() == [Reading("q", 4, 0)]
            except SourceError:
                blinded.set()
                return
            await asyncio.sleep(0.05)

    task = asyncio.create_task(until_blind())
    await comes(blinded.is_set, 5)
    await task
    await source.close()


# ── servers that lie


def http(body: bytes | str, status: str = "200 OK", *headers: str, date: float | None = None) -> Behaviour:
    """Answer every request so."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: Liar) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            told.heard += head + await reader.readexactly(length)
            content = (body.encode() if isinstance(body, str) else body).replace(b"%r" % NOW, b"%r" % time.time())
            lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers]
            lines.append(f"Date: {formatdate(date if date is not None else time.time(), usegmt=True)}")
            writer.write("\r\n".join([*lines, "", ""]).encode() + content)
            await writer.drain()

    return behave


def vector(*values: Any, at: float = NOW, **more: Any) -> str:
    samples = [{"metric": {}, "value": [at, value]} for value in values]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": samples}, **more})


SORRY = '{"status":"error","errorType":"execution","error":"too many\\nsamples"}'


@pytest.mark.parametrize(
    ("behave", "says"),
    [
        (http(SORRY, "422 Unprocessable"), "'jobs': execution: too many samples"),
        (http(SORRY), "'jobs': execution: too many samples"),
        (http("<html>no</html>", "502 Bad Gateway"), "'jobs': status 502"),
        (http("<html>login</html>"), "the answer is not Prometheus's; is `url` right?"),
        (http("no", "401 Unauthorized"), "status 401; see `bearer`"),
        (http("no", "403 Forbidden"), "status 403; see `bearer`"),
        (http("", "302 Found", "Location: https://login/?token=x"), "is sent on to 'https://login/'; give the final"),
        (http("", "204 No Content"), "status 204"),
        (http("[]"), "the answer is not Prometheus's"),
        (http("null"), "the answer is not Prometheus's"),
        (http('{"status":"success"}'), "the answer is not Prometheus's"),
        (http('{"status":"success","data":{"resultType":"vector","result":{}}}'), "the answer is not Prometheus's"),
        (http('{"status":"success","data":{"resultType":"vector","result":[7]}}'), "the answer is no number"),
        (http('{"status":"success","data":{"resultType":"vector","result":[{"histogram":[1,{}]}]}}'), "is no number"),
        (http('{"status":"success","data":{"resultType":"scalar","result":[1]}}'), "the answer is not Prometheus's"),
        (http("[" * 50_000), "the answer is not Prometheus's"),
        (http(b"\xff\xfe"), "the answer is not Prometheus's"),
        (http(vector("NaN")), "which is no number of jobs"),
        (http(vector("seven")), "the answer is no number"),
        (http(vector(None)), "the answer is no number"),
        (http(vector("-1")), "is -1, which is no number of jobs"),
        (http(vector("1", "2")), "gives 2 series"),
        (http(vector("1", at=0.0)), "by the server's clock"),
        (http(vector("1"), date=1e9), "by the server's clock"),
        (http(vector("1") + " " * 300_000), "answers with more than 256 KiB"),
        (http(vector("1"), "200 OK", "Content-Encoding: gzip"), None),
    ],
)
async def test_a_lie_is_an_error_with_its_place_and_never_a_number(behave, says):
    async with liar(behave) as fake:
        source = source_of(fake.port, bearer=SecretStr(SECRET))
        if says is None:  # nothing was asked to be packed, so what comes is taken as it is
            assert await source.read() == [Reading("q", 1, 0)]
            await source.close()
            return
        assert says in await blind(source)


async def test_a_body_that_never_ends_is_cut_off():
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: Liar) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        while True:
            writer.write(b" " * 65536)
            await writer.drain()

    async with liar(flood) as fake:
        start = time.monotonic()
        assert "answers with more than 256 KiB" in await blind(source_of(fake.port))
        assert time.monotonic() - start < 1


async def test_silence_and_garbage_and_nobody_are_errors_in_time():
    async with liar(silent) as fake:
        assert "no answer within 0.2 s" in await blind(source_of(fake.port, timeout=0.2))

    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: Liar) -> None:
        await reader.read(65536)
        writer.write(b"\xff\x00garbage\r\n\r\n" * 3)
        await writer.drain()

    async with liar(garbage) as fake:
        await blind(source_of(fake.port))
    await blind(source_of(servers.free_port()))


async def test_the_token_is_shown_to_the_server_and_revoked_it_is_an_error_and_again_none():
    answers = {"now": http(vector("1"))}

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: Liar) -> None:
        await answers["now"](reader, writer, told)

    async with liar(behave) as fake:
        source = source_of(fake.port, bearer=SecretStr(SECRET))
        assert await source.read() == [Reading("q", 1, 0)]
        assert f"authorization: bearer {SECRET}".encode() in fake.heard.lower()
        assert b"lookback_delta=60s" in fake.heard
        answers["now"] = http("no", "401 Unauthorized")
        await source.close()
        with pytest.raises(SourceError, match="see `bearer`"):
            await source.read()
        answers["now"] = http(vector("2"))
        await source.close()
        assert await source.read() == [Reading("q", 2, 0)]
        await source.close()


async def test_what_the_server_could_not_take_in_is_partial_and_a_remark_is_not():
    warnings = ["PromQL info: metric might not be a counter", "store 10.0.0.7:\nunreachable"]
    async with liar(http(vector("1", warnings=warnings))) as fake:
        source = source_of(fake.port)
        (found,) = await source.read()
        assert found.waiting == 1
        (fault,) = found.partial
        assert fault.endswith("queue q: 'jobs': store 10.0.0.7: unreachable")
        await source.close()


async def test_empty_zero_asks_twice_and_is_zero():
    async with liar(http(vector())) as fake:
        source = source_of(fake.port, empty="zero")
        assert await source.read() == [Reading("q", 0, 0)]
        assert fake.heard.count(b"POST /api/v1/query") == 2
        assert fake.heard.count(b"lookback_delta") == 1
        await source.close()


async def test_one_of_many_expressions_that_hangs_costs_one_time_out():
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: Liar) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if b"hang" in await reader.readexactly(length):
            await asyncio.sleep(10)
        answer = vector("1", at=time.time()).encode()
        date = formatdate(time.time(), usegmt=True)
        writer.write(f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)
        await writer.drain()

    async with liar(behave) as fake:
        start = time.monotonic()
        await blind(source_of(fake.port, {"a": "one", "b": "hang", "c": "three"}, timeout=0.4))
        assert 0.3 < time.monotonic() - start < 1


async def test_many_queues_over_few_connections():
    async with liar(http(vector("1"))) as fake:
        source = source_of(fake.port, {f"q{at}": f"m{at}" for at in range(30)}, timeout=3.0)
        for _ in range(3):
            assert sum(r.waiting for r in await source.read()) == 30
        assert fake.connections <= prometheus.CONNECTIONS
        await source.close()


async def test_a_cancelled_reading_leaves_nothing_behind():
    async with liar(silent) as fake:
        source = source_of(fake.port)
        for _ in range(3):
            task = asyncio.ensure_future(source.read())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await source.close()
        assert fake.connections == 3
