"""Schemathesis against a live controller with simulated nodes: `python -m tests.web.fuzz [EXAMPLES]`, `make fuzz-api`.

The controller is real: its store, ticks, server and wiring; its nodes are the `simulated` ones, which boot and lease.
Schemathesis gets the controller's own OpenAPI document, with the names that are there added to what names may be: else
hardly a command would ever be for a pool that exists. Left out are `end`, after which there is nothing to ask, and
`events`, which never ends (tests/web/test_events.py).
"""

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from fleetd.codecs.lease import DeadLetter
from fleetd.control.code import Code
from fleetd.control.loop import Controller
from fleetd.control.outlook import Adapters
from fleetd.control.wiring import Home, make_adapters
from fleetd.core.model import AppPolicy, Objective, Phase, Policy, PoolPolicy, QueuePolicy, ReleasesPolicy, SourcePolicy
from fleetd.providers.simulated import SimulatedProvider
from fleetd.store.sqlite import Store
from fleetd.web.api import make_app
from fleetd.web.openapi import document
from fleetd.web.serve import bind, make_server
from tests.control.fleet import FakeSource, until
from tests.releases import sample

SECRET, TOKEN = "join-secret", "operator-token"
# An unknown name is 422 though any text fits the schema; that right values work is for the other tests.
LEFT_OUT = "positive_data_acceptance"
LONG = 300


@dataclass(frozen=True, slots=True)
class Live:
    """A controller that is served."""

    controller: Controller
    app: Starlette
    url: str


def policy(nodes: int, folder: Path) -> Policy:
    """Two pools of simulated nodes, of which `nodes` are to be up, and an app of each kind."""
    options = SimulatedProvider.Options(boot=(0.0, 0.1))
    half = nodes // 2
    rush = PoolPolicy("rush", "simulated", options, ("naps",), 2, nodes - half, nodes + 50)
    return Policy(
        fleet="fuzz",
        sources={"main": SourcePolicy("main", "fake", None)},
        apps={"naps": AppPolicy("naps", exec=("sleep", "1")), "photos": AppPolicy("photos")},
        queues={"resize": QueuePolicy("resize", "naps", "main", "resize_*", Objective(30.0), job_limit_s=60.0)},
        pools={"rush": rush, "calm": replace(rush, name="calm", min_nodes=half)},
        releases=ReleasesPolicy(str(folder / "shelf"), ()),
    )


@asynccontextmanager
async def live(folder: Path, nodes: int = 6) -> AsyncIterator[Live]:
    """Run and serve a controller until its nodes are ready."""
    wanted, listener = policy(nodes, folder), bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    home = Home(folder, "fuzz", url, SECRET)

    def make(now: Policy) -> Adapters:
        return Adapters({"main": FakeSource()}, make_adapters(replace(now, sources={}, queues={}), home).providers)

    store = Store(folder)
    store.add_dead(
        "rush", "rush/1", [DeadLetter(f"l{at}", "resize_a", "u", "H:1", 3, "boom", "", "") for at in range(9)]
    )
    controller = Controller(wanted, store, make, lambda *_: None)
    code = Code(lambda: wanted, folder)
    sample.bundle(folder / "b")
    code.put(folder / "b")
    app = make_app(controller, SECRET, TOKEN, code)
    app.state.guard.most_wrong = 10**9  # wrong tokens are a part of it
    server = make_server(app)
    life, serving = asyncio.create_task(controller.run()), asyncio.create_task(server.serve([listener]))
    try:
        await until(lambda: ready(controller) >= nodes, 120.0)
        yield Live(controller, app, url)
        assert not life.done(), "the controller ended"
    finally:
        controller.leases.let_go()
        server.should_exit = True
        life.cancel()
        await asyncio.gather(life, serving, return_exceptions=True)
        store.close()


def ready(controller: Controller) -> int:
    """Return how many nodes are ready."""
    return sum(node.phase is Phase.READY for node in controller.memory.nodes.values())


def named(site: Live) -> dict[str, Any]:
    """Return the document, in which names may also be those that are there."""
    names: Mapping[str, list[str]] = {
        "pool": list(site.controller.policy.pools),
        "app": list(site.controller.policy.apps),
        "node": sorted(site.controller.memory.nodes)[:3],
        "target": [*site.controller.policy.pools, *sorted(site.controller.memory.nodes)[:3]],
        "id": [f"l{at}" for at in range(9)],
    }

    def with_names(value: Any, key: str = "") -> Any:
        if isinstance(value, list):
            return [with_names(one) for one in value]
        if not isinstance(value, dict):
            return value
        if key in names and value.get("type") == "string":
            return {"anyOf": [{"enum": names[key]}, value]}
        if value.get("in") in ("query", "path"):
            return {**value, "schema": with_names(value["schema"], value["name"])}
        return {one: with_names(inner, one) for one, inner in value.items()}

    told = document(site.app.state.calls)
    asked = {
        content["schema"]["$ref"].rpartition("/")[2]
        for methods in told["paths"].values()
        for operation in methods.values()
        for content in operation.get("requestBody", {}).get("content", {}).values()
        if "$ref" in content["schema"]
    }
    schemas = told["components"]["schemas"]
    told["components"]["schemas"] = {
        name: with_names(shape) if name in asked else shape for name, shape in schemas.items()
    }
    return {**told, "paths": with_names(told["paths"])}


async def fuzz(site: Live, folder: Path, examples: int, *more: str) -> tuple[int, str]:
    """Run schemathesis; returns its exit code and what it printed."""
    schema = folder / "openapi.json"
    schema.write_text(json.dumps(named(site)))
    argv = [
        *(
            str(Path(sys.executable).parent / "st"),
            "run",
            str(schema),
            "--url",
            site.url,
            "-H",
            f"Authorization: Bearer {TOKEN}",
        ),
        *("--exclude-path", "/v1/end", "--exclude-path", "/v1/events", "--exclude-checks", LEFT_OUT),
        *(
            "--max-examples",
            str(examples),
            "--seed",
            "1",
            "--no-color",
            "--continue-on-failure",
            "--warnings",
            "off",
            *more,
        ),
    ]
    run = await asyncio.create_subprocess_exec(
        *argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=folder
    )
    out, _ = await run.communicate()
    return run.returncode or 0, out.decode(errors="replace")


async def main(examples: int) -> int:
    """Fuzz at length and print what schemathesis says."""
    with tempfile.TemporaryDirectory() as room:
        async with live(Path(room)) as site:
            code, out = await fuzz(site, Path(room), examples)
            print(out)
            print("refusals by code:", dict(sorted(site.app.state.refused.items())))
            return code or int(any(code >= 500 for code in site.app.state.refused))


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else LONG)))
