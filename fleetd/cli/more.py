"""The operator's further commands: look closer, hold still, keep out, dead letters, journal, doctor."""

import json
import time
from datetime import datetime, timedelta
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from fleetd.cli.asking import Fleet, Json, PolicyFile, ask, done, duration, nearest
from fleetd.errors import UsageError

app = typer.Typer()
dead_app = typer.Typer(help="Jobs that used up their attempts: list, show, retry, drop.", no_args_is_help=True)
app.add_typer(dead_app, name="dead")
FOLLOW_S: Final = 1.0
At = Annotated[str | None, typer.Option("--at", help="a time today (14:30), 2026-11-24T14:30, or an age (10m)")]


@app.command()
def pools(fleet: Fleet = None, as_json: Json = False) -> None:
    """Show the pools."""
    _table("pools", fleet, as_json)


@app.command()
def nodes(fleet: Fleet = None, as_json: Json = False) -> None:
    """Show the nodes."""
    _table("nodes", fleet, as_json)


@app.command()
def queues(
    url: Annotated[str | None, typer.Option("--url", help="gearman://HOST:PORT or redis://…, no policy needed")] = None,
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Show the queues of the fleet, or take a first look at any dispatcher."""
    if url is None:
        _table("queues", fleet, as_json)
        return
    from fleetd.cli.looking import first_look

    rows = first_look(url)
    if as_json:
        print(json.dumps(rows))
        return
    print(f"{'QUEUE':32} {'waiting':>8} {'running':>8} {'workers':>8}")
    for row in rows:
        print(f"{row['queue']:32} {row['waiting']:>8} {_or_dash(row['running']):>8} {_or_dash(row['workers']):>8}")


@app.command()
def top(fleet: Fleet = None) -> None:
    """Show the fleet as it changes; Ctrl-C ends it."""
    watch(fleet)


@app.command()
def logs(
    node: Annotated[str, typer.Argument(help="a node, also one that is gone or never came up")],
    last: Annotated[int, typer.Option("--last", min=1, max=1000, help="lines")] = 100,
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Show what a node's worker logged last."""
    answer = ask("GET", "/v1/logs", fleet, node=node, limit=last)
    print(json.dumps(answer) if as_json else "\n".join(answer["lines"]))


@app.command()
def hold(
    pool: Annotated[str, typer.Argument(help="the pool")],
    for_: Annotated[str, typer.Option("--for", help="for how long; 0 ends a hold")] = "1h",
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Leave a pool as it is: nothing is launched or drained there. It ends by itself."""
    done(ask("POST", "/v1/hold", fleet, pool=pool, for_s=duration(for_)), as_json)


@app.command()
def pause(fleet: Fleet = None, as_json: Json = False) -> None:
    """Pause all scaling until `resume`; what runs goes on, and an operator's commands are still obeyed."""
    done(ask("POST", "/v1/pause", fleet, paused=True), as_json)


@app.command()
def resume(fleet: Fleet = None, as_json: Json = False) -> None:
    """Resume scaling."""
    done(ask("POST", "/v1/pause", fleet, paused=False), as_json)


@app.command()
def quarantine(
    node: Annotated[str, typer.Argument(help="the node")], fleet: Fleet = None, as_json: Json = False
) -> None:
    """Take a node out of service and keep it alive for a look: it finishes its jobs and takes no more."""
    done(ask("POST", "/v1/quarantine", fleet, node=node), as_json)


@app.command()
def unquarantine(
    node: Annotated[str, typer.Argument(help="the node")], fleet: Fleet = None, as_json: Json = False
) -> None:
    """Give a node back to service."""
    done(ask("POST", "/v1/quarantine", fleet, node=node, free=True), as_json)


@app.command()
def journal(
    last: Annotated[int, typer.Option("--last", min=1, max=1000, help="entries")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on with what comes")] = False,
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Show what happened, in order."""
    after, limit = None, last
    while True:
        entries = ask("GET", "/v1/journal", fleet, after=after, limit=limit)["entries"]
        for entry in entries:
            at = datetime.fromtimestamp(entry["at"]).astimezone()
            print(
                json.dumps(entry) if as_json else f"{at:%Y-%m-%d %H:%M:%S} {entry['kind']:9} {entry['text']}",
                flush=True,
            )
        if not follow:
            return
        after = entries[-1]["seq"] if entries else after or 0
        limit = 1000
        time.sleep(FOLLOW_S)


@app.command()
def doctor(policy: PolicyFile, as_json: Json = False) -> None:
    """Check what a fleet needs: dispatchers, providers, apps, the state folder, the controller; say what to do."""
    from fleetd.cli.doctor import examine

    findings = examine(policy)
    if as_json:
        print(json.dumps([{"good": good, "what": what, "fix": fix} for good, what, fix in findings]))
    else:
        for good, what, fix in findings:
            print(f"{'ok  ' if good else 'FAIL'} {what}" + (f"\n     do: {fix}" if fix and not good else ""))
    if not all(good for good, _, _ in findings):
        raise typer.Exit(1)


@dead_app.command("list")
def dead_list(fleet: Fleet = None, as_json: Json = False) -> None:
    """List the dead letters, newest first."""
    from fleetd.cli.remote import rows

    letters = rows("/v1/dead", "letters", fleet)
    if as_json:
        print(json.dumps(letters))
        return
    for letter in letters:
        at = datetime.fromtimestamp(letter["at"]).astimezone()
        what = f"{letter['function']}  {letter['attempts']} attempts  {letter['reason']}"
        print(f"{letter['id']}  {at:%Y-%m-%d %H:%M:%S}  {what}")


@dead_app.command("show")
def dead_show(name: Annotated[str, typer.Argument(metavar="ID")], fleet: Fleet = None, as_json: Json = False) -> None:
    """Show one dead letter with its traceback."""
    letter = ask("GET", f"/v1/dead/{quote(name, safe='')}", fleet)
    if as_json:
        print(json.dumps(letter))
        return
    for key in ("id", "function", "unique", "handle", "node", "attempts", "reason", "traceback", "payload"):
        print(f"{key + ':':10} {letter[key]}")


@dead_app.command("retry")
def dead_retry(name: Annotated[str, typer.Argument(metavar="ID")], fleet: Fleet = None, as_json: Json = False) -> None:
    """Submit a dead letter's job again, and forget the letter."""
    done(ask("POST", "/v1/dead", fleet, id=name, act="retry"), as_json)


@dead_app.command("drop")
def dead_drop(name: Annotated[str, typer.Argument(metavar="ID")], fleet: Fleet = None, as_json: Json = False) -> None:
    """Forget a dead letter."""
    done(ask("POST", "/v1/dead", fleet, id=name, act="drop"), as_json)


def explained(name: str | None, at: str | None, fleet: str | None) -> dict[str, str]:
    """Return the sentences of all apps and pools or of one, now or as they were at a time."""
    if at is None:
        why: dict[str, str] = ask("GET", "/v1/status", fleet)["why"]
    else:
        why = ask("GET", "/v1/explain", fleet, at=f"{max(0.0, moment(at)):.0f}")["why"]
    if name is None:
        return why
    chosen = {about: text for about, text in why.items() if about.partition(" ")[2] == name}
    if not chosen:
        known = [about.partition(" ")[2] for about in why if " " in about]
        raise UsageError(
            f"explain: no pool or app {name!r}{nearest(name, known)}; there are: {', '.join(known) or 'none'}"
        )
    return chosen


def explained_deeply(name: str | None, fleet: str | None) -> dict[str, list[str]]:
    """Return the terms of the last decision, a list of lines for each queue, app and pool, or for what has a name."""
    terms: dict[str, list[str]] = {}
    for line in ask("GET", "/v1/explain/deep", fleet)["deep"]:
        about, _, text = line.partition(": ")
        terms.setdefault(about, []).append(text)
    if name is None:
        return terms
    chosen = {about: lines for about, lines in terms.items() if name in about.split()[1::2]}
    if not chosen:
        known = sorted({word for about in terms for word in about.split()[1::2]})
        raise UsageError(
            f"explain: no queue, app or pool {name!r}{nearest(name, known)}; there are: {', '.join(known)}"
        )
    return chosen


def moment(text: str) -> float:
    """Read a time as people write it, as seconds since 1970."""
    now = datetime.now().astimezone()
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        pass
    try:
        clock = datetime.strptime(text, "%H:%M" if text.count(":") == 1 else "%H:%M:%S")  # noqa: DTZ007 - made local below
        then = now.replace(hour=clock.hour, minute=clock.minute, second=clock.second)
        return (then if then <= now else then - timedelta(days=1)).timestamp()
    except ValueError:
        return now.timestamp() - duration(text)


def watch(fleet: str | None) -> None:
    """Draw the fleet again and again, until Ctrl-C."""
    from rich.live import Live

    from fleetd.cli import render

    with Live(screen=True, auto_refresh=False) as live:
        while True:
            live.update(render.fleet(ask("GET", "/v1/status", fleet)), refresh=True)
            time.sleep(FOLLOW_S)


def _table(what: str, fleet: str | None, as_json: bool) -> None:
    picture: dict[str, Any] = ask("GET", "/v1/status", fleet)
    if as_json:
        print(json.dumps(picture[what]))
        return
    from rich.console import Console

    from fleetd.cli import render

    draw = {"pools": render.pools, "nodes": render.node_table, "queues": render.queues}[what]
    Console().print(draw(picture))


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
