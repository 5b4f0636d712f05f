"""docs/benchmarks.md: each benchmark renews its own block there, between markers, and leaves the rest alone.

A block is what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; one that is missing is added at the end.
"""

import datetime as dt
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests import servers

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_TITLE: Final = """\
# Benchmarks

The figures below were written by the benchmarks themselves; `make bench` renews them. The machine was shared with other
work while they ran, so read the ratios: everything that is compared ran in turn, in the same run.
"""


def renew(name: str, text: str, title: str = "", file: Path = PAGE, top: str = _TITLE) -> None:
    """Replace the block's text. `title` is the heading of a block that is not there yet, `top` of a new page."""
    page = file.read_text("utf-8") if file.exists() else top
    block = f"<!-- {name}:begin -->\n\n{text.strip()}\n\n<!-- {name}:end -->"
    found = re.search(rf"<!-- {re.escape(name)}:begin -->.*?<!-- {re.escape(name)}:end -->", page, re.DOTALL)
    if found:
        page = page[: found.start()] + block + page[found.end() :]
    else:
        heading = f"## {title}\n\n" if title else ""
        page = f"{page.rstrip()}\n\n{heading}{block}\n"
    draft = file.with_suffix(".new")
    draft.write_text(page, "utf-8")
    draft.replace(file)


def machine(packages: Iterable[str]) -> str:
    """Describe where a run took place: the machine, and the versions of everything in it."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    rows = {
        "Date": dt.datetime.now(dt.UTC).date().isoformat(),
        "CPU": f"{os.cpu_count()} cores, {cpu.group(1) if cpu else platform.machine()}",
        "Memory": f"{memory_gib:.0f} GiB",
        "System": f"Debian {_debian()}, Linux {platform.release()}",
        "Python": platform.python_version(),
        "Servers": f"gearmand {_version('gearmand')}, Redis {_version('redis-server')} (Debian's packages)",
        "Packages": ", ".join(versions),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _version(command: str) -> str:
    said = subprocess.run([servers.find(command), "--version"], capture_output=True, text=True, timeout=10, check=True)
    found = re.search(r"\d+\.\d+[^\s]*", said.stdout + said.stderr)
    return found.group() if found else "?"


def _debian() -> str:
    file = Path("/etc/debian_version")
    return file.read_text().strip() if file.exists() else "(another system)"
