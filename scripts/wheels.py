"""Fills a folder with what the images install: `python -m scripts.wheels OUT [--python 3.11]`.

fleetd's own wheel, the wheels of the packages that a worker and a controller need, each by its hash in the lock, and
two lists of them with these hashes: worker.txt and controller.txt. Fetching is done here, so that building an image
needs no network.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
CLOCK = "315532800"
WORKER = ("releases",)  # verifies and installs releases
CONTROLLER = ("all",)
WITHOUT = frozenset({"scipy"})  # for `simulate --bound` alone, and 100 MB
ENTRY = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)


def main(argv: Sequence[str]) -> None:
    """Fill the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--python", default="3.11.2", help="the base image's Python")
    told = parser.parse_args(argv)
    told.out.mkdir(parents=True, exist_ok=True)
    own = _own_wheel(told.out)
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    for name, extras in (("worker", WORKER), ("controller", CONTROLLER)):
        chosen = chosen_lines(lock, closure(extras, told.python), told.python)
        path = told.out / f"{name}.txt"
        path.write_text(chosen, "utf-8")
        pip = ["pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        arguments = [*pip, "--python-version", told.python, "-d", str(told.out), "-r", str(path)]
        subprocess.run([sys.executable, "-m", *arguments], check=True)
        path.write_text(chosen + own, "utf-8")


def chosen_lines(lock: str, wanted: frozenset[str], python: str) -> str:
    """Return the lock's lines of some packages for that Python, without markers: pip asks those of its own Python."""
    starts = [match.start() for match in ENTRY.finditer(lock)]
    texts = (lock[start:end] for start, end in zip(starts, [*starts[1:], len(lock)], strict=True))
    kept = []
    for text in texts:
        head, _, hashes = text.partition(" \\\n")
        need = Requirement(head)
        if canonicalize_name(need.name) in wanted and _applies(need, python):
            kept.append(f"{need.name}{need.specifier} \\\n{hashes}")
    return "".join(kept)


def closure(extras: Sequence[str], python: str) -> frozenset[str]:
    """Return the packages that fleetd needs with these extras, theirs included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    ours = {name: [Requirement(text) for text in texts] for name, texts in project["optional-dependencies"].items()}
    found: dict[str, set[str]] = {}
    waiting = [need for extra in extras for need in ours[extra]]
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        if name == "fleetd":
            waiting += [other for extra in need.extras for other in ours[extra]]
        elif name not in WITHOUT and _applies(need, python) and not (name in found and need.extras <= found[name]):
            found.setdefault(name, set()).update(need.extras)
            waiting += _needs(name, found[name], python)
    return frozenset(found)


def _needs(name: str, extras: set[str], python: str) -> Iterator[Requirement]:
    try:
        told = requires(name) or []
    except PackageNotFoundError:  # for another Python than this one: it needs nothing that is not in the lock anyway
        return
    for need in map(Requirement, told):
        if any(_applies(need, python, extra) for extra in (extras or {""})):
            need.marker = None
            yield need


def _applies(need: Requirement, python: str, extra: str = "") -> bool:
    around = {"python_full_version": python, "python_version": python.rpartition(".")[0], "extra": extra}
    return need.marker is None or need.marker.evaluate(around)


def _own_wheel(out: Path) -> str:
    """Build fleetd's wheel and return its line for a list."""
    for old in out.glob("fleetd-*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out.absolute())]
    environ = os.environ | {"SOURCE_DATE_EPOCH": CLOCK}
    subprocess.run(command, check=True, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (wheel,) = out.glob("fleetd-*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"fleetd=={wheel.name.split('-')[1]} \\\n    --hash=sha256:{digest}\n"


if __name__ == "__main__":
    main(sys.argv[1:])
