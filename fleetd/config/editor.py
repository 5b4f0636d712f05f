"""The policy's JSON Schema (2020-12), for editors: completion, hover help and errors while typing.

Promises: made from the same models that `load` validates with, so that it accepts whatever `load` accepts; every key
of ours has a description. What concerns several entries at once is beyond a schema. Imports every installed adapter;
one that cannot be imported is left out.
"""

from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from fleetd.config.adapters import Adapters, Role, installed, options
from fleetd.config.scalars import NAME_PATTERN, TITLE_PATTERN
from fleetd.config.shape import LeaderShape, PolicyShape, PoolShape, SourceShape
from fleetd.errors import UsageError

_SECRET: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "env": {"type": "string", "minLength": 1, "description": "The environment variable that holds it."},
        "file": {"type": "string", "minLength": 1, "description": "The file that holds it, relative to the policy."},
    },
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
}
_MODE: Final[JsonSchemaMode] = "validation"


def schema(*, adapters: Adapters | None = None) -> dict[str, Any]:
    """Return the schema of a policy file for the adapters that are installed."""
    adapters = installed() if adapters is None else adapters
    kinds = {role: _options(adapters, role) for role in get_args(Role)}
    models: list[type[BaseModel]] = [PolicyShape, *(model for of in kinds.values() for model in of.values())]
    refs, made = models_json_schema([(model, _MODE) for model in dict.fromkeys(models)], ref_template="#/$defs/{model}")
    definitions = made["$defs"]
    for role, shape in (("source", SourceShape), ("provider", PoolShape), ("leader", LeaderShape)):
        choices = {kind: refs[model, _MODE] for kind, model in kinds[role].items()}
        _add_kinds(definitions[shape.__name__], choices, role)
    definitions["AppShape"]["oneOf"] = [{"required": [key]} for key in ("release", "exec")]
    definitions["BudgetShape"]["anyOf"] = [{"required": [key]} for key in ("hour", "month")]
    root = definitions.pop(PolicyShape.__name__)
    for name in ("sources", "apps", "queues", "pools", "schedules"):
        root["properties"][name]["propertyNames"] = {"pattern": TITLE_PATTERN if name == "schedules" else NAME_PATTERN}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_tidied(root), "$defs": _tidied(definitions)}


def _options(adapters: Adapters, role: Role) -> dict[str, type[BaseModel]]:
    """Return the options of each kind that can be imported."""
    found: dict[str, type[BaseModel]] = {}
    for kind in sorted(adapters.of(role)):
        try:
            found[kind] = options(adapters, role, kind)
        except UsageError:
            continue
    return found


def _add_kinds(definition: dict[str, Any], choices: dict[str, Any], role: str) -> None:
    for kind, ref in choices.items():
        definition["properties"][kind] = {**ref, "description": f"A {role} of the kind {kind}, and its options."}
    if choices:
        definition["oneOf"] = [{"required": [kind]} for kind in choices]


def _tidied(node: Any) -> Any:
    """Write secrets as what stands in the file; drop null, which a policy cannot say, titles, and nested defaults."""
    if isinstance(node, list):
        return [_tidied(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("format") == "password" and node.get("writeOnly"):
        return {**_SECRET, "description": node.get("description", "A secret, by reference.")}
    made = {key: _tidied(value) for key, value in node.items() if not _is_noise(key, value)}
    forms = [form for form in made.get("anyOf", []) if form != {"type": "null"}]
    if len(forms) == 1 and "required" not in forms[0]:
        return {**forms[0], **{key: value for key, value in made.items() if key != "anyOf"}}
    return {**made, "anyOf": forms} if forms else made


def _is_noise(key: str, value: Any) -> bool:
    return (key == "title" and isinstance(value, str)) or (
        key == "default" and (value is None or isinstance(value, dict))
    )
