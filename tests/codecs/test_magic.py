"""Magic packets and a relay's requests: values, and whatever bytes come in."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wakeonlan import create_magic_packet

from fleetd.codecs.magic import (
    WINDOW_S,
    Magic,
    RelayRequest,
    find_magic,
    mac_text,
    magic_packet,
    open_answer,
    open_request,
    secureon_text,
    sign_answer,
    sign_request,
)
from fleetd.errors import ProtocolError

KEY, OTHER = b"k" * 32, b"o" * 32
MACS = st.binary(min_size=6, max_size=6).map(lambda b: bytes([b[0] & 0xFE]) + b[1:]).filter(any)
SIX = st.binary(min_size=6, max_size=6)


@given(MACS)
def test_an_address_reads_alike_in_every_usual_form(octets):
    bare = octets.hex()
    forms = [bare, octets.hex(":"), octets.hex("-"), f"{bare[:4]}.{bare[4:8]}.{bare[8:]}"]
    assert {mac_text(form) for form in forms} == {mac_text(form.upper()) for form in forms} == {octets.hex(":")}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("52:54:00:12:34", "expected six bytes as in 52:54:00:12:34:07, got '52:54:00:12:34'"),
        ("52:54-00:12:34:07", "expected six bytes"),
        ("52:54:00:12:34:0g", "expected six bytes"),
        ("", "expected six bytes"),
        ("x" * 1000, "expected six bytes"),
        ("01:00:5e:00:00:01", "the address of a group"),
        ("ff:ff:ff:ff:ff:ff", "the address of a group"),
        ("00:00:00:00:00:00", "no machine's address"),
    ],
)
def test_what_is_no_machines_address_is_said_in_one_short_line(text, why):
    with pytest.raises(ValueError) as caught:
        mac_text(text)
    assert why in str(caught.value)
    assert len(str(caught.value)) < 130


@given(MACS, SIX)
def test_a_packet_is_what_the_package_sends(octets, password):
    mac, secureon = octets.hex(":"), password.hex(":")
    assert magic_packet(mac) == create_magic_packet(mac)
    assert magic_packet(mac, secureon) == create_magic_packet(f"{mac}/{secureon}")


@given(MACS, st.one_of(st.just(b""), SIX), st.binary(max_size=40))
def test_a_packet_is_found_wherever_it_begins_in_a_payload(octets, password, before):
    packet = magic_packet(octets.hex(":"), password.hex(":") if password else "")
    found = find_magic(before.rstrip(b"\xff") + packet)
    assert found == Magic(octets.hex(":"), password)


def test_more_of_the_sync_bytes_than_needed_hide_no_packet():
    assert find_magic(b"\xff" * 5 + magic_packet("52:54:00:12:34:07")) == Magic("52:54:00:12:34:07")


@given(st.binary(max_size=300))
def test_whatever_comes_in_a_packet_is_an_address_sixteen_times_or_none(data):
    found = find_magic(data)
    assert found is None or bytes.fromhex(found.mac.replace(":", "")) * 16 in data


def test_a_packet_short_of_one_byte_is_none():
    assert find_magic(magic_packet("52:54:00:12:34:07")[:-1]) is None


def test_a_password_is_six_bytes_and_never_shown():
    assert secureon_text("00-11-22-33-44-ff") == "00:11:22:33:44:ff"
    with pytest.raises(ValueError, match=r"^expected a SecureOn password of six bytes as in 00:11:22:33:44:55$"):
        secureon_text("hunter2")


# ── the relay

REQUEST = RelayRequest("52:54:00:12:34:07", "00:11:22:33:44:55", "10.77.0.255", 1000.0, "n1")


def test_a_relay_opens_what_its_key_signed():
    assert open_request(KEY, sign_request(KEY, REQUEST), 1000.0 + WINDOW_S) == REQUEST


@pytest.mark.parametrize("late_s", [-WINDOW_S - 1, WINDOW_S + 1, float("nan"), float("inf")])
def test_a_request_of_another_time_is_refused(late_s):
    with pytest.raises(ProtocolError, match=r"old request|different keys"):
        open_request(KEY, sign_request(KEY, REQUEST), 1000.0 + late_s)


@pytest.mark.parametrize(
    "change", [{"mac": "52:54:00:12:34:08"}, {"secureon": ""}, {"broadcast": ""}, {"at": 1001.0}, {"nonce": "n2"}]
)
def test_no_word_of_a_request_can_be_changed(change):
    body = json.loads(sign_request(KEY, REQUEST)) | change
    with pytest.raises(ProtocolError, match="different keys"):
        open_request(KEY, json.dumps(body).encode(), 1000.0)
    with pytest.raises(ProtocolError, match="different keys"):
        open_request(OTHER, sign_request(KEY, REQUEST), 1000.0)


def test_an_answer_is_bound_to_its_request_and_its_words():
    good = sign_answer(KEY, REQUEST, "no such machine")
    assert open_answer(KEY, REQUEST, good) == "no such machine"
    assert open_answer(KEY, REQUEST, sign_answer(KEY, REQUEST)) == ""
    forged = json.dumps(json.loads(good) | {"problem": ""}).encode()
    for line, about in ((forged, REQUEST), (good, replace(REQUEST, nonce="n2")), (b"{}", REQUEST), (b"", REQUEST)):
        with pytest.raises(ProtocolError, match="answer"):
            open_answer(KEY, about, line)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(st.none() | st.text() | st.floats(), st.lists).map(
            lambda value: json.dumps(
                {"mac": value, "secureon": "", "broadcast": "", "at": 0, "nonce": "", "signature": ""}
            ).encode()
        ),
    )
)
def test_whatever_a_relay_hears_is_refused_in_one_line(data):
    for call in (lambda: open_request(KEY, data, 0.0), lambda: open_answer(KEY, REQUEST, data)):
        with pytest.raises(ProtocolError) as caught:
            call()
        assert "\n" not in str(caught.value)
