"""Credentials of one node that end: whom they let speak, until when, and how they are renewed."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from fleetd.codecs.lease import (
    ANSWER_HEADER,
    SCHEME,
    authorization,
    dump,
    load_answer,
    scope_token,
    sign,
    sign_answer,
    split_token,
)
from fleetd.codecs.scope import CREDENTIAL_S, node_token, read_scope
from fleetd.control import loop
from fleetd.control.code import Code
from tests.control.fleet import lease
from tests.releases import sample
from tests.web.site import SECRET, TOKEN, Site, called, refusal, serving, two_pools

NODE = "local/node07.12"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TICK_S", 0.1)
    monkeypatch.setattr(loop, "LEAST_TICK_S", 0.01)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with called(two_pools(tmp_path)) as site:
        yield site


def token(site: Site, for_s: float = CREDENTIAL_S, node: str = NODE) -> str:
    return node_token(SECRET, "test", node, site.fleet.controller.clock() + for_s)


async def signed(site: Site, by: str, method: str, path: str, body: bytes = b"") -> httpx.Response:
    header = authorization(by, method, path, body)
    answer = await site.http.request(method, path, content=body, headers={"Authorization": header})
    if answer.is_success and not path.startswith("/v1/releases"):
        expected = sign_answer(split_token(by)[1], header.rpartition(" ")[2], answer.content)
        assert answer.headers[ANSWER_HEADER] == expected
    return answer


async def test_a_node_leases_and_polls_with_its_own_credential(site: Site) -> None:
    by = token(site)
    answer = await signed(site, by, "POST", "/v1/lease", dump(lease(NODE)))
    assert (answer.status_code, load_answer(answer.content).token) == (200, "")
    site.fleet.controller.leases.order(NODE, "drain")
    assert (await signed(site, by, "GET", f"/v1/orders?node={NODE}&after=0")).status_code == 200
    assert site.fleet.controller.leases.views()[NODE].state == "working"


async def test_it_speaks_for_no_other_node_and_no_other_pool(site: Site) -> None:
    by = token(site)
    for other in ("local/node07.1", "local/node07.123", "local/node08.12", "burst/node07.12"):
        body = dump(lease(other, pool=other.partition("/")[0]))
        code, line = refusal(await signed(site, by, "POST", "/v1/lease", body))
        assert (code, line.startswith("lease: the token is for test/local")) == (401, True)
        code, line = refusal(await signed(site, by, "GET", f"/v1/orders?node={other}&after=0"))
        assert code == 401
        assert line.endswith(f"not for node {other}")
    assert site.fleet.controller.leases.entries == {}


async def test_after_its_end_it_is_refused_everywhere_by_the_controllers_clock(tmp_path: Path) -> None:
    fleet = two_pools(tmp_path)
    code = Code(lambda: fleet.controller.policy, tmp_path)
    async with serving(fleet, code) as site:
        digest = sample.bundle(tmp_path / "b")
        bundle = (tmp_path / "b").read_bytes()
        await site.http.post("/v1/releases", content=bundle, headers={"Authorization": f"Bearer {TOKEN}"})
        good, ended = token(site), token(site, -5.0)
        assert (await signed(site, good, "GET", f"/v1/releases/{digest}")).content == bundle
        for method, path, body in (
            ("POST", "/v1/lease", dump(lease(NODE))),
            ("GET", f"/v1/orders?node={NODE}&after=0", b""),
            ("GET", f"/v1/releases/{digest}", b""),
        ):
            code_, line = refusal(await signed(site, ended, method, path, body))
            assert (code_, f"the credential of {NODE} ended" in line) == (401, True)


async def test_when_half_of_it_is_gone_the_answer_to_a_lease_brings_a_new_one(site: Site) -> None:
    old = token(site, CREDENTIAL_S / 2 - 1)
    answer = load_answer((await signed(site, old, "POST", "/v1/lease", dump(lease(NODE)))).content)
    scope = read_scope(split_token(answer.token)[0])
    assert (scope.fleet, scope.node) == ("test", NODE)
    assert scope.left_s(site.fleet.controller.clock()) == pytest.approx(CREDENTIAL_S, abs=5)
    body = dump(lease(NODE, seq=9))
    again = load_answer((await signed(site, answer.token, "POST", "/v1/lease", body)).content)
    assert again.token == ""


async def test_the_end_cannot_be_moved(site: Site) -> None:
    scope, key = split_token(token(site, -5.0))
    later = scope.replace(scope.rpartition("@")[2], "9999999999")
    code, line = refusal(await signed(site, f"{later}.{key}", "POST", "/v1/lease", dump(lease(NODE))))
    assert (code, "signature" in line) == (401, True)


async def test_a_pools_own_token_is_as_it_was_and_never_renewed(site: Site) -> None:
    answer = await site.signed("POST", "/v1/lease", dump(lease("local/1.1")))
    assert load_answer(answer.content).token == ""


@pytest.mark.parametrize("scope", ["test/local/node07.12", "test/local/a@b", "test"])
async def test_a_scope_of_neither_form_is_refused_in_a_line(site: Site, scope: str) -> None:
    body, path = dump(lease(NODE)), "/v1/lease"
    key = scope_token(SECRET, scope).rpartition(".")[2]
    header = f"{SCHEME} {scope} {sign(key, 'POST', path, body)}"
    code, line = refusal(await site.http.post(path, content=body, headers={"Authorization": header}))
    assert (code, "is no scope" in line) == (401, True)
