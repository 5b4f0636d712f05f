"""Queue depth by PromQL: for every queue an expression, evaluated by a Prometheus or what speaks its HTTP API.

Promises: a number is believed only where the answer holds exactly one, finite and not negative, from samples no older
than `max_age`; nothing found is never zero, unless the policy says so with `empty: zero`, and stale samples are not
even then; whatever else comes (an error, a redirect, another page, too much, too late) is a SourceError in one line.
May not: use a clock of its own (ages are by the server's), follow redirects, show the token.

An expression's result carries the time of its evaluation, not that of its samples. So the server is told not to take
older ones (`lookback_delta`, since Prometheus 2.43), and asked for the `timestamp` of the result, which is the sample's
own where the expression is a series as it was scraped. An older server's sum over old samples looks new.
"""

import asyncio
import json
import ssl
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from math import ceil
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator

from fleetd.core.model import Reading, Seconds
from fleetd.core.ports import Nudge
from fleetd.core.units import MAX_NUMBER, seconds
from fleetd.errors import SourceError, UsageError

MAX_BODY: Final = 256 * 1024
CONNECTIONS: Final = 4
Duration = Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | str)]


class PrometheusOptions(BaseModel):
    """What stands under `prometheus:` in the policy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(description="the server, as http://HOST:9090, with a path if /api/v1 is not at the top")
    running: dict[str, str] = Field(
        default_factory=dict, description="by queue, the expression for its running jobs; without one they count 0"
    )
    bearer: SecretStr | None = Field(default=None, description="the token to show, where the server wants one")
    timeout: Duration = Field(
        default=2.0, gt=0, le=60, allow_inf_nan=False, description="how long all answers together may take"
    )
    max_age: Duration = Field(
        default=60.0, ge=1, allow_inf_nan=False, description="older samples tell nothing; at least the scrape interval"
    )
    empty: Literal["error", "zero"] = Field(
        default="error", description="what it means when an expression finds nothing: a failure, or no jobs"
    )

    @field_validator("url")
    @classmethod
    def _an_address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise ValueError("expected http://HOST:PORT or https://HOST") from None
        if parts.password is not None or parts.username is not None:
            raise ValueError("a password is never written into the policy; give bearer: {env: NAME}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("expected http://HOST:PORT or https://HOST, and nothing after it but a path")
        return url.rstrip("/")


class PrometheusSource:
    """A Source, as `core.ports` describes it; `queues` is the expression for waiting jobs by queue name."""

    Options: ClassVar[type[PrometheusOptions]] = PrometheusOptions

    def __init__(self, name: str, options: PrometheusOptions, queues: Mapping[str, str]) -> None:
        for queue in options.running:
            if queue not in queues:
                raise UsageError(f"source {name}: running: no queue of this source is called {queue!r}")
        self._place = f"source {name}: prometheus {options.url}"
        self._options, self._queues = options, dict(queues)
        self._client: httpx.AsyncClient | None = None

    async def open(self, nudge: Nudge) -> None:
        """Do nothing: the first reading connects, and the server tells nothing unasked."""

    async def read(self) -> Sequence[Reading]:
        """Return a Reading for every queue."""
        running = self._options.running
        try:
            async with asyncio.timeout(self._options.timeout), asyncio.TaskGroup() as group:
                waits = [group.create_task(self._count(queue, text)) for queue, text in self._queues.items()]
                runs = {queue: group.create_task(self._count(queue, text)) for queue, text in running.items()}
        except TimeoutError:
            raise SourceError(f"{self._place}: no answer within {self._options.timeout:g} s") from None
        except ExceptionGroup as errors:
            matching, others = errors.split(SourceError)
            if others or not matching:
                raise
            raise _first(matching) from None
        readings = []
        for queue, wait in zip(self._queues, waits, strict=True):
            waiting, partial = wait.result()
            busy, more = runs[queue].result() if queue in runs else (0, ())
            readings.append(Reading(queue, waiting, busy, partial=tuple(dict.fromkeys(partial + more))))
        return readings

    async def close(self) -> None:
        """Drop every connection; safe twice."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _count(self, queue: str, expression: str) -> tuple[int, tuple[str, ...]]:
        """Return the value of an expression as a number of jobs, and what the server could not take into it."""
        place, fresh_s = f"{self._place}: queue {queue}: {expression!r}", self._options.max_age
        fresh = {"lookback_delta": f"{fresh_s:g}s"}
        answer = await self._ask(place, expression, fresh)
        samples = _samples(place, answer)
        if not samples:
            if self._options.empty == "error":
                raise SourceError(f"{place}: finds nothing of the last {fresh_s:g} s; see `empty`")
            if not _samples(place, await self._ask(place, expression, {})):
                return 0, answer.partial
            answer = await self._ask(place, expression, fresh)  # it may have come just now
            samples = _samples(place, answer)
            if not samples:
                raise SourceError(f"{place}: finds only samples older than {fresh_s:g} s")
        if len(samples) > 1:
            raise SourceError(f"{place}: gives {len(samples)} series, which one? Write sum(…) around it")
        at, value = _sample(place, samples[0])
        if not 0 <= value <= MAX_NUMBER:  # false for NaN, too
            raise SourceError(f"{place}: is {value:g}, which is no number of jobs")
        ages = [abs(answer.now_s - at)]
        if answer.kind == "vector":  # of a series as it was scraped this tells the time of the sample itself
            told = await self._ask(place, f"time() - timestamp(\n{expression}\n)", {})
            ages += [_sample(place, age)[1] for age in _samples(place, told)]
        if not all(age <= fresh_s for age in ages):
            raise SourceError(f"{place}: is {max(ages):.0f} s old, more than {fresh_s:g} s, by the server's clock")
        return ceil(value), answer.partial

    async def _ask(self, place: str, expression: str, more: Mapping[str, str]) -> "_Answer":
        bearer, form = self._options.bearer, {"query": expression, "timeout": f"{self._options.timeout:g}s", **more}
        headers = {"Accept-Encoding": "identity"}  # what is sent is what is counted against the limit
        if bearer:
            headers["Authorization"] = f"Bearer {bearer.get_secret_value()}"
        try:
            url = f"{self._options.url}/api/v1/query"
            async with self._connected().stream("POST", url, data=form, headers=headers) as response:
                body = await _read(place, response)
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise SourceError(f"{self._place}: {why}") from None
        return _answer(place, response, body)

    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                verify=ssl.create_default_context() if self._options.url.startswith("https:") else False,
                timeout=None,  # noqa: S113 - one limit spans the whole reading
                limits=httpx.Limits(max_connections=CONNECTIONS),
                trust_env=False,  # no proxy and no .netrc of the surroundings
            )
        return self._client


class _Answer(NamedTuple):
    """What the server found, when by its own clock, and what it says is missing in it."""

    kind: str
    result: Any
    now_s: Seconds
    partial: tuple[str, ...]


async def _read(place: str, response: httpx.Response) -> bytes:
    body = b""
    async for part in response.aiter_raw():
        body += part
        if len(body) > MAX_BODY:
            raise SourceError(f"{place}: answers with more than {MAX_BODY // 1024} KiB; write sum(…) around it")
    return body


def _answer(place: str, response: httpx.Response, body: bytes) -> _Answer:
    """Check an answer's form; raises SourceError with what it is instead."""
    if response.is_redirect:
        where = response.headers.get("location", "").partition("?")[0][:100]
        raise SourceError(f"{place}: is sent on to {where!r}; give the final address as `url`")
    try:
        told = json.loads(body)
        error = f"{told['errorType']}: {told['error']}" if told["status"] != "success" else ""
    except (ValueError, TypeError, LookupError, RecursionError):
        told, error = None, ""
    if response.status_code != HTTPStatus.OK or error:
        fix = "; see `bearer`" if response.status_code in (401, 403) else ""
        raise SourceError(f"{place}: {' '.join(error.split())[:200] or f'status {response.status_code}'}{fix}")
    try:
        now_s = parsedate_to_datetime(response.headers["date"]).timestamp()
        kind, result = str(told["data"]["resultType"]), told["data"]["result"]
        warned = [" ".join(str(text).split())[:200] for text in told.get("warnings") or ()]
    except (ValueError, TypeError, LookupError, AttributeError):
        raise SourceError(f"{place}: the answer is not Prometheus's; is `url` right?") from None
    # A remark on the expression is not a part that is missing.
    partial = tuple(f"{place}: {text}" for text in warned if not text.startswith("PromQL "))
    return _Answer(kind, result, now_s, partial)


def _samples(place: str, answer: _Answer) -> list[Any]:
    match answer.kind, answer.result:
        case "scalar", [_, _]:
            return [answer.result]
        case "vector", list(series):
            return [one.get("value") if isinstance(one, dict) else None for one in series]
        case "matrix" | "string" as kind, _:
            raise SourceError(f"{place}: is a {kind}; an expression for one number is needed")
    raise SourceError(f"{place}: the answer is not Prometheus's; is `url` right?")


def _sample(place: str, sample: Any) -> tuple[Seconds, float]:
    try:
        at, value = sample
        return float(at), float(value)
    except (ValueError, TypeError, OverflowError):
        raise SourceError(f"{place}: the answer is no number") from None


def _first(errors: BaseExceptionGroup[SourceError]) -> SourceError:
    (first, *_) = errors.exceptions
    return first if isinstance(first, SourceError) else _first(first)
