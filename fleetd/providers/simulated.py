"""Nodes that do not exist, with workers that only lease: for tests, demonstrations and trying out a policy.

Promises: they cost nothing and are otherwise treated as real: they take their time to boot, some never come up, some
launches fail, at times there are none to be had; what is drawn by chance is the same again for the same seed. A node
that is up leases, drains and stops as an idle worker does; a controller carries some five hundred of them beside its
own work. May not: run a job, or start anything outside this process.

The truth is `simulated/POOL.json` in the state folder, replaced as a whole, so nodes outlive the controller. Their
workers live where the provider is open, in one of them at a time: whoever holds the lock on `simulated/POOL.lock`.
"""

import asyncio
import fcntl
import hashlib
import json
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from hmac import compare_digest
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, TypeVar
from urllib.parse import quote, urlencode

import httpx
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fleetd.codecs.lease import (
    ANSWER_HEADER,
    Lease,
    WorkerOrder,
    authorization,
    dump,
    load_answer,
    load_order,
    sign_answer,
    split_token,
)
from fleetd.core.model import Launched, NodeId, Offer, Order, PoolPolicy, Seconds, Sighting, Stopped, World
from fleetd.core.ports import Nudge, WorkerLaunch
from fleetd.core.units import money_per_h, seconds, share
from fleetd.errors import ExhaustedError, FleetdError, ProtocolError, ProviderError, RefusedError

BEAT_S: Final = 0.2  # how often it is looked whose lease is due
AT_ONCE: Final = 16  # requests to the controller under way
CALL_S: Final = 5.0
RETRY_S: Final = 1.0
T = TypeVar("T")


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("the first is to be at most the second")
    return value


def _share_or_none(value: object) -> float:
    return 0.0 if value in (0, "0", "0%") else share(value)


Duration = Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | str), Field(allow_inf_nan=False)]
Range = Annotated[tuple[Duration, Duration], AfterValidator(_range)]
Share = Annotated[float, BeforeValidator(_share_or_none, json_schema_input_type=float | str)]


class SimulatedOptions(BaseModel):
    """What stands under `simulated:` in a pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    boot: Range = Field(default=(5.0, 10.0), description="how long a node takes to boot: the least and the most")
    boot_failure: Share = Field(default=0.0, description="the share of nodes whose worker never speaks")
    launch_failure: Share = Field(default=0.0, description="the share of launches that fail")
    stockout: list[Range] = Field(
        default_factory=list, description="when no nodes are to be had: from and until, since the pool's first launch"
    )
    price: Annotated[float, BeforeValidator(money_per_h, json_schema_input_type=float | str)] | None = Field(
        default=None, description="the price asked now, where it is another than the pool's `price`"
    )
    seed: int = Field(default=0, ge=0, le=2**53, description="another number makes other chances")


@dataclass(frozen=True, slots=True)
class _Node:
    """A node; the rest of its life follows from its number and the seed."""

    number: int
    app: str
    key: str
    at: Seconds  # of the wall's clock, which outlives the controller


@dataclass(slots=True)
class _State:
    """A pool, as it is kept in the file."""

    since: Seconds
    made: int = 0
    launches: int = 0
    nodes: dict[NodeId, _Node] = field(default_factory=dict)


class SimulatedProvider:
    """A Provider, as `core.ports` describes it."""

    Options: ClassVar[type[SimulatedOptions]] = SimulatedOptions
    victims: ClassVar[Literal["exact", "ordinal", "advisory"]] = "exact"

    def __init__(
        self, pool: PoolPolicy, options: SimulatedOptions, launch: WorkerLaunch, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` is the wall's; tests have their own."""
        self._pool, self._options, self._launch, self._clock = pool, options, launch, clock
        self._folder = Path(launch.state_dir) / "simulated"
        self._file = self._folder / f"{pool.name}.json"
        self._workers: asyncio.Task[None] | None = None

    async def open(self, nudge: Nudge) -> None:
        """Let the workers of the nodes live; there is nothing to nudge for that a lease does not."""
        del nudge
        if self._workers is None:
            self._workers = asyncio.create_task(self._tend())

    async def close(self) -> None:
        """Fall silent; the nodes are still there for the next provider."""
        task, self._workers = self._workers, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def list(self) -> World:
        """Return every node of the file; writes nothing."""
        state = await asyncio.to_thread(self._read)
        now = self._clock()
        sightings = tuple(
            Sighting(name, "up" if now >= node.at + self._boot_s(node) else "booting", node.app, node.key)
            for name, node in state.nodes.items()
        )
        return World(sightings, Offer(0 if self._is_out(state, now) else None, self._options.price))

    async def launch(self, order: Order) -> Launched:
        """Add what is missing of the order."""
        if order.app not in self._launch.apps:
            raise RefusedError(f"pool {self._pool.name}: app {order.app}: is unknown here")
        return Launched(order.key, await asyncio.to_thread(self._change, lambda state: self._start(state, order)))

    async def stop(self, nodes: Sequence[NodeId], grace_s: Seconds, order: Order | None = None) -> Stopped:
        """Take nodes away, at once: none is ever busy."""
        del grace_s, order
        if self._file.exists():
            await asyncio.to_thread(self._change, lambda state: [state.nodes.pop(name, None) for name in nodes])
        return Stopped(tuple(nodes))

    async def logs(self, node: NodeId, last: int) -> Sequence[str]:
        """Return what there is to say of a node's life; a node that is gone left nothing."""
        found = (await asyncio.to_thread(self._read)).nodes.get(node)
        if found is None:
            raise ProviderError(f"pool {self._pool.name}: there is no {node}, and of one that is gone nothing is kept")
        boot_s, speaks = self._boot_s(found), "leases" if self._speaks(found) else "never speaks, as simulated"
        lines = [
            f"launched for {found.app} by order {found.key}",
            f"boots for {boot_s:.1f} s; then its worker {speaks}",
        ]
        return lines[-last:]

    # ── chance

    def _start(self, state: _State, order: Order) -> tuple[NodeId, ...]:
        now, place = self._clock(), f"pool {self._pool.name}"
        names = [name for name, node in state.nodes.items() if node.key == order.key]
        missing = order.count - len(names)
        if missing > 0:
            state.launches += 1
            if self._is_out(state, now):
                raise ExhaustedError(f"{place}: none are to be had now, as simulated")
            if self._chance("launch", state.launches) < self._options.launch_failure:
                raise ProviderError(f"{place}: launch {state.launches} failed, as simulated")
        for _ in range(missing):
            state.made += 1
            told = f"{self._launch.instance}/{self._pool.name}/{self._options.seed}/{state.made}"
            name = f"{self._pool.name}/{hashlib.sha256(told.encode()).hexdigest()[:12]}"
            state.nodes[name] = _Node(state.made, order.app, order.key, now)
            names.append(name)
        return tuple(names)

    def _chance(self, what: str, number: int) -> float:
        return random.Random(f"{self._options.seed}/{self._pool.name}/{what}/{number}").random()  # noqa: S311

    def _boot_s(self, node: _Node) -> Seconds:
        least, most = self._options.boot
        return least + (most - least) * self._chance("boot", node.number)

    def _speaks(self, node: _Node) -> bool:
        return self._chance("fail", node.number) >= self._options.boot_failure

    def _is_out(self, state: _State, now: Seconds) -> bool:
        return any(begin <= now - state.since < end for begin, end in self._options.stockout)

    # ── the file

    def _read(self) -> _State:
        try:
            raw = json.loads(self._file.read_bytes())
            nodes = {str(name): _Node(**node) for name, node in raw.pop("nodes").items()}
            return _State(**raw, nodes=nodes)
        except FileNotFoundError:
            return _State(self._clock())
        except OSError as error:
            raise ProviderError(f"pool {self._pool.name}: {self._file}: {error.strerror}") from None
        except (ValueError, TypeError, LookupError, AttributeError):
            raise ProviderError(
                f"pool {self._pool.name}: {self._file} cannot be read; remove it to begin anew"
            ) from None

    def _change(self, change: Callable[[_State], T]) -> T:
        """Read, change and replace the file, alone; what a failed launch counted is kept, too."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / f"{self._pool.name}.lock").touch()
            with _locked(self._folder / f"{self._pool.name}.turn"):
                state = self._read()
                try:
                    return change(state)
                finally:
                    new = self._file.with_suffix(".new")
                    new.write_text(json.dumps(asdict(state)))
                    new.replace(self._file)
        except OSError as error:
            raise ProviderError(f"pool {self._pool.name}: {self._file}: {error.strerror}") from None

    # ── the workers

    async def _tend(self) -> None:
        """Be the workers of all nodes that are up, while no other provider of this pool is. Runs for ever."""
        lock: int | None = None
        try:
            while (lock := _lock_now(self._folder / f"{self._pool.name}.lock")) is None:  # noqa: ASYNC110
                await asyncio.sleep(BEAT_S)  # whoever has it tells nobody when it goes
            url, token = self._launch.controller_url, self._launch.token(self._pool.name)
            verify = url.startswith("https:")  # only then are the authorities worth loading
            async with httpx.AsyncClient(base_url=url, timeout=CALL_S, trust_env=False, verify=verify) as client:
                crew: dict[NodeId, _Worker] = {}
                while True:
                    with suppress(ProviderError):  # `list` says so, to whom it concerns
                        await self._beat(crew, _Home(client, token))
                    await asyncio.sleep(BEAT_S)
        finally:
            if lock is not None:
                os.close(lock)

    async def _beat(self, crew: "dict[NodeId, _Worker]", home: "_Home") -> None:
        """Let everybody speak whose lease is due, and take away who was told to stop."""
        state, now = await asyncio.to_thread(self._read), self._clock()
        up = {name for name, node in state.nodes.items() if self._speaks(node) and now >= node.at + self._boot_s(node)}
        for name in crew.keys() - up:
            del crew[name]
        for name in up - crew.keys():
            node = state.nodes[name]
            fleet, pool = self._launch.fleet, self._pool
            lease = Lease(fleet, pool.name, name, secrets.token_hex(16), 0, node.app, "working", pool.slots, 0)
            crew[name] = _Worker(replace(lease, key=node.key))
        due = [worker for worker in crew.values() if worker.due <= time.monotonic()]
        gate = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for worker in due:
                group.create_task(worker.speak(home, gate))
        if any(worker.stopped for worker in due):
            await self.stop([worker.lease.node for worker in due if worker.stopped], 0.0)


@dataclass(slots=True)
class _Worker:
    """A worker without work: what it says next, and when."""

    lease: Lease
    born: float = field(default_factory=time.monotonic)
    due: float = 0.0
    stopped: bool = False

    async def speak(self, home: "_Home", gate: asyncio.Semaphore) -> None:
        """Say what is, and hear what should be; a change of state is said at once."""
        async with gate:
            self.lease = replace(self.lease, seq=self.lease.seq + 1, idle_s=time.monotonic() - self.born)
            try:
                answer = load_answer(await home.call("POST", "/v1/lease", dump(self.lease)))
                # Asked for orders after -1, the controller gives the newest without waiting for another.
                query = urlencode({"node": self.lease.node, "boot": self.lease.boot, "after": -1}, quote_via=quote)
                order = load_order(await home.call("GET", f"/v1/orders?{query}"))
                self._obey(order, max(answer.next_s, BEAT_S))
            except (FleetdError, httpx.HTTPError, OSError):  # a worker goes on without its controller
                self.due = time.monotonic() + RETRY_S

    def _obey(self, order: WorkerOrder, next_s: Seconds) -> None:
        news = order.number > self.lease.order
        if news:
            self.stopped = order.state == "stop"
            state: Literal["working", "drained"] = "working" if order.state == "work" else "drained"
            self.lease = replace(self.lease, order=order.number, state=state)
        self.due = time.monotonic() + (0.0 if news else next_s)


@dataclass(frozen=True, slots=True)
class _Home:
    """The controller, and the right to speak to it."""

    client: httpx.AsyncClient
    token: str

    async def call(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Return what it answers; raises ProtocolError for what it did not sign."""
        header = authorization(self.token, method, path, body)
        headers = {"Authorization": header, "Content-Type": "application/json"}
        answer = await self.client.request(method, path, content=body or None, headers=headers)
        expected = sign_answer(split_token(self.token)[1], header.rpartition(" ")[2], answer.content)
        if not answer.is_success or not compare_digest(
            expected.encode(), answer.headers.get(ANSWER_HEADER, "").encode()
        ):
            raise ProtocolError(f"{method} {path}: {answer.status_code}, or not signed by this fleet's controller")
        return answer.content


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Be alone, among all processes, as long as this lasts."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock_now(path: Path) -> int | None:
    """Lock a file that exists, until its descriptor is closed; None where it does not, or somebody has it."""
    try:
        lock = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock
