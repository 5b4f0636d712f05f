"""`requires-python` is read as packaging reads it; what it would not understand is refused, never guessed."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

from fleetd.errors import FleetdError
from fleetd.releases.faults import BundleError
from fleetd.releases.python import Python, check_python, meets, python_of

NUMBERS = st.lists(st.integers(0, 4), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
CLAUSES = (
    st.tuples(st.sampled_from(["==", "!=", "<=", ">=", "<", ">"]), NUMBERS).map("".join)
    | st.tuples(st.sampled_from(["==", "!="]), NUMBERS, st.just(".*")).map("".join)
    | st.tuples(st.just("~="), NUMBERS.filter(lambda text: "." in text)).map("".join)
)


@given(clauses=st.lists(CLAUSES, max_size=3), version=st.tuples(*[st.integers(0, 4)] * 3))
def test_it_means_what_packaging_says(clauses: list[str], version: tuple[int, int, int]) -> None:
    text = ", ".join(clauses)
    assert meets(text, version, "x") == SpecifierSet(text).contains(".".join(map(str, version)))


@pytest.mark.parametrize(
    ("requires", "version", "good"),
    [
        (">=3.11", (3, 11, 0), True),
        (">=3.11,<3.13", (3, 13, 0), False),
        ("==3.11.*", (3, 11, 7), True),
        ("~=3.11", (3, 14, 0), True),
        ("~=3.11.2", (3, 12, 0), False),
        ("", (3, 11, 7), True),
    ],
)
def test_the_usual_ones(requires: str, version: tuple[int, int, int], good: bool) -> None:  # noqa: FBT001
    assert meets(requires, version, "x") is good


@pytest.mark.parametrize(
    "text", ["3.11", ">=3.11rc1", "===3.11", ">=3.*", "~=3", ">=", ">=3.11 <4", "$", ">=" + "1" * 20]
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=r"^release: requires-python: .* cannot be read$"):
        meets(text, (3, 11, 7), "release")


def test_the_refusal_names_both_versions() -> None:
    with pytest.raises(BundleError, match=r"^release: needs Python >=3\.13, and this is 3\.11\.7$"):
        check_python(">=3.13", Python((3, 11, 7), "x86_64"), "release")


def test_another_interpreter_is_asked_what_it_is() -> None:
    there = python_of(getattr(sys, "_base_executable", sys.executable))
    assert there == python_of(sys.executable)
    assert there.tag == f"cp{sys.version_info[0]}{sys.version_info[1]}"
    with pytest.raises(FleetdError, match="/none/python: is no Python that runs"):
        python_of("/none/python")
