"""The checker of the campaign must find what is planted; a checker that cannot fail proves nothing."""

import pytest

from bench.ledger import check, main

SUBMITTED = ["a", "b", "c"]


def test_all_done_once_is_good():
    verdict = check(SUBMITTED, ["a 1", "b 2", "c 1"], [])
    assert verdict.good
    assert str(verdict) == (
        "3 submitted, 3 done, 0 lost, 0 run twice without a recorded kill, 0 run twice with one, 0 never submitted"
    )


def test_a_planted_loss_is_found():
    verdict = check(SUBMITTED, ["a 1", "c 1"], ["1"])
    assert (verdict.good, verdict.lost) == (False, ("b",))


def test_a_planted_double_is_found():
    verdict = check(SUBMITTED, ["a 1", "b 2", "c 1", "b 3"], [])
    assert (verdict.good, verdict.doubled) == (False, ("b",))


@pytest.mark.parametrize("kills", [["2"], ["3"], ["2", "3"]])
def test_a_double_is_excused_only_by_a_kill_of_a_process_that_ran_it(kills):
    verdict = check(SUBMITTED, ["a 1", "b 2", "c 1", "b 3"], kills)
    assert verdict.good
    assert verdict.excused == ("b",)
    assert not check(SUBMITTED, ["a 1", "b 2", "c 1", "b 3"], ["1"]).good


def test_a_third_run_needs_a_second_kill():
    assert not check(["a"], ["a 1", "a 2", "a 3"], ["1"]).good
    assert check(["a"], ["a 1", "a 2", "a 3"], ["1", "2"]).good


def test_a_job_that_nobody_submitted_is_found():
    assert check(["a"], ["a 1", "x 1"], []).unknown == ("x",)


def test_the_command_ends_with_1_for_a_loss_and_names_it(tmp_path, capsys):
    for name, text in (("submitted", "a\nb\n"), ("ledger", "a 1\n"), ("kills", "")):
        (tmp_path / name).write_text(text)
    assert main([str(tmp_path / name) for name in ("submitted", "ledger", "kills")]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == ["  b"]
