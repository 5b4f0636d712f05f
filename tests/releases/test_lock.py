"""What uv says: of the packages in a lock, and of what went wrong."""

import pytest

from fleetd.releases.faults import BundleError
from fleetd.releases.lock import packages
from fleetd.releases.uv import reason

LOCK = """
[[package]]
name = "photos"
source = {{ virtual = "." }}
dependencies = [{{ name = "{0}" }}]
[package.dev-dependencies]
dev = [{{ name = "pytest" }}]

[[package]]
name = "pytest"
source = {{ registry = "https://index.example/simple" }}

[[package]]
name = "tiny"
source = {{ registry = "https://index.example/simple" }}

[[package]]
name = "fleetd"
source = {{ editable = "../fleetd" }}
{1}
"""


@pytest.mark.parametrize(
    ("wanted", "more", "expected"),
    [
        ("tiny", "", ["tiny"]),
        ("fleetd", "", []),
        ("fleetd", 'dependencies = [{ name = "tiny" }]', ["tiny"]),
        ("nothing", "", []),
    ],
)
def test_what_counts_as_third_party(wanted: str, more: str, expected: list[str]) -> None:
    found = packages(LOCK.format(wanted, more).encode(), "uv.lock")
    assert [package["name"] for package in found] == expected


@pytest.mark.parametrize("lock", [b"\xff", b"[[package]]\n", b"package = 3\n", b'[[package]]\nname = "a"\n'])
def test_a_lock_that_is_none(lock: bytes) -> None:
    with pytest.raises(BundleError, match=r"^uv\.lock: cannot be read: "):
        packages(lock, "uv.lock")


def test_uv_s_reasons_become_one_line() -> None:
    said = "Using CPython 3.11.7\n  \u00d7 No solution found when resolving:\n  ╰─▶ Because a\n      b.\nhint: x\n"
    assert reason(said, 1) == "No solution found when resolving: Because a b."
    assert reason("", 2) == "uv ended with 2 and said nothing"
    assert len(reason("error: " + "x" * 1000, 2)) == 400
