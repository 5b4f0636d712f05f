"""What a web script does with fleetd: hand a user's picture over, wait a little, and never for ever.

python -m examples.webscript photo.jpg --server 127.0.0.1:4730
"""

import argparse
import json
import sys
from pathlib import Path

from fleetd.client import Client, JobError, JobTimeoutError

PATIENCE_S = 5.0


def upload(client: Client, photo: Path, out: Path, patience_s: float = PATIENCE_S) -> str:
    """Return what the user is to see: the thumbnail, or that it comes later. The page is never held up longer."""
    order = json.dumps({"photo": str(photo.resolve()), "out": str(out.resolve())}).encode()
    try:
        return client.run("thumbnail", order, wait_s=patience_s, priority="high").decode()
    except JobTimeoutError:
        client.submit("thumbnail", order)  # it will be there at the next visit
        return "your picture is being prepared"
    except JobError as error:
        return f"this picture cannot be used: {error}"


def main() -> int:
    """Make one thumbnail beside the photo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--server", default="127.0.0.1:4730")
    given = parser.parse_args()
    with Client([given.server]) as client:
        print(upload(client, given.photo, given.photo.with_suffix(".thumbnail.jpg")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
