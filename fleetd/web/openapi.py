"""The OpenAPI document, made from the table of calls: what is declared there is what is served and what is checked.

Pure: the same table, the same document.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from fleetd import __version__
from fleetd.web.calls import Asked, Bytes, Call, Refusal, Role
from fleetd.web.wire import JSON

REF: Final = "#/components/schemas/{model}"
ABOUT: Final = """\
The HTTP API of fleetd's controller. Operators and viewers show a bearer token (`controller.token`, `controller.tokens`
in the policy), workers sign. Every failure is `{"error": "one line"}`, with `place` where one key is to blame. Lists
come in pages: `limit` rows at most, and `next`, which is the `cursor` of the page that follows. Times are in seconds,
moments in seconds since 1970. Clients pass over keys that they do not know: more may come within /v1."""
SECURITY: Final[Mapping[Role, list[dict[str, list[str]]]]] = {
    "anyone": [],
    "viewer": [{"token": []}],
    "operator": [{"token": []}],
    "worker": [{"signature": []}],
    "fetcher": [{"token": []}, {"signature": []}],
    "instance": [],
    "client": [{"token": []}],
    "files": [{"token": []}, {"ticket": []}],
}
SCHEMES: Final = {
    "token": {"type": "http", "scheme": "bearer", "description": "A viewer's may look (GET), an operator's may act."},
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "Fleetd-HMAC-SHA256 SCOPE SIGNATURE: made with a join token (docs/worker.md).",
    },
    "ticket": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "Fleetd-Files SCOPE SIGNATURE: made with the ticket of a worker's jobs (docs/files.md).",
    },
}
MEANINGS: Final[Mapping[int, str]] = {
    400: "The request is broken, or whom the controller asked said no.",
    401: "No token, or a wrong one.",
    403: "A viewer's token, where an operator's is needed.",
    404: "There is no such thing.",
    409: "Not now.",
    410: "Its time is over.",
    408: "The request did not come in time.",
    413: "The body is too large.",
    415: "The body is of another kind than is read here.",
    422: "A key, a parameter or its value is wrong; nothing was done.",
    429: "Too many: come again later.",
    500: "A fault of the controller's: its log tells more.",
    503: "Not now.",
    507: "The store is full.",
}


def document(calls: Sequence[Call]) -> dict[str, Any]:
    """Return the document of a table of calls."""
    models = {call.answer for call in calls if isinstance(call.answer, type)} | {Refusal}
    models |= {call.asks for call in calls if call.method == "POST" and call.asks.model_fields}
    by_name = sorted(models, key=lambda model: model.__name__)
    refs, schemas = models_json_schema([(model, "validation") for model in by_name], ref_template=REF)
    named = {model: refs[model, "validation"] for model in by_name}
    paths: dict[str, Any] = {}
    for call in calls:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call, named)
    return {
        "openapi": "3.1.0",
        "info": {"title": "fleetd", "version": __version__, "description": ABOUT, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": _plain(schemas["$defs"]), "securitySchemes": SCHEMES},
    }


def codes(call: Call) -> list[int]:
    """Return the codes that refusals of a call may have."""
    found = {400, 500, *call.refused}
    if call.role != "anyone":
        found |= {401}
    if call.role in ("viewer", "operator", "fetcher", "files"):
        found |= {429}
    if call.role in ("operator", "files"):
        found |= {403}
    if call.method == "POST":
        found |= {408, 413} if call.raw else {408, 413, 415, 422}
    elif not call.raw:
        found |= {422}
    return sorted(found)


def _operation(call: Call, named: Mapping[type[BaseModel], dict[str, Any]]) -> dict[str, Any]:
    said = " ".join((call.do.__doc__ or "").split())
    refused = {
        str(code): {
            "description": call.refused.get(code) or MEANINGS[code],
            "content": {JSON: {"schema": named[Refusal]}},
        }
        for code in codes(call)
    }
    good = _content(call.answer, named)
    operation: dict[str, Any] = {
        "operationId": operation_id(call),
        "summary": said,
        "description": f"For: {call.role}.",
        "security": SECURITY[call.role],
        "responses": {"200": {"description": _about(call.answer), "content": good}, **_nothing(call), **refused},
    }
    if parameters := list(_parameters(call)):
        operation["parameters"] = parameters
    if call.body:
        operation["requestBody"] = {
            "required": True,
            "description": call.body.about,
            "content": _content(call.body, {}),
        }
    elif call.method == "POST" and call.asks.model_fields:
        needed = any(info.is_required() for info in call.asks.model_fields.values())
        operation["requestBody"] = {"required": needed, "content": _content(call.asks, named)}
    return operation


def operation_id(call: Call) -> str:
    """Return a call's name: its method and path as one word."""
    words = re.findall(r"[a-z]+", call.path.removeprefix("/v1"))
    return "_".join([call.method.lower(), *words])


def _nothing(call: Call) -> dict[str, Any]:
    """Return the answer of a long poll that brought nothing."""
    return {"204": {"description": "Nothing new."}} if call.path == "/v1/orders" else {}


def _about(answer: type[BaseModel] | Bytes) -> str:
    return answer.about if isinstance(answer, Bytes) else " ".join((answer.__doc__ or "").split())


def _content(what: type[BaseModel] | Bytes, named: Mapping[type[BaseModel], dict[str, Any]]) -> dict[str, Any]:
    if not isinstance(what, Bytes):
        return {JSON: {"schema": named[what]}}
    text = what.media.startswith("text/")
    return {what.media: {"schema": {"type": "string"} if text else {"type": "object"} if what.media == JSON else {}}}


def _parameters(call: Call) -> Iterable[dict[str, Any]]:
    """Yield the parameters in the path, and for GET those in the query."""
    if call.method != "GET":
        return
    asks: type[Asked] = call.asks
    schema = _plain(asks.model_json_schema())
    for name, one in schema.get("properties", {}).items():
        place = "path" if f"{{{name}}}" in call.path else "query"
        shape = {key: value for key, value in one.items() if key not in ("description", "default")}
        if "anyOf" in shape:  # in a query nothing is null: what is not there is left out
            (shape,) = [part for part in shape["anyOf"] if part.get("type") != "null"]
        if one.get("default") is not None:
            shape["default"] = one["default"]
        yield {
            "name": name,
            "in": place,
            "required": place == "path" or name in schema.get("required", ()),
            **({"description": one["description"]} if "description" in one else {}),
            "schema": shape,
        }


def _plain(value: Any) -> Any:
    """Leave out the titles that pydantic makes of names, and join the lines of sentences."""
    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if not (key == "title" and isinstance(one, str))}
        return {key: " ".join(one.split()) if key == "description" and isinstance(one, str) else _plain(one)
                for key, one in kept.items()}  # fmt: skip
    return [_plain(one) for one in value] if isinstance(value, list) else value
