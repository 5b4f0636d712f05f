"""Releases to test with: projects for uv, bundles and wheels made by hand, an index of packages on loopback."""

import hashlib
import io
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from fleetd.codecs.manifest import File, Manifest, dump_manifest, release_digest
from fleetd.releases.sign import sign

LINK = 0o120777 << 16
PROJECT = """\
[build-system]
requires = ["uv_build>=0.8,<1"]
build-backend = "uv_build"

[project]
name = "photos"
version = "1.0"
requires-python = ">=3.11"
dependencies = [{dependencies}]

[project.entry-points."fleetd.jobs"]
{jobs}
[project.entry-points."fleetd.health"]
{health}
[tool.uv]
no-index = true
{more}"""
JOBS = '''\
"""An app."""

from fleetd.worker import job


@job
def resize(payload: bytes) -> bytes:
    return payload
'''


def project(
    folder: Path,
    *,
    jobs: str = 'resize = "photos.jobs:resize"\n',
    health: str = "",
    dependencies: str = "",
    more: str = "",
    index: str = "",
) -> Path:
    """Write an app's project, in the layout that uv's own build backend takes without a download."""
    package = folder / "src" / "photos"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "jobs.py").write_text(JOBS)
    text = PROJECT.format(dependencies=dependencies, jobs=jobs, health=health, more=more)
    if index:
        text = text.replace("no-index = true\n", "") + f'\n[[tool.uv.index]]\nurl = "{index}"\ndefault = true\n'
    (folder / "pyproject.toml").write_text(text)
    return folder


def wheel(
    files: Mapping[str, bytes] | None = None, infos: Mapping[str, int] | None = None, name: str = "photos"
) -> bytes:
    """Return a wheel of these files; `infos` gives names their mode bits, so that they can be links."""
    about = f"{name}-1.0.dist-info"
    inside = {
        "photos/__init__.py": b"",
        "photos/jobs.py": JOBS.encode(),
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": b"",
        **(files or {}),
    }
    return zipped(list(inside.items()), infos)


def zipped(
    files: list[tuple[str, bytes]], infos: Mapping[str, int] | None = None, method: int = zipfile.ZIP_STORED
) -> bytes:
    """Return a zip with exactly these entries, whatever they are called and however often."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files:
            info = zipfile.ZipInfo(name)
            info.filename = info.orig_filename = name  # as it is: ZipInfo would mend some
            info.create_system, info.external_attr, info.compress_type = (
                3,
                (infos or {}).get(name, 0o100644 << 16),
                method,
            )
            archive.writestr(info, content)
    return out.getvalue()


def manifest(files: Mapping[str, bytes], **fields: Any) -> Manifest:
    """Return the manifest of a bundle of these files."""
    kind = "folder" if any(name.startswith("app/") for name in files) else "wheel"
    known = {name: File(hashlib.sha256(content).hexdigest(), len(content)) for name, content in files.items()}
    lock = known["uv.lock"].sha256 if "uv.lock" in known else ""
    plain: dict[str, Any] = {
        "app": "photos",
        "version": "1.0",
        "kind": kind,
        "requires_python": ">=3.11",
        "jobs": {"resize": "photos.jobs:resize"} if kind == "wheel" else {},
        "health": "",
        "lock": lock,
        "files": known,
    }
    return Manifest(**{**plain, **fields})


def wheel_files(inside: bytes | None = None, name: str = "photos-1.0-py3-none-any.whl") -> dict[str, bytes]:
    """Return the files of a bundle of kind wheel that needs no packages."""
    return {"pyproject.toml": b'[project]\nname = "photos"\nversion = "1.0"\n', f"wheel/{name}": inside or wheel()}


def bundle(
    path: Path, files: Mapping[str, bytes] | None = None, told: Manifest | None = None, key: Path | None = None
) -> str:
    """Write a bundle by hand and return its digest."""
    inside = dict(files or wheel_files())
    raw = dump_manifest(told or manifest(inside))
    signature = [("manifest.sig", sign(raw, key).encode())] if key else []
    path.write_bytes(zipped([("manifest.json", raw), *signature, *inside.items()], method=zipfile.ZIP_DEFLATED))
    return release_digest(raw)


def sending(path: Path) -> Callable[[BinaryIO], None]:
    """Return a fetch that gives what is in a file."""

    def fetch(file: BinaryIO) -> None:
        file.write(path.read_bytes())

    return fetch


def tree(folder: Path) -> list[str]:
    """Return all that is below a folder, without uv's own cache."""
    return sorted(name for path in folder.rglob("*") if not (name := str(path.relative_to(folder))).startswith("uv"))


class Index:
    """Packages served on loopback. While `stalling` is set, a package is asked for (`asked`) and does not come."""

    def __init__(self) -> None:
        self.url = ""
        self.stalling, self.asked = threading.Event(), threading.Event()


class _Serving(SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, index: Index, **more: Any) -> None:
        self._index = index
        super().__init__(*args, **more)

    def do_GET(self) -> None:
        """Give a file, or let it be waited for."""
        if self.path.endswith(".whl"):
            self._index.asked.set()
            while self._index.stalling.is_set():
                time.sleep(0.02)
        super().do_GET()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def package(name: str) -> bytes:
    """Return a wheel with one module and one command."""
    about = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": f"NAME = {name!r}\n\n\ndef say():\n    print(NAME)\n".encode(),
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": f"[console_scripts]\nsay-{name} = {name}:say\n".encode(),
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{about}/RECORD"])
    return zipped([*files.items(), (f"{about}/RECORD", record.encode())])


@contextmanager
def index(folder: Path, *names: str) -> Iterator[Index]:
    """Serve packages, and return where."""
    for name in names:
        there = folder / "simple" / name
        there.mkdir(parents=True)
        file = f"{name}-1.0-py3-none-any.whl"
        (there / file).write_bytes(package(name))
        (there / "index.html").write_text(f'<a href="{file}">{file}</a>')
    there_is = Index()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Serving, directory=str(folder), index=there_is))
    there_is.url = f"http://127.0.0.1:{server.server_address[1]}/simple/"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield there_is
    finally:
        there_is.stalling.clear()
        server.shutdown()
        server.server_close()
        thread.join(5)
