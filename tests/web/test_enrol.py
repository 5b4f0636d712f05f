"""Instances are enrolled: for AWS's signature, once each, as nodes that are to come, and for nothing else."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from fleetd.codecs.lease import authorization, dump, load_answer
from fleetd.codecs.scope import CREDENTIAL_S, read_scope
from fleetd.control import loop
from fleetd.core.decide import resume
from fleetd.core.model import Phase
from tests.control.fleet import FakeSource, Fleet, lease, policy, pool, until
from tests.ec2.identity import authority, document
from tests.web.site import Site, called, refusal

NODE = "burst/i-0123456789abcdef0"
INSTANCE = NODE.partition("/")[2]


@dataclass
class Options:
    """As much of a cloud's options as an enrolment reads."""

    identity: str | None = authority().certificate
    region: str = "eu-central-1"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TICK_S", 0.05)
    monkeypatch.setattr(loop, "LEAST_TICK_S", 0.01)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A fleet whose pool `burst` is of instances."""
    pools = pool(), pool("burst", kind="ec2", options=Options(), slots=4)
    fleet = Fleet(tmp_path, policy(*pools), FakeSource())
    fleet.providers["burst"].machines.nodes[NODE] = "k-1"
    async with called(fleet) as site:
        await until(lambda: NODE in fleet.controller.memory.nodes)
        yield site


async def appear(site: Site, node: str) -> None:
    """Have the provider see an instance."""
    site.fleet.providers[node.partition("/")[0]].machines.nodes[node] = "k-1"
    await until(lambda: node in site.fleet.controller.memory.nodes)


async def ask(
    site: Site, text: str | None = None, *, of: str = "burst", by: str = "aws", **more: Any
) -> httpx.Response:
    """Ask as an instance does."""
    text = document(INSTANCE) if text is None else text
    signature = "".join(authority(by).sign(text).split())
    return await site.http.post("/v1/enrol", json={"pool": of, "document": text, "signature": signature, **more})


async def test_an_instance_gets_the_credential_of_its_node_and_what_its_worker_runs_with(site: Site) -> None:
    answer = await ask(site)
    assert answer.status_code == 200
    told = answer.json()
    credential = told.pop("credential")
    assert told == {
        "node": NODE,
        "for_s": CREDENTIAL_S,
        "app": "photos",
        "key": "",
        "arguments": told["arguments"],
    }
    words = told["arguments"]
    assert dict(zip(words[::2], words[1::2], strict=True)).items() >= {"--slots": "4", "--drain-deadline": "60"}.items()
    scope = read_scope(credential.rpartition(".")[0])
    assert (scope.fleet, scope.pool, scope.node) == ("test", "burst", NODE)
    body = dump(lease(NODE, app="photos"))
    header = {"Authorization": authorization(credential, "POST", "/v1/lease", body)}
    leased = await site.http.post("/v1/lease", content=body, headers=header)
    assert leased.status_code == 200
    assert load_answer(leased.content).ttl_s > 0
    await until(lambda: site.fleet.controller.memory.nodes[NODE].heard_at is not None)


async def test_an_answer_that_was_lost_is_given_again_until_the_worker_has_spoken(site: Site) -> None:
    assert (await ask(site)).status_code == (await ask(site)).status_code == 200
    await site.fleet.speak(NODE)
    line = f"{NODE}: its worker has spoken already: it has its credential"
    assert refusal(await ask(site)) == (403, line)
    await until(lambda: site.fleet.controller.memory.nodes[NODE].heard_at is not None)
    site.fleet.controller.leases.entries.clear()  # as a controller that has started anew
    code, told = refusal(await ask(site))
    assert code == 403
    assert told.startswith(f"{NODE} is ")
    assert told.endswith(", and not to come")


async def test_an_instance_that_boots_while_the_controller_starts_anew_is_let_in(site: Site) -> None:
    """Seen to fail with `heard_at` looked at, which a restart sets for all: such instances ended themselves."""
    controller = site.fleet.controller
    controller.memory = resume(controller.memory, controller.clock())
    assert controller.memory.nodes[NODE].heard_at is not None
    assert (await ask(site)).status_code == 200


async def test_an_instance_that_the_provider_has_not_seen_yet_is_to_come_again(site: Site) -> None:
    assert refusal(await ask(site, document("i-2"))) == (503, "burst/i-2 is not known here yet")
    await appear(site, "burst/i-2")
    assert (await ask(site, document("i-2"))).status_code == 200


FORGED = "pool burst: the identity document is not signed by what its `identity:` names"


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"by": "another"}, FORGED),
        ({"signature": "AAAA"}, FORGED),
        ({"signature": "é"}, FORGED),
        (
            {"document": document("i-1")},
            "pool burst: the identity document is not signed by what its `identity:` names",
        ),
        ({"of": "local"}, "pool 'local' enrols no instances: it lacks `identity:`, or is not there"),
        ({"of": "none"}, "pool 'none' enrols no instances: it lacks `identity:`, or is not there"),
        (
            {"text": document(INSTANCE, "us-east-1")},
            "pool burst: an instance of 'us-east-1' is none of eu-central-1",
        ),
        ({"text": "[]"}, "pool burst: the identity document names no instance and region"),
        ({"text": "{"}, "pool burst: the identity document names no instance and region"),
    ],
)
async def test_what_proves_nothing_is_refused(site: Site, asked: dict[str, Any], line: str) -> None:
    assert refusal(await ask(site, **asked)) == (403, line)


async def test_an_instance_of_another_pool_gets_nothing(site: Site) -> None:
    await appear(site, "local/i-2")
    assert (await ask(site, document("i-2"))).status_code == 503


async def test_a_node_that_is_to_go_is_not_enrolled(site: Site) -> None:
    controller = site.fleet.controller
    for phase in Phase:
        node = replace(controller.memory.nodes[NODE], phase=phase)
        controller.memory = replace(controller.memory, nodes={**controller.memory.nodes, NODE: node})
        expected = 200 if phase in (Phase.REQUESTED, Phase.BOOTING) else 403
        assert (await ask(site)).status_code == expected, phase


@pytest.mark.parametrize(
    "body", [{}, {"pool": "burst"}, {"pool": "burst", "document": 1, "signature": ""}, {"document": "x" * 20_000}]
)
async def test_a_broken_body_is_refused_in_one_line(site: Site, body: object) -> None:
    assert refusal(await site.http.post("/v1/enrol", content=json.dumps(body)))[0] in (415, 422)
    assert refusal(await site.http.post("/v1/enrol", json=body))[0] == 422


async def test_a_pool_may_name_several_certificates_and_a_wrong_one_is_said_to_be(tmp_path: Path) -> None:
    both = Options(identity=authority("another").certificate + authority().certificate)
    wrong = Options(identity="-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")
    pools = pool("burst", kind="ec2", options=both), pool("broken", kind="ec2", options=wrong)
    async with called(Fleet(tmp_path, policy(*pools), FakeSource())) as site:
        await appear(site, NODE)
        answers = await asyncio.gather(ask(site), ask(site, by="another"), ask(site, by="third"))
        assert [answer.status_code for answer in answers] == [200, 200, 403]
        assert refusal(await ask(site, of="broken")) == (422, "pool broken: identity: holds no certificate in PEM")
