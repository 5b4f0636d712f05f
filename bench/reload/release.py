"""The releases of the campaign: copies of bench/apps/reload that differ in their number, and in what is broken."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.processes import ROOT

APP: Final = ROOT / "bench" / "apps" / "reload"
FAULTS: Final = ("import", "crash", "hang", "leak")
EVERY: Final = 5


@dataclass(frozen=True, slots=True)
class Release:
    """One release: its number, and what is broken in it, if anything."""

    number: int
    fault: str = ""

    def __str__(self) -> str:
        """For people."""
        return f"release {self.number} ({self.fault})" if self.fault else f"release {self.number}"


def plan(count: int, first: int = 1) -> list[Release]:
    """Return so many releases, every fifth broken, in turn by each of the faults."""
    return [
        Release(number, FAULTS[(number // EVERY - 1) % len(FAULTS)] if number % EVERY == 0 else "")
        for number in range(first, first + count)
    ]


def write(release: Release, folder: Path) -> Path:
    """Write the release's source into the folder, over what is there; each file appears whole."""
    folder.mkdir(parents=True, exist_ok=True)
    code = (APP / "reload_job.py").read_text()
    code = _replace(code, r"^RELEASE: int = 0$", f"RELEASE: int = {release.number}")
    code = _replace(code, r'^FAULT: str = ""', f'FAULT: str = "{release.fault}"')
    project = _replace((APP / "pyproject.toml").read_text(), r'^version = ".*"$', f'version = "1.0.{release.number}"')
    for name, text in (("pyproject.toml", project), ("reload_job.py", code)):
        draft = folder / f".{name}.new"
        draft.write_text(text)
        draft.replace(folder / name)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    return folder


def _replace(text: str, pattern: str, by: str) -> str:
    changed, count = re.subn(pattern, by, text, flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"{APP}: {pattern} is there {count} times, not once")
    return changed
