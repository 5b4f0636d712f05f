"""Bad policies: each gives exactly the lines that stand beside it in `bad/NAME.txt`, and nothing but PolicyError.

`python -m tests.config.test_errors` writes those files anew; read what changed before keeping it.
"""

from pathlib import Path

import pytest

from fleetd.config import load, load_text
from fleetd.errors import PolicyError
from tests.config.fakes import ADAPTERS, ENVIRON, FULL, read

BAD = Path(__file__).parent / "bad"
FILES = sorted(BAD.glob("*.yaml"))


def problems_of(path: Path) -> str:
    text = path.read_bytes().decode()
    with pytest.raises(PolicyError) as caught:
        load_text(text, path.name, BAD, adapters=ADAPTERS, environ=ENVIRON)
    return "".join(f"{line}\n" for line in caught.value.problems)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_bad_policy_gives_exactly_these_lines(path, monkeypatch):
    monkeypatch.chdir("/")
    assert problems_of(path) == path.with_suffix(".txt").read_text()


def test_the_policy_of_the_design_wants_a_limit_for_mail_because_of_its_budget():
    with pytest.raises(PolicyError) as caught:
        read(FULL.replace("priority: low, job_limit: 1m", "priority: low"))
    pools = "rack3, pods, burst"
    line = f"queues.mail.job_limit: is missing: with a budget, jobs on a priced pool ({pools}) need a limit"
    assert caught.value.problems == (f"policy.yaml:13:3: {line}",)


def only_problem(path, **given) -> str:
    with pytest.raises(PolicyError) as caught:
        load(path, adapters=ADAPTERS, environ={}, **given)
    (line,) = caught.value.problems
    return line.removeprefix(str(path))


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    assert only_problem(tmp_path / "none.yaml") == ":1:1: cannot be read: No such file or directory"


def test_a_folder_is_one_line(tmp_path):
    assert only_problem(tmp_path) == ":1:1: cannot be read: Is a directory"


def test_a_name_that_no_file_can_have_is_one_line():
    assert only_problem("a\0b") == "a\\x00b:1:1: cannot be read: no valid file name"


def test_bytes_that_are_no_text_are_named_with_their_place(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("version: 1\n# für\nfleet: grün\n".encode("latin-1"))
    assert only_problem(path) == ":2:4: is not UTF-8 text: the byte 0xfc may not be here"
    path.write_bytes(b"\xff\xfe\x00v")
    assert only_problem(path) == ":1:1: is not UTF-8 text: the byte 0xff may not be here"


def test_a_column_counts_characters_and_not_bytes(tmp_path):
    path = tmp_path / "utf8.yaml"
    path.write_bytes("# äöü".encode() + b"\xff\n")
    assert only_problem(path) == ":1:6: is not UTF-8 text: the byte 0xff may not be here"


def test_a_null_character_is_named_with_its_place(tmp_path):
    path = tmp_path / "null.yaml"
    path.write_bytes(b"version: 1\nfleet: a\0b\n")
    assert only_problem(path) == r":2:9: the character '\x00' may not be here"


def test_a_file_of_50_mb_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(50_000_000)
    assert only_problem(path) == ":1:1: is larger than 256 KiB, too large for a policy"


def test_a_problem_stays_one_line_whatever_the_file_is_called(tmp_path):
    path = tmp_path / "two\nlines.yaml"
    with pytest.raises(PolicyError) as caught:
        load(path, adapters=ADAPTERS)
    assert all("\n" not in line for line in caught.value.problems)


def test_problems_come_in_the_order_of_the_file():
    with pytest.raises(PolicyError) as caught:
        load(BAD / "every-kind-at-once.yaml", adapters=ADAPTERS, environ={})
    places = [tuple(map(int, line.removeprefix(str(BAD)).split(":")[1:3])) for line in caught.value.problems]
    assert len(places) > 30
    assert places == sorted(places)


if __name__ == "__main__":
    for bad in FILES:
        bad.with_suffix(".txt").write_text(problems_of(bad))
