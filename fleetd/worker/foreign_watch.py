"""Whether a foreign worker's code has changed: by content, so that a mere touch renews nothing.

Promises: what is half written is waited for: a change counts once two looks in a row saw the same. Blocks; called in a
thread.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from stat import S_ISDIR, S_ISREG

Signs = tuple[tuple[str, int, int], ...]  # path, size and time of change: what costs nothing to look at


class Watched:
    """Files and folders; a link is followed, so that one which is turned to another release counts."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._signs = self._seen = self._look()
        self._digest = self._content(self._signs)

    def changed(self) -> bool:
        """Whether the content differs from what it was at the start, or when this was last true."""
        signs, before = self._look(), self._seen
        self._seen = signs
        if signs == self._signs or signs != before:
            return False
        self._signs = signs
        digest, was = self._content(signs), self._digest
        self._digest = digest
        return digest != was

    def _look(self) -> Signs:
        found = []
        for top in self._paths:
            for path in sorted(_files(top)):
                with suppress(OSError):
                    stat = path.stat()
                    found.append((str(path), stat.st_size, stat.st_mtime_ns))
        return tuple(found)

    def _content(self, signs: Signs) -> bytes:
        whole = sha256()
        for name, size, _ in signs:
            whole.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
            with suppress(OSError), open(name, "rb") as file:  # noqa: PTH123 - names are text here
                while chunk := file.read(1 << 20):
                    whole.update(chunk)
        return whole.digest()


def _files(top: Path) -> Iterator[Path]:
    with suppress(OSError):
        mode = top.stat().st_mode
        if S_ISREG(mode):
            yield top
        elif S_ISDIR(mode):
            for folder, names, files in os.walk(top):
                names[:] = [name for name in names if name not in ("__pycache__", ".git")]  # what a run itself writes
                yield from (Path(folder, name) for name in files)
