"""References and job headers: what is one is read strictly, what is none is left alone."""

import json

import pytest

from fleetd.codecs.lease import join_token
from fleetd.codecs.reference import (
    Reference,
    Wish,
    blob_id,
    dump_reference,
    dump_wish,
    is_reference,
    load_reference,
    load_wish,
    result_key,
)
from fleetd.codecs.scope import node_token
from fleetd.codecs.ticket import check_ticket, show_ticket, ticket_of
from fleetd.errors import ProtocolError

GOOD = Reference(f"fleetd://shop/{'ab' * 16}", "cd" * 32, 5, 2_000_000_000)


def test_a_reference_comes_back_as_it_went() -> None:
    body = dump_reference(GOOD)
    assert len(body) < 256
    assert is_reference(body)
    assert load_reference(body) == GOOD
    assert blob_id(GOOD) == blob_id(GOOD, "shop") == "ab" * 16


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"fleetd":1}', b"\x00\xff", b' {"fleetd-reference":1}'])
def test_what_is_none_is_not_taken_for_one(payload: bytes) -> None:
    assert not is_reference(payload)
    assert load_wish(payload) == (None, payload)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fleetd-reference": 2}, "its version is not known here, only 1"),
        ({"sha256": "CD" * 32}, "reference: sha256: "),
        ({"size": -1}, "reference: size: -1 is none"),
        ({"size": True}, "reference: size: True is none"),
        ({"expires_at": 1.5}, "reference: expires_at: 1.5 is none"),
        ({"uri": 3}, "reference: uri: 3 is none"),
    ],
)
def test_an_altered_one_is_refused(change: dict[str, object], said: str) -> None:
    raw = json.loads(dump_reference(GOOD)) | change
    with pytest.raises(ProtocolError, match=said):
        load_reference(json.dumps(raw).encode())


def test_a_cut_one_is_refused() -> None:
    with pytest.raises(ProtocolError, match="it was cut or altered"):
        load_reference(dump_reference(GOOD)[:-3])
    with pytest.raises(ProtocolError, match="more than the 1024 allowed"):
        load_reference(dump_reference(GOOD) + b" " * 1024)


@pytest.mark.parametrize(
    "uri",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://evil.example/v1/blobs/" + "ab" * 16,
        "file:///etc/passwd",
        "s3://bucket/key",
        "fleetd://shop/../../etc/passwd",
        f"fleetd://shop@evil.example/{'ab' * 16}",
        f"fleetd://shop/{'ab' * 16}?x=1",
    ],
)
def test_a_reference_to_anywhere_else_is_refused(uri: str) -> None:
    with pytest.raises(ProtocolError, match="is refused: only fleetd://FLEET/ID is looked up"):
        blob_id(Reference(uri, "cd" * 32, 5, 2_000_000_000))


def test_a_reference_of_another_fleet_is_refused() -> None:
    with pytest.raises(ProtocolError, match="of the store of fleet shop, and this is fleet other: refused"):
        blob_id(GOOD, "other")


def test_a_wish_stands_before_any_payload() -> None:
    wish = Wish(262144, result_key("resize", "u1"))
    for payload in (b"", b"\n\n", b"\x00" * 10, dump_reference(GOOD)):
        assert load_wish(dump_wish(wish, payload)) == (wish, payload)
    for head in (b'{"fleetd-job":1}', b'{"fleetd-job":1,"cap":-1}\n', b'{"fleetd-job":1,"cap":1,"key":"../x"}\n'):
        with pytest.raises(ProtocolError, match="job header: it must be a line with a cap"):
            load_wish(head)


def test_a_key_is_of_the_function_and_the_unique() -> None:
    assert len({result_key("a", "b"), result_key("ab", ""), result_key("", "ab"), result_key("b", "a")}) == 4


def test_a_ticket_is_good_for_its_requests_and_its_time_alone() -> None:
    secret, request = "s" * 40, ("POST", "/v1/blobs", b"{}")
    ticket = ticket_of(join_token(secret, "shop", "local"))
    assert check_ticket(secret, show_ticket(ticket, *request), 0.0, request).pool == "local"
    for other in (("GET", *request[1:]), ("POST", "/v1/jobs", b"{}"), ("POST", "/v1/blobs", b"{ }")):
        with pytest.raises(ProtocolError, match="the signature for 'shop/local' is wrong"):
            check_ticket(secret, show_ticket(ticket, *request), 0.0, other)
    with pytest.raises(ProtocolError, match=r"must be 'Fleetd-Files SCOPE SIGNATURE'|is no scope"):
        check_ticket(secret, "Bearer x", 0.0, request)
    ending = show_ticket(ticket_of(node_token(secret, "shop", "local/n1", 100.0)), *request)
    assert check_ticket(secret, ending, 99.0, request).node == "local/n1"
    with pytest.raises(ProtocolError, match="ended 1 s ago"):
        check_ticket(secret, ending, 101.0, request)
