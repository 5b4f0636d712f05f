"""What a job is to its author: the decorators `@job` and `@health`, the `Context` of one run, and `Retry`.

Promises: decorating a function leaves it as it was, callable and importable; every mistake in a declaration is a
`UsageError` at import, naming the function. Nothing here touches a socket: a `Context` speaks through what it is given.
"""

import inspect
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, overload

from fleetd.blobs.file import File
from fleetd.codecs.gearman import Kind
from fleetd.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])
Send = Callable[[Kind, tuple[bytes, ...]], None]
MARK: Final = "__fleetd_job__"


class Retry(Exception):  # noqa: N818 - it is an order, and reads as one: `raise Retry("the disk is full")`
    """Raised by a job that wants to be run again: it costs one attempt, and the job goes back to the dispatcher."""


class Cancelled(Exception):  # noqa: N818 - likewise: `if ctx.cancelled: raise Cancelled`
    """Raised by a job whose client wants it no more: it ends without a result, and without a fault."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job function as declared. `None`: the worker's own setting holds."""

    name: str
    call: Callable[..., Any]
    is_async: bool
    wants_context: bool
    timeout_s: float | None = None
    attempts: int | None = None
    wants_file: bool = False


class Parcel(Protocol):
    """What a context knows of its job's files."""

    def folder(self) -> Path:
        """Return a folder that is removed when the job ends."""

    def cancelled(self) -> bool:
        """Whether the client wants it no more."""


class Context:
    """One run of one job, as its function sees it. Silent once the job has ended."""

    __slots__ = ("_deadline", "_parcel", "_send", "function", "handle", "unique")

    def __init__(self, function: str, handle: str, unique: str, send: Send, deadline: float | None) -> None:
        self.function = function
        self.handle = handle
        self.unique = unique
        self._send: Send | None = send
        self._parcel: Parcel | None = None
        self._deadline = deadline

    @property
    def remaining_s(self) -> float | None:
        """Seconds left of the job's limit, never below 0; None without a limit."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @property
    def folder(self) -> Path:
        """A folder of the job's own on this node, removed when it has ended; made when it is asked for."""
        if self._parcel is None:
            raise RuntimeError("the job has ended, or was called by hand: it has no folder")
        return self._parcel.folder()

    @property
    def cancelled(self) -> bool:
        """Whether the client asked that the job be ended; asks the store once a second at most.

        Always False for a job whose end is not kept (docs/files.md).
        """
        return self._parcel is not None and self._parcel.cancelled()

    def lend(self, parcel: Parcel) -> None:
        """Called by the worker: what `folder` and `cancelled` ask."""
        self._parcel = parcel

    def progress(self, done: int, total: int) -> None:
        """Tell the client how far the job is."""
        self._say(Kind.WORK_STATUS, b"%d" % done, b"%d" % total)

    def data(self, chunk: bytes) -> None:
        """Send the client a part of the result ahead of its end."""
        self._say(Kind.WORK_DATA, _bytes(chunk, "data"))

    def warning(self, text: bytes) -> None:
        """Send the client a warning."""
        self._say(Kind.WORK_WARNING, _bytes(text, "warning"))

    def end(self) -> None:
        """Called by the worker: nothing more may be sent, whoever still holds this."""
        self._send = self._parcel = None

    def _say(self, kind: Kind, *args: bytes) -> None:
        if self._send is not None:
            self._send(kind, args)


def _bytes(value: bytes, what: str) -> bytes:
    if not isinstance(value, (bytes, bytearray)):
        raise TypeError(f"Context.{what} takes bytes, not {type(value).__name__}")
    return bytes(value)


_declared: dict[str, Job] = {}


def declared() -> tuple[Job, ...]:
    """Return every job declared with `@job` in this process, by name."""
    return tuple(_declared[name] for name in sorted(_declared))


@overload
def job(function: Function, /) -> Function: ...


@overload
def job(
    name: str | None = None, /, *, timeout_s: float | None = None, attempts: int | None = None
) -> Callable[[Function], Function]: ...


def job(
    name: Callable[..., Any] | str | None = None,
    /,
    *,
    timeout_s: float | None = None,
    attempts: int | None = None,
) -> Any:
    """Declare a function as a job: `@job`, or `@job("resize", timeout_s=120, attempts=3)`.

    The function takes the payload (bytes; a `File` where it is annotated as one) and, where it has a second parameter,
    a `Context`; it returns bytes, str, None, or the Path of a file. It may be `async def`.
    """
    if callable(name):
        return _declare(name, None, None, None)
    return lambda function: _declare(function, name, timeout_s, attempts)


def _declare(function: Function, name: str | None, timeout_s: float | None, attempts: int | None) -> Function:
    made = make_job(name or str(getattr(function, "__name__", "")), function, timeout_s, attempts)
    other = _declared.get(made.name)
    if other is not None and _place(other.call) != _place(function):
        raise UsageError(f"job {made.name!r} is declared twice: {_place(other.call)} and {_place(function)}")
    _declared[made.name] = made
    setattr(function, MARK, made)
    return function


def make_job(
    name: str, function: Callable[..., Any], timeout_s: float | None = None, attempts: int | None = None
) -> Job:
    """Check a declaration; raises UsageError."""
    if not name or not name.isprintable() or any(character.isspace() for character in name):
        raise UsageError(f"job {name!r} ({_place(function)}): a name is printable and holds no spaces")
    if timeout_s is not None and not timeout_s > 0:
        raise UsageError(f"job {name!r}: timeout_s must be above 0, not {timeout_s}")
    if attempts is not None and attempts < 1:
        raise UsageError(f"job {name!r}: attempts must be 1 or more, not {attempts}")
    wants_context = _wants_context(name, function)
    is_async = inspect.iscoroutinefunction(function)
    return Job(name, function, is_async, wants_context, timeout_s, attempts, _wants_file(function))


def _wants_file(function: Callable[..., Any]) -> bool:
    """Whether the payload's parameter is annotated as a File."""
    try:
        first = next(iter(inspect.signature(function).parameters.values()), None)
    except (TypeError, ValueError):
        return False
    if first is None:
        return False
    told = first.annotation
    return told is File or (isinstance(told, str) and told.rpartition(".")[2] == File.__name__)


def _wants_context(name: str, function: Callable[..., Any]) -> bool:
    """Whether the function has room for a second argument; one that cannot take the payload is refused."""
    if not callable(function):
        raise UsageError(f"job {name!r}: {function!r:.80} is not a function")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins do not tell
        return False
    needed, room = _positional(parameters)
    if room < 1 or needed > 2:
        raise UsageError(f"job {name!r} ({_place(function)}): it must take the payload and, optionally, a Context")
    return room >= 2


def _positional(parameters: Iterable[inspect.Parameter]) -> tuple[int, int]:
    """Return how many arguments a call must give and how many it may give, by position."""
    needed = room = 0
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            room = 2
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            room += 1
            needed += parameter.default is parameter.empty
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            needed = 3  # no call of ours could satisfy it
    return needed, room


_health: list[Callable[[], Any]] = []


def health(function: Function) -> Function:
    """Declare the app's health check: it takes nothing, and raises where this version must not take jobs.

    It runs once after the import, in a process of its own. There is one for each app.
    """
    other = next(iter(_health), None)
    if other is not None and _place(other) != _place(function):
        raise UsageError(f"@health is declared twice: {_place(other)} and {_place(function)}")
    needed, _ = _positional(inspect.signature(function).parameters.values())
    if needed or inspect.iscoroutinefunction(function):
        raise UsageError(f"@health ({_place(function)}): it must be a plain function that takes nothing")
    _health[:] = [function]
    return function


def declared_health() -> Callable[[], Any] | None:
    """Return the function declared with `@health` in this process, if there is one."""
    return next(iter(_health), None)


def _place(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
