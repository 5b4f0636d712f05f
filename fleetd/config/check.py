"""What concerns several entries at once: names that point nowhere, queues that nothing runs, sums that do not fit.

Promises: looks at the tree and at those entries that are valid by themselves, so that one error hides no other; says
only what is certain: where an entry that matters is broken, a check keeps still.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from fleetd.config.findings import Findings, Path, did_you_mean, quoted
from fleetd.config.shape import PoolShape, ScheduleShape
from fleetd.config.tree import Tree


@dataclass(frozen=True, slots=True)
class Valid:
    """The entries that are valid by themselves."""

    pools: Mapping[str, PoolShape] = field(default_factory=dict)
    schedules: Mapping[str, ScheduleShape] = field(default_factory=dict)


def check(root: Tree, valid: Valid, findings: Findings) -> None:
    """Find what is wrong between entries."""
    _references(root, findings)
    _min_above_max(root, findings)
    _nothing_runs(root, findings)
    _overlaps(root, findings)
    _floors(root, valid, findings)
    _unbounded_jobs(root, valid, findings)
    _unsigned(root, findings)


def _entries(root: Tree, section: str) -> Mapping[str, Tree]:
    found = root.at((section,))
    return found.items if found else {}


def _text(entry: Tree, key: str) -> str | None:
    """Return a key's value where it is text."""
    found = entry.at((key,))
    return found.value if found and isinstance(found.value, str) else None


def _apps(pool: Tree) -> list[str] | None:
    """Return the apps a pool names; None where it does not say so readably."""
    found = pool.at(("apps",))
    if found is None or not isinstance(found.value, tuple):
        return None
    return [item.value for item in found.value if isinstance(item.value, str)]


# ── names

_WORDS: Final = {"apps": "app", "sources": "source"}


def _references(root: Tree, findings: Findings) -> None:
    for path, tree, name, section in _named(root):
        known = _entries(root, section)
        if name not in known:
            hint = did_you_mean(name, known, "there is") if known else ""
            findings.add(
                tree.key if tree.value != name else tree.place, path, f"no {_WORDS[section]} {quoted(name)}{hint}"
            )


def _named(root: Tree) -> Iterator[tuple[Path, Tree, str, str]]:
    """Yield every name that points to an entry of a section."""
    for name, queue in _entries(root, "queues").items():
        for key, section in (("app", "apps"), ("source", "sources")):
            target = queue.at((key,))
            if target and isinstance(target.value, str) and target.value:
                yield ("queues", name, key), target, target.value, section
    for name, pool in _entries(root, "pools").items():
        listed = pool.at(("apps",))
        for at, item in enumerate(listed.value if listed and isinstance(listed.value, tuple) else ()):
            if isinstance(item.value, str) and item.value:
                yield ("pools", name, "apps", at), item, item.value, "apps"
    for name, schedule in _entries(root, "schedules").items():
        floor = schedule.at(("floor",))
        for app, slots in floor.items.items() if floor else ():
            yield ("schedules", name, "floor", app), slots, app, "apps"


# ── sizes


def _min_above_max(root: Tree, findings: Findings) -> None:
    for name, pool in _entries(root, "pools").items():
        low, high = pool.at(("min",)), pool.at(("max",))
        if low and high and type(low.value) is int and type(high.value) is int and low.value > high.value:
            findings.add(low.place, ("pools", name, "min"), f"{low.value} is more than max, which is {high.value}")


def _floors(root: Tree, valid: Valid, findings: Findings) -> None:
    if set(valid.pools) != set(_entries(root, "pools")):
        return
    for name, schedule in valid.schedules.items():
        for app, slots in schedule.floor.items():
            most = sum(pool.max * pool.slots.total for pool in valid.pools.values() if app in pool.apps)
            tree = root.at(("schedules", name, "floor", app))
            if slots > most and tree and app in _entries(root, "apps"):
                text = f"{slots} slots are more than the pools that run {quoted(app)} can hold, which is {most}"
                findings.add(tree.place, ("schedules", name, "floor", app), text)


# ── queues


def _nothing_runs(root: Tree, findings: Findings) -> None:
    lists = [_apps(pool) for pool in _entries(root, "pools").values()]
    if None in lists:
        return
    run = {app for apps in lists for app in apps or ()}
    for name, queue in _entries(root, "queues").items():
        app, tree = _text(queue, "app"), queue.at(("app",))
        if tree and app in _entries(root, "apps") and app not in run:
            findings.add(tree.place, ("queues", name, "app"), f"no pool runs the app {quoted(app)}")


def _overlaps(root: Tree, findings: Findings) -> None:
    """Two queues of one source that certainly share jobs would count them twice."""
    seen: dict[str, list[tuple[str, str, Tree]]] = {}
    for name, queue in _entries(root, "queues").items():
        source, glob, tree = _text(queue, "source"), _text(queue, "match"), queue.at(("match",))
        if not source or not glob or not tree:
            continue
        for other, its_glob, its_tree in seen.setdefault(source, []):
            if _covers(glob, its_glob) or _covers(its_glob, glob):
                text = f"{quoted(glob)} and {quoted(its_glob)} of the queue {quoted(other)}, line {its_tree.place.line}"
                findings.add(
                    tree.place, ("queues", name, "match"), f"{text}, match the same jobs; each would count twice"
                )
                break
        seen[source].append((name, glob, tree))


def _covers(wide: str, narrow: str) -> bool:
    """Whether whatever `narrow` matches, `wide` matches too. Where that is hard to tell, the answer is no.

    With no wildcard in `narrow`, it is a name like any other. Otherwise its text is matched like a name, which is right
    as long as only stars of `wide` can meet its wildcards.
    """
    certain = not re.search(r"[*?[]", narrow) or not re.search(r"[?[]", wide)
    return wide == narrow or (certain and fnmatchcase(narrow, wide))


def _unbounded_jobs(root: Tree, valid: Valid, findings: Findings) -> None:
    """A budget is a hard limit on committed cost, and a job without a limit is committed to any cost."""
    if "budget" not in root.items:
        return
    for name, queue in _entries(root, "queues").items():
        app = _text(queue, "app")
        priced = [pool for pool, shape in valid.pools.items() if shape.price > 0 and app in shape.apps]
        if priced and "job_limit" not in queue.items:
            text = f"is missing: with a budget, jobs on a priced pool ({', '.join(priced)}) need a limit"
            findings.add(queue.key, ("queues", name, "job_limit"), text)


def _unsigned(root: Tree, findings: Findings) -> None:
    """Code that is watched in a folder bears no signature; with a key configured it must run nowhere."""
    keys = root.at(("releases", "keys"))
    if keys is None or not keys.value:
        return
    for name, app in _entries(root, "apps").items():
        path = app.at(("release", "path"))
        if path is not None:
            text = "code from a folder bears no signature, and releases.keys asks for one: write `release: pushed`"
            findings.add(path.place, ("apps", name, "release", "path"), text)
