"""YAML text to a tree in which every value knows its place.

Promises: whatever the text, the outcome is a tree, findings, or both; never another exception, never more than
`MAX_VALUES` values or `MAX_DEPTH` levels, aliases counted as often as they are used. Constructs no objects: tags are
refused. Scalars are read as YAML 1.2 reads them, so `no`, `on`, `12:30` and `2026-11-24` are text; what the versions
of YAML read differently (`010`, `1_000`) is refused rather than guessed.

Works on the parser's events: composing would recurse through nested input before any limit could act.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from fleetd.config.findings import TOP, Findings, Path, Place, quoted

MAX_DEPTH: Final = 24
MAX_VALUES: Final = 20_000

Scalar = str | int | float | bool | None

_BOOLS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_INT: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_ENDLESS: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_AMBIGUOUS: Final = re.compile(r"[-+]?(?:0[0-9_]+|0[xob][0-9a-fA-F_]+|[0-9][0-9_]*_[0-9_]*)")
_UNFIT: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_MAX_DIGITS: Final = 15  # more than a float holds exactly, and no policy counts that far


@dataclass(frozen=True, slots=True)
class Tree:
    """A value and where it stands; `key` is where the key stands that leads to it. `broken`: already a finding."""

    place: Place
    value: "Scalar | Mapping[str, Tree] | tuple[Tree, ...]" = None
    key: Place = TOP
    raw: str = ""  # a scalar as written
    plain: bool = False  # a scalar without quotes
    size: int = 1
    broken: bool = False

    @property
    def items(self) -> "Mapping[str, Tree]":
        """The keys and values of a mapping; nothing for anything else."""
        return self.value if isinstance(self.value, Mapping) else {}

    def at(self, path: Path) -> "Tree | None":
        """Return what stands at a path."""
        found: Tree | None = self
        for part in path:
            if found is None:
                return None
            if isinstance(part, str):
                found = found.items.get(part)
            else:
                found = found.value[part] if isinstance(found.value, tuple) and part < len(found.value) else None
        return found

    def nearest(self, path: Path) -> "Tree":
        """Return what stands at the deepest part of a path that exists."""
        while (found := self.at(path)) is None:
            path = path[:-1]
        return found


class _StopError(Exception):
    """The rest of the text cannot be read."""

    def __init__(self, place: Place, text: str) -> None:
        super().__init__(text)
        self.place = place


def parse(text: str, findings: Findings) -> Tree | None:
    """Read one YAML document; None where it could not be read to its end."""
    try:
        return _document(_Events(_events(text), findings))
    except _StopError as stop:
        findings.add(stop.place, (), str(stop))
    return None


def _events(text: str) -> Iterator[Event]:
    """Yield the parser's events; everything it raises ends as a _StopError."""
    last = TOP
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            last = _place(event)
            yield event
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1
        raise _StopError(Place(line, column), f"the character {quoted(chr(error.character))} may not be here") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else last
        raise _StopError(place, _reworded(error)) from None
    except (ValueError, OverflowError):  # the scanner turns digits of escapes and directives into numbers unchecked
        raise _StopError(last, "is not YAML: a character or version number out of range near here") from None


def _reworded(error: yaml.MarkedYAMLError) -> str:
    problem = " ".join(str(error.problem or error.context or "it cannot be read").split())
    if r"'\t'" in problem:
        return "is not YAML: a tab stands here; indent with spaces"
    context = f" {error.context}" if error.context and error.problem else ""
    return f"is not YAML: {problem}{context}"


@dataclass(slots=True)
class _Events:
    """The events still to come and what was anchored so far."""

    stream: Iterator[Event]
    findings: Findings
    anchors: dict[str, Tree] = field(default_factory=dict)
    count: int = 0

    def next(self) -> Event:
        return next(self.stream)

    def count_in(self, values: int, place: Place) -> None:
        self.count += values
        if self.count > MAX_VALUES:
            raise _StopError(place, f"more than {MAX_VALUES} values, aliases included")


def _document(events: _Events) -> Tree | None:
    events.next()
    if isinstance(events.next(), StreamEndEvent):
        raise _StopError(TOP, "the file is empty; `fleetd init` writes a first policy")
    tree = _node(events, events.next(), ())
    events.next()
    if isinstance(after := events.next(), DocumentStartEvent):
        raise _StopError(_place(after), "a second document begins here; a policy is one")
    if not tree.broken and not isinstance(tree.value, Mapping):
        raise _StopError(tree.place, "expected keys and values, as in 'version: 1'")
    return tree


def _node(events: _Events, event: Event, path: Path) -> Tree:
    if len(path) > MAX_DEPTH:
        raise _StopError(_place(event), f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(event, AliasEvent):
        if event.anchor not in events.anchors:
            raise _StopError(_place(event), f"the alias *{event.anchor} has no anchor that ends before it")
        events.count_in(events.anchors[event.anchor].size, _place(event))
        return events.anchors[event.anchor]
    events.count_in(1, _place(event))
    match event:
        case MappingStartEvent():
            tree = _mapping(events, event, path)
        case SequenceStartEvent():
            tree = _sequence(events, event, path)
        case ScalarEvent():
            tree = _scalar(event, path, events.findings)
        case _:
            raise _StopError(_place(event), "is not YAML: a value is missing")
    if event.tag is not None:
        events.findings.add(tree.place, path, f"the tag {quoted(event.tag)} means nothing here; leave it out")
        tree = replace(tree, broken=True)
    if event.anchor is not None:
        events.anchors[event.anchor] = tree
    return tree


def _mapping(events: _Events, event: Event, path: Path) -> Tree:
    items: dict[str, Tree] = {}
    while not isinstance(head := events.next(), MappingEndEvent):
        key = _key(events, head, path)
        value = _node(events, events.next(), (*path, key or "?"))
        if key is None:
            continue
        if key in items:
            first = items[key].key
            text = f"is given twice; the first is in line {first.line}, column {first.column}"
            events.findings.add(_place(head), (*path, key), text)
            continue
        items[key] = replace(value, key=_place(head))
    place = _place(event)
    return Tree(place, items, place, size=1 + sum(item.size for item in items.values()))


def _key(events: _Events, head: Event, path: Path) -> str | None:
    """Read a key; None, with a finding, for what is no text."""
    if not isinstance(head, ScalarEvent):
        _node(events, head, (*path, "?"))
        events.findings.add(_place(head), path, "a key must be text, not a list, an alias or a mapping")
        return None
    key = _scalar(head, path, events.findings)
    if key.broken:
        return None
    if isinstance(key.value, str):
        return key.value
    text = f"a key must be text; put it in quotes: {quoted(key.raw)}" if key.raw else "a key is missing before the ':'"
    events.findings.add(key.place, path, text)
    return None


def _sequence(events: _Events, event: Event, path: Path) -> Tree:
    values: list[Tree] = []
    while not isinstance(head := events.next(), SequenceEndEvent):
        values.append(_node(events, head, (*path, len(values))))
    place = _place(event)
    return Tree(place, tuple(values), place, size=1 + sum(value.size for value in values))


def _scalar(event: ScalarEvent, path: Path, findings: Findings) -> Tree:
    place, raw, plain = _place(event), event.value, event.style is None
    fault = "holds a control character" if _UNFIT.search(raw) else _fault(raw) if plain else None
    if fault:
        findings.add(place, path, fault)
        return Tree(place, None, place, raw, plain, broken=True)
    return Tree(place, _resolved(raw) if plain else raw, place, raw, plain)


def _fault(raw: str) -> str | None:
    """Return what is wrong with a plain scalar that looks like a number."""
    if _AMBIGUOUS.fullmatch(raw):
        return f"{quoted(raw)} is read in several ways; write a plain decimal number, or put text in quotes"
    if _ENDLESS.fullmatch(raw):
        return f"{quoted(raw)} is no number that can be counted with"
    if _FLOAT.fullmatch(raw) and (sum(map(str.isdigit, raw)) > _MAX_DIGITS or abs(float(raw)) > 10**_MAX_DIGITS):
        return f"{quoted(raw)} is too large or too exact a number"
    return None


def _resolved(raw: str) -> Scalar:
    if raw in _NULLS:
        return None
    if raw in _BOOLS:
        return _BOOLS[raw]
    if _INT.fullmatch(raw):
        return int(raw)
    return float(raw) if _FLOAT.fullmatch(raw) else raw


def _place(event: Event) -> Place:
    assert event.start_mark is not None, "a parser marks every event"
    return Place(event.start_mark.line + 1, event.start_mark.column + 1)
