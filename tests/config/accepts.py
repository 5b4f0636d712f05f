"""As much of JSON Schema 2020-12 as the policy's schema uses. A keyword that is not known here is an error."""

import re
from collections.abc import Callable
from typing import Any, Final

Schema = dict[str, Any]

ANNOTATIONS: Final = {"$schema", "$defs", "description", "default", "examples", "format"}
TYPES: Final[dict[str, Any]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


def accepts(schema: Schema, value: Any, root: Schema | None = None) -> bool:
    """Whether a value is valid."""
    at = schema if root is None else root
    keywords = {key: wanted for key, wanted in schema.items() if key not in ANNOTATIONS}
    return all(bool(RULES[key](wanted, value, schema, at)) for key, wanted in keywords.items())


def _is(value: Any, name: str) -> bool:
    return name == "boolean" if isinstance(value, bool) else isinstance(value, TYPES[name])


def _further(value: Any, schema: Schema) -> list[Any]:
    return [item for name, item in value.items() if name not in schema.get("properties", {})]


Rule = Callable[[Any, Any, Schema, Schema], Any]  # what the keyword wants, the value, the schema around it, the root


def _of(kind: str, rule: Rule) -> Rule:
    """Make a rule that says nothing about values of another type."""
    return lambda wanted, value, schema, root: not _is(value, kind) or rule(wanted, value, schema, root)


RULES: Final[dict[str, Rule]] = {
    "$ref": lambda w, v, _, root: accepts(root["$defs"][w.removeprefix("#/$defs/")], v, root),
    "anyOf": lambda w, v, _, root: any(accepts(form, v, root) for form in w),
    "oneOf": lambda w, v, _, root: sum(accepts(form, v, root) for form in w) == 1,
    "type": lambda w, v, *_: _is(v, w),
    "const": lambda w, v, *_: v == w,
    "enum": lambda w, v, *_: v in w,
    "properties": _of("object", lambda w, v, _, root: all(accepts(w[k], v[k], root) for k in v if k in w)),
    "additionalProperties": _of(
        "object",
        lambda w, v, s, root: all(w is not False and accepts(w, item, root) for item in _further(v, s)),
    ),
    "propertyNames": _of("object", lambda w, v, _, root: all(accepts(w, name, root) for name in v)),
    "required": _of("object", lambda w, v, *_: set(w) <= set(v)),
    "minProperties": _of("object", lambda w, v, *_: len(v) >= w),
    "maxProperties": _of("object", lambda w, v, *_: len(v) <= w),
    "items": _of("array", lambda w, v, _, root: all(accepts(w, item, root) for item in v)),
    "minItems": _of("array", lambda w, v, *_: len(v) >= w),
    "maxItems": _of("array", lambda w, v, *_: len(v) <= w),
    "pattern": _of("string", lambda w, v, *_: re.search(w, v)),
    "minLength": _of("string", lambda w, v, *_: len(v) >= w),
    "maxLength": _of("string", lambda w, v, *_: len(v) <= w),
    "minimum": _of("number", lambda w, v, *_: v >= w),
    "maximum": _of("number", lambda w, v, *_: v <= w),
    "exclusiveMinimum": _of("number", lambda w, v, *_: v > w),
}
