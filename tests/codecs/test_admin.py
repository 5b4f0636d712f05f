"""The admin lines: what gearmand 1.1.20 really answers, what it must never answer, and the bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.codecs import admin
from fleetd.codecs.admin import AnswerDecoder, FunctionBacklog, FunctionStatus, Peer, QueuedJob
from fleetd.errors import ProtocolError

NAME = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=20)


def test_status_counts_total_running_and_workers():
    (row,) = admin.parse_status(["f1\t4\t1\t2"])
    assert row == FunctionStatus("f1", total=4, running=1, workers=2)


def test_priority_status_counts_what_waits():
    (row,) = admin.parse_priority_status(["f1\t1\t20\t300\t4"])
    assert row == FunctionBacklog("f1", high=1, normal=20, low=300, workers=4)
    assert row.waiting == 321


def test_workers_lists_clients_too():
    lines = ["40 127.0.0.1 wk-1 : f3 f1", "37 ::1 - :", "9 10.0.0.5 host/rack 3/slot : resize"]
    assert admin.parse_workers(lines) == (
        Peer(40, "127.0.0.1", "wk-1", ("f3", "f1")),
        Peer(37, "::1", "-", ()),
        Peer(9, "10.0.0.5", "host/rack 3/slot", ("resize",)),
    )


def test_jobs_tell_their_attempts_and_whether_they_are_dropped():
    assert admin.parse_jobs(["H:vm:18\t2\t0\t1", "H:vm:19\t0\t1\t0"]) == (
        QueuedJob("H:vm:18", retries=2, ignored=False, background=True),
        QueuedJob("H:vm:19", retries=0, ignored=True, background=False),
    )


def test_version_and_cancel():
    assert admin.parse_version(["OK 1.1.20+ds"]) == "1.1.20+ds"
    assert admin.parse_cancel(["OK"]) is True
    assert admin.parse_cancel(["ERR UNKNOWN_JOB"]) is False
    assert admin.cancel_job("H:vm:1").encode() == b"cancel job H:vm:1\n"


def test_a_negative_count_is_nothing():
    assert admin.parse_status(["f\t2\t-1\t0"]) == (FunctionStatus("f", 2, 0, 0),)


def test_a_function_may_be_empty_or_hold_tabs():
    assert [row.function for row in admin.parse_status(["\t1\t0\t0", "a\tb c\t1\t0\t0"])] == ["", "a\tb c"]


@pytest.mark.parametrize(
    ("parse", "lines", "says"),
    [
        (admin.parse_status, ["a\t1\t0\t0", "b\t1\t0"], "status: line 2: expected 4 fields, got 3"),
        (admin.parse_status, ["a\tx\t0\t0"], "status: line 1: total: 'x' is not a whole number"),
        (admin.parse_status, ["a\t1\t1.5\t0"], "status: line 1: running: '1.5' is not"),
        (admin.parse_status, ["a\t1\t\t0"], "status: line 1: running: '' is not"),
        (admin.parse_status, ["a\t1\t--1\t0"], "status: line 1: running: '--1' is not"),
        (admin.parse_status, ["a\t1_0\t1\t0"], "status: line 1: total: '1_0' is not"),
        (admin.parse_status, ["a\t٣\t1\t0"], "status: line 1: total: '٣' is not"),
        (admin.parse_status, ["a\t" + "9" * 5000 + "\t1\t0"], "status: line 1: total: '9999"),
        (admin.parse_priority_status, ["a\t1\t1\t1"], "prioritystatus: line 1: expected 5 fields, got 4"),
        (admin.parse_priority_status, ["a\t1\t1\tlow\t1"], "prioritystatus: line 1: low: 'low' is not"),
        (admin.parse_jobs, ["H:1\t1\t1"], "show jobs: line 1: expected 4 fields, got 3"),
        (admin.parse_workers, ["40 127.0.0.1 wk-1 f3"], "workers: line 1: expected 'fd host id : functions'"),
        (admin.parse_workers, ["forty 127.0.0.1 wk-1 : f3"], "workers: line 1: fd: 'forty' is not"),
        (admin.parse_version, ["1.1.20"], "version: line 1: expected 'OK VERSION'"),
        (admin.parse_version, ["OK "], "version: line 1: expected 'OK VERSION'"),
        (admin.parse_cancel, ["maybe"], "cancel job: line 1: expected 'OK'"),
        (admin.parse_cancel, [], "cancel job: line 0: expected 1 line, got 0"),
    ],
)
def test_what_is_malformed_is_named_by_line_and_field(parse, lines, says):
    with pytest.raises(ProtocolError) as caught:
        parse(lines)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("handle", ["", "H:1\nshutdown", "H 1", "H:ü:1"])
def test_a_handle_cannot_smuggle_a_command(handle):
    with pytest.raises(ProtocolError, match="is no job handle"):
        admin.cancel_job(handle)


def test_a_block_ends_at_the_lone_dot_and_a_single_line_at_its_end():
    assert AnswerDecoder(admin.STATUS).feed(b"f\t1\t0\t0\n.hidden\t1\t0\t0\n.\n") == ("f\t1\t0\t0", ".hidden\t1\t0\t0")
    assert AnswerDecoder(admin.STATUS).feed(b".\n") == ()
    assert AnswerDecoder(admin.VERSION).feed(b"OK 1.1.20\r\n") == ("OK 1.1.20",)


def test_a_refusal_of_a_block_command_ends_the_waiting():
    with pytest.raises(admin.CommandRefusedError, match="prioritystatus: refused: UNKNOWN_COMMAND Unknown server"):
        AnswerDecoder(admin.PRIORITY_STATUS).feed(b"ERR UNKNOWN_COMMAND Unknown+server+command\r\n")


def test_a_function_named_like_a_refusal_is_a_row():
    assert AnswerDecoder(admin.STATUS).feed(b"ERR x\t1\t0\t0\n.\n") == ("ERR x\t1\t0\t0",)


def test_bytes_after_the_answer_are_refused():
    with pytest.raises(ProtocolError, match="status: 3 bytes after the answer's end"):
        AnswerDecoder(admin.STATUS).feed(b".\nf\t1")


def test_a_line_without_end_is_refused_at_its_bound():
    decoder = AnswerDecoder(admin.STATUS, max_line=100)
    assert decoder.feed(b"x" * 100) is None
    with pytest.raises(ProtocolError, match="status: line 1 is longer than 100 bytes"):
        decoder.feed(b"x")


def test_an_answer_without_end_is_refused_at_its_bound():
    decoder = AnswerDecoder(admin.STATUS, max_bytes=1000)
    for _ in range(125):
        assert decoder.feed(b"f\t1\t0\t0\n") is None
    with pytest.raises(ProtocolError, match="an answer of more than 1000 bytes"):
        decoder.feed(b"f\t1\t0\t0\n")
    assert sum(map(len, decoder._lines)) <= 1000


def test_the_bounds_are_64_kib_and_8_mib():
    assert (AnswerDecoder(admin.STATUS).max_line, AnswerDecoder(admin.STATUS).max_bytes) == (65536, 8388608)


@given(
    st.lists(st.tuples(NAME, st.integers(0, 10**17), st.integers(0, 9), st.integers(0, 9)), max_size=5),
    st.integers(1, 9),
)
def test_rows_come_back_however_the_bytes_are_cut(rows, step):
    stream = "".join(f"{name}\t{a}\t{b}\t{c}\n" for name, a, b, c in rows).encode() + b".\n"
    decoder, lines = AnswerDecoder(admin.STATUS), None
    for at in range(0, len(stream), step):
        assert lines is None
        lines = decoder.feed(stream[at : at + step])
    assert lines is not None
    assert admin.parse_status(lines) == tuple(FunctionStatus(*row) for row in rows)


@given(st.binary(max_size=300), st.integers(1, 20))
def test_random_bytes_give_rows_or_an_error_and_are_bounded(noise, step):
    decoder = AnswerDecoder(admin.STATUS, max_line=50, max_bytes=200)
    try:
        for at in range(0, len(noise), step):
            lines = decoder.feed(noise[at : at + step])
            assert len(decoder._line) <= 50
            if lines is not None:
                admin.parse_status(lines)
                return
    except (ProtocolError, admin.CommandRefusedError):
        return
    assert len(noise) <= 200


@pytest.mark.parametrize(
    "parse", [admin.parse_status, admin.parse_priority_status, admin.parse_jobs, admin.parse_workers]
)
@given(st.lists(st.text(max_size=60), max_size=4))
def test_random_lines_raise_nothing_but_protocol_errors(parse, lines):
    try:
        rows = parse(lines)
    except ProtocolError:
        return
    assert len(rows) == len(lines)
