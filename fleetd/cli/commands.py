"""The controller's commands. Each loads only what it needs, prints a table for people or `--json` for programs."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fleetd.cli import aws, boot, image, manifests, more, rack, release, simulate
from fleetd.cli.asking import Fleet, Json, PolicyFile, ask, done, duration
from fleetd.errors import FleetdError, PolicyError, UsageError

app = typer.Typer(
    help="Watches job queues and keeps just enough workers alive.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="More commands: worker, submit, dispatcher (each with --help). Exit codes: 0 done, 1 failed, "
    "2 wrong usage or policy, 3 unreachable, 4 a job failed or was late.",
)
DEFAULT_WAKE: Final = "1h"


@app.command()
def run(
    policy: PolicyFile,
    drain: Annotated[bool, typer.Option("--drain", help="at Ctrl-C or TERM, drain and end every worker first")] = False,
    log_format: Annotated[str, typer.Option("--log-format", help="text or json")] = "text",
    live: Annotated[bool | None, typer.Option("--live/--no-live", help="the live view; default: on a terminal")] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="decide and record, touch nothing; may run beside the live controller")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="reload the policy whenever what is in its file has changed")
    ] = False,
) -> None:
    """Run the controller. Ctrl-C leaves the workers alive; the next start adopts them. SIGHUP reloads the policy."""
    from fleetd.cli.run import Options, run_controller

    if log_format not in ("text", "json"):
        raise UsageError(f"--log-format: must be text or json, not {log_format!r}")
    if shadow and drain:
        raise UsageError("--drain: a shadow ends no worker; leave it out")
    view = sys.stdout.isatty() if live is None else live
    run_controller(policy, Options(drain=drain, live=view, json=log_format == "json", shadow=shadow, follow=follow))


@app.command()
def check(policy: Annotated[Path, typer.Argument(help="the policy file")], as_json: Json = False) -> None:
    """Check a policy file; prints every error with its place."""
    from fleetd.config import load

    try:
        loaded = load(policy)
    except PolicyError as error:
        if not as_json:
            raise
        print(json.dumps({"good": False, "problems": error.problems}))
        raise typer.Exit(error.exit_code) from None
    if as_json:
        print(json.dumps({"good": True, "problems": []}))
        return
    print(f"{policy}: good: fleet {loaded.fleet}, {len(loaded.queues)} queues, {len(loaded.pools)} pools")


@app.command()
def schema() -> None:
    """Print the policy's JSON Schema, for editors."""
    from fleetd.config import schema as make

    print(json.dumps(make(), indent=2))


@app.command()
def init(
    policy: Annotated[Path, typer.Argument(help="the file to write")] = Path("fleetd.yaml"),
    force: Annotated[bool, typer.Option("--force", help="overwrite a file that is there")] = False,
) -> None:
    """Write a first policy file, and a first app beside it where there is none."""
    from fleetd.config import first_policy

    if policy.exists() and not force:
        raise UsageError(f"{policy}: is there already; --force overwrites it")
    jobs = policy.parent / "app" / "jobs.py"
    try:
        jobs.parent.mkdir(parents=True, exist_ok=True)
        if not jobs.exists():
            jobs.write_text(FIRST_APP)
        policy.write_text(first_policy())
    except OSError as error:
        raise FleetdError(f"{error.filename}: {error.strerror}") from None
    print(f"wrote {policy} and {jobs}; next: fleetd check {policy}, then fleetd run --policy {policy}")


@app.command()
def plan(policy: PolicyFile, as_json: Json = False) -> None:
    """Say what would be done now, and why. Reads queues and nodes; changes nothing."""
    from fleetd.cli.dry import dry_plan

    result = dry_plan(policy)
    if as_json:
        print(json.dumps(result))
        return
    for line in result["intents"] or ["nothing to do"]:
        print(line)
    for about, why in result["why"].items():
        print(f"  {about}: {why}")


@app.command()
def status(
    fleet: Fleet = None,
    as_json: Json = False,
    watched: Annotated[bool, typer.Option("--watch", "-w", help="go on, as `top` does")] = False,
) -> None:
    """Show queues, pools and nodes of the running fleet."""
    if watched:
        more.watch(fleet)
    picture = ask("GET", "/v1/status", fleet)
    if as_json:
        print(json.dumps(picture))
        return
    from rich.console import Console

    from fleetd.cli import render

    Console().print(render.fleet(picture))


@app.command()
def explain(
    name: Annotated[str | None, typer.Argument(metavar="POOL", help="a pool or an app; default: all")] = None,
    at: more.At = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="every term of the last decision: load, margin, forecast, fill order, limits")
    ] = False,
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Say why the fleet is as it is, or was: the decision on each app and pool, in a sentence with its numbers."""
    if deep:
        if at is not None:
            raise UsageError("--at: --deep tells of the last decision; leave one of the two out")
        terms = more.explained_deeply(name, fleet)
        lines = [f"{about}: {text}" for about, texts in terms.items() for text in texts]
        print(json.dumps(terms) if as_json else "\n".join(lines))
        return
    why = more.explained(name, at, fleet)
    print(json.dumps(why) if as_json else "\n".join(f"{about}: {text}" for about, text in why.items()))


@app.command()
def wake(
    pool: Annotated[str, typer.Argument(help="the pool, or one machine of it: rack3/node07")],
    count: Annotated[int, typer.Option("--count", min=1, help="nodes to hold up at least")] = 1,
    for_: Annotated[str, typer.Option("--for", help="for how long")] = DEFAULT_WAKE,
    direct: Annotated[bool, typer.Option("--direct", help="without a controller, once; needs --policy")] = False,
    policy: Annotated[Path | None, typer.Option("--policy", "-p", help="the policy file, for --direct")] = None,
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Hold nodes of a pool up, whatever the queues say; it ends by itself."""
    if not direct:
        done(ask("POST", "/v1/wake", fleet, pool=pool, count=count, for_s=duration(for_)), as_json)
        return
    if policy is None:
        raise UsageError("wake: --direct needs --policy: no controller is asked")
    from fleetd.cli.dry import wake_directly

    done({"done": wake_directly(policy, pool, count, duration(for_))}, as_json)


@app.command()
def drain(
    target: Annotated[str, typer.Argument(help="a pool or a node")],
    for_: Annotated[str | None, typer.Option("--for", help="a pool: for how long; default: until `wake`")] = None,
    force: Annotated[bool, typer.Option("--force", help="do not wait for running jobs; they go to another")] = False,
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Let a node, or a whole pool, finish its jobs and go."""
    for_s = None if for_ is None else duration(for_)
    body: dict[str, Any] = {"target": target, "force": force} | ({} if for_s is None else {"for_s": for_s})
    done(ask("POST", "/v1/drain", fleet, **body), as_json)


app.add_typer(more.app)
app.add_typer(release.app)
app.add_typer(simulate.app)
app.add_typer(manifests.app)
app.add_typer(aws.app)
app.add_typer(image.app)
app.add_typer(boot.app)
app.add_typer(rack.app)


FIRST_APP: Final = '''"""A first app: jobs are functions from bytes to bytes."""

from fleetd.worker import Context, job


@job
def greet(payload: bytes, context: Context) -> str:
    """Return a greeting; try it: fleetd submit greet --payload World"""
    context.progress(1, 1)
    return f"Hello, {payload.decode()}!"
'''
