import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.codecs.lease import authorization, join_token, scope_token, split_token, verify
from fleetd.codecs.scope import Scope, node_token, read_scope
from fleetd.errors import ProtocolError

SECRET = "s" * 40
WORDS = st.text(st.characters(codec="ascii", exclude_characters="/ @", min_codepoint=33), min_size=1, max_size=20)


def test_both_forms_are_read() -> None:
    assert read_scope("shop/rack3") == Scope("shop", "rack3")
    assert read_scope("shop/rack3/node07.12@1800000000") == Scope("shop", "rack3", "rack3/node07.12", 1_800_000_000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "shop",
        "/",
        "shop/",
        "/rack3",
        "shop/rack3/node07",
        "shop/rack3/@5",
        "shop//node@5",
        "/rack3/node@5",
        "shop/rack3/node@",
        "shop/rack3/node@-5",
        "shop/rack3/node@5.5",
        "shop/rack3/node@٣",
        "shop/rack3/node@" + "9" * 13,
        "shop/rack3/a@b",
    ],
)
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        read_scope(text)


def test_a_pools_token_is_for_every_node_of_it_for_ever_and_for_no_other() -> None:
    scope = read_scope("shop/rack3")
    scope.check("rack3/node07.12", 1e12)
    for node in ("rack4/node07.12", "rack30/a", "rack", ""):
        with pytest.raises(ProtocolError, match="not for node"):
            scope.check(node, 0.0)
    assert scope.left_s(5.0) is None


def test_a_nodes_token_is_for_it_alone_and_until_its_end() -> None:
    scope = read_scope("shop/rack3/node07.12@1000")
    scope.check("rack3/node07.12", 999.9)
    for node in ("rack3/node07.1", "rack3/node07.123", "rack3/node08.1", "rack3", "rack3/node07.12@1000"):
        with pytest.raises(ProtocolError, match="not for node"):
            scope.check(node, 0.0)
    with pytest.raises(ProtocolError, match=r"ended 5 s ago"):
        scope.check("rack3/node07.12", 1005.0)
    with pytest.raises(ProtocolError, match="ended"):
        scope.check("rack3/node07.12", 1000.0)
    assert scope.left_s(400.0) == 600.0


def test_no_token_can_be_made_of_another() -> None:
    pool, node = join_token(SECRET, "shop", "rack3"), node_token(SECRET, "shop", "rack3/node07.12", 1000.9)
    assert split_token(node)[0] == "shop/rack3/node07.12@1000"
    for scope, key in (
        ("shop/rack3", split_token(node)[1]),
        ("shop/rack3/node07.12@1000", split_token(pool)[1]),
        ("shop/rack3/node07.12@2000", split_token(node)[1]),
        ("shop/rack3/node08.12@1000", split_token(node)[1]),
    ):
        with pytest.raises(ProtocolError, match="signature"):
            verify(SECRET, authorization(f"{scope}.{key}", "GET", "/"), "GET", "/")
    assert verify(SECRET, authorization(node, "GET", "/"), "GET", "/")[0] == "shop/rack3/node07.12@1000"


def test_the_frozen_node_token_is_made_as_it_was() -> None:
    assert node_token(SECRET, "shop", "rack3/node07.12", 1_800_000_000) == scope_token(
        SECRET, "shop/rack3/node07.12@1800000000"
    )


@given(WORDS, WORDS, WORDS, st.integers(0, 10**12 - 1))
def test_what_is_written_is_read(fleet: str, pool: str, name: str, until: int) -> None:
    for scope in (Scope(fleet, pool), Scope(fleet, pool, f"{pool}/{name}", until)):
        assert read_scope(str(scope)) == scope


@given(st.text(max_size=40), st.text(max_size=20), st.floats(0, 1e12))
def test_whatever_is_read_admits_only_nodes_of_its_own_pool(text: str, node: str, now: float) -> None:
    try:
        scope = read_scope(text)
        scope.check(node, now)
    except ProtocolError:
        return
    assert node.partition("/")[0] == scope.pool
