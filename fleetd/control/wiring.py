"""The composition root: from a policy's names to adapters, and what they need to know of this controller."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fleetd.codecs.lease import join_token
from fleetd.control.outlook import Adapters
from fleetd.core.model import Policy, Seconds
from fleetd.core.ports import WorkerLaunch
from fleetd.errors import UsageError


@dataclass(frozen=True, slots=True)
class Home:
    """What is this controller's own: its folder, its name among fleets of the same name, its address and secret."""

    folder: Path
    instance: str
    url: str
    join_secret: str


def make_adapters(policy: Policy, home: Home) -> Adapters:
    """Return the sources and providers that a policy names, not yet opened."""
    launch = worker_launch(policy, home)
    sources = {}
    for name, source in policy.sources.items():
        queues = {queue.name: queue.match for queue in policy.queues.values() if queue.source == name}
        sources[name] = adapter("fleetd.sources", source.kind)(name, source.options, queues)
    providers = {
        name: adapter("fleetd.providers", pool.kind)(pool, pool.options, launch) for name, pool in policy.pools.items()
    }
    return Adapters(sources, providers)


def worker_launch(policy: Policy, home: Home) -> WorkerLaunch:
    """Return what a policy says of every worker, wherever it is started."""
    return WorkerLaunch(
        fleet=policy.fleet,
        instance=home.instance,
        controller_url=home.url,
        state_dir=str(home.folder),
        apps=policy.apps,
        servers={app: _servers(policy, app) for app in policy.apps},
        limits={app: _limit(policy, app) for app in policy.apps},
        token=lambda pool: join_token(home.join_secret, policy.fleet, pool),
        keys=policy.releases.keys,
    )


def adapter(group: str, kind: str) -> Any:
    """Load one adapter class by its entry point; only those that a policy names are ever imported."""
    found = entry_points(group=group, name=kind)
    if not found:
        known = ", ".join(sorted(point.name for point in entry_points(group=group)))
        raise UsageError(f"{group}: no adapter {kind!r} is installed; there are: {known}")
    try:
        return next(iter(found)).load()
    except ImportError as error:
        raise UsageError(f"{group}: {kind}: {error}; install it with `pip install 'fleetd[{kind}]'`") from None


def _servers(policy: Policy, app: str) -> tuple[str, ...]:
    """Return the dispatchers that an app's workers connect to: those of its queues' sources."""
    names = dict.fromkeys(queue.source for queue in policy.queues.values() if queue.app == app)
    listed = [getattr(policy.sources[name].options, "servers", ()) for name in names]
    return tuple(dict.fromkeys(str(server) for servers in listed for server in servers))


def _limit(policy: Policy, app: str) -> Seconds | None:
    """Return the longest job limit among an app's queues; None where one has none."""
    limits: Mapping[str, Seconds | None] = {
        queue.name: queue.job_limit_s for queue in policy.queues.values() if queue.app == app
    }
    known = [limit for limit in limits.values() if limit is not None]
    return max(known) if known and len(known) == len(limits) else None
