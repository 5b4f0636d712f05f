"""What the policy says of foreign workers: their keys, the line for each mistake, the command line that comes of it."""

import pytest

from fleetd.core.model import AppPolicy, PoolPolicy, RecyclePolicy, ReloadPolicy
from fleetd.core.ports import WorkerLaunch
from fleetd.errors import PolicyError
from tests.config.fakes import read
from tests.config.test_values import SMALL


def app_of(text):
    return read(SMALL.replace("exec: [work]", text)).apps["photos"]


def test_the_ladder_the_probe_and_the_watched_paths_are_read():
    drain = "drain: {signal: TSTP, then: [TERM, KILL], deadline: 10m, undo: CONT}"
    app = app_of(f"exec: [work], {drain}, probe: {{rq: 'redis://cache/0'}}, reload: {{watch: [/srv/current]}}")
    assert (app.drain_signal, app.drain_then, app.drain_s, app.drain_undo) == ("TSTP", ("TERM", "KILL"), 600.0, "CONT")
    assert (app.probe, app.busy_by, app.reload.watch) == (("rq", "redis://cache/0"), "measured", ("/srv/current",))
    assert app_of("exec: [work], probe: {command: [sh, -c, x]}").probe == ("command", "sh", "-c", "x")
    assert app_of("exec: [work], probe: {http: 'http://127.0.0.1:9/busy'}").busy_by == "probed"
    assert app_of("exec: [work]").busy_by == "by signal"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("exec: [work], drain: {then: [KILL]}", "'then' needs a 'deadline': without one nothing harder is ever sent"),
        (
            "exec: [work], drain: {then: [KILL, INT], deadline: 1m}",
            "'then' has signals after KILL, which none outlives",
        ),
        ("exec: [work], probe: {}", "needs exactly one of celery, rq, gearman, command, http"),
        ("exec: [work], probe: {rq: 'redis://a', http: 'http://b'}", "needs exactly one of celery, rq, gearman"),
        ("exec: [work], probe: {celery: 'amqp://a'}", "'celery': expected redis://HOST:PORT; a password is read from"),
        ("exec: [work], probe: {rq: 'redis://:s3cret@a'}", "'rq': expected redis://HOST:PORT; a password is read from"),
        ("exec: [work], recycle: {jobs: 5}", "'recycle.jobs' is for worker code of ours"),
        ("release: {path: photos}, probe: {rq: 'redis://a'}", "'probe' is for a foreign worker ('exec')"),
        ("release: {path: photos}, reload: {watch: [a]}", "'reload.watch' is for a foreign worker ('exec')"),
    ],
)
def test_a_mistake_is_one_line(text, line):
    with pytest.raises(PolicyError) as caught:
        app_of(text)
    (problem,) = caught.value.problems
    assert line in problem
    assert "apps.photos" in problem
    assert "\n" not in problem


def test_the_command_line_ends_with_the_program():
    app = AppPolicy(
        "billing",
        exec=("celery", "worker"),
        drain_s=600.0,
        drain_then=("KILL",),
        memory=1024,
        reload=ReloadPolicy(watch=("/srv",)),
        recycle=RecyclePolicy(age_s=60.0),
        probe=("command", "sh", "-c"),
    )
    launch = WorkerLaunch("f", "i", "http://c", "/s", {"billing": app}, {}, {}, str)
    assert " ".join(launch.options(app, PoolPolicy("p", "process", None, ("billing",), slots=4))) == (
        "--slots=4 --probe=command --probe=sh --probe=-c --drain-signal=TERM --drain-signal=KILL --drain-deadline=600 "
        "--watch=/srv --memory=1024 --recycle-after=60 --exec celery worker"
    )
