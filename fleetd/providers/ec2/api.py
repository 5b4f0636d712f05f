"""The way to AWS: boto3 in threads of the pool's own, each call under a time-out, every fault as one line.

Promises: what may be sent twice is repeated by the SDK (adaptive: it slows down where AWS asks for it, with jitter);
what starts instances is sent once a call, for the SDK would repeat it behind our back. Every request that leaves is
counted. Lists are read to their last page. A call that is cancelled ends in its thread, within its time-outs.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import boto3
from botocore import exceptions as faults
from botocore.config import Config

from fleetd.core.model import Seconds
from fleetd.errors import ProviderError
from fleetd.providers.ec2.faults import AwsError, DeniedError, fault
from fleetd.providers.ec2.options import Ec2Options

Json = dict[str, Any]
CALL_S: Final = 10.0
CONNECT_S: Final = 2.0
READ_S: Final = 8.0  # a page of a thousand instances takes seconds
LAUNCH_READ_S: Final = 12.0  # CreateFleet answers when its instances are there
AT_ONCE: Final = 8
PAGE: Final = 1000
_PRICES_IN: Final = "us-east-1"  # where the Price List answers
_USUAL: Final = Config(
    connect_timeout=CONNECT_S,
    read_timeout=READ_S,
    retries={"mode": "adaptive", "total_max_attempts": 3},
    max_pool_connections=AT_ONCE,
)
_ONCE: Final = Config(
    connect_timeout=CONNECT_S,
    read_timeout=LAUNCH_READ_S,
    retries={"mode": "standard", "total_max_attempts": 1},
    max_pool_connections=AT_ONCE,
)
_LOGIN: Final = (
    faults.NoCredentialsError,
    faults.PartialCredentialsError,
    faults.CredentialRetrievalError,
    faults.TokenRetrievalError,
    faults.UnauthorizedSSOTokenError,
    faults.SSOTokenLoadError,
)


class Api:
    """The clients of one pool, made at their first use."""

    def __init__(self, pool: str, options: Ec2Options) -> None:
        """Nothing is read or sent yet."""
        self.place = f"pool {pool}"
        self._options = options
        self._threads: ThreadPoolExecutor | None = None
        self._clients: dict[str, Any] = {}
        self._making = asyncio.Lock()
        self.requests: Counter[str] = Counter()  # by operation, the SDK's repetitions included

    def open(self) -> None:
        """Have threads; nothing is sent."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fleetd-ec2")

    def close(self) -> None:
        """Let go; what is under way ends by itself. Safe twice."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    async def call(self, operation: str, *, service: str = "ec2", limit_s: Seconds = CALL_S, **given: Any) -> Json:
        """Ask for one thing."""
        client = await self._client(service)
        answer: Json = await self._in_thread(operation, partial(getattr(client, operation), **given), limit_s)
        return answer

    async def once(self, operation: str, given: Json, *, service: str = "ec2") -> Json:
        """Ask for what may not be done twice: it is sent once, whatever comes of it."""
        client = await self._client(service, _ONCE)
        asking = partial(getattr(client, operation), **given)
        answer: Json = await self._in_thread(operation, asking, LAUNCH_READ_S + CONNECT_S)
        return answer

    async def pages(
        self, operation: str, key: str, *, service: str = "ec2", limit_s: Seconds = CALL_S, **given: Any
    ) -> Sequence[Json]:
        """Read a list to its last page."""
        client = await self._client(service)
        pager = client.get_paginator(operation).paginate(**given)
        work = partial(_every, pager, key)
        found: Sequence[Json] = await self._in_thread(operation, work, limit_s)
        return found

    async def _in_thread(self, operation: str, work: Callable[[], Any], limit_s: Seconds) -> Any:
        if self._threads is None:
            raise ProviderError(f"{self.place}: is not open")
        what = operation.replace("_", " ").title().replace(" ", "")
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except faults.ClientError as error:
            said = error.response.get("Error", {})
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
            raise fault(self.place, what, said.get("Code", "?"), said.get("Message", ""), status) from None
        except faults.ParamValidationError as error:
            raise DeniedError(f"{self.place}: {what}: {_line(error)}", "ParamValidation") from None
        except _LOGIN as error:
            raise AwsError(f"{self.place}: no AWS credentials: {_line(error)}; see docs/ec2.md", "NoLogin") from None
        except (faults.BotoCoreError, OSError) as error:
            raise AwsError(
                f"{self.place}: {what}: no answer: {_line(error)}", type(error).__name__, again=True
            ) from None
        except TimeoutError:
            raise AwsError(f"{self.place}: {what}: no answer within {limit_s:.0f} s", "TimedOut", again=True) from None

    async def _client(self, service: str, config: Config = _USUAL) -> Any:
        name = f"{service} once" if config is _ONCE else service
        if name not in self._clients:
            async with self._making:  # a session is not safe in two threads
                if name not in self._clients:
                    self._clients[name] = await self._in_thread(service, partial(self._make, service, config), CALL_S)
        return self._clients[name]

    def _make(self, service: str, config: Config) -> Any:
        options = self._options
        region = _PRICES_IN if service == "pricing" else options.region
        try:
            session = boto3.Session(profile_name=options.profile, region_name=region)
            client = session.client(service, endpoint_url=options.endpoint, config=config)
        except faults.ProfileNotFound as error:
            raise DeniedError(f"{self.place}: {_line(error)}; change `profile:`", "ProfileNotFound") from None
        client.meta.events.register("before-send", self._count)
        return client

    def _count(self, event_name: str, **_: Any) -> None:
        self.requests[event_name.rpartition(".")[2]] += 1


def _every(pages: Iterable[Json], key: str) -> Sequence[Json]:
    return [one for page in pages for one in page.get(key, ())]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
