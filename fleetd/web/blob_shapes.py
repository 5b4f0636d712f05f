"""What is asked and answered about files and the ends of jobs. The sentences become the OpenAPI document's."""

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from fleetd.codecs.reference import LARGEST
from fleetd.web.calls import Asked, Told, Whole

MOST_JOBS: Final = 1000
Hex = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
Sha = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Keep = Annotated[float | None, Field(gt=0, le=1e9, description="Seconds; default and the most: policy.")]


class BlobAsked(Asked):
    """A file that is to be sent."""

    id: Hex = Field(description="The sender's choice; one that is half here is taken up again.")
    size: int = Field(ge=0, le=LARGEST)
    keep_s: Keep = None


class BlobNamed(Asked):
    """Which file."""

    id: Hex


class BlobDone(Asked):
    """A file of which all was sent."""

    id: Hex
    sha256: Sha


class PieceAsked(Asked):
    """Which file, and from which byte on."""

    id: Hex
    offset: Whole = 0


class JobAsked(Asked):
    """A job that is about to be submitted."""

    function: str = Field(min_length=1, max_length=512)
    unique: str = Field(min_length=1, max_length=64)


class JobsAsked(Asked):
    """Jobs whose ends are to be kept."""

    jobs: list[JobAsked] = Field(min_length=1, max_length=MOST_JOBS)
    keep_s: Keep = None
    tell: str = Field(default="", max_length=2048, description="The URL that ends are posted to.")


class JobNamed(Asked):
    """Which job: by the key of its function and unique."""

    key: Hex


class JobEnded(Asked):
    """How a job ended, from its worker."""

    function: str = Field(min_length=1, max_length=512)
    unique: str = Field(min_length=1, max_length=64)
    state: Literal["done", "cancelled"]
    result: str = Field(default="", description="In base64.")
    blob: BlobDone | None = Field(default=None, description="Instead of it, a file that was sent.")


class Depots(Told):
    """The store of files."""

    fleet: str
    cap: int = Field(description="Payloads and results above this should be sent as files.")
    keep_s: float = Field(description="How long what is sent is kept, where nobody says.")
    most: int = Field(description="Bytes that may be in use.")
    used: int


class Begun(Told):
    """A file that may be sent now."""

    id: str
    expires_at: int


class Piece(Told):
    """Where bytes go to or come from. `url` null: all are here."""

    url: str | None
    method: str = "GET"
    offset: int = 0
    size: int = 0
    skip: int = Field(default=0, description="Bytes that stand before them there.")
    total: int = Field(description="Of the whole file.")
    sha256: str = Field(description="Of the whole file; empty until all of it is here.")


class Kept(Told):
    """A file's reference. Where its SHA-256 is not the sender's, nothing was kept."""

    uri: str
    sha256: str
    size: int
    expires_at: int


class Opened(Told):
    """Jobs whose ends will be kept."""

    expires_at: int


class Ended(Told):
    """What is kept of a job."""

    key: str
    function: str
    unique: str
    state: Literal["waiting", "done", "failed", "cancelled"]
    cancel: bool = Field(description="Somebody asked that it be ended.")
    reason: str
    result: str = Field(description="In base64; empty where it is a file.")
    reference: Kept | None
    expires_at: int
