"""Where a worker's join token comes from, and where a renewed one is kept. The standard library alone.

Promises: a file of ours holds a whole token or the one before, for its owner alone.
"""

import os
from pathlib import Path
from typing import Final

from fleetd.errors import UsageError
from fleetd.worker.children import TOKEN_VARIABLE

# Instead of the token itself: the file that it is read from, and that renewed ones are written to, so that a worker
# started anew on the same node is still let in.
FILE_VARIABLE: Final = "FLEETD_JOIN_TOKEN_FILE"


def find_token() -> tuple[str, Path | None]:
    """Return the token and the file that it came from, if it came from one; raises UsageError."""
    name = os.environ.get(FILE_VARIABLE)
    if not name:
        return os.environ.get(TOKEN_VARIABLE, ""), None
    try:
        return Path(name).read_text("utf-8", "replace").strip(), Path(name).absolute()
    except OSError as error:
        raise UsageError(f"{FILE_VARIABLE}: {name}: {error.strerror}") from None


def write_token(path: Path, token: str) -> None:
    """Put a token in its file's place at once; raises OSError."""
    new = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(token)
    new.replace(path)
