"""Writes docs/commands.md from the commands themselves. `make docs` runs it."""

from pathlib import Path
from typing import Any

from typer.main import get_command

from fleetd.cli.commands import app

DOC = Path(__file__).parent.parent / "docs" / "commands.md"
HEAD = """\
# Commands

Written from the commands themselves (`make docs`); `fleetd COMMAND --help` says the same. Commands that ask a running
fleet find its controller by `FLEETD_URL` and `FLEETD_TOKEN`, otherwise in the state folder (`FLEETD_STATE`, by default
`~/.local/state/fleetd`); where several fleets run, `--fleet` says which. `FLEETD_URL` may be https, with `FLEETD_CA`
the file of an authority that the system does not know. All of them use the [API](api.md) and nothing else.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | wrong usage, or a wrong policy |
| 3 | the controller or a dispatcher cannot be reached |
| 4 | `submit`: the job failed, or its result did not come in time |
| 5 | `run`: another controller may act now (`controller.leader`); start it anew |

`fleetd --install-completion` teaches your shell to complete them.

Three more need no controller and load nothing of it: `fleetd worker` (docs/worker.md), `fleetd submit` (hands in a job
and waits for its result, never for ever; files and batches too: docs/client.md) and `fleetd dispatcher`
(docs/dispatcher.md).
"""


def page() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *_group(get_command(app), "fleetd")])


def _group(group: Any, path: str) -> list[str]:
    lines: list[str] = []
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            lines += _group(command, f"{path} {name}")
        elif not command.hidden:
            lines += _section(command, f"{path} {name}")
    return lines


def _section(command: Any, path: str) -> list[str]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    words = "".join(f" {_spell(a)}" if a.required else f" [{_spell(a)}]" for a in arguments)
    lines = [f"## `{path}{words}`", "", " ".join(command.help.split()), ""]
    options = [param for param in command.params if param.param_type_name == "option" and param.name != "help"]
    if options:
        lines += ["| option | |", "|---|---|"]
        lines += [f"| `{', '.join([*o.opts, *o.secondary_opts])}` | {o.help or ''}{_default(o)} |" for o in options]
        lines.append("")
    return lines


def _spell(argument: Any) -> str:
    return str(argument.metavar or argument.name).upper()


def _default(option: Any) -> str:
    plain = isinstance(option.default, (int, str)) and not isinstance(option.default, bool)
    return f" (default {option.default})" if plain else ""


if __name__ == "__main__":
    DOC.write_text(page())
