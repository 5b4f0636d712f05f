"""The Redis source: the suite of its port for each kind over a real server, and what each kind keeps and cannot tell.

The keys here are written as Celery 5.7 (kombu) and RQ 3.0 write them: compared by hand with what those put on this
server. In the last tests they put jobs themselves; `make test` installs them.
"""

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any, cast

import pytest
from pydantic import SecretStr, ValidationError
from redis.asyncio import Redis

from fleetd.core.model import Reading
from fleetd.core.ports import Source
from fleetd.errors import SourceError, UsageError
from fleetd.sources import redis as redis_source
from fleetd.sources.redis import RedisOptions, RedisSource
from fleetd.sources.redis import connection as line
from tests import servers
from tests.conformance.source import TIMEOUT_S, Rig, SourceConformance
from tests.dispatchers.peers import Behaviour, Liar, liar, silent

SECRET = "s3cret-redis"
SEP = "\x06\x16"


def source_of(port: int, queues: Mapping[str, str] | None = None, **options: Any) -> RedisSource:
    options = {"url": f"redis://127.0.0.1:{port}/0", "timeout": 1.0, **options}
    return RedisSource("orders", RedisOptions(**options), queues or {"q": "f"})


async def run(call: Any) -> Any:
    """What a client's call gives; its types say that it may be no coroutine."""
    return await cast("Awaitable[Any]", call)


async def reading(source: RedisSource) -> Reading:
    (found,) = await source.read()
    return found


@contextlib.asynccontextmanager
async def client_of(port: int, **options: Any) -> AsyncIterator[Redis]:
    client = Redis(port=port, protocol=2, **options)
    try:
        yield client
    finally:
        await client.aclose()


@pytest.fixture
def server() -> Iterator[servers.Server]:
    with servers.redis() as server:
        yield server


@pytest.fixture
async def client(server: servers.Server) -> AsyncIterator[Redis]:
    async with client_of(server.port) as client:
        yield client


# ── the suite, for every kind


class RedisRig(Rig):
    """A Redis that can be killed and started anew. Its jobs are kept as the kind keeps them."""

    kind = "list"

    def __init__(self) -> None:
        self.server = contextlib.ExitStack()
        self.running = self.server.enter_context(servers.redis("--requirepass", SECRET))
        self.held: list[tuple[str, Any]] = []

    @property
    def port(self) -> int:
        return self.running.port

    def options(self, queues: Mapping[str, str]) -> dict[str, Any]:
        return {}

    def source(self, queues: Mapping[str, str], port: int | None = None) -> Source:
        options = {"password": SecretStr(SECRET), "timeout": TIMEOUT_S, "kind": self.kind, **self.options(queues)}
        return source_of(port or self.port, queues, **options)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Redis]:
        async with client_of(self.port, password=SECRET) as client:
            yield client

    async def stop_server(self) -> None:
        self.running.kill()

    async def start_server(self) -> None:
        self.running = self.server.enter_context(servers.redis("--requirepass", SECRET, port=self.port))

    async def revoke(self) -> None:
        await self.login("another", SECRET)

    async def allow(self) -> None:
        await self.login(SECRET, "another")

    async def login(self, password: str, before: str) -> None:
        async with client_of(self.port, password=before) as client:
            await run(client.config_set("requirepass", password))
            await run(client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))


class ListRig(RedisRig):
    """Lists, each with one for what runs, as by LMOVE."""

    def options(self, queues: Mapping[str, str]) -> dict[str, Any]:
        return {"running": {queue: f"running:{glob}" for queue, glob in queues.items()}}

    async def put(self, function: str, count: int) -> None:
        async with self.client() as client:
            await run(client.lpush(function, *range(count)))

    async def start(self, function: str, count: int) -> None:
        async with self.client() as client:
            for _ in range(count):
                await run(client.lmove(function, f"running:{function}", "RIGHT", "LEFT"))

    async def finish(self) -> None:
        async with self.client() as client:
            for key in await client.keys("running:*"):
                await client.delete(key)


class StreamRig(RedisRig):
    kind = "stream"

    def options(self, queues: Mapping[str, str]) -> dict[str, Any]:
        return {"group": "workers"}

    async def put(self, function: str, count: int) -> None:
        async with self.client() as client:
            if not await client.exists(function):
                await run(client.xgroup_create(function, "workers", "0", mkstream=True))
            for at in range(count):
                await client.xadd(function, {"job": str(at)})

    async def start(self, function: str, count: int) -> None:
        async with self.client() as client:
            ((_, entries),) = await run(client.xreadgroup("workers", "one", {function: ">"}, count=count))
            self.held += [(function, entry) for entry, _ in entries]

    async def finish(self) -> None:
        async with self.client() as client:
            for function, entry in self.held:
                await run(client.xack(function, "workers", entry))


def unacked(queue: str, exchange: str = "") -> str:
    """A message as kombu keeps it until it is acknowledged: the message, its exchange, its routing key."""
    info = {"exchange": exchange, "routing_key": queue}
    properties = {"delivery_mode": 2, "delivery_info": info, "priority": 0, "body_encoding": "base64"}
    message = {"body": "W1tdXQ==", "content-encoding": "utf-8", "headers": {"task": "t"}, "properties": properties}
    return json.dumps([message, exchange, queue])


class CeleryRig(RedisRig):
    kind = "celery"

    async def put(self, function: str, count: int) -> None:
        async with self.client() as client:
            for at in range(count):  # of priorities 0, 3, 6 and 9, one after the other
                key = f"{function}{SEP}{at % 4 * 3}" if at % 4 else function
                await run(client.lpush(key, json.dumps({"at": at})))

    async def start(self, function: str, count: int) -> None:
        async with self.client() as client:
            for _ in range(count):
                keys = [function, *(f"{function}{SEP}{priority}" for priority in (3, 6, 9))]
                await run(client.brpop(keys, 1))
                self.held.append((function, len(self.held)))
                await run(client.hset("unacked", str(len(self.held)), unacked(function)))

    async def finish(self) -> None:
        async with self.client() as client:
            await client.delete("unacked")


class RqRig(RedisRig):
    kind = "rq"

    async def put(self, function: str, count: int) -> None:
        async with self.client() as client:
            await run(client.sadd("rq:queues", f"rq:queue:{function}"))
            for at in range(count):
                stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
                await run(client.hset(f"rq:job:{function}-{at}", mapping={"enqueued_at": stamp, "origin": function}))
                await run(client.rpush(f"rq:queue:{function}", f"{function}-{at}"))

    async def start(self, function: str, count: int) -> None:
        async with self.client() as client:
            for _ in range(count):
                job = await run(client.lpop(f"rq:queue:{function}"))
                await client.zadd(f"rq:wip:{function}", {f"{job.decode()}:run": time.time() + 90})

    async def finish(self) -> None:
        async with self.client() as client:
            for key in await client.keys("rq:wip:*"):
                await client.delete(key)


@pytest.mark.real
class TestConformance(SourceConformance):
    @pytest.fixture(params=[ListRig, StreamRig, CeleryRig, RqRig], ids=["list", "stream", "celery", "rq"])
    async def rig(self, request: pytest.FixtureRequest) -> AsyncIterator[RedisRig]:
        rig: RedisRig = request.param()
        with rig.server:
            yield rig


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "url"),
        ({"url": "http://a"}, "expected redis://HOST:PORT/DATABASE, or rediss:// for TLS; there is no Sentinel"),
        ({"url": "redis+sentinel://a"}, "there is no Sentinel and no Cluster"),
        ({"url": "redis://:pw@a"}, "a password is never written into the policy"),
        ({"url": "redis://a:port"}, "expected redis://HOST:PORT"),
        ({"url": "redis://[::1"}, "expected redis://HOST:PORT"),
        ({"url": "redis://"}, "expected redis://HOST:PORT"),
        ({"url": "redis://a/zero"}, "and nothing after it"),
        ({"url": "redis://a/0?socket_timeout=9"}, "and nothing after it"),
        ({"url": "redis://a", "kind": "hash"}, "kind"),
        ({"url": "redis://a", "kind": "stream"}, "kind stream needs `group`"),
        ({"url": "redis://a", "group": "g"}, "no other kind has one"),
        ({"url": "redis://a", "kind": "rq", "running": {"q": "x"}}, "`running` is for kind list"),
        ({"url": "redis://a", "prefix": "x"}, "`prefix` is for kind celery"),
        ({"url": "redis://a", "timeout": "0s"}, "greater than 0"),
    ],
)
def test_wrong_options_say_what_is_wrong(options, says):
    with pytest.raises(ValidationError) as caught:
        RedisOptions.model_validate(options)
    assert says in str(caught.value)


def test_running_of_a_queue_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="source orders: running: no queue of this source is called 'x'"):
        source_of(1, {"q": "f"}, running={"x": "y"})


# ── faults with their fix ────────────────────────────────────────────────────────────────────────────────────────


async def blind(source: RedisSource) -> str:
    with pytest.raises(SourceError) as caught:
        await source.read()
    await source.close()
    said = str(caught.value)
    assert said.startswith("source orders: redis 127.0.0.1:")
    assert "\n" not in said
    assert len(said) < 400
    return said


@pytest.mark.real
@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("list", ["f"]),
        ("stream", ["f"]),
        ("celery", ["f"]),
        ("celery", [f"f{SEP}3"]),
        ("celery", ["unacked"]),
        ("rq", ["rq:queue:f"]),
        ("rq", ["rq:wip:f"]),
    ],
)
async def test_a_key_of_another_type_is_named_and_no_number(server, client, kind, keys):
    for key in keys:
        await client.set(key, "text")
    said = await blind(source_of(server.port, kind=kind, group="g" if kind == "stream" else ""))
    assert f"{keys[0]!r}: WRONGTYPE" in said
    assert said.endswith("is `kind` right for this key?")


@pytest.mark.real
async def test_a_password_that_is_wrong_or_missing_or_not_wanted(server, client):
    assert "see `password`" in await blind(source_of(server.port, password=SecretStr(SECRET)))
    await client.config_set("requirepass", "another")
    for password in (None, SecretStr(SECRET)):
        said = await blind(source_of(server.port, password=password))
        assert said.endswith("; see `password`"), said
        assert SECRET not in said


@pytest.mark.real
async def test_a_user_that_may_not_read_a_key_says_so_and_one_that_may_reads(server, client):
    await run(client.execute_command("ACL", "SETUSER", "eye", "on", f">{SECRET}", "~f", "+@read", "+@transaction"))
    url = f"redis://eye@127.0.0.1:{server.port}"
    source = source_of(server.port, url=url, password=SecretStr(SECRET))
    await client.rpush("f", 1)
    assert await source.read() == [Reading("q", 1, 0)]
    await run(client.execute_command("ACL", "SETUSER", "eye", "-@read"))
    with pytest.raises(SourceError, match=r"; let that user read these keys$"):
        await source.read()
    await run(client.execute_command("ACL", "SETUSER", "eye", "+@read"))
    assert await source.read() == [Reading("q", 1, 0)]  # and nothing of the refused transaction is left behind
    await source.close()
    other = source_of(server.port, {"q": "g"}, url=url, password=SecretStr(SECRET))
    assert "has no permissions" in await blind(other)


@pytest.mark.real
async def test_a_database_that_does_not_exist(server):
    said = await blind(source_of(server.port, url=f"redis://127.0.0.1:{server.port}/99"))
    assert said.endswith("; the database in `url` does not exist there")


@pytest.mark.real
async def test_a_node_of_a_cluster_is_refused(tmp_path):
    port = next(port for port in iter(servers.free_port, 0) if port < 50_000)  # the bus listens 10,000 above
    with servers.redis("--cluster-enabled", "yes", "--dir", str(tmp_path), port=port) as server:
        said = await blind(source_of(server.port))
    assert said.endswith("; only a single server can be read, no cluster")


def resp(*answers: bytes) -> Behaviour:
    """Answer every command so, whatever it is; the last answer again and again."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: Liar) -> None:
        left = list(answers)
        while await reader.read(65536):
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()

    return behave


SETINFO = b"+OK\r\n+OK\r\n"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n" * 9, "it answers once its data is loaded"),
        (b"-MOVED 1234 10.0.0.9:6379\r\n" * 3, "only a single server can be read, no cluster"),
        (b"-READONLY You can't write against a read only replica.\r\n" * 3, "name the master in `url`"),
        (b"-MASTERDOWN Link with MASTER is down\r\n" * 3, "name the master in `url`"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not answer as a Redis server does"),
        (b"\xff\xfe\x00\r\n" * 5, "does not answer as a Redis server does"),
        (b"+OK\r\n+QUEUED\r\n:x\r\n", "does not answer as a Redis server does"),
        (b"+OK\r\n+QUEUED\r\n*1\r\n$-5\r\n", "does not answer as a Redis server does"),
        (b"+OK\r\n+QUEUED\r\n*2\r\n:1\r\n:1\r\n", "does not answer as a Redis server does"),
        (b"+OK\r\n+QUEUED\r\n*1\r\n:-4\r\n", "keeps there what list does not write"),
        (b"+OK\r\n+QUEUED\r\n*1\r\n$1\r\n7\r\n", "keeps there what list does not write"),
        (b"+OK\r\n+QUEUED\r\n$99999999999999999999999\r\n", "source orders"),
        (b"+OK\r\n+OK\r\n+OK\r\n", "does not answer as a Redis server does"),
        (b"*99999999\r\n" * 50, "source orders"),
        (b"", "no answer within 0.3 s"),
    ],
)
async def test_a_lie_is_an_error_with_its_place_and_never_a_number(answer, says):
    async with liar(resp(SETINFO, answer)) as fake:
        source = source_of(fake.port, timeout=0.3)
        start = time.monotonic()
        assert says in await blind(source)
        assert time.monotonic() - start < 1.5


async def test_silence_is_an_error_in_time():
    async with liar(silent) as fake:
        assert "no answer within 0.2 s" in await blind(source_of(fake.port, timeout=0.2))


async def test_a_cancelled_reading_leaves_no_answer_behind():
    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: Liar) -> None:
        await reader.read(65536)
        writer.write(SETINFO)
        while await reader.read(65536):
            await asyncio.sleep(0.1)
            writer.write(b"+OK\r\n+QUEUED\r\n*1\r\n:%d\r\n" % told.connections)

    async with liar(late) as fake:
        source = source_of(fake.port)
        for number in (1, 2):
            task = asyncio.ensure_future(source.read())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert fake.connections == number
        assert await source.read() == [Reading("q", 3, 0)]
        assert await source.read() == [Reading("q", 3, 0)]
        await source.close()


@pytest.mark.real
async def test_one_connection_and_nothing_written(server, client):
    await client.rpush("f", 1)
    source = source_of(server.port)
    async with client.monitor() as monitor:
        for _ in range(3):
            await source.read()
        await client.ping()
        commands = set()
        async for command in monitor.listen():
            if command["command"] == "PING":
                break
            commands.add(command["command"].split()[0])
    assert commands - {"CLIENT"} == {"MULTI", "LLEN", "EXEC"}
    before = (await client.info("stats"))["total_connections_received"]
    await source.read()
    assert (await client.info("stats"))["total_connections_received"] == before
    await source.close()


@pytest.mark.real
async def test_tls(tmp_path, monkeypatch):
    openssl = servers.find("openssl")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=fleetd test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    options = ["--tls-cert-file", str(cert), "--tls-key-file", str(key), "--tls-ca-cert-file", str(cert)]
    tls_port = servers.free_port()
    with servers.redis(*options, "--tls-port", str(tls_port), "--tls-auth-clients", "no"):
        url = f"rediss://127.0.0.1:{tls_port}/0"
        assert "trust its authority" in await blind(source_of(tls_port, url=url))
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        source = source_of(tls_port, url=url)
        assert await source.read() == [Reading("q", 0, 0)]
        await source.close()


# ── lists


@pytest.mark.real
async def test_a_wildcard_finds_lists_alone_and_reads_as_in_the_policy(server, client):
    for key in ("job_a", "job_b", "job_c", "Job_a", "job[x]", "other"):
        await client.rpush(key, 1)
    await client.set("job_text", 1)
    queues = {"star": "job_*", "not": "job_[!ab]", "one": "job_?", "bracket": "job[[]x]"}
    source = source_of(server.port, queues)
    assert {r.queue: r.waiting for r in await source.read()} == {"star": 3, "not": 1, "one": 3, "bracket": 1}
    await source.close()


@pytest.mark.real
async def test_a_search_through_too_much_is_refused(server, client, monkeypatch):
    monkeypatch.setattr(line, "SCAN_COUNT", 10)
    monkeypatch.setattr(line, "SCAN_ROUNDS", 3)
    await client.mset({f"k{at}": 1 for at in range(500)})
    assert "'job*' is a search through more than 30 keys" in await blind(source_of(server.port, {"q": "job*"}))
    source = source_of(server.port, {"q": "job"})
    assert await source.read() == [Reading("q", 0, 0)]
    await source.close()


@pytest.mark.real
async def test_without_running_a_list_tells_of_none(server, client):
    await client.rpush("f", 1, 2)
    await client.rpush("bull:f:active", 1)
    for options, running in (({}, 0), ({"running": {"q": "bull:f:active"}}, 1)):
        source = source_of(server.port, **options)
        assert await source.read() == [Reading("q", 2, running)]
        await source.close()


# ── streams


def stream_of(port: int, match: str = "f") -> RedisSource:
    return source_of(port, {"q": match}, kind="stream", group="g")


@pytest.mark.real
async def test_a_stream_tells_its_oldest_wait_by_the_servers_clock_and_its_totals(server, client):
    source = stream_of(server.port)
    await client.xgroup_create("f", "g", "0", mkstream=True)
    now_s, _ = await client.time()
    for back_s in (100, 40, 10):
        await client.xadd("f", {"a": 1}, id=f"{(now_s - back_s) * 1000}-0")
    found = await reading(source)
    assert (found.waiting, found.running, found.arrived_total, found.done_total) == (3, 0, 3, 0)
    assert found.oldest_wait_s is not None
    assert 99 <= found.oldest_wait_s < 103
    (entry,) = (await client.xreadgroup("g", "c", {"f": ">"}, count=1))[0][1]
    found = await reading(source)
    assert (found.waiting, found.running, found.done_total) == (2, 1, 0)
    assert found.oldest_wait_s is not None
    assert 39 <= found.oldest_wait_s < 43
    await client.xack("f", "g", entry[0])
    found = await reading(source)
    assert (found.waiting, found.running, found.arrived_total, found.done_total) == (2, 0, 3, 1)
    await source.close()


@pytest.mark.real
async def test_ids_that_are_no_times_have_no_age(server, client):
    await client.xgroup_create("f", "g", "0", mkstream=True)
    await client.xadd("f", {"a": 1}, id="7-1")
    source = stream_of(server.port)
    assert (await reading(source)).oldest_wait_s is None
    await source.close()


@pytest.mark.real
async def test_where_the_server_lost_count_entries_are_counted(server, client, monkeypatch):
    await client.xgroup_create("f", "g", "0", mkstream=True)
    ids = [await client.xadd("f", {"a": at}) for at in range(8)]
    await client.xdel("f", ids[4])
    (group,) = await client.xinfo_groups("f")
    assert group["lag"] is None, "this server can tell by itself"
    source = stream_of(server.port)
    found = await reading(source)
    assert (found.waiting, found.running) == (7, 0)
    assert found.oldest_wait_s is not None
    monkeypatch.setattr(redis_source, "COUNTED", 5)
    assert (await reading(source)).waiting == 5
    await source.close()


@pytest.mark.real
async def test_entries_that_were_trimmed_unread_do_not_wait(server, client):
    await client.xgroup_create("f", "g", "0", mkstream=True)
    for at in range(10):
        await client.xadd("f", {"a": at})
    await client.xtrim("f", maxlen=2, approximate=False)
    source = stream_of(server.port)
    assert (await reading(source)).waiting == 2
    await source.close()


@pytest.mark.real
async def test_a_stream_without_the_group_is_blind_and_an_empty_one_is_empty(server, client):
    await client.xadd("f", {"a": 1})
    said = await blind(stream_of(server.port))
    assert "the stream 'f' has no group 'g', so nothing tells what waits; make it with XGROUP CREATE f g 0" in said
    await client.xtrim("f", maxlen=0)
    source = stream_of(server.port)
    found = await reading(source)
    assert (found.waiting, found.running) == (0, 0)
    await source.close()


@pytest.mark.real
async def test_other_groups_and_streams_do_not_count(server, client):
    for key in ("f1", "f2"):
        for group in ("g", "other"):
            await client.xgroup_create(key, group, "0", mkstream=True)
        for at in range(3):
            await client.xadd(key, {"a": at})
    await client.xreadgroup("other", "c", {"f1": ">"}, count=3)
    source = stream_of(server.port, "f*")
    found = await reading(source)
    assert (found.waiting, found.running, found.arrived_total) == (6, 0, 6)
    await source.close()


# ── Celery and RQ


@pytest.mark.real
async def test_what_celery_runs_is_told_by_queue_through_its_bindings(server, client):
    await client.sadd("_kombu.binding.shop", f"mail.out{SEP}{SEP}mail", f"pay{SEP}{SEP}money")
    held = [unacked("mail"), unacked("mail.out", "shop"), unacked("pay", "shop"), unacked("elsewhere")]
    await client.hset("unacked", mapping={str(at): value for at, value in enumerate(held)})
    source = source_of(server.port, {"mail": "mail", "money": "mon*"}, kind="celery")
    assert [(r.queue, r.waiting, r.running) for r in await source.read()] == [("mail", 0, 2), ("money", 0, 1)]
    await source.close()


@pytest.mark.real
async def test_more_than_is_looked_at_is_shared_out(server, client):
    await client.hset("unacked", mapping={str(at): unacked("a" if at % 4 else "b") for at in range(2000)})
    source = source_of(server.port, {"a": "a", "b": "b"}, kind="celery")
    found = {r.queue: r.running for r in await source.read()}
    assert 1100 < found["a"] < 1900
    assert 100 < found["b"] < 900
    await source.close()


@pytest.mark.real
async def test_celery_with_a_prefix(server, client):
    for key in ("shop:mail", f"shop:mail{SEP}3", "mail", "shop[:mail"):
        await client.rpush(key, 1)
    await client.hset("shop:unacked", "1", unacked("mail"))
    source = source_of(server.port, {"plain": "mail", "glob": "m*"}, kind="celery", prefix="shop:")
    assert [(r.waiting, r.running) for r in await source.read()] == [(2, 1), (2, 1)]
    await source.close()


@pytest.mark.real
async def test_an_unacked_that_is_not_celerys_is_an_error(server, client):
    await client.hset("unacked", "1", "text")
    assert "keeps there what celery does not write" in await blind(source_of(server.port, kind="celery"))


@pytest.mark.real
async def test_rq_tells_the_oldest_wait(server, client):
    now = datetime.fromtimestamp((await client.time())[0], UTC)
    for job, back_s in (("a", 90), ("b", 10)):
        stamp = (now - timedelta(seconds=back_s)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        await client.hset(f"rq:job:{job}", "enqueued_at", stamp)
        await client.rpush("rq:queue:f", job)
    source = source_of(server.port, kind="rq")
    oldest = (await reading(source)).oldest_wait_s
    assert oldest is not None
    assert 89 <= oldest < 93
    await client.hset("rq:job:a", "enqueued_at", "some other way")
    assert (await reading(source)).oldest_wait_s is None
    await client.delete("rq:job:a")
    assert (await reading(source)).waiting == 2
    await source.close()


@pytest.mark.real
async def test_the_real_celery_is_read(server):
    celery, kombu = import_module("celery"), import_module("kombu")
    app = celery.Celery("shop", broker=f"redis://127.0.0.1:{server.port}/0")
    app.conf.broker_transport_options = {"queue_order_strategy": "priority"}
    source = source_of(server.port, {"mail": "mail", "every": "*a*"}, kind="celery")

    def put() -> None:
        for priority in (0, 3, 5, 9):
            app.send_task("shop.add", args=[1], queue="mail", priority=priority)
        app.send_task("shop.add", args=[1], queue="pay")
        app.close()

    await asyncio.to_thread(put)
    assert [(r.waiting, r.running) for r in await source.read()] == [(4, 0), (5, 0)]

    with kombu.Connection(f"redis://127.0.0.1:{server.port}/0") as connection:
        queue = kombu.Queue("mail", kombu.Exchange("mail"), routing_key="mail")
        held: list[Any] = []
        consumer = connection.channel().Consumer([queue], callbacks=[lambda _, message: held.append(message)])
        consumer.qos(prefetch_count=2)
        with consumer:
            for _ in range(2):
                await asyncio.to_thread(connection.drain_events, timeout=3)
            assert [(r.waiting, r.running) for r in await source.read()] == [(2, 2), (3, 2)]
            for message in held:
                message.ack()
            assert [(r.waiting, r.running) for r in await source.read()] == [(2, 0), (3, 0)]
    await source.close()


@pytest.mark.real
async def test_the_real_rq_is_read(server):
    redis, rq = import_module("redis"), import_module("rq")
    source = source_of(server.port, {"mail": "mail", "every": "*"}, kind="rq")

    def put() -> None:
        with redis.Redis(port=server.port) as client:
            queue = rq.Queue("mail", connection=client)
            for _ in range(3):
                queue.enqueue("time.sleep", 0)
            job = queue.jobs[0]
            registry = rq.registry.StartedJobRegistry(queue=queue)
            queue.pop_job_id()
            execution = rq.executions.Execution.create(job, 90, pipeline=(pipeline := client.pipeline()))
            pipeline.execute()
            assert registry.count == 1
            assert execution.job_id == job.id

    await asyncio.to_thread(put)
    for found in await source.read():
        assert (found.waiting, found.running) == (2, 1)
        assert found.oldest_wait_s is not None
        assert found.oldest_wait_s < 5
    await source.close()
