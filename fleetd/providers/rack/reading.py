"""A YAML file against a pydantic model: the model, or every mistake as `file:line:column: path: what is wrong`.

Promises: no other exception, whatever the file holds. Every scalar is text until the model says otherwise, so that an
address such as 52:54:00:12:34:07 is no number in base 60. The policy's own reader lies above the adapters; this one is
for the files that they read by themselves.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fleetd.errors import PolicyError

MAX_BYTES: Final = 1024 * 1024
MAX_VALUES: Final = 50_000
MAX_DEPTH: Final = 12
Path_ = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(slots=True)
class _Read:
    """A file on its way: where each key and item stands, and what is wrong so far."""

    name: str
    places: dict[Path_, yaml.Mark] = field(default_factory=dict)
    problems: list[tuple[int, int, str]] = field(default_factory=list)
    values: int = 0

    def add(self, path: Path_, text: str, mark: yaml.Mark | None = None) -> None:
        """Note a mistake at the deepest part of the path that is there."""
        at = path
        while mark is None:
            mark = self.places.get(at)
            if mark is None and not at:
                break
            at = at[:-1]
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        where = ".".join(map(str, path))
        self.problems.append((line, column, f"{where}: {text}" if where else text))

    def check(self) -> None:
        """Raise every mistake so far, sorted by place."""
        if self.problems:
            raise PolicyError(tuple(f"{self.name}:{line}:{col}: {text}" for line, col, text in sorted(self.problems)))


def read_file(path: Path, model: type[ModelT], context: Mapping[str, Any]) -> ModelT:
    """Return what a file holds; raises PolicyError with every mistake in it."""
    read = _Read(str(path))
    data: Any = None
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            read.add((), f"is larger than {MAX_BYTES // 1024} KiB")
        else:
            root = yaml.compose(raw.decode(), Loader=yaml.BaseLoader)
            data = _plain(root, (), read) if root is not None else {}
    except OSError as error:
        read.add((), f"cannot be read: {error.strerror}")
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        read.add((), "is not UTF-8 text")
    except yaml.MarkedYAMLError as error:
        read.add((), f"is not YAML: {' '.join(str(error.problem).split())}", error.problem_mark)
    except (ValueError, OverflowError, RecursionError):
        read.add((), "is not YAML that can be read")
    read.check()
    try:
        return model.model_validate(data, context=dict(context))
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            loc, text = _worded(detail, model)
            read.add(loc, text)
    read.check()
    raise AssertionError("a model that is not made has a mistake")


def _plain(node: yaml.Node, path: Path_, read: _Read) -> Any:
    """Return a node as text, lists and dictionaries, noting where everything stands."""
    read.values += 1
    read.places.setdefault(path, node.start_mark)
    if len(path) > MAX_DEPTH or read.values > MAX_VALUES:
        raise ValueError("too deep or too much")
    if isinstance(node, yaml.MappingNode):
        made: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                read.add(path, "a key must be a word", key.start_mark)
                continue
            if key.value in made:
                read.add((*path, key.value), "is there twice", key.start_mark)
                continue
            read.places[*path, key.value] = key.start_mark
            made[key.value] = _plain(value, (*path, key.value), read)
        return made
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, at), read) for at, item in enumerate(node.value)]
    return node.value


_WORDS: Final = {
    "missing": "is missing",
    "model_type": "expected keys with values",
    "dict_type": "expected keys with values",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "string_type": "expected a word",
    "string_pattern_mismatch": "expected letters, digits and '-', as in a host's name",
}


def _worded(detail: Any, model: type[BaseModel]) -> tuple[Path_, str]:
    """Return where a mistake is and what it is, in plain words."""
    kind = detail["type"]
    loc: Path_ = tuple(part for part in detail["loc"] if part != "[key]")
    if kind == "extra_forbidden":
        known = sorted(_keys(model, loc[:-1]))
        close = get_close_matches(str(loc[-1]), known, 1)
        return (
            loc,
            f"unknown key; did you mean {close[0]!r}?" if close else f"unknown key; there are: {', '.join(known)}",
        )
    if kind == "value_error":
        text, *where = detail["ctx"]["error"].args  # a mistake between entries names its own place
        return (*loc, *(where[0] if where else ())), str(text)
    plain = f"{detail['msg'][:1].lower()}{detail['msg'][1:]}"
    text = f"expected {detail['ctx']['expected']}" if kind == "literal_error" else _WORDS.get(kind, plain)
    return loc, text if kind == "missing" else f"{text}, got {_shown(detail['input'])}"


def _keys(model: type[BaseModel], path: Path_) -> Iterator[str]:
    """Yield the keys that a model knows at a path."""
    schema: Any = model.model_json_schema()
    top = schema
    for part in path:
        schema = _resolved(schema, top)
        others = [schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()]
        below = schema.get("properties", {}).get(part) or next((one for one in others if isinstance(one, dict)), None)
        schema = below if isinstance(below, dict) else {}
    yield from _resolved(schema, top).get("properties", {})


def _resolved(schema: Any, top: Any) -> Any:
    """Follow references, and of alternatives take the one with keys."""
    while "$ref" in schema:
        schema = top["$defs"][schema["$ref"].rpartition("/")[2]]
    found = [_resolved(one, top) for one in schema.get("anyOf", ())]
    return next((one for one in found if "properties" in one), schema)


def _shown(value: object) -> str:
    match value:
        case str():
            return repr(value if len(value) <= 40 else f"{value[:37]}...")
        case dict():
            return "keys and values"
        case list() | tuple():
            return "a list"
        case _:
            return repr(value)[:40]
