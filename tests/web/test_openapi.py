"""The document is made from the calls, is valid OpenAPI 3.1, and docs/api.md is made from it."""

import inspect
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator

from fleetd import __version__
from fleetd.web import shapes
from fleetd.web.calls import Told
from scripts import api
from tests.web.site import Site, called, two_pools


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with called(two_pools(tmp_path)) as site:
        yield site


async def told(site: Site) -> dict[str, Any]:
    answer = await site.operator("GET", "/v1/openapi.json")
    assert answer.status_code == 200
    return dict(answer.json())


async def test_it_has_every_call_once_with_its_role_and_refusals(site: Site) -> None:
    document = await told(site)
    assert (document["openapi"], document["info"]["version"]) == ("3.1.0", __version__)
    calls = {(call.method.lower(), call.path) for call in site.app.state.calls}
    operations = {(method, path): one for path, methods in document["paths"].items() for method, one in methods.items()}
    assert operations.keys() == calls
    ids = [one["operationId"] for one in operations.values()]
    assert len(set(ids)) == len(ids)
    wake = operations["post", "/v1/wake"]
    assert wake["security"] == [{"token": []}]
    assert set(wake["responses"]) == {"200", *map(str, (400, 401, 403, 408, 413, 415, 422, 429, 500, 503))}
    assert operations["get", "/healthz"]["security"] == []
    for one in operations.values():
        for code, answer in one["responses"].items():
            if code >= "400":
                assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Refusal"}
        assert one["summary"].endswith(".")


async def test_each_schema_is_one_and_each_reference_leads_somewhere(site: Site) -> None:
    document = await told(site)
    schemas = document["components"]["schemas"]
    for name in schemas:
        Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": document["components"]})
    refs = [line.partition('"')[2] for line in json.dumps(document).split('"$ref": ')[1:]]
    names = {ref.partition('"')[0].removeprefix("#/components/schemas/") for ref in refs}
    assert names <= schemas.keys()


async def test_what_is_checked_is_what_is_documented(site: Site) -> None:
    """Requests come from the very models that read them: bounds, defaults, needed keys, nothing else."""
    document = await told(site)
    wake = document["components"]["schemas"]["Wake"]
    assert wake["required"] == ["pool"]
    assert wake["additionalProperties"] is False
    assert wake["properties"]["count"]["minimum"] == 1
    (limit,) = [one for one in document["paths"]["/v1/nodes"]["get"]["parameters"] if one["name"] == "limit"]
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
    (path,) = document["paths"]["/v1/dead/{id}"]["get"]["parameters"]
    assert (path["in"], path["required"]) == ("path", True)


async def test_every_shape_of_an_answer_is_used(site: Site) -> None:
    made = {name for name, one in inspect.getmembers(shapes, inspect.isclass) if issubclass(one, Told)}
    used = api._document()["components"]["schemas"].keys()
    assert made - {"Told", "Paged"} <= used
    del site


def test_the_documented_api_is_the_api_there_is() -> None:
    """`make docs` renews the page."""
    assert api.DOC.read_text() == api.page()
