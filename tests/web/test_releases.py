"""Releases over HTTP: pushed by operators, fetched by workers and operators; what is broken is refused in one line."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import httpx
import pytest

from fleetd.codecs.lease import ANSWER_HEADER, authorization, join_token
from fleetd.control import loop
from fleetd.control.code import Code
from fleetd.core.model import ReleasesPolicy
from fleetd.releases.shelf import Shelf, open_shelf
from fleetd.releases.sign import make_key
from fleetd.web import releases
from tests.control.fleet import FakeSource, Fleet, policy, pool, until
from tests.releases import sample
from tests.web.site import SECRET, TOKEN, Site, called, refusal
from tests.web.site import serving as behind

pytestmark = pytest.mark.slow

FOLDER = {"app/jobs.py": b"x = 1\n"}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TICK_S", 0.1)
    monkeypatch.setattr(loop, "LEAST_TICK_S", 0.01)


@asynccontextmanager
async def serving(folder: Path, *keys: str) -> AsyncIterator[Site]:
    """A controller with the shelf `folder`/shelf that asks for signatures by these keys."""
    wanted = replace(policy(pool(), pool("burst")), releases=ReleasesPolicy(str(folder / "shelf"), keys))
    fleet = Fleet(folder / "state", wanted, FakeSource())
    async with behind(fleet, Code(lambda: fleet.controller.policy, folder / "state")) as site:
        yield site


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(tmp_path) as site:
        yield site


async def push(site: Site, body: bytes, token: str = TOKEN) -> httpx.Response:
    return await site.http.post("/v1/releases", content=body, headers={"Authorization": f"Bearer {token}"})


async def listed(site: Site, query: str = "") -> list[str]:
    answer = await site.operator("GET", f"/v1/releases{query}")
    return [entry["digest"] for entry in answer.json()["releases"]]


async def test_what_is_pushed_is_listed_and_given_out(tmp_path: Path, site: Site) -> None:
    digest = sample.bundle(tmp_path / "b")
    body = (tmp_path / "b").read_bytes()
    answer = await push(site, body)
    assert answer.status_code == 200
    assert answer.json() == {"digest": digest, "app": "photos", "version": "1.0"}
    (entry,) = (await site.operator("GET", "/v1/releases")).json()["releases"]
    assert entry["pushed_at"] > 1e9
    assert {**entry, "pushed_at": 0} == {
        "digest": digest,
        "app": "photos",
        "version": "1.0",
        "kind": "wheel",
        "size": len(body),
        "signed": False,
        "pushed_at": 0,
    }
    assert await listed(site, "?app=photos") == [digest]
    assert await listed(site, "?app=others") == []
    given = await site.operator("GET", f"/v1/releases/{digest}")
    assert given.content == body
    assert int(given.headers["content-length"]) == len(body)


async def test_a_worker_of_any_pool_fetches_with_its_join_token(tmp_path: Path, site: Site) -> None:
    digest = sample.bundle(tmp_path / "b")
    await push(site, (tmp_path / "b").read_bytes())
    path = f"/v1/releases/{digest}"
    for name in ("local", "burst"):
        header = authorization(join_token(SECRET, "test", name), "GET", path)
        answer = await site.http.get(path, headers={"Authorization": header})
        assert answer.content == (tmp_path / "b").read_bytes()
        assert ANSWER_HEADER not in answer.headers


async def test_nobody_else_pushes_lists_cleans_or_fetches(tmp_path: Path, site: Site) -> None:
    digest = sample.bundle(tmp_path / "b")
    body = (tmp_path / "b").read_bytes()
    assert (await push(site, body, "wrong")).status_code == 401
    assert await listed(site) == []
    await push(site, body)
    path = f"/v1/releases/{digest}"
    for method, where in [("GET", "/v1/releases"), ("POST", "/v1/releases/gc"), ("GET", path)]:
        for header in ({}, {"Authorization": "Bearer wrong"}):
            assert (await site.http.request(method, where, headers=header)).status_code == 401
    wrong = [
        authorization(join_token("other secret", "test", "local"), "GET", path),
        authorization(join_token(SECRET, "test", "local"), "GET", path.replace(digest, "ab" * 32)),
        authorization(join_token(SECRET, "test", "local"), "POST", path),
    ]
    for header_ in wrong:
        assert (await site.http.get(path, headers={"Authorization": header_})).status_code == 401
    as_worker = authorization(join_token(SECRET, "test", "local"), "GET", "/v1/releases")
    assert (await site.http.get("/v1/releases", headers={"Authorization": as_worker})).status_code == 401


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"", "release: is damaged, or is no zip: File is not a zip file"),
        (b"PK", "release: is damaged, or is no zip: File is not a zip file"),
        (sample.zipped([("../x", b"")]), "release: the name '../x' leads out of its folder"),
        (sample.zipped([("manifest.json", b"{")]), "release: manifest: not JSON: "),
    ],
)
async def test_a_broken_bundle_is_422_and_never_listed(site: Site, body: bytes, line: str) -> None:
    code, text = refusal(await push(site, body))
    assert code == 422
    assert text.startswith(line)
    assert await listed(site) == []


async def test_with_keys_an_unsigned_release_is_refused_at_the_door(tmp_path: Path) -> None:
    public = make_key(tmp_path / "key")
    sample.bundle(tmp_path / "unsigned")
    sample.bundle(tmp_path / "signed", key=tmp_path / "key")
    async with serving(tmp_path, public) as site:
        assert refusal(await push(site, (tmp_path / "unsigned").read_bytes())) == (
            422,
            "release: is not signed, and signatures are asked for; build it with --key",
        )
        assert (await push(site, (tmp_path / "signed").read_bytes())).status_code == 200


async def test_a_release_that_came_before_the_key_does_not_go_out(tmp_path: Path) -> None:
    digest = sample.bundle(tmp_path / "b")
    open_shelf(str(tmp_path / "shelf"), ()).put(tmp_path / "b")
    async with serving(tmp_path, make_key(tmp_path / "key")) as site:
        path = f"/v1/releases/{digest}"
        header = authorization(join_token(SECRET, "test", "local"), "GET", path)
        code, line = refusal(await site.http.get(path, headers={"Authorization": header}))
        assert (code, line) == (
            422,
            f"release {digest[:12]}: is not signed, and signatures are asked for; build it with --key",
        )


async def test_what_is_not_there_is_404_and_what_is_no_digest_422(site: Site) -> None:
    assert (await site.operator("GET", f"/v1/releases/{'ab' * 32}")).status_code == 404
    assert refusal(await site.operator("GET", "/v1/releases/latest"))[0] == 422
    assert (await site.operator("GET", "/v1/releases/../status")).status_code == 200  # the client's own doing
    assert (await site.operator("GET", "/v1/releases/..%2f..%2fetc")).status_code == 404


async def test_more_than_allowed_is_413_told_or_not(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (call,) = (call for call in site.app.state.calls if (call.method, call.path) == ("POST", "/v1/releases"))
    monkeypatch.setattr(call.do.__self__, "most", 1000)

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(100)

    for content in (bytes(2000), parts()):
        answer = await site.http.post("/v1/releases", content=content, headers={"Authorization": f"Bearer {TOKEN}"})
        assert refusal(answer) == (413, "release: more than the 1000 bytes allowed")


async def test_a_push_that_stalls_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "STALL_S", 0.1)

    async def parts() -> AsyncIterator[bytes]:
        yield b"PK"
        await asyncio.sleep(0.5)
        yield b"PK"

    headers = {"Authorization": f"Bearer {TOKEN}"}
    code, line = refusal(await site.http.post("/v1/releases", content=parts(), headers=headers))
    assert (code, line) == (408, "release: nothing came for 0 s")


async def test_the_tick_goes_on_while_a_release_is_verified(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What blocks is in a thread: while one is put, the controller ticks and answers."""
    going = threading.Event()
    put = Shelf.put

    def slow(self: Shelf, path: Path) -> object:
        assert going.wait(10)
        return put(self, path)

    monkeypatch.setattr(Shelf, "put", slow)
    sample.bundle(tmp_path / "b")
    pushing = asyncio.create_task(push(site, (tmp_path / "b").read_bytes()))
    await asyncio.sleep(0.1)
    before = site.fleet.controller.memory.now
    await until(lambda: site.fleet.controller.memory.now > before)
    assert (await site.operator("GET", "/healthz")).status_code == 200
    assert not pushing.done()
    going.set()
    assert (await pushing).status_code == 200


async def test_many_fetch_at_once_and_one_leaves(tmp_path: Path, site: Site) -> None:
    files = {"app/data.bin": bytes(range(256)) * 12_000}
    digest = sample.bundle(tmp_path / "b", files)
    await push(site, (tmp_path / "b").read_bytes())
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with site.http.stream("GET", f"/v1/releases/{digest}", headers=headers):
        pass
    answers = await asyncio.gather(*(site.operator("GET", f"/v1/releases/{digest}") for _ in range(10)))
    assert {answer.content for answer in answers} == {(tmp_path / "b").read_bytes()}


async def test_whoever_leaves_while_it_is_opened_leaves_no_open_file(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = sample.bundle(tmp_path / "b")
    await push(site, (tmp_path / "b").read_bytes())
    opened: list[BinaryIO] = []

    def slow(shelf: Code, digest: str) -> BinaryIO:
        time.sleep(0.3)
        opened.append(real(shelf, digest))
        return opened[-1]

    real = Code.open
    monkeypatch.setattr(Code, "open", slow)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with site.http.stream("GET", f"/v1/releases/{digest}", headers=headers):
        pass  # the head comes before the file is open
    await until(lambda: bool(opened) and opened[0].closed)


async def test_gc_keeps_the_newest_and_what_is_in_use(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for at in range(8):
        digests.append(sample.bundle(tmp_path / "b", {"app/jobs.py": f"x = {at}\n".encode()}))
        await push(site, (tmp_path / "b").read_bytes())
    answer = await site.operator("POST", "/v1/releases/gc")
    assert set(answer.json()["deleted"]) == set(digests[:3])
    monkeypatch.setattr(releases, "in_use", lambda picture: {digests[3]})
    answer = await site.operator("POST", "/v1/releases/gc", {"keep": 1})
    assert set(answer.json()["deleted"]) == set(digests[4:7])
    assert set(await listed(site)) == {digests[3], digests[7]}
    assert refusal(await site.operator("POST", "/v1/releases/gc", {"keep": -1}))[0] == 422
    assert refusal(await site.operator("POST", "/v1/releases/gc", {"keep": "all"}))[0] == 422


def test_in_use_is_whatever_the_status_names() -> None:
    picture = {
        "releases": {
            "photos": {
                "active": "a",
                "previous": "b",
                "candidate": None,
                "nodes": {"a": 3, "c": 1},
                "refused": {"x": ""},
            },
            "others": {"active": None, "previous": None, "candidate": "d", "nodes": {}, "refused": {}},
        }
    }
    assert releases.in_use(picture) == {"a", "b", "c", "d"}
    assert releases.in_use({}) == set()


async def test_without_a_shelf_there_are_no_releases(tmp_path: Path) -> None:
    async with called(Fleet(tmp_path, policy(pool()), FakeSource())) as site:
        assert (await site.operator("GET", "/v1/releases")).status_code == 404
