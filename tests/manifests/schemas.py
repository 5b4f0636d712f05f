"""JSON Schemas for kubeconform from an API server's own description (/openapi/v2), so that no network is needed.

Promises: strict: a field that the server does not know is an error. Only the kinds that are asked for are written, each
with the definitions that it needs.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from tests.kubernetes.plane import Json

GVK: Final = "x-kubernetes-group-version-kind"
ANYTHING: Final = "x-kubernetes-preserve-unknown-fields"
PREFIX: Final = "#/definitions/"
# What the description calls text, and the server takes as a number too.
NUMBERS: Final = ("io.k8s.apimachinery.pkg.api.resource.Quantity", "io.k8s.apimachinery.pkg.util.intstr.IntOrString")


def write(description: Json, folder: Path, wanted: Iterable[tuple[str, str]]) -> None:
    """Write a file for each (apiVersion, kind), named as kubeconform looks for it."""
    definitions = {name: _strict(name, one) for name, one in description["definitions"].items()}
    kinds = {
        (f"{kind['group']}/{kind['version']}" if kind["group"] else kind["version"], kind["kind"]): name
        for name, one in description["definitions"].items()
        for kind in one.get(GVK, ())
    }
    folder.mkdir(parents=True, exist_ok=True)
    for version, kind in set(wanted):
        name = kinds[version, kind]
        needed = {one: definitions[one] for one in _reached(definitions, name)}
        group, _, of = version.rpartition("/")
        suffix = f"{group.split('.')[0]}-{of}" if group else of
        schema = {"$ref": PREFIX + name, "definitions": needed}
        (folder / f"{kind.lower()}-{suffix}.json").write_text(json.dumps(schema))


def _strict(name: str, node: Any) -> Any:
    if name in NUMBERS:
        return {"type": ["string", "number"]}
    if isinstance(node, list):
        return [_strict("", item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("format") == "int-or-string" or node.get("x-kubernetes-int-or-string"):
        return {"type": ["string", "integer"]}
    made = {key: _strict("", item) for key, item in node.items() if not key.startswith("x-") and key != "format"}
    # `properties` may itself be the name of a field: only a table of schemas counts.
    if isinstance(node.get("properties"), dict) and "additionalProperties" not in node and not node.get(ANYTHING):
        made["additionalProperties"] = False
    return made


def _reached(definitions: Json, start: str) -> set[str]:
    found, ahead = {start}, [start]
    while ahead:
        for name in _references(definitions[ahead.pop()]):
            if name not in found:
                found.add(name)
                ahead.append(name)
    return found


def _references(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(_references, node)) if node else set()
    if not isinstance(node, dict):
        return set()
    own = {node["$ref"].removeprefix(PREFIX)} if isinstance(node.get("$ref"), str) else set()
    return own.union(*map(_references, node.values()))
