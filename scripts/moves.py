"""Draws the life of a node into docs/architecture.md, from the table that the code follows. `make docs` runs it."""

from pathlib import Path

from fleetd.core.lifecycle import MOVES

DOC = Path(__file__).parent.parent / "docs" / "architecture.md"
BEGIN, END = "<!-- moves:begin -->\n", "<!-- moves:end -->"


def drawn() -> str:
    """Return a state diagram in Mermaid and the table of every move with its reason."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> requested"]
    lines += [f"    {old} --> {new}: {event}" for (old, event), (new, _) in MOVES.items() if new != "gone"]
    lines += ["    gone --> [*]", "```", "", "| from | event | to | because |", "|---|---|---|---|"]
    lines += [f"| {old} | {event} | {new} | {why} |" for (old, event), (new, why) in MOVES.items()]
    return "\n".join(lines) + "\n"


def renewed(text: str) -> str:
    """Return the document with the drawing renewed."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{drawn()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    DOC.write_text(renewed(DOC.read_text()))
