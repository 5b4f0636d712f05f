"""Addresses: what may be left out, and what is told to whoever writes one wrongly."""

import socket

import pytest

from fleetd.dispatchers.address import Address, parse_address, tune
from fleetd.errors import UsageError


@pytest.mark.parametrize(
    ("text", "host", "port", "spelled"),
    [
        ("10.0.0.5:4731", "10.0.0.5", 4731, "10.0.0.5:4731"),
        ("gearman", "gearman", 4730, "gearman:4730"),
        ("jobs-1.example.org:1", "jobs-1.example.org", 1, "jobs-1.example.org:1"),
        ("[::1]:4731", "::1", 4731, "[::1]:4731"),
        ("[fe80::1%eth0]", "fe80::1%eth0", 4730, "[fe80::1%eth0]:4730"),
        ("tls://jobs.example.org", "jobs.example.org", 4730, "tls://jobs.example.org:4730"),
        ("tls://[::1]:4731", "::1", 4731, "tls://[::1]:4731"),
    ],
)
def test_an_address_is_read(text, host, port, spelled):
    address = parse_address(text)
    assert address == Address(host, port, tls=text.startswith("tls://"))
    assert str(address) == spelled
    assert parse_address(spelled) == address


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected HOST, HOST:PORT or [IPV6]:PORT"),
        (":4730", "expected HOST, HOST:PORT"),
        ("host:", "expected HOST, HOST:PORT"),
        ("host:port", "expected HOST, HOST:PORT"),
        ("host:-1", "expected HOST, HOST:PORT"),
        ("host:0", "the port must be 1 to 65535"),
        ("host:65536", "the port must be 1 to 65535"),
        ("host:123456", "expected HOST, HOST:PORT"),
        ("ho st:1", "expected HOST, HOST:PORT"),
        ("gearman://host:4730", "expected HOST, HOST:PORT or [IPV6]:PORT, with tls:// before it where TLS is spoken"),
        ("tls://", "expected HOST, HOST:PORT"),
        ("tls://tls://host", "expected HOST, HOST:PORT"),
        ("TLS://host", "expected HOST, HOST:PORT"),
        ("tls://fe80::1:4730", "put an IPv6 address in brackets"),
        ("::1", "put an IPv6 address in brackets, as in '[::1]:4730'"),
        ("fe80::1:4730", "put an IPv6 address in brackets"),
        ("[host]:4730", "expected HOST, HOST:PORT"),
        ("host:4730\n", "expected HOST, HOST:PORT"),
    ],
)
def test_a_wrong_address_is_refused_with_the_form_that_is_right(text, says):
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert says in str(caught.value)


def test_connections_send_at_once_and_notice_a_dead_peer():
    with socket.socket() as sock:
        tune(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
