"""A controller that stands by lives, is not ready, leads nothing, and tells whoever comes who acts."""

from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from fleetd.core.model import ControllerPolicy
from fleetd.web.standby import make_standby
from tests.control.fleet import policy

TOKEN = "operator-token"


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    of = replace(policy(), controller=ControllerPolicy(viewers=("a viewer's token",)))
    transport = httpx.ASGITransport(make_standby(of, TOKEN, lambda: "pod-a_01"))
    async with httpx.AsyncClient(transport=transport, base_url="http://standby") as client:
        yield client


async def test_it_lives_and_is_not_ready(http):
    assert ((await http.get("/healthz")).status_code, (await http.get("/readyz")).status_code) == (200, 503)
    assert (await http.get("/readyz")).json() == {"error": "follower"}


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/lease"), ("GET", "/v1/orders"), ("GET", "/v1/status"), ("POST", "/v1/drain"), ("GET", "/")],
)
async def test_whatever_else_is_asked_is_to_be_asked_again(http, method, path):
    answer = await http.request(method, path)
    assert (answer.status_code, answer.json()) == (503, {"error": "follower: pod-a_01 acts"})


async def test_its_metric_is_for_viewers_and_says_that_it_does_not_lead(http):
    assert (await http.get("/metrics")).status_code == 401
    for token in (TOKEN, "a viewer's token"):
        answer = await http.get("/metrics", headers={"Authorization": f"Bearer {token}"})
        assert [line for line in answer.text.splitlines() if not line.startswith("#")] == [
            'fleetd_leader{fleet="test"} 0.0'
        ]
