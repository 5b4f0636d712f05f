"""The tables of keys in docs/policy.md, made from the schema that editors get: `python -m tests.config.keys`.

Run it after a change to `fleetd/config/shape.py`: it writes the tables between their marks anew and leaves the prose.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fleetd.config import Adapters, schema
from fleetd.core import units

DOC: Final = Path(__file__).parents[2] / "docs" / "policy.md"
TABLE: Final = re.compile(r"(<!-- keys: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
FORMS: Final = {
    units.DURATION_PATTERN: ("duration", units.show_seconds),
    units.SHARE_PATTERN: ("share", units.show_share),
    units.SIZE_PATTERN: ("size", units.show_size),
}
WORDS: Final = {"string": "text", "integer": "whole number", "number": "amount", "boolean": "`true`, `false`"}
OWN_TABLES: Final = ("budget", "limits", "controller", "alerts", "releases")
SCHEMA: Final = schema(adapters=Adapters())


def row(path: str, node: dict[str, Any], *, needed: bool) -> str:
    word, show = form(node)
    default = "needed" if needed else f"`{show(node['default'])}`" if "default" in node else ""
    return f"| `{path}` | {word} | {default} | {node['description']} |\n"


def form(node: dict[str, Any]) -> tuple[str, Any]:
    """Return the word for a type, and how a default is written."""
    forms = node.get("anyOf", ())
    if any("env" in one.get("properties", ()) for one in forms):
        return "text or secret", str
    patterns = {one["pattern"] for one in forms if "pattern" in one}
    if patterns:
        priced = any(one.get("type") == "object" for one in forms)
        others = ("price", units.show_money_per_h) if priced else ("rate", units.show_per_minute)
        return FORMS.get(patterns.pop(), others)
    if "enum" in node:
        return ", ".join(f"`{one}`" for one in node["enum"]), str
    if node["type"] == "array":
        return f"list of {form(node['items'])[0]}", lambda items: f"[{', '.join(items)}]"
    if node["type"] == "object":
        return "secret" if "env" in node.get("properties", ()) else "whole numbers by name", str
    return WORDS[node["type"]], lambda value: str(value).lower() if isinstance(value, bool) else str(value)


def is_section(node: dict[str, Any]) -> bool:
    """Whether a key holds a table of named entries."""
    entries = node.get("additionalProperties")
    return isinstance(entries, dict) and "$ref" in entries


def rows(node: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, item in node["properties"].items():
        inner = SCHEMA["$defs"].get(item.get("$ref", "").removeprefix("#/$defs/"))
        if inner and before + key in OWN_TABLES:
            continue
        if inner and "anyOf" in inner:  # a mapping with a short form
            short = next(one for one in inner["anyOf"] if "properties" not in one)
            inner = next(one for one in inner["anyOf"] if "properties" in one)
            word = f"`{short['const']}`" if "const" in short else WORDS[short["type"]]
            default = "needed" if key in node.get("required", ()) else ""
            yield f"| `{before}{key}` | {word}, or keys | {default} | {item['description']} |\n"
        if inner:
            yield from rows(inner, f"{before}{key}.")
        elif not is_section(item):
            yield row(before + key, item, needed=key in node.get("required", ()))


def table(name: str) -> str:
    """Return the table of `Policy` itself or of a shape such as `Queue`."""
    node = SCHEMA if name == "Policy" else SCHEMA["$defs"][f"{name}Shape"]
    return "| key | value | default | meaning |\n|---|---|---|---|\n" + "".join(rows(node))


def renewed(text: str) -> str:
    """Return the doc with every table made anew."""
    return TABLE.sub(lambda found: f"{found[1]}{table(found[2])}{found[3]}", text)


if __name__ == "__main__":
    DOC.write_text(renewed(DOC.read_text()))
