import struct

from hypothesis import given
from hypothesis import strategies as st

from fleetd.codecs.dhcp import ACK, BOOTFILE, KIND, OFFER, SERVER, Reply, ask, read

MAC = bytes.fromhex("525400123407")


def answer(options: bytes, *, number: int = 7, mac: bytes = MAC, file: bytes = b"", name: bytes = b"") -> bytes:
    ends = bytes([10, 77, 0, 17]), bytes([10, 77, 0, 1])
    fixed = struct.pack(
        "!BBBBIHH4s4s4s4s16s64s128s", 2, 1, 6, 0, number, 0, 0, bytes(4), *ends, bytes(4), mac, name, file
    )
    return fixed + b"\x63\x82\x53\x63" + options


def test_an_offer_is_read() -> None:
    options = bytes([0, KIND, 1, OFFER, SERVER, 4, 10, 77, 0, 2, 255, 9])
    found = read(answer(options, file=b"undionly.kpxe"), MAC, 7)
    assert found == Reply(
        OFFER, "10.77.0.2", "10.77.0.17", "10.77.0.1", "undionly.kpxe", {KIND: bytes([OFFER]), SERVER: b"\nM\0\2"}
    )


def test_a_file_in_an_option_and_options_in_a_file_are_read() -> None:
    found = read(answer(bytes([KIND, 1, ACK, BOOTFILE, 3]) + b"a.b" + b"\xff", file=b"other"), MAC, 7)
    assert found is not None
    assert found.file == "a.b"
    overloaded = read(answer(bytes([52, 1, 3, 255]), file=bytes([KIND, 1, ACK, 255]), name=b"\x0c\x01x\xff"), MAC, 7)
    assert overloaded is not None
    assert (overloaded.kind, overloaded.options[12], overloaded.file) == (ACK, b"x", "")


def test_what_answers_another_is_passed_over() -> None:
    good = bytes([KIND, 1, OFFER, 255])
    assert read(answer(good), MAC, 7) is not None
    assert read(answer(good, number=8), MAC, 7) is None
    assert read(answer(good, mac=b"\2" * 6), MAC, 7) is None
    assert read(answer(good)[:-5], MAC, 7) is None
    assert read(ask(MAC, 7), MAC, 7) is None
    assert read(answer(bytes([KIND, 9, OFFER])), MAC, 7) is None


def test_a_question_is_long_enough_for_old_servers_and_wants_a_broadcast() -> None:
    packet = ask(MAC, 7, options={93: b"\0\7"})
    assert len(packet) == 300
    assert packet[10:12] == b"\x80\0"
    assert packet[28:34] == MAC
    assert bytes([93, 2, 0, 7, 255]) in packet


@given(st.binary(max_size=600))
def test_no_bytes_break_it(data: bytes) -> None:
    read(data, MAC, 7)
    read(answer(data), MAC, 7)
