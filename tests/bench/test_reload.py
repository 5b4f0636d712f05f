"""The short forms of the reload campaigns, and their figures from planted ledgers; `python -m bench reload` is long."""

import signal

import pytest

from bench.reload import campaign, figures, load, peers, release, rollout, subjects
from bench.reload.figures import Run, Sent
from bench.reload.fleet import Shape
from bench.reload.loads import account
from bench.reload.release import Release


def test_every_fifth_release_is_broken_by_each_fault_in_turn():
    broken = {one.number: one.fault for one in release.plan(22) if one.fault}
    assert broken == {5: "import", 10: "crash", 15: "hang", 20: "leak"}


@pytest.mark.parametrize(("fault", "error"), [("", None), ("import", ImportError)])
def test_a_release_is_a_copy_that_differs_in_its_number_and_its_fault(tmp_path, fault, error):
    folder = release.write(Release(7, fault), tmp_path / "app")
    code = compile((folder / "reload_job.py").read_text(), "reload_job.py", "exec")
    found: dict[str, object] = {}
    if error is None:
        exec(code, found)
        assert (found["RELEASE"], found["FAULT"]) == (7, "")
    else:
        with pytest.raises(error, match="release 7 cannot be imported"):
            exec(code, found)
    assert 'version = "1.0.7"' in (folder / "pyproject.toml").read_text()


def test_due_times_keep_the_rate_and_come_again_with_the_seed():
    even = list(load.due_times(10, 100.0, 1, even=True))
    assert even[-1] == pytest.approx(0.1)
    poisson = list(load.due_times(20_000, 100.0, 1, even=False))
    assert poisson[-1] == pytest.approx(200.0, rel=0.05)
    assert poisson == list(load.due_times(20_000, 100.0, 1, even=False))
    assert list(load.due_times(3, 0, 1, even=False)) == [0.0, 0.0, 0.0]


def test_figures_come_from_the_two_files(tmp_path):
    (tmp_path / "sent").write_text("a 1.0 1.1\nb 2.0 2.1\nc 3.0 3.1\n")
    (tmp_path / "ledger").write_text("a 7 1.0 1.5 1\nb 8 2.0 2.1 2\nb 8 2.0 2.2 2\nhalf a li")
    sent, runs = figures.read_sent(tmp_path / "sent"), figures.read_runs(tmp_path / "ledger")
    verdict = figures.judge(sent, runs)
    assert (verdict.lost, verdict.doubled) == (("c",), ("b",))
    assert figures.judge(sent, runs, killed=[8]).doubled == ()
    assert figures.kept_up(sent, runs) == pytest.approx(2 / 3)
    assert figures.by_release(runs) == {1: 1, 2: 2}
    assert figures.waits(runs).most == pytest.approx(0.5)
    assert figures.waits(runs, apart={"a"}).most == pytest.approx(0.2)


def test_a_standstill_is_the_longest_time_without_a_start():
    runs = [Run(str(at), "1", at, at, 1) for at in (1.0, 2.0, 5.0, 6.0)]
    assert figures.stillness(runs, 1.0, 6.0) == pytest.approx(3.0)
    assert figures.stillness(runs, 1.0, 10.0) == pytest.approx(4.0)


def test_the_rate_leaves_out_warm_up_and_end():
    slow = [Run(f"s{at}", "1", 0.0, at * 1.0, 1) for at in range(10)]
    full = [Run(f"f{at}", "1", 0.0, 10.0 + at * 0.01, 1) for at in range(90)]
    assert figures.rate(slow + full) == pytest.approx(100.0, rel=0.01)


def test_the_sender_s_lateness_is_told():
    assert figures.lag([Sent("a", 1.0, 1.25), Sent("b", 2.0, 2.0)]).most == pytest.approx(0.25)


def _result(*, fates: list[campaign.Fate], runs: list[Run]) -> campaign.Result:
    sent = [Sent(unique, 1.0, 1.1) for unique in ("a", "b")]
    calm = account(sent, [Run("a", "1", 1.0, 1.1, 0), Run("b", "1", 1.0, 1.1, 0)], {})
    return campaign.Result(campaign.Terms(), 100.0, 70.0, account(sent, runs, {}), calm, fates, 1.0)


def test_a_campaign_tells_every_way_in_which_it_can_fail():
    good, broken = Release(1), Release(5, "leak")
    turned = campaign.Fate(broken, "d5", 0.0, refused_s=1.0, reason="too many failures")
    fine = [Run("a", "1", 1.0, 1.1, 1), Run("b", "1", 1.0, 1.3, 1)]
    assert _result(fates=[campaign.Fate(good, "d1", 0.0), turned], runs=fine).faults == []
    assert "1 lost" in _result(fates=[turned], runs=fine[:1]).faults[0]
    assert "1 run twice" in _result(fates=[turned], runs=[*fine, Run("a", "2", 1.0, 1.2, 1)]).faults[0]
    assert _result(fates=[campaign.Fate(broken, "d5", 0.0)], runs=fine).faults == ["release 5 (leak) was not refused"]
    refused = campaign.Fate(good, "d1", 0.0, refused_s=1.0, reason="no reason")
    assert _result(fates=[refused], runs=fine).faults == ["release 1 was refused: no reason"]
    assert _result(fates=[campaign.Fate(Release(2), "d2", 0.0)], runs=fine).faults == ["release 2 never ran a job"]


def test_the_added_pause_is_the_difference_at_p99():
    late = [Run("a", "1", 1.0, 1.1, 1), Run("b", "1", 1.0, 1.3, 1)]
    assert _result(fates=[], runs=late).pause_s == pytest.approx(0.2)


# ── the real thing, briefly


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_releases_under_load_lose_nothing_and_broken_ones_are_turned_back(monkeypatch):
    """Five releases, the fifth cannot be imported, in half a minute of load."""
    monkeypatch.setattr(release, "FAULTS", ("import",))
    terms = campaign.Terms(jobs=9000, every_s=3.0, ms=8.0, first_s=3.0, shape=Shape(2, 2))
    said: list[str] = []
    found = campaign.run(terms, said.append)
    assert found.swapped.verdict.good, str(found.swapped.verdict)
    assert [fate.release.fault for fate in found.broken] == ["import"], said
    assert "release 5 cannot be imported" in found.broken[0].reason
    assert "refused" in found.broken[0].line
    assert found.faults == []
    assert found.swapped.kept_up >= 0.98


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_bad_release_ends_at_the_canary():
    found = rollout.run(10, lambda _: None, canary_s=2.0)
    good, *bad = found.journeys
    assert (good.reason, good.ran, good.back) == ("", 10, True)
    assert [one.back for one in bad] == [True, True]
    assert [one.tried for one in bad] == [1, 1]
    assert "release 2 cannot be imported" in bad[0].reason
    assert "jobs crashed it" in bad[1].reason
    assert found.jobs.good, str(found.jobs)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["fleetd, HUP", "RQ, restart"])
def test_peers_run_in_the_same_harness(name):
    """Ours loses and doubles nothing; a peer's figures are what they are, but its reloads must have happened."""
    (subject,) = (one for one in subjects.SUBJECTS if one.name == name)
    found = peers.measure(subject, peers.Terms(slots=2, seconds=12.0, every_s=6.0), lambda _: None)
    assert found.reloaded == found.reloads == 2
    assert found.verdict.submitted > 100
    if name.startswith(subjects.OURS):
        assert found.verdict.good, str(found.verdict)
        assert subject.signal is signal.SIGHUP
