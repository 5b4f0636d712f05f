"""Who may call: an operator acts, a viewer looks, nobody else does either; guessing is slowed, mistakes are not."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleetd.core.model import ControllerPolicy
from fleetd.web.guard import MOST_WRONG, WINDOW_S, Guard
from fleetd.web.openapi import codes
from tests.web.site import TOKEN, Site, called, refusal, two_pools

VIEWER, SECOND = "v" * 20, "o" * 20
POLICY = ControllerPolicy(viewers=("x" * 20, VIEWER), operators=(SECOND,))
NEEDS = "authorization: needs a bearer token of this controller (FLEETD_TOKEN)"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with called(two_pools(tmp_path, controller=POLICY)) as site:
        yield site


async def test_a_viewer_looks_at_all_and_acts_on_nothing(site: Site) -> None:
    looked = 0
    for call in site.app.state.calls:
        path = call.path.replace("{id}", "x")
        answer = await site.operator(call.method, path, None, token=VIEWER) if call.path != "/v1/events" else None
        if call.role == "viewer" and answer is not None:
            looked += 1
            assert answer.status_code in (200, 404, 422), path
        if call.role == "operator":
            assert answer is not None
            assert refusal(answer) == (
                403,
                "authorization: this is a viewer's token: it may look, an operator's may act",
            ), path
    assert looked > 8
    assert not site.fleet.controller.memory.ending


async def test_every_call_is_for_somebody_and_every_post_for_operators(site: Site) -> None:
    """A call that is added without thought fails here."""
    roles = {(call.method, call.role) for call in site.app.state.calls}
    got = {("GET", "anyone"), ("GET", "viewer"), ("GET", "worker")}
    assert roles == got | {("POST", "operator"), ("POST", "worker"), ("POST", "instance")}
    assert {call.path for call in site.app.state.calls if call.role == "instance"} == {"/v1/enrol"}
    assert {call.path for call in site.app.state.calls if call.role == "anyone"} == {"/healthz", "/readyz"}
    assert all(403 in codes(call) for call in site.app.state.calls if call.role == "operator")


@pytest.mark.parametrize("token", [TOKEN, SECOND])
async def test_each_operator_acts(site: Site, token: str) -> None:
    answer = await site.operator("POST", "/v1/pause", {"paused": True}, token=token)
    assert answer.status_code == 200
    assert site.fleet.controller.memory.paused


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer  {TOKEN}", f"Bearer {TOKEN}\xe9"]
)
async def test_what_is_no_bearer_token_is_401_and_told_how_to(site: Site, header: str) -> None:
    headers = {b"Authorization": header.encode("latin-1")} if header else {}
    answer = await site.http.get("/v1/status", headers=headers)
    assert refusal(answer) == (401, NEEDS)
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_scheme_is_read_in_any_case(site: Site) -> None:
    assert (await site.http.get("/v1/status", headers={"Authorization": f"bEARER {TOKEN}"})).status_code == 200


async def test_a_reload_gives_and_takes_tokens_at_once(site: Site) -> None:
    controller = site.fleet.controller
    assert (await site.operator("GET", "/v1/status", token=VIEWER)).status_code == 200
    await controller.reload(replace(controller.policy, controller=replace(POLICY, viewers=("new" * 10,))))
    assert (await site.operator("GET", "/v1/status", token=VIEWER)).status_code == 401
    assert (await site.operator("GET", "/v1/status", token="new" * 10)).status_code == 200


async def test_many_different_tokens_bar_an_address_and_one_wrong_token_never_does(site: Site) -> None:
    for _ in range(3 * MOST_WRONG):
        assert (await site.operator("GET", "/v1/status", token="old")).status_code == 401
    assert (await site.operator("GET", "/v1/status")).status_code == 200
    for at in range(MOST_WRONG - 1):
        assert (await site.operator("GET", "/v1/status", token=f"guess{at}")).status_code == 401
    answer = await site.operator("GET", "/v1/status")
    code, line = refusal(answer)
    assert (code, line) == (429, "authorization: too many different tokens from 127.0.0.1: wait 60 s")
    assert answer.headers["retry-after"] == "60"
    assert (await site.http.get("/healthz")).status_code == 200, "what needs no token is answered all the same"
    assert site.app.state.refused[429] == 1


def test_a_bar_ends_and_others_never_feel_it() -> None:
    now = [0.0]
    guard = Guard(TOKEN, lambda: POLICY, lambda: now[0])
    for at in range(MOST_WRONG):
        guard._note("a", str(at).encode())
    with pytest.raises(Exception, match="too many different tokens from a: wait 60 s"):
        guard._refuse_guessing("a")
    guard._refuse_guessing("b")
    now[0] = WINDOW_S
    guard._refuse_guessing("a")
    guard._note("a", b"one more")
    guard._refuse_guessing("a")


def test_what_is_remembered_of_guessers_is_bounded() -> None:
    guard = Guard(TOKEN, lambda: POLICY, lambda: 0.0)
    for at in range(5000):
        guard._note(str(at), b"x")
    assert len(guard._wrong) == 1024
    assert "4999" in guard._wrong
