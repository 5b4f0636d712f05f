"""What a call of the API is: its declaration, from which both its route and its part of the OpenAPI document are made.

Promises: a handler gets a valid value of its declared model or is not called at all; unknown parameters and keys are
refused, and so is a parameter given twice. May not know any single call.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fleetd.errors import UsageError
from fleetd.web.wire import JSON, InvalidError, MediaError, answer, read_body, suggest

# Who may call: anyone; a viewer, thus an operator too; an operator; a worker by its signature; a worker or a viewer; an
# instance by the proof in what it asks; a client of the file store, thus an operator too; such a client or a worker.
Role = Literal["anyone", "viewer", "operator", "worker", "fetcher", "instance", "client", "files"]
Admit = Callable[[Request, Role], None]
Handler = Callable[[Request], Awaitable[Response]]


class Asked(BaseModel):
    """What comes with a request: for GET in the path and the query, otherwise in the body."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


Model = TypeVar("Model", bound=Asked)


class Nothing(Asked):
    """A request that says no more than its path."""


class Told(BaseModel):
    """What an answer holds. Handlers give plain values; that they are these is for the tests to see."""


class Refusal(Told):
    """What every failure is answered with."""

    error: str
    place: str | None = None


def _digits(value: Any) -> Any:
    """Read a number as it stands in a query: digits alone, so that 1.0, 1_000 and ² are none."""
    if not isinstance(value, str):
        return value
    if not (value.isascii() and value.isdecimal() and len(value) <= 18):
        raise ValueError("must be a whole number")
    return int(value)


def _clean(value: Any) -> Any:
    if isinstance(value, str) and not value.isprintable():
        raise ValueError("must have printable characters alone")
    return value


Whole = Annotated[int, BeforeValidator(_digits)]
Name = Annotated[str, Field(min_length=1, max_length=1000), BeforeValidator(_clean)]


@dataclass(frozen=True, slots=True)
class Bytes:
    """A body or an answer that is no JSON of a model."""

    media: str
    about: str


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `do` gets the value of `asks` and returns what `answer` says; a `raw` one gets the request itself.

    `refused`: codes beyond those that every call of its kind may be answered with.
    """

    method: Literal["GET", "POST"]
    path: str
    role: Role
    do: Callable[..., Awaitable[Any]]
    answer: type[BaseModel] | Bytes
    asks: type[Asked] = Nothing
    body: Bytes | None = None
    raw: bool = False
    refused: Mapping[int, str] = field(default_factory=dict)


def routes(calls: Sequence[Call], admit: Admit) -> list[Route]:
    """Return the routes of a table: one for each path, so that a wrong method is told all that there are."""
    by_path: dict[str, dict[str, Call]] = {}
    for call in calls:
        by_path.setdefault(call.path, {})[call.method] = call
    return [Route(path, partial(_serve, same, admit), methods=list(same)) for path, same in by_path.items()]


async def _serve(calls: Mapping[str, Call], admit: Admit, request: Request) -> Response:
    call = calls["GET" if request.method == "HEAD" else request.method]
    admit(request, call.role)
    if call.raw:
        response: Response = await call.do(request)
        return response
    value = await asked(call, request)
    return answer(await call.do(value))


async def asked(call: Call, request: Request) -> Asked:
    """Return what a request says, as its call declares it; raises UsageError, MediaError and those of `read_body`."""
    if call.method == "GET":
        return query(request, call.asks)
    for key in (*request.path_params, *request.query_params):
        raise InvalidError(key, "goes into the body: this call has no parameters")
    return checked(call.asks, await _json(request))


def query(request: Request, model: type[Model]) -> Model:
    """Return what the path and the query of a raw call say, as a model; raises UsageError."""
    given: dict[str, Any] = {**request.path_params}
    for key, value in request.query_params.multi_items():
        if key in given:
            raise InvalidError(key, "is there twice")
        given[key] = value
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _worded(error, model) from None


def checked(model: type[Model], body: bytes) -> Model:
    """Return what the body of a raw call says, as a model; raises UsageError."""
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise _worded(error, model) from None


async def _json(request: Request) -> bytes:
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind != JSON:
        raise MediaError(f"body: must be {JSON}, not {kind or 'of no type'}")
    return await read_body(request)


WORDS: Final[Mapping[str, str]] = {
    "json_invalid": "must be JSON",
    "model_type": "must be a JSON object",
    "missing": "is missing",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
}


def _worded(error: ValidationError, model: type[Asked]) -> UsageError:
    """Return the first finding in plain words; a misspelt key speaks before the one that is missing because of it."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    place = ".".join(map(str, first["loc"])) or "body"
    if first["type"] == "extra_forbidden":
        known = list(model.model_fields)
        there = f"there are {', '.join(known)}" if known else "there are none"
        return InvalidError(_shown(place), f"no such key{suggest(place, known)}; {there}")
    text = WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    return InvalidError(place, text.replace("Input should", "must").replace("String should", "must"))


def _shown(name: str) -> str:
    """Return a name that came from outside so that it stays one short line."""
    return name.encode("unicode_escape").decode()[:100]
