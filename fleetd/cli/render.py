"""Draws the fleet for people: one renderer behind the live view and `status`. Takes the API's picture, asks nobody."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

BAR: Final = "▁▂▃▄▅▆▇█"
PHASES: Final = {
    "ready": "green",
    "booting": "yellow",
    "requested": "yellow",
    "draining": "cyan",
    "stopping": "cyan",
    "lost": "red",
    "failed": "red",
    "quarantined": "magenta",
}


def seconds(value: float | None) -> str:
    """Return a duration as people write it: 0.4s, 12s, 5m, 2.0h."""
    match value:
        case None:
            return "-"
        case _ if value < 10:
            return f"{value:.1f}s"
        case _ if value < 120:
            return f"{value:.0f}s"
        case _ if value < 7200:
            return f"{value / 60:.0f}m"
        case _:
            return f"{value / 3600:.1f}h"


def spark(values: Sequence[float]) -> str:
    """Return a line of bars, the largest value being a full one."""
    top = max(values, default=0.0)
    return "".join(BAR[min(7, round(7 * value / top))] if top else BAR[0] for value in values)


def fleet(picture: dict[str, Any], *, nodes: bool = True, history: Sequence[float] = ()) -> RenderableType:
    """Return the whole view: queues, pools, nodes, why, and the last events where the picture has them."""
    spent = picture["spent"]
    money = f"   {spent['hour']:.2f} {picture['currency']} this hour" if spent["month"] else ""
    title = Text.assemble(
        ("fleetd ", "bold"),
        (picture["fleet"], "bold green"),
        f"   up {seconds(picture.get('uptime_s'))}",
        money,
        (f"   {picture['dead']} dead letters" if picture.get("dead") else "", "red"),
        ("   paused" if picture["paused"] else "", "bold magenta"),
        ("   ending" if picture["ending"] else "", "bold cyan"),
    )
    gap = Text("")
    parts: list[RenderableType] = [title, gap, queues(picture, history), gap, pools(picture), gap]
    if nodes and picture["nodes"]:
        parts += [node_table(picture), gap]
    parts += [_release(name, one) for name, one in picture["releases"].items() if _worth_telling(one)]
    whys = (f"{about}: {text}" for about, text in picture["why"].items() if about.startswith("app "))
    parts += [*(Text(why, style="dim") for why in whys), gap, *(_event(event) for event in picture.get("events", ()))]
    return Group(*parts)


def queues(picture: dict[str, Any], history: Sequence[float] = ()) -> Table:
    """Return the table of queues; a blind one says why."""
    table = _table("QUEUE", "waiting", "running", "per s", "each", "objective", "needs", "")
    for name, queue in picture["queues"].items():
        if queue["waiting"] is None:
            table.add_row(name, "?", "?", "", "", "", "", Text(f"blind: {queue['blind']}", style="red"))
            continue
        note = (
            Text(f"blind for {seconds(queue['blind_s'])}: {queue['blind']}", style="red") if queue["blind"] else Text()
        )
        measured = "" if queue["service_measured"] else "~"
        table.add_row(
            name,
            str(queue["waiting"]),
            str(queue["running"]),
            f"{queue['rate']:.1f}",
            measured + seconds(queue["service_s"]),
            seconds(queue["objective_s"]),
            f"{queue['need']:.1f}",
            note if queue["blind"] else Text(spark(history), style="green"),
        )
    return table


def pools(picture: dict[str, Any]) -> Table:
    """Return the table of pools."""
    table = _table("POOL", "ready", "coming", "draining", "lost", "of", "busy", "boot", "")
    for name, pool in picture["pools"].items():
        breaker = f"breaker open for {seconds(pool['breaker_s'])}: {pool['breaker_why']}" if pool["breaker_s"] else ""
        note = breaker or _note(pool)
        numbers = (pool[key] for key in ("ready", "coming", "draining", "lost", "max", "busy"))
        table.add_row(name, *map(str, numbers), seconds(pool["boot_s"]), Text(note, style="red" if breaker else "cyan"))
    return table


def _note(pool: dict[str, Any]) -> str:
    notes = [
        f"cannot be seen for {seconds(pool['blind_s'])}: {pool['blind']}" if pool["blind"] else "",
        "watched only" if not pool["act"] else "",
        f"drain: {pool['drain']}" if pool.get("drain") else "",
        "drained by an operator" if pool["drained"] else "",
        f"held for {seconds(pool['held_s'])}" if pool["held_s"] else "",
        f"{pool['quarantined']} quarantined" if pool["quarantined"] else "",
    ]
    return ", ".join(note for note in notes if note)


def node_table(picture: dict[str, Any]) -> Table:
    """Return the table of nodes."""
    table = _table("NODE", "app", "phase", "for", "busy", "slots", "lease", "release", "")
    for node in picture["nodes"]:
        idle = node["phase"] == "ready" and not node["busy"]
        bar = "■" * node["busy"] + "□" * (node["slots"] - node["busy"])
        table.add_row(
            node["id"],
            node["app"],
            Text(node["phase"], style=PHASES.get(node["phase"], "")),
            seconds(node["phase_s"]),
            str(node["busy"]),
            Text(bar[:16], style="green"),
            seconds(node["lease_s"]),
            node["digest"][:8],
            f"idle {seconds(node['idle_s'])}" if idle else "",
        )
    return table


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(
            name, justify="left" if name in ("", "app", "release", "phase", "slots") else "right", no_wrap=name != ""
        )
    return table


def _worth_telling(release: dict[str, Any]) -> bool:
    """Whether there is more to say than that all nodes run the active release."""
    return bool(release["candidate"] or release["refused"] or len(release["nodes"]) > 1 or not release["active"])


def _release(app: str, release: dict[str, Any]) -> Text:
    if not release["active"]:
        return Text(f"app {app}: no release is active: `fleetd release push` one and activate it", style="yellow")
    counts = release["nodes"]
    parts = [f"app {app}: release {release['active'][:12]} on {counts.get(release['active'], 0)} nodes"]
    if release["candidate"]:
        on = counts.get(release["candidate"], 0)
        stage = "as a canary" if release["stage"] == "canary" else "by waves"
        parts.append(f"{release['candidate'][:12]} comes in {stage}, on {on} nodes")
    others = counts.keys() - {release["active"], release["candidate"]}
    parts += [f"{digest[:12]} still on {counts[digest]}" for digest in sorted(others)]
    parts += [f"{digest[:12]} refused: {why}" for digest, why in list(release["refused"].items())[-2:]]
    return Text("; ".join(parts), style="red" if release["refused"] else "cyan")


def _event(event: dict[str, Any]) -> Text:
    at = datetime.fromtimestamp(event["at"]).astimezone()
    return Text(f"{at:%H:%M:%S} {event['text']}", style="dim", no_wrap=True, overflow="ellipsis")
