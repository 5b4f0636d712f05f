"""Two controllers at once, on a real Lease: one acts, whatever happens to it; no node is doubled and no job lost."""

import signal
import subprocess
import sys
import time

import pytest

from tests.kubernetes import plane
from tests.kubernetes.controllers import GROUP, several
from tests.kubernetes.plane import Json
from tests.kubernetes.rigs import right
from tests.kubernetes.test_kubelet import config_map, hears, pod, ready
from tests.servers import free_port

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(300)]

IN_A_POD = """\
version: 1
fleet: podded
controller: {{listen: "127.0.0.1:{port}", join: {{file: join}}, leader: {{kubernetes: {{}}}}}}
sources: {{main: {{gearman: {{servers: ["{server}"]}}}}}}
apps: {{naps: {{exec: [sleep]}}}}
queues: {{nap: {{app: naps, source: main, match: nap, objective: {{wait: 5s}}, job_limit: 1m}}}}
pools: {{local: {{simulated: {{}}, apps: [naps], slots: 1, max: {most}}}}}
"""
LASTS_S, KEEP_S = 15.0, 10.0
LATE_S = 4.0  # the standby's next look, and a busy machine
LOST = 5


@pytest.fixture
def two(cluster, tmp_path):
    with several(tmp_path / "home", cluster) as made:
        yield made


def begins(two) -> None:
    """Have `a` act and `b` stand by, with jobs to do."""
    a, b = two.controllers
    a.start()
    two.until("a is ready", a.ready)
    b.start()
    two.until("b is a follower", lambda: b.ask("/readyz") == (503, '{"error":"follower"}'))
    two.fleet.burst(24, 1.0)
    two.until("pods work", lambda: len(two.fleet.lines()) >= 4, 60)


def test_only_the_holder_acts_and_its_clean_end_hands_over_within_three_seconds(two):
    begins(two)
    a, b = two.controllers
    assert b.ask("/healthz") == (200, '{"ok":true}')
    assert b.ask("/v1/status")[0] == 503
    assert (a.leader(), b.leader()) == (1.0, 0.0)
    assert not b.state.exists()  # it has opened no store
    assert {line["verb"] for line in b.requests()} == {"get"}  # of the Lease
    assert two.lease()["spec"]["leaseTransitions"] == 1
    running = {pod["metadata"]["uid"] for pod in two.fleet.pods()}
    first = two.holder()
    a.signal(signal.SIGTERM)
    assert a.code() == 0
    ended = time.time()
    two.until("b holds it", lambda: two.holder() not in ("", first), 3.0)
    two.until("b is ready", b.ready)
    assert b.leader() == 1.0
    assert two.lease()["spec"]["leaseTransitions"] == 2
    (line,) = [line for line in b.events() if line.startswith("lease ")]
    assert "is held by this controller" in line
    assert line.endswith("epoch 2")
    assert {pod["metadata"]["uid"] for pod in two.fleet.pods()} & running  # they are taken over, not replaced
    assert len(two.fleet.pods()) <= 3
    two.finish()
    assert a.writes()
    assert b.writes()
    assert not a.requests(ended)


def test_a_frozen_holder_ends_on_waking_before_it_sends_anything(two):
    begins(two)
    a, b = two.controllers
    first = two.holder()
    a.signal(signal.SIGSTOP)
    began = time.monotonic()
    two.until("b holds it", lambda: two.holder() not in ("", first), 40)
    assert KEEP_S < time.monotonic() - began < LASTS_S + LATE_S
    two.until("b is ready", b.ready)
    woken = time.time()
    a.signal(signal.SIGCONT)
    assert a.code() == LOST
    assert "could not be renewed for 10 s: this controller acts no more and ends; workers go on" in a.log()
    two.finish()
    assert not a.requests(woken)
    (line,) = [line for line in b.events() if line.startswith("lease ")]
    assert f"{first} held it before" in line


def test_a_killed_holder_is_followed_within_its_time(two):
    begins(two)
    a, b = two.controllers
    first = two.holder()
    a.signal(signal.SIGKILL)
    began = time.monotonic()
    two.until("b holds it", lambda: two.holder() not in ("", first), 40)
    assert time.monotonic() - began < LASTS_S + LATE_S
    assert a.code() == -signal.SIGKILL
    two.until("b is ready", b.ready)
    a.start()  # as Kubernetes would
    two.until("a stands by", lambda: a.ask("/readyz") == (503, '{"error":"follower"}'))
    two.finish()
    assert (a.leader(), b.leader()) == (0.0, 1.0)


def test_a_touched_lease_is_kept_and_a_stolen_one_is_the_end(two):
    a, b = two.controllers
    a.start()
    two.until("a is ready", a.ready)
    before = two.lease()
    two.change({"metadata": {"labels": {"somebody": "was-here"}}})  # its next write meets a 409, and reads anew
    two.until("it is renewed", lambda: two.lease()["spec"]["renewTime"] > before["spec"]["renewTime"])
    statuses = [
        line["responseStatus"]["code"]
        for line in a.requests()
        if line["verb"] == "update" and line["objectRef"]["resource"] == "leases"
    ]
    assert 409 in statuses
    assert two.lease()["metadata"]["labels"] == {"somebody": "was-here"}
    assert a.ready()
    two.change({"spec": {"holderIdentity": "thief"}})
    assert a.code(5) == LOST
    assert "thief has taken it" in a.log()
    b.start()
    two.until("b waits for the thief", lambda: "is held by thief" in b.log())
    two.until("b holds it once that has expired", lambda: two.holder() != "thief", 30)


def test_the_doctor_and_the_log_say_which_right_is_missing(two, cluster):
    one = two.controllers[0]
    one.start()
    two.until("it is ready", one.ready)
    good = subprocess.run(
        [sys.executable, "-m", "fleetd", "doctor", "--policy", str(one.policy)],
        env=one.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert f"lease fleetd-kube: may be read and written, held by {two.holder()}" in good.stdout
    role = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{two.fleet.namespace}/roles/{two.controllers[1].account}"
    rules = [rule for rule in cluster.call("GET", role)["rules"] if rule["resources"] != ["leases"]]
    cluster.call("PATCH", role, {"rules": rules})
    other = two.controllers[1]
    other.start()
    two.until("it says so", lambda: "cannot get resource" in other.log())
    bad = subprocess.run(
        [sys.executable, "-m", "fleetd", "doctor", "--policy", str(other.policy)],
        env=other.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert bad.returncode == 1
    for verb in ("get", "create", "update"):
        line = f"controller.leader: not permitted: {verb} lease fleetd-kube in namespace {two.fleet.namespace}"
        assert line in " ".join(bad.stdout.split())
    assert other.ask("/healthz")[0] == 200


def test_in_a_pod_it_leads_by_its_own_account_and_follows_the_mounted_policy(cluster, namespace, rooted, gearmand):
    port = free_port()

    def policy(most) -> Json:
        text = IN_A_POD.format(port=port, server=gearmand.address, most=most)
        return config_map(namespace, **{"fleetd.yaml": text, "join": "a secret that is long enough"})

    own = right("leases", "get", "update", group=GROUP, names=["fleetd-podded"])
    cluster.account(namespace, "fleetd", [own, right("leases", "create", group=GROUP)])
    container = {
        "command": ["python", "-m", "fleetd", "run", "--policy", "/etc/fleetd/fleetd.yaml", "--no-live", "--follow"],
        "env": [{"name": "FLEETD_STATE", "value": "/state"}],
        "volumeMounts": [{"name": "policy", "mountPath": "/etc/fleetd"}, {"name": "state", "mountPath": "/state"}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": port}, "periodSeconds": 1},
        "securityContext": {"readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
    }
    volumes = [{"name": "policy", "configMap": {"name": "settings"}}, {"name": "state", "emptyDir": {}}]
    spec = {"serviceAccountName": "fleetd", "securityContext": {"runAsUser": 1001, "fsGroup": 1001}}
    cluster.make(policy(4), pod(namespace, "", container=container, volumes=volumes, **spec))
    cluster.until("it is ready", lambda: ready(cluster, namespace), 60)
    lease = f"/apis/{GROUP}/v1/namespaces/{namespace}/leases/fleetd-podded"
    assert cluster.call("GET", lease)["spec"]["holderIdentity"].startswith("it_")
    path = f"/api/v1/namespaces/{namespace}/configmaps/settings"
    cluster.call("PATCH", path, policy(6))
    hears(cluster, namespace, "pools.local.max: 4 -> 6")
    cluster.call("PATCH", path, policy('"many"'))
    said = hears(cluster, namespace, "(the old policy stays)").splitlines()
    (line,) = [line for line in said if "(the old policy stays)" in line]
    assert "fleetd.yaml:7:" in line
    assert ready(cluster, namespace)
    cluster.call("DELETE", f"/api/v1/namespaces/{namespace}/pods/it?gracePeriodSeconds=10")
    cluster.until("it is given back", lambda: not cluster.call("GET", lease)["spec"].get("holderIdentity"))


def test_without_an_api_server_the_holder_stops_in_time_and_workers_go_on(tmp_path_factory):
    with (
        plane.start(tmp_path_factory.mktemp("fragile")) as cluster,
        cluster.kubelet(),
        several(tmp_path_factory.mktemp("home") / "home", cluster) as two,
    ):
        a, b = two.controllers
        a.start()
        two.until("a is ready", a.ready)
        b.start()
        two.fleet.burst(12, 8.0)
        two.until("pods work", lambda: len(two.fleet.lines()) >= 3, 60)
        cluster.end("kube-apiserver")
        began = time.monotonic()
        ended = len(two.fleet.done())
        assert a.code(20) == LOST
        assert KEEP_S - 3.0 < time.monotonic() - began < KEEP_S + 2.0
        assert b.ask("/healthz")[0] == 200
        assert not b.state.exists()
        two.until("workers go on", lambda: len(two.fleet.done()) >= ended + 3, 30)
        cluster.start_api(wait=False)
        two.until("the server is ready", cluster.is_ready, 60)
        two.until("b is ready", b.ready, 60)
        two.finish(120)
