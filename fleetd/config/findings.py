"""What is wrong with a policy: collected with its place, shown as `file:line:column: path: what is wrong`.

Promises: every finding is one printable line; findings come out in the order of the file; a path has at most one
finding, the first; a value that was given to `hide` appears in none.
"""

import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from fleetd.errors import PolicyError

Path = tuple[str | int, ...]


class Place(NamedTuple):
    """Line and column, both counted from 1."""

    line: int
    column: int


TOP = Place(1, 1)


@dataclass(slots=True)
class Findings:
    """The findings of one file so far."""

    file_name: str
    _found: dict[tuple[Path, Place], str] = field(default_factory=dict)
    _paths: set[Path] = field(default_factory=set)
    _hidden: set[str] = field(default_factory=set)

    def add(self, place: Place, path: Path, text: str) -> None:
        """Note what is wrong at a place; a path keeps its first finding there."""
        self._found.setdefault((path, place), text)
        self._paths.add(path)

    def hide(self, secret: str) -> None:
        """Keep this text out of every line, whatever an adapter's error says."""
        if secret:
            self._hidden.add(secret)

    def has(self, path: Path) -> bool:
        """Whether something is wrong at exactly this path."""
        return path in self._paths

    def has_below(self, path: Path) -> bool:
        """Whether something is wrong below this path."""
        return any(len(known) > len(path) and known[: len(path)] == path for known in self._paths)

    def __bool__(self) -> bool:
        return bool(self._found)

    def lines(self) -> tuple[str, ...]:
        """Return every finding as a line, in the order of the file."""
        ordered = sorted((place, show(path), text) for (path, place), text in self._found.items())
        return tuple(self._line(place, path, text) for place, path, text in ordered)

    def check(self) -> None:
        """Raise PolicyError if anything was found."""
        if self._found:
            raise PolicyError(self.lines())

    def _line(self, place: Place, path: str, text: str) -> str:
        for secret in sorted(self._hidden, key=len, reverse=True):
            text = text.replace(secret, "[hidden]")
        where = f"{printable(self.file_name)}:{place.line}:{place.column}: "
        return where + (f"{path}: " if path else "") + printable(text)


def show(path: Path) -> str:
    """Write a path as `pools.local.apps[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = cut(printable(part)) if re.fullmatch(r"[^.\[\]:]+", part) else quoted(part)
            text += f".{name}" if text else name
    return text


def quoted(value: object) -> str:
    """Show a value in quotes, short and printable."""
    return cut(repr(value))


def cut(text: str, limit: int = 60) -> str:
    """Shorten a text that is too long for a line."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def printable(text: str) -> str:
    """Write what a terminal must not see (line ends, escapes, broken characters) as escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def suggestion(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a misspelt one most likely means."""
    by_folded = {one.casefold(): one for one in known}
    if len(name) > 64:  # comparing costs the square of the length
        return None
    near = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[near[0]] if near else None


def did_you_mean(name: str, known: Collection[str], otherwise: str = "") -> str:
    """Return "; did you mean 'X'?" for a misspelt name, or else "; OTHERWISE: all known names"."""
    near = suggestion(name, known)
    if near is not None:
        return f"; did you mean '{near}'?"
    return f"; {otherwise}: {cut(', '.join(sorted(known)), 100)}" if otherwise and known else ""
