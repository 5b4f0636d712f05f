"""Where a shelf keeps its files: a folder, or a bucket of S3-compatible storage. A file appears whole."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol
from urllib.parse import urlsplit

from fleetd.errors import FleetdError, UsageError
from fleetd.releases.disk import SCRATCH
from fleetd.releases.faults import needed, on_disk

CHUNK: Final = 1024 * 1024
LIMIT_S: Final = timedelta(seconds=60)
RETRIES: Final = 3


class MissingError(FleetdError):
    """The store has no file of that name."""


class Store(Protocol):
    """Named files."""

    def put(self, name: str, path: Path) -> None:
        """Keep a copy of a file under a name; it appears whole."""

    def open(self, name: str) -> BinaryIO:
        """Open a file to be read; raises MissingError."""

    def names(self) -> list[str]:
        """Return the names of all files."""

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no fault."""


class FolderStore:
    """Files in a folder, on the disk once they are there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, path: Path) -> None:
        """Copy to a name that is not read, bring it to the disk, rename it."""
        with on_disk(self._folder, "keep a release"):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, new = tempfile.mkstemp(prefix=f"{SCRATCH}{name}-", dir=self._folder)
            try:
                with os.fdopen(handle, "wb") as out, path.open("rb") as source:
                    shutil.copyfileobj(source, out, CHUNK)
                    out.flush()
                    os.fsync(out.fileno())
                Path(new).rename(self._folder / name)
                self._settle()
            finally:
                Path(new).unlink(missing_ok=True)

    def open(self, name: str) -> BinaryIO:
        """Open a file."""
        with on_disk(self._folder, "read a release"):
            try:
                return (self._folder / name).open("rb")
            except FileNotFoundError:
                raise MissingError(f"{self._folder}: there is no release {name.partition('.')[0][:12]}") from None

    def names(self) -> list[str]:
        """Return the names, without files that are just being written."""
        with on_disk(self._folder, "list the releases"):
            if not self._folder.is_dir():
                return []
            return [name for name in os.listdir(self._folder) if not name.startswith(SCRATCH)]  # noqa: PTH208 - names

    def delete(self, name: str) -> None:
        """Remove a file."""
        with on_disk(self._folder, "remove a release"):
            (self._folder / name).unlink(missing_ok=True)

    def _settle(self) -> None:
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class ObjectStore:
    """Objects below s3://BUCKET/PREFIX. Credentials, region and endpoint come from the usual AWS_… variables."""

    def __init__(self, where: str, key: str = "releases.store") -> None:
        """Take the address, which stands at `key` of the policy; the bucket is first asked when something is wanted."""
        self._where = where.rstrip("/")
        self._obstore = needed("obstore", "s3", f"{key} {where}")
        url = urlsplit(self._where)
        if not url.netloc:
            raise UsageError(f"{key}: {where}: names no bucket; it must be s3://BUCKET/PREFIX")
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        options: dict[str, Any] = {
            "client_options": {"timeout": LIMIT_S, "allow_http": plain},
            "retry_config": {"max_retries": RETRIES, "retry_timeout": LIMIT_S},
        }
        with self._told("open"):
            prefix = url.path.strip("/") or None
            self._store = self._obstore.store.S3Store(url.netloc, prefix=prefix, **options)

    def put(self, name: str, path: Path) -> None:
        """Upload a file, in parts where it is large; S3 shows it only once all parts are there."""
        with self._told("keep a release"):
            self._obstore.put(self._store, name, path)

    def open(self, name: str) -> BinaryIO:
        """Download to an unnamed temporary file, so that a connection that breaks is noticed here."""
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        try:
            with self._told("read a release"):
                for part in self._obstore.get(self._store, name).stream(min_chunk_size=CHUNK):
                    with on_disk(tempfile.gettempdir(), "write"):
                        file.write(part)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def names(self) -> list[str]:
        """Return the names below the prefix."""
        with self._told("list the releases"):
            batches = self._obstore.list(self._store)
            return [str(found["path"]) for batch in batches for found in batch if "/" not in str(found["path"])]

    def delete(self, name: str) -> None:
        """Remove an object."""
        with self._told("remove a release"):
            try:
                self._obstore.delete(self._store, name)
            except (FileNotFoundError, self._obstore.exceptions.NotFoundError):
                return

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Turn what obstore raises into one line."""
        try:
            yield
        except (FileNotFoundError, self._obstore.exceptions.NotFoundError):
            raise MissingError(f"{self._where}: cannot {doing}: it, or its bucket, is not there") from None
        except self._obstore.exceptions.BaseError as error:
            reason = " ".join(str(error).partition("Debug source")[0].split())
            raise FleetdError(f"{self._where}: cannot {doing}: {reason:.300}") from None
