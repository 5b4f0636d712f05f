"""Traces and histories: what is read, and the one line for what cannot be."""

import gzip
from array import array
from pathlib import Path

import pytest

from fleetd.errors import UsageError
from fleetd.sim.trace import History, load_history, load_trace

HEAD = "submitted_s,service_s\n"


def write(folder: Path, text: str | bytes, name: str = "jobs.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def complaint(folder: Path, text: str | bytes, *queues: str) -> str:
    path = write(folder, text)
    with pytest.raises(UsageError) as caught:
        load_trace(path, queues or ("resize",))
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(f"{path}: ")
    return said.removeprefix(f"{path}: ")


def test_jobs_are_read_in_order(tmp_path):
    traces = load_trace(write(tmp_path, HEAD + "0,5\n0,0\n1.5,2e1\n"), ("resize",))
    assert traces["resize"].submitted_s == array("d", [0.0, 0.0, 1.5])
    assert traces["resize"].service_s == array("d", [5.0, 0.0, 20.0])


@pytest.mark.parametrize("name", ["jobs.csv.gz", "jobs"])
def test_a_packed_file_is_read_whatever_its_name(tmp_path, name):
    path = write(tmp_path, gzip.compress((HEAD + "1,2\n").encode()), name)
    assert load_trace(path, ("resize",))["resize"].submitted_s == array("d", [1.0])


def test_a_queue_column_parts_the_jobs_and_need_not_name_every_queue(tmp_path):
    text = "queue,submitted_s,service_s\nmail,7,1\nresize,3,2\nmail,8,1\n"
    traces = load_trace(write(tmp_path, text), ("resize", "mail", "rest"))
    assert {name: list(trace.submitted_s) for name, trace in traces.items()} == {"mail": [7.0, 8.0], "resize": [3.0]}


def test_what_editors_leave_behind_is_no_fault(tmp_path):
    text = "\ufeffsubmitted_s, service_s\r\n1, 2\r\n\r\n3,4"
    assert list(load_trace(write(tmp_path, text), ("resize",))["resize"].service_s) == [2.0, 4.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "row 1: the header is to be submitted_s,service_s[,queue], it is ''"),
        ("1,2\n", "row 1: the header is to be submitted_s,service_s[,queue], it is '1,2'"),
        ("submitted_s,submitted_s,service_s\n", "row 1: the header is to be"),
        (HEAD, "row 1: there are no jobs after it"),
        (HEAD + "5,1\n4.5,1\n", "row 3: submitted_s: 4.5 is before the row above it (5): sort the file by submitted_s"),
        (HEAD + "-1,1\n", "row 2: submitted_s: -1 is negative"),
        (HEAD + "1,1\n2,-0.5\n", "row 3: service_s: -0.5 is negative"),
        (HEAD + "nan,1\n", "row 2: submitted_s: 'nan' is not finite"),
        (HEAD + "1,inf\n", "row 2: service_s: 'inf' is not finite"),
        (HEAD + "1,1e999\n", "row 2: service_s: '1e999' is not finite"),
        (HEAD + "one,1\n", "row 2: submitted_s: 'one' is not a number"),
        (HEAD + "1,\n", "row 2: service_s: '' is not a number"),
        (HEAD + "1,2\n\n3\n", "row 4: has 1 values and not 2: the file is cut off or damaged here"),
        (HEAD + "1,2,3\n", "row 2: has 3 values and not 2: the file is cut off or damaged here"),
        (HEAD.encode() + b"1,2\n\xff\xfe\n", "row 3: the file is not text in UTF-8"),
        (HEAD + "1,2\n" + "9" * 200_000 + ",1\n", "row 3: the file is cut off or damaged here"),
        (
            "submitted_s,service_s,queue\n1,2,resize\n1,2,mial\n",
            "row 3: queue: 'mial' is not in the policy (mail, resize)",
        ),
    ],
)
def test_a_wrong_row_gives_one_line_that_names_it(tmp_path, text, said):
    assert complaint(tmp_path, text, *(("resize", "mail") if "queue\n" in str(text) else ())).startswith(said)


def test_without_a_queue_column_there_is_one_queue(tmp_path):
    said = complaint(tmp_path, HEAD + "1,2\n", "a", "b")
    assert said == "row 1: the policy has 2 queues: add a column `queue` with their names"


def test_a_cut_gzip_file_names_the_row_it_got_to(tmp_path):
    whole = gzip.compress((HEAD + "".join(f"{n},{n % 7}\n" for n in range(50_000))).encode())
    said = complaint(tmp_path, whole[: len(whole) // 2])
    row = int(said.removeprefix("row ").partition(":")[0])
    assert 10_000 < row < 40_000
    assert "the file is cut off or damaged here (Compressed file ended" in said


@pytest.mark.parametrize("damage", [b"\x1f\x8b", b"\x1f\x8b\x08\x00" + b"\x00" * 50])
def test_a_damaged_gzip_file_is_one_line(tmp_path, damage):
    assert complaint(tmp_path, damage).startswith("row 1: the file is cut off or damaged here")


def test_a_file_that_is_not_there_or_a_folder_is_one_line(tmp_path):
    for path, said in ((tmp_path / "no.csv", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError, match=f"^{path}: {said}$"):
            load_trace(path, ("resize",))


def test_a_history_has_its_step_from_its_rows(tmp_path):
    text = "start_s,arrivals\n-900,4\n-600,0\n-300,7\n"
    assert load_history(write(tmp_path, text)) == History(300.0, ((-900.0, 4), (-600.0, 0), (-300.0, 7)))
    assert load_history(write(tmp_path, "start_s,arrivals\n-60,4\n")).step_s == 60.0


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "row 1: there is no history after it"),
        ("-600,1\n-300,2\n-200,2\n", "row 4: start_s: the step is 100 s, before it was 300 s"),
        ("-300,1\n-600,2\n", "row 3: start_s: -600 is not after the row before (-300)"),
        ("-300,1\n0,2\n", "row 3: start_s: 0 is not before the start, which is 0"),
        ("-300,-1\n", "row 2: arrivals: -1 is not a count"),
        ("-300,1.5\n", "row 2: arrivals: 1.5 is not a count"),
        ("-300,nan\n", "row 2: arrivals: 'nan' is not a finite number"),
        ("-300,many\n", "row 2: arrivals: 'many' is not a number"),
    ],
)
def test_a_wrong_history_gives_one_line_that_names_the_row(tmp_path, rows, said):
    path = write(tmp_path, "start_s,arrivals\n" + rows)
    with pytest.raises(UsageError) as caught:
        load_history(path)
    assert str(caught.value) == f"{path}: {said}"
