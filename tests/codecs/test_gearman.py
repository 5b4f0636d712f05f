"""The binary protocol: the same packets however the bytes arrive, and a clear refusal of everything else."""

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.codecs.gearman import ARGUMENTS, HEADER, REQ, RES, Decoder, Kind, Packet, encode
from fleetd.errors import ProtocolError

ARG = st.binary(max_size=20).map(lambda raw: raw.replace(b"\0", b""))


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    kind = draw(st.sampled_from(sorted(ARGUMENTS)))
    count = len(ARGUMENTS[kind])
    args = [draw(ARG) for _ in range(count)]
    if args:
        args[-1] = draw(st.binary(max_size=40))  # the last may hold NUL bytes
    return Packet(kind, tuple(args))


def test_a_packet_is_magic_type_size_and_arguments_between_nul_bytes():
    packet = encode(Kind.SUBMIT_JOB_HIGH_BG, b"resize", b"u1", b"a\0b")
    assert packet == b"\0REQ" + bytes([0, 0, 0, 32, 0, 0, 0, 13]) + b"resize\0u1\0a\0b"
    assert Decoder(magic=REQ).feed(packet) == [Packet(Kind.SUBMIT_JOB_HIGH_BG, (b"resize", b"u1", b"a\0b"))]


def test_empty_arguments_survive():
    packet = encode(Kind.WORK_COMPLETE, b"H:a:1", b"", magic=RES)
    assert Decoder().feed(packet) == [Packet(Kind.WORK_COMPLETE, (b"H:a:1", b""))]


@pytest.mark.parametrize(
    ("kind", "args", "says"),
    [
        (Kind.CAN_DO, (), "CAN_DO takes 1 arguments, not 0"),
        (Kind.NOOP, (b"x",), "NOOP takes 0 arguments, not 1"),
        (Kind.SUBMIT_JOB, (b"a\0b", b"u", b""), "SUBMIT_JOB: function must not hold a NUL byte"),
        (Kind.SUBMIT_JOB, (b"a", b"u\0", b""), "SUBMIT_JOB: unique must not hold a NUL byte"),
    ],
)
def test_what_cannot_be_a_packet_is_not_encoded(kind, args, says):
    with pytest.raises(ProtocolError, match=says):
        encode(kind, *args)


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (b"\0REQ" + bytes(8), "byte 0 of the stream: expected b'\\x00RES', got b'\\x00REQ'"),
        (b"HTTP/1.1 400 Bad", "byte 0 of the stream: expected b'\\x00RES', got b'HTTP'"),
        (b"H", "byte 0 of the stream: expected b'\\x00RES', got b'H'"),
        (HEADER.pack(RES, 99, 0), "byte 0 of the stream: unknown packet type 99"),
        (HEADER.pack(RES, Kind.NO_JOB, 3) + b"abc", "NO_JOB needs 0 arguments"),
        (HEADER.pack(RES, Kind.WORK_STATUS, 3) + b"H\x001", "WORK_STATUS needs 3 arguments, got 2"),
        (HEADER.pack(RES, Kind.WORK_DATA, 1001), "WORK_DATA of 1001 bytes, more than the 1000 allowed"),
        (encode(Kind.NO_JOB, magic=RES) + b"x", "byte 12 of the stream: expected"),
    ],
)
def test_malformed_bytes_are_refused_with_their_offset(stream, says):
    decoder = Decoder(max_bytes=1000)
    with pytest.raises(ProtocolError) as caught:
        decoder.feed(stream)
    assert says in str(caught.value)
    with pytest.raises(ProtocolError, match="malformed before"):
        decoder.feed(encode(Kind.NO_JOB, magic=RES))


def test_the_offset_counts_over_all_that_came_before():
    decoder = Decoder()
    assert len(decoder.feed(encode(Kind.NO_JOB, magic=RES) * 3)) == 3
    assert decoder.feed(b"\0R") == []
    with pytest.raises(ProtocolError, match="byte 36 of the stream"):
        decoder.feed(b"XX")


@given(st.lists(packets(), max_size=6), st.lists(st.integers(0, 400), max_size=8))
def test_the_same_packets_come_however_the_bytes_are_cut(sent, cuts):
    stream = b"".join(encode(packet.kind, *packet.args, magic=RES) for packet in sent)
    decoder, got = Decoder(), []
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, stop in pairwise(edges):
        got += decoder.feed(stream[start:stop])
    assert got == sent


@given(packets(), packets())
def test_every_single_cut_gives_the_same_two_packets(one, other):
    stream = encode(one.kind, *one.args, magic=RES) + encode(other.kind, *other.args, magic=RES)
    for cut in range(len(stream) + 1):
        decoder = Decoder()
        assert decoder.feed(stream[:cut]) + decoder.feed(stream[cut:]) == [one, other]


@given(packets())
def test_a_cut_off_packet_is_never_made_up(packet):
    stream = encode(packet.kind, *packet.args, magic=RES)
    for cut in range(len(stream)):
        assert Decoder().feed(stream[:cut]) == []


@given(st.binary(max_size=200), st.integers(1, 7))
def test_random_bytes_give_packets_or_an_error_and_whole_as_in_crumbs(noise, step):
    def outcome(pieces):
        decoder, got = Decoder(max_bytes=100), []
        try:
            for piece in pieces:
                got += decoder.feed(piece)
        except ProtocolError as error:
            return got, str(error)
        return got, ""

    crumbs, crumb_error = outcome([noise[at : at + step] for at in range(0, len(noise), step)])
    whole, whole_error = outcome([noise])
    assert (crumb_error == "") == (whole_error == "")
    if not whole_error:
        assert crumbs == whole


def test_a_large_packet_in_crumbs_is_held_once():
    packet = encode(Kind.WORK_COMPLETE, b"H:a:1", b"x" * 4_000_000, magic=RES)
    decoder, got = Decoder(), []
    tracemalloc.start()
    for at in range(0, len(packet), 4096):
        got += decoder.feed(packet[at : at + 4096])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert got[0].args[1] == b"x" * 4_000_000
    assert peak < 5 * len(packet)  # its buffer (which grows in steps), the bytes, the body, the argument


def test_an_oversized_packet_is_refused_by_its_header_alone():
    with pytest.raises(ProtocolError, match="more than the 67108864 allowed"):
        Decoder().feed(HEADER.pack(RES, Kind.WORK_DATA, 0xFFFFFFFF))
