"""GET /metrics as Prometheus meets it: with a token, as text it can read, with the API's own refusals in it."""

from dataclasses import replace
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from fleetd.core.model import ControllerPolicy
from fleetd.web.api import make_app
from tests.control.fleet import Fleet, policy

TOKEN, VIEWER = "the-operators-token", "a-viewers-own-token"


async def get(fleet: Fleet, *tokens: str) -> list[httpx.Response]:
    transport = httpx.ASGITransport(make_app(fleet.controller, "join", TOKEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://fleetd") as http:
        return [
            await http.get("/metrics", headers={"Authorization": f"Bearer {token}"} if token else {})
            for token in tokens
        ]


async def test_it_needs_a_token_and_a_viewers_is_enough(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, replace(policy(), controller=ControllerPolicy(viewers=(VIEWER,))))
    answers = await get(fleet, "", "a-wrong-token-of-somebody", VIEWER, TOKEN)
    fleet.store.close()
    assert [answer.status_code for answer in answers] == [401, 401, 200, 200]
    assert "fleetd_" not in answers[0].text


async def test_it_is_text_of_the_prometheus_format_and_tells_what_was_refused(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy())
    *_, answer = await get(fleet, "", "a-wrong-token-of-somebody", TOKEN)
    fleet.store.close()
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    refused = {s.labels["code"]: s.value for s in families["fleetd_http_refused"].samples}
    assert (refused["401"], refused["404"]) == (2, 0)
    assert families["fleetd_info"].samples[0].labels["fleet"] == "test"
