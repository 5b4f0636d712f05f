"""The `fleetd` command. `worker`, `submit`, `dispatcher` and `version` need the standard library alone.

Promises: a person sees one clear line for each error, never a traceback; the exit codes are those of `fleetd.errors`:
0 done, 1 failed, 2 wrong usage or policy, 3 unreachable, 4 a job failed or its result did not come in time, 5 another
controller may act now.
"""

import sys
from importlib import import_module

from fleetd import __version__
from fleetd.errors import FleetdError

# Commands that need the standard library alone, each a module with `main(argv)`; nothing else is loaded for them.
BARE = {"worker": "fleetd.worker.main", "submit": "fleetd.cli.submit", "dispatcher": "fleetd.dispatchers.embedded.main"}
MISSING = """fleetd: {name} is missing: a bare install runs workers only. Run: pip install 'fleetd[controller]'"""


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        match argv:
            case [name, *rest] if name in BARE:
                return int(import_module(BARE[name]).main(rest))
            case ["version" | "--version"]:
                print(f"fleetd {__version__}")
                return 0
            case _:
                return _controller(argv)
    except FleetdError as error:
        print(error if error.exit_code == 2 and "\n" in str(error) else f"fleetd: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _controller(argv: list[str]) -> int:
    try:
        from fleetd.cli.commands import app
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("fleetd"):
            raise
        print(MISSING.format(name=error.name), file=sys.stderr)
        return 1
    app(args=argv, prog_name="fleetd", standalone_mode=True)  # ends by SystemExit: 0, or 2 with the usage
    return 0
