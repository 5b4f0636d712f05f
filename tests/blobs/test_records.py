"""The ends of jobs: kept for who asks later, told to webhooks that the policy allows, until they are heard."""

import asyncio
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request

from fleetd.codecs.lease import DeadLetter
from fleetd.codecs.reference import blob_id, result_key
from fleetd.core.model import ControllerPolicy, FilesPolicy, Policy
from fleetd.depot import keep
from fleetd.depot.depot import Depot
from fleetd.depot.faults import AbsentError
from fleetd.depot.keep import Keeper
from fleetd.depot.records import Records, Wanted, allowed
from fleetd.errors import UsageError
from fleetd.web.guard import Guard
from fleetd.web.wire import DeniedError, ForbiddenError
from tests.blobs.site import TOKEN, site
from tests.web.contract import Contract

JOB = Wanted("resize", "u1")
KEY = result_key("resize", "u1")
SECRET = "a-secret-of-the-hooks"


@dataclass
class Hook:
    """A receiver: what it got, and what it says next."""

    url: str = ""
    got: list[tuple[str, bytes]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.got.append((self.headers["Fleetd-Signature"], body))
            self.send_response(made.answers.pop(0) if made.answers else 204)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}/hooks/fleet"
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def records(folder: Path, now: list[float], **files: object) -> Records:
    policy = Policy("shop", {}, {}, {}, {}, files=FilesPolicy(**files))  # type: ignore[arg-type]
    return Records(Depot(lambda: policy, folder, lambda: now[0]))


def test_an_end_is_kept_until_its_time_is_over_also_over_a_restart(tmp_path: Path) -> None:
    now = [1000.0]
    of = records(tmp_path, now)
    of.open([JOB], 60, "")
    assert of.find(KEY).state == "waiting"
    of.end(JOB, "done", b"thumbnail")
    again = records(tmp_path, now)
    assert (again.find(KEY).state, again.find(KEY).result) == ("done", "dGh1bWJuYWls")
    now[0] = 1062.0
    with pytest.raises(AbsentError, match="nothing is kept of it"):
        again.find(KEY)
    assert again.sweep() == 1
    assert list((tmp_path / "files" / "documents").iterdir()) == []


def test_one_whose_opening_was_forgotten_is_kept_all_the_same(tmp_path: Path) -> None:
    of = records(tmp_path, [1000.0])
    of.end(JOB, "done", b"x")
    assert of.find(KEY).expires_at == 1000 + 86400


def test_a_dead_letter_tells_the_end_and_overwrites_none(tmp_path: Path) -> None:
    of, other = records(tmp_path, [1000.0]), Wanted("resize", "u2")
    of.open([JOB, other], 60, "")
    of.end(other, "done", b"")
    letters = [
        DeadLetter("1", "resize", unique, "H:1", 3, "killed by signal 11", "", "") for unique in ("u1", "u2", "u3")
    ]
    of.buried(letters)
    assert (of.find(KEY).state, of.find(KEY).reason) == ("failed", "killed by signal 11")
    assert of.find(result_key("resize", "u2")).state == "done"
    with pytest.raises(AbsentError):
        of.find(result_key("resize", "u3"))


def test_a_large_result_is_kept_as_long_as_its_record(tmp_path: Path) -> None:
    with site(tmp_path, FilesPolicy(tokens=(TOKEN,))) as made:
        made.records.open([JOB], 5000, "")
        reference = made.ticketed().send_bytes(b"x" * 1000, keep_s=10)
        asked = {"function": "resize", "unique": "u1", "state": "done"}
        blob = {"id": blob_id(reference), "sha256": reference.sha256}
        told = made.ticketed().ask("POST", "/v1/jobs/end", {**asked, "blob": blob})
        assert told["reference"]["sha256"] == reference.sha256
        made.ahead_s = 4000.0
        made.depot.sweep()
        assert made.depot.find(blob_id(reference)).size == 1000
        assert told["reference"]["expires_at"] - reference.expires_at > 4900


def test_to_cancel_is_seen_by_the_job_and_changes_no_end(tmp_path: Path) -> None:
    with site(tmp_path, FilesPolicy(tokens=(TOKEN,))) as made:
        made.records.open([JOB], 60, "")
        assert made.store().ask("GET", f"/v1/jobs/{KEY}")["cancel"] is False
        assert made.store().ask("POST", "/v1/jobs/cancel", {"key": KEY})["state"] == "waiting"
        assert made.ticketed().ask("GET", f"/v1/jobs/{KEY}")["cancel"] is True
        made.records.end(JOB, "done", b"")
        assert made.store().ask("POST", "/v1/jobs/cancel", {"key": KEY})["state"] == "done"


# ── webhooks


@pytest.mark.parametrize(
    ("url", "fits"),
    [
        ("https://shop.example/hooks", True),
        ("https://shop.example/hooks/1?x=2", True),
        ("https://shop.example/hooks-of-others", False),
        ("https://shop.example/hooks/../admin", False),
        ("https://shop.example/hooks/%2e%2e/admin", False),
        ("https://shop.example\\@evil.example/hooks", False),
        ("https://shop.example@evil.example/hooks", False),
        ("https://evil.example/https://shop.example/hooks", False),
        ("http://shop.example/hooks", False),
        ("https://shop.example:8443/hooks", False),
        ("https://shop.example.evil.example/hooks", False),
        ("file:///hooks", False),
        ("", False),
    ],
)
def test_only_urls_below_the_allowed_ones_are(url: str, *, fits: bool) -> None:
    assert allowed(url, ["https://shop.example/hooks"]) is fits
    assert not allowed(url, [])


def test_a_url_that_is_not_allowed_is_refused_before_anything_is_submitted(tmp_path: Path) -> None:
    of = records(tmp_path, [1000.0], webhooks=("https://shop.example/",))
    with pytest.raises(
        UsageError, match=r"webhook 'http://169\.254\.169\.254/': is none of files\.webhooks in the policy"
    ):
        of.open([JOB], 60, "http://169.254.169.254/")
    with pytest.raises(AbsentError):
        of.find(KEY)


async def keeping(of: Records, until: Hook, count: int, log: list[str]) -> None:
    task = asyncio.create_task(Keeper(of, lambda _, text: log.append(text)).run())
    async with asyncio.timeout(20):
        while len(until.got) < count or of.untold():
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)  # nothing more comes
    task.cancel()


async def test_a_webhook_hears_of_each_end_once_it_takes_it(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keep, "BACKOFF_S", 0.05)
    monkeypatch.setattr(keep, "LOOK_S", 0.02)
    base = hook.url.removesuffix("/fleet")
    of = records(tmp_path, [1000.0], webhooks=(base,), secret=SECRET)
    of.open([JOB], 600, hook.url)
    hook.answers = [500, 307, 403]
    of.end(JOB, "done", b"thumbnail")
    of = records(tmp_path, [1000.0], webhooks=(base,), secret=SECRET)  # a restart forgets no word
    await keeping(of, hook, 4, [])
    assert len(hook.got) == 4
    signature, body = hook.got[-1]
    assert signature == "sha256=" + hmac.new(SECRET.encode(), body, "sha256").hexdigest()
    assert json.loads(body) == {
        "id": KEY, "function": "resize", "unique": "u1", "state": "done", "reason": "", "ended_at": 1000,
    }  # fmt: skip
    assert records(tmp_path, [1000.0]).untold() == []


async def test_a_url_that_the_policy_no_longer_allows_is_not_posted_to(tmp_path: Path, hook: Hook) -> None:
    of = records(tmp_path, [1000.0], webhooks=(hook.url,), secret=SECRET)
    of.open([JOB], 600, hook.url)
    of.end(JOB, "done", b"")
    log: list[str] = []
    await keeping(records(tmp_path, [1000.0], secret=SECRET), hook, 0, log)
    assert hook.got == []
    assert log == ["files: webhook of resize u1: is no longer in files.webhooks; it is not told"]


async def test_answers_are_those_of_the_document(tmp_path: Path) -> None:
    blob, body = "ab" * 16, b"four"
    digest, job = hashlib.sha256(body).hexdigest(), {"function": "resize", "unique": "u1"}
    with site(tmp_path, FilesPolicy(tokens=(TOKEN,), most=10_000)) as made:
        contract = Contract(made.calls)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(
            base_url=made.url, headers=headers, trust_env=False, event_hooks={"response": [contract]}
        ) as http:

            async def asked(method: str, path: str, value: object = None, **more: object) -> int:
                content = None if value is None else json.dumps(value)
                return (await http.request(method, path, content=content, **more)).status_code  # type: ignore[arg-type]

            assert await asked("GET", "/v1/blobs") == 200
            assert await asked("POST", "/v1/blobs", {"id": blob, "size": 4, "keep_s": 60}) == 200
            assert await asked("POST", "/v1/blobs", {"id": blob, "size": 5}) == 409
            assert await asked("POST", "/v1/blobs", {"id": "cd" * 16, "size": 50_000}) == 507
            assert await asked("POST", "/v1/blobs/next", {"id": blob}) == 200
            assert (await http.post(f"/v1/blobs/{blob}/data?offset=0", content=body)).status_code == 200
            assert await asked("POST", "/v1/blobs/next", {"id": blob}) == 200
            assert await asked("POST", "/v1/blobs/done", {"id": blob, "sha256": digest}) == 200
            assert await asked("GET", f"/v1/blobs/{blob}?offset=2") == 200
            assert (await http.get(f"/v1/blobs/{blob}/data?offset=2")).content == b"ur"
            assert await asked("GET", f"/v1/blobs/{blob}/data?offset=9") == 422
            assert await asked("GET", f"/v1/blobs/{'ef' * 16}") == 404
            assert await asked("POST", "/v1/jobs", {"jobs": [job]}) == 200
            assert await asked("POST", "/v1/jobs", {"jobs": [job], "tell": "http://x/"}) == 422
            assert await asked("POST", "/v1/jobs/cancel", {"key": KEY}) == 200
            assert await asked("GET", f"/v1/jobs/{KEY}") == 200
            assert await asked("GET", "/v1/jobs/none") == 422
            assert await asked("POST", "/v1/jobs/end", {**job, "state": "done"}) == 401
            made.ahead_s = 100.0
            assert await asked("GET", f"/v1/blobs/{blob}") == 410
            http.headers["Authorization"] = "Bearer wrong"
            assert await asked("GET", "/v1/blobs") == 401
        assert len(contract.seen) >= 18


def test_a_token_of_files_is_good_for_nothing_else_and_a_viewers_not_for_files() -> None:
    policy = ControllerPolicy(viewers=("token-of-a-viewer",), operators=("token-of-an-operator",))
    guard = Guard("token", lambda: policy, clients=lambda: (TOKEN,))

    def shown(token: str) -> Request:
        return Request({"type": "http", "headers": [(b"authorization", f"Bearer {token}".encode())], "client": None})

    guard.admit(shown(TOKEN), "client")
    guard.admit(shown("token-of-an-operator"), "client")
    with pytest.raises(ForbiddenError, match=r"files need one of files\.tokens"):
        guard.admit(shown("token-of-a-viewer"), "client")
    for role in ("viewer", "operator"):
        with pytest.raises(DeniedError, match="this token is for files and results alone"):
            guard.admit(shown(TOKEN), role)
