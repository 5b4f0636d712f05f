"""Pydantic's errors in plain, short sentences, with what the file says instead of what Python made of it."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from fleetd.config.findings import cut, did_you_mean, quoted, suggestion
from fleetd.config.tree import Tree

_EXPECTED: Final[tuple[tuple[str, str], ...]] = (  # by the beginning of pydantic's error type
    ("int_", "expected a whole number"),
    ("float_", "expected a number"),
    ("finite_number", "expected a number"),
    ("string_type", "expected text"),
    ("string_sub_type", "expected text"),
    ("bool_", "expected true or false"),
    ("list_type", "expected a list, as in [one, two]"),
    ("tuple_type", "expected a list, as in [one, two]"),
    ("set_type", "expected a list, as in [one, two]"),
    ("frozen_set_type", "expected a list, as in [one, two]"),
    ("dict_", "expected keys and values, as in {key: value}"),
    ("mapping_type", "expected keys and values, as in {key: value}"),
    ("model_", "expected keys and values, as in {key: value}"),
)
_BOUNDS: Final[Mapping[str, tuple[str, str]]] = {  # error type to the words and the value of its context
    "greater_than": ("must be more than {}", "gt"),
    "greater_than_equal": ("must be at least {}", "ge"),
    "less_than": ("must be less than {}", "lt"),
    "less_than_equal": ("must be at most {}", "le"),
    "multiple_of": ("must be a multiple of {}", "multiple_of"),
}


def worded(detail: Mapping[str, Any], found: Tree | None) -> str:
    """Say what is wrong with the value `found`; None: the key is missing."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "missing" or found is None:
        return "is missing" if kind == "missing" else _own_words(detail)
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"{words.format(f'{context[key]:g}')}, got {shown(found)}"
    if kind in ("literal_error", "enum"):
        return _choice(str(context.get("expected", "")), found)
    if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
        return _length(kind, context)
    for beginning, words in _EXPECTED:
        if kind.startswith(beginning):
            return f"{words}, got {shown(found)}{_quotes(kind, found)}"
    return _own_words(detail)


def unknown_key(key: str, absent: Collection[str], known: Collection[str]) -> tuple[str, str | None]:
    """Return the sentence about an unknown key, and the absent key that it most likely means."""
    if key == "<<":
        return "merge keys are not read; write the keys out", None
    meant = suggestion(key, absent)
    if meant is not None:
        return f"unknown key; did you mean '{meant}'?", meant
    return f"unknown key{did_you_mean(key, known, 'known here')}", None


def shown(found: Tree) -> str:
    """Show a value as the file has it."""
    if isinstance(found.value, Mapping):
        return "keys and values"
    if isinstance(found.value, tuple):
        return "a list"
    if found.value is None:
        return "nothing"
    return quoted(found.raw) if isinstance(found.value, str) else cut(found.raw)


def _choice(expected: str, found: Tree) -> str:
    choices = [choice.strip("' ") for choice in expected.replace(" or ", ", ").split(",")]
    listed = choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
    hint = did_you_mean(found.raw, choices) if found.raw else ""
    return f"expected {listed}, got {shown(found)}{hint}"


def _length(kind: str, context: Mapping[str, Any]) -> str:
    unit = "characters" if kind.startswith("string") else "entries"
    if kind.endswith("long"):
        return f"has more than {context['max_length']} {unit}"
    least = context["min_length"]
    return "must not be empty" if least == 1 else f"has fewer than {least} {unit}"


def _quotes(kind: str, found: Tree) -> str:
    scalar = found.plain and isinstance(found.value, bool | int | float)
    return "; put it in quotes" if scalar and kind.startswith("string") else ""


def _own_words(detail: Mapping[str, Any]) -> str:
    """Return a validator's own sentence, in one line."""
    text = " ".join(str(detail["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ").split())
    return text or "is wrong"
