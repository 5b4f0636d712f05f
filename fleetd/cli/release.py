"""`fleetd release`: build a release, push it to the controller, make it the one that runs, take it back."""

import json
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fleetd.cli.asking import Fleet, Json, ask
from fleetd.errors import UsageError

app = typer.Typer()
release_app = typer.Typer(help="Releases of worker code: build, push, activate, roll back.", no_args_is_help=True)
app.add_typer(release_app, name="release")
SHOWN: Final = 12
LEAST: Final = 8
WHOLE: Final = 64
HEX: Final = frozenset("0123456789abcdef")
KeyFile = Annotated[Path | None, typer.Option("--key", help="sign with the private key in this file")]
App = Annotated[str, typer.Argument(help="the app, as the policy calls it")]


@release_app.command()
def build(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the project: pyproject.toml and sources")],
    out: Annotated[Path | None, typer.Option("--out", help="default: APP-VERSION-DIGEST.release here")] = None,
    key: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Build a release; the same sources give the same bytes. Writes uv.lock beside them where there is none."""
    from fleetd.releases.build import build as make

    built = make(folder, out, key, _note)
    if as_json:
        print(json.dumps({"path": str(built.path), "digest": built.digest}))
        return
    print(f"{built.path}: {built.manifest.app} {built.manifest.version}, {built.digest}")


@release_app.command()
def push(
    what: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="a release, or the project to build it from")],
    key: KeyFile = None,
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Give a release to the controller, which verifies and keeps it. It runs once it is activated."""
    with tempfile.TemporaryDirectory(prefix="fleetd-push-") as room:
        path = _bundle(what, key, Path(room))
        from fleetd.cli.remote import upload

        try:
            with path.open("rb") as file:
                answer = upload("/v1/releases", file, fleet)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
    told = f"pushed {answer['app']} {answer['version']}, {answer['digest']}"
    print(json.dumps(answer) if as_json else f"{told}; next: fleetd release activate {answer['app']}")


@release_app.command()
def activate(
    name: App,
    digest: Annotated[str, typer.Argument(help="8 or more of its hex digits, or latest")] = "latest",
    canary: Annotated[str | None, typer.Option("--canary", help="the share of nodes that try it first: 10%")] = None,
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Make a release the one that an app runs: on a few nodes first, then on all; it is taken back where it fails."""
    body = {"app": name, "digest": _digest(digest, name, fleet), "canary": None if canary is None else _share(canary)}
    _say(ask("POST", "/v1/activate", fleet, **body), as_json)


@release_app.command()
def rollback(name: App, fleet: Fleet = None, as_json: Json = False) -> None:
    """Make the release that an app ran before the one that it runs again."""
    _say(ask("POST", "/v1/rollback", fleet, app=name), as_json)


@release_app.command()
def pardon(
    name: App,
    digest: Annotated[str, typer.Argument(help="8 or more of its hex digits")],
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Let a release that failed and was refused since be activated again."""
    _say(ask("POST", "/v1/release/pardon", fleet, app=name, digest=_digest(digest, None, fleet)), as_json)


@release_app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(metavar="APP", help="default: all")] = None,
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """List the releases that the controller keeps, newest first."""
    rows = _entries(name, fleet)
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        pushed = datetime.fromtimestamp(row["pushed_at"]).astimezone().isoformat(" ", "seconds")
        signed = "signed" if row["signed"] else "not signed"
        about = f"{row['app']:16} {row['version']:12} {row['kind']:6} {row['size']:>10} {signed:10}"
        print(f"{row['digest'][:SHOWN]} {about} {pushed}")
    if not rows:
        print("no releases")


@release_app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="DIGEST|FILE", help="a release on the controller, or a file")],
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Show what a release holds and whose signature it bears; all of it is verified first."""
    from fleetd.releases.bundle import opened
    from fleetd.releases.sign import verify

    with tempfile.TemporaryDirectory(prefix="fleetd-show-") as room:
        path = Path(what)
        if not path.is_file():
            path = _fetched(_digest(what, None, fleet), Path(room), fleet)
        with opened(path, (), what) as bundle:
            signer = (bundle.signature or "").partition(" ")[0]
            verify(bundle.raw, bundle.signature, (signer,) if signer else (), what)
            told = {"digest": bundle.digest, "signed_by": signer or None} | json.loads(bundle.raw)
    if as_json:
        print(json.dumps(told))
        return
    print("\n".join(_described(told)))


@release_app.command()
def gc(
    keep: Annotated[
        int | None, typer.Option("--keep", min=0, help="the newest of each app; default: as in the policy")
    ] = None,
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Remove releases from the controller that no node needs and that are not among the newest of their app."""
    body = {} if keep is None else {"keep": keep}
    deleted = ask("POST", "/v1/releases/gc", fleet, **body)["deleted"]
    print(json.dumps(deleted) if as_json else f"removed {len(deleted)}: {_short(deleted)}" if deleted else "nothing")


@release_app.command()
def key(
    out: Annotated[Path, typer.Option("--out", help="where the private key goes")] = Path("fleetd-release.pem"),
) -> None:
    """Make a pair of keys: a file that signs, and the line for `releases: {keys: […]}` in the policy."""
    from fleetd.releases.sign import make_key

    print(make_key(out))
    _note(f"wrote {out}: keep it where releases are built and nowhere else")


def _bundle(what: Path, key: Path | None, room: Path) -> Path:
    if not what.is_dir():
        if key is not None:
            raise UsageError("--key: a release is signed when it is built; leave it out, or give the project's folder")
        return what
    from fleetd.releases.build import build as make

    return make(what, room / "bundle", key, _note).path


def _entries(name: str | None, fleet: str | None) -> list[dict[str, Any]]:
    from fleetd.cli.remote import rows

    return rows("/v1/releases", "releases", fleet, app=name)


def _digest(text: str, name: str | None, fleet: str | None) -> str:
    """Return the whole digest that a beginning, or `latest`, means."""
    if len(text) == WHOLE and set(text) <= HEX:
        return text
    if text == "latest" and name is not None:
        rows = _entries(name, fleet)
        if not rows:
            raise UsageError(f"release: no release of {name!r} was pushed; see `fleetd release list`")
        return str(rows[0]["digest"])
    if len(text) < LEAST or not set(text) <= HEX:
        raise UsageError(f"release: {text!r} is no file and no digest of at least {LEAST} hex digits")
    found = [row["digest"] for row in _entries(None, fleet) if row["digest"].startswith(text)]
    if len(found) != 1:
        what = f"more than one release: {_short(found)}" if found else "no release here"
        raise UsageError(f"release: {text} is the beginning of {what}; see `fleetd release list`")
    return str(found[0])


def _fetched(digest: str, room: Path, fleet: str | None) -> Path:
    from fleetd.cli.remote import download

    path = room / "bundle"
    with path.open("wb") as file:
        download(f"/v1/releases/{digest}", file, fleet)
    return path


def _share(text: str) -> float:
    number, percent, _ = text.partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise UsageError(f"--canary: must be a share such as 10% or 0.1, not {text!r}")
    return share


def _described(told: dict[str, Any]) -> list[str]:
    lines = [f"{told['app']} {told['version']} ({told['kind']})", f"digest           {told['digest']}"]
    lines += [f"signed by        {told['signed_by'] or 'nobody'}"]
    lines += [f"requires-python  {told['requires_python'] or 'any'}", f"lock             {told['lock'] or 'none'}"]
    lines += [f"health           {told['health'] or 'none told'}"]
    lines += [f"job              {name} = {target}" for name, target in sorted(told["jobs"].items())]
    lines += [f"file             {name}, {file['size']} bytes" for name, file in sorted(told["files"].items())]
    return lines


def _short(digests: list[str]) -> str:
    return ", ".join(digest[:SHOWN] for digest in digests)


def _say(answer: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(answer) if as_json else "\n".join(answer["said"]))


def _note(text: str) -> None:
    typer.echo(text, err=True)
