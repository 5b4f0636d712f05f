"""Writes docs/api.md from the OpenAPI document, which is made from the calls themselves. `make docs` runs it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fleetd.control.code import Code
from fleetd.control.loop import Controller
from fleetd.control.outlook import Adapters
from fleetd.core.model import Policy
from fleetd.depot.depot import Depot
from fleetd.depot.records import Records
from fleetd.store.sqlite import Store
from fleetd.web.api import make_app
from fleetd.web.openapi import document

DOC = Path(__file__).parent.parent / "docs" / "api.md"
PREFIX = "#/components/schemas/"
HEAD = """\
# HTTP API

Written from the calls themselves (`make docs`). A running controller gives the same as an OpenAPI 3.1 document at
`GET /v1/openapi.json`. What may change within /v1 and what may not: [compatibility](compatibility.md).

```console
$ export FLEETD_URL=https://fleet.example.org FLEETD_TOKEN=…
$ curl -H "Authorization: Bearer $FLEETD_TOKEN" "$FLEETD_URL/v1/nodes?limit=100"
$ curl -H "Authorization: Bearer $FLEETD_TOKEN" --json '{"pool": "rack3", "count": 2}' "$FLEETD_URL/v1/wake"
```

- **Tokens.** `Authorization: Bearer TOKEN`. `controller.token` is the operator's, `controller.tokens` holds more:
  a viewer's may look (GET), an operator's may act (POST). Workers sign instead. A token that is wrong is 401, a
  viewer's command 403. Who tries 20 different wrong tokens in a minute gets 429 for the rest of it; one wrong token
  that comes again and again bars nobody. Tokens are taken anew when the policy is reloaded, `controller.token` at the
  start. The controller itself speaks http; beyond its own machine, put a proxy with TLS before it. From a proxy on its
  own machine, addresses are taken from `X-Forwarded-For`; for one elsewhere, set `FORWARDED_ALLOW_IPS` to its address.
- **Refusals.** Every failure is `{"error": "one line"}`, with `"place"` where one key or parameter is to blame.
  Unknown keys and parameters are refused. What is no HTTP at all is refused in the same shape.
- **Pages.** Lists give `limit` rows (at most 1000) and `next`: the `cursor` of the page that follows, or null. A
  cursor means something to its own list alone. Rows that come or go meanwhile move nothing.
- **Units.** Names that end in `_s` are seconds; moments (`at`) are seconds since 1970. Answers say the version that
  gave them in the header `Fleetd-Version`.

## Events

`GET /v1/events` is a stream of server-sent events. `status` holds what `GET /v1/status` gives, but for its `events`:
at once, then where it changed, at most once a second; ages that only grow are no change. `journal` is a line of the
journal, each decision among them, with its number as id: who comes back with `Last-Event-ID` misses none. Comments keep
quiet streams alive. There may be 32 readers; one that takes nothing for 10 s is cut off. None ever holds up a tick.

```console
$ curl -N -H "Authorization: Bearer $FLEETD_TOKEN" "$FLEETD_URL/v1/events"
```

## Health

`/healthz` and `/readyz` need no token and say no more than a word: `{"ok": true}`, or 503 with `{"error": WORD}`.

| | word | means |
|---|---|---|
| `/healthz` | `stuck` | No tick began for 15 s. Restart the controller; its workers go on meanwhile. |
| `/readyz` | `starting` | Some source or pool of the policy was not read yet, not once. |
| | `journal` | No tick could be written down for 15 s, so nothing is done: look at the disk. |
| | `follower` | It does not hold the fleet's state. |
| | `stuck` | As above. |

A source that is away is no reason to start the controller anew: neither word says so once it was read.
"""


def page() -> str:
    """Return the whole page."""
    told = _document()
    lines = [HEAD, "## Calls", "", "| call | for | |", "|---|---|---|"]
    for call, operation in _operations(told):
        lines.append(f"| `{call}` | {_who(operation)} | {operation['summary']} |")
    for call, operation in _operations(told):
        lines += ["", f"### `{call}`", "", operation["summary"], ""]
        lines += [*_asked(operation, told), *_answered(operation)]
    lines += ["", "## What is in answers", "", *_shapes(told)]
    return "\n".join(lines).rstrip() + "\n"


def _document() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as room:
        policy, store = Policy("docs", {}, {}, {}, {}), Store(Path(room))
        controller = Controller(policy, store, lambda _: Adapters({}, {}), lambda *_: None)
        try:
            return document(
                make_app(controller, "", "", Code(lambda: policy, Path(room)), _records(policy, room)).state.calls
            )
        finally:
            store.close()


def _operations(told: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def _who(operation: dict[str, Any]) -> str:
    word = str(operation["description"]).removeprefix("For: ").removesuffix(".")
    return {"fetcher": "viewer, worker"}.get(word, word)


def _asked(operation: dict[str, Any], told: dict[str, Any]) -> list[str]:
    rows = [
        (one["name"], one["schema"], one["required"], one.get("description", ""))
        for one in operation.get("parameters", ())
    ]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        name = content["schema"].get("$ref", "").removeprefix(PREFIX)
        if not name:
            return [f"Body: `{media}`. {operation['requestBody']['description']}", ""]
        shape = told["components"]["schemas"][name]
        rows += [
            (key, one, key in shape.get("required", ()), one.get("description", ""))
            for key, one in shape["properties"].items()
        ]
    if not rows:
        return []
    what = "key of the body" if "requestBody" in operation else "parameter"
    lines = [f"| {what} | value | default | |", "|---|---|---|---|"]
    for key, shape, needed, about in rows:
        default = "needed" if needed else f"`{_default(shape)}`" if shape.get("default") is not None else ""
        lines.append(f"| `{key}` | {_kind(shape)} | {default} | {about} |")
    return [*lines, ""]


def _answered(operation: dict[str, Any]) -> list[str]:
    (media, content), *_ = operation["responses"]["200"]["content"].items()
    name = content["schema"].get("$ref", "").removeprefix(PREFIX)
    good = f"[{name}](#{name.lower()})" if name else f"`{media}`: {operation['responses']['200']['description']}"
    codes = ", ".join(code for code in operation["responses"] if code >= "400")
    return [f"Answer: {good} Refusals: {codes}." if not name else f"Answer: {good}. Refusals: {codes}."]


def _shapes(told: dict[str, Any]) -> list[str]:
    asked = {
        content["schema"].get("$ref", "").removeprefix(PREFIX)
        for _, operation in _operations(told)
        for content in operation.get("requestBody", {}).get("content", {}).values()
    }
    lines: list[str] = []
    for name, shape in told["components"]["schemas"].items():
        if name in asked or "properties" not in shape:
            continue
        lines += [f"### {name}", "", shape.get("description", ""), "", "| key | value | |", "|---|---|---|"]
        rows = shape["properties"].items()
        lines += [f"| `{key}` | {_kind(one)} | {one.get('description', '')} |" for key, one in rows]
        lines.append("")
    return lines


WORDS = {"string": "text", "boolean": "true, false", "integer": "whole number", "number": "number", "null": "null"}


def _kind(shape: dict[str, Any]) -> str:
    """Return the words for a value."""
    match shape:
        case {"$ref": ref}:
            name = ref.removeprefix(PREFIX)
            words = f"[{name}](#{name.lower()})" if name != "Phase" else "a phase of its life"
        case {"anyOf": parts}:
            words = " or ".join(_kind(one) for one in parts)
        case {"enum": values}:
            words = ", ".join(f"`{_json(one)}`" for one in values)
        case {"const": value}:
            words = f"`{_json(value)}`"
        case {"type": "array", "items": items}:
            words = f"list of {_kind(items)}"
        case {"type": "object", "additionalProperties": dict(inner)}:
            words = f"{_kind(inner)} by name"
        case _:
            words = WORDS.get(shape.get("type", ""), "keys and values") + _bounds(shape)
    return words


def _bounds(shape: dict[str, Any]) -> str:
    least, most = shape.get("minimum", shape.get("exclusiveMinimum")), shape.get("maximum")
    if least is None:
        return ""
    return f" {'above' if 'exclusiveMinimum' in shape else 'from'} {_json(least)}" + (
        f" to {_json(most)}" if most else ""
    )


def _default(shape: dict[str, Any]) -> str:
    return "now" if shape["default"] == shape.get("maximum") else _json(shape["default"])


def _json(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def _records(policy: Policy, room: str) -> Records:
    return Records(Depot(lambda: policy, Path(room)))


if __name__ == "__main__":
    DOC.write_text(page())
