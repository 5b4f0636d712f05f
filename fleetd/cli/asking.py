"""What the commands share: their options, the call to the controller, how an answer is printed."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fleetd.core.units import seconds
from fleetd.errors import UsageError

PolicyFile = Annotated[Path, typer.Option("--policy", "-p", help="the policy file")]
Fleet = Annotated[str | None, typer.Option("--fleet", help="which fleet, where several run here")]
Json = Annotated[bool, typer.Option("--json", help="JSON for programs")]


def ask(method: str, path: str, fleet: str | None, **values: Any) -> dict[str, Any]:
    """Call the controller's API; the values go into the query of a GET, otherwise into the body."""
    from fleetd.cli.remote import call

    return call(method, path, fleet, **values)


def done(answer: dict[str, Any], as_json: bool) -> None:
    """Print what a command did."""
    print(json.dumps(answer) if as_json else answer["done"])


def duration(text: str) -> float:
    """Read a duration given on the command line."""
    try:
        return seconds(text)
    except ValueError as error:
        raise UsageError(f"--for: {error}") from None


def nearest(name: str, known: list[str]) -> str:
    """Return a hint at the nearest name, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""
