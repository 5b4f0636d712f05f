"""The test kubelet is honest: what a pod sees of its volumes, its user and its root is what a real node shows."""

import contextlib
import json
import shutil
import time
from pathlib import Path

import pytest

from tests.kubernetes.kubelet_volumes import renew_at, write
from tests.kubernetes.plane import Json, missing
from tests.servers import free_port

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(180)]

WAIT = "; while :; do sleep 0.2; done"


def pod(namespace: str, script: str, **spec) -> Json:
    """A pod of one container that runs a script; `container` is what it has besides."""
    own = {"name": "main", "image": "host", "command": ["sh", "-c", script], **spec.pop("container", {})}
    meta = {"name": "it", "namespace": namespace, **spec.pop("metadata", {})}
    whole = {"containers": [own], "terminationGracePeriodSeconds": 2, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": whole}


def said(cluster, namespace, name="it") -> str:
    return str(cluster.call("GET", f"/api/v1/namespaces/{namespace}/pods/{name}/log")["text"])


def hears(cluster, namespace, words, limit_s=30.0) -> str:
    """Wait until the pod has said this, and return all that it has said."""
    return str(
        cluster.until(
            f"it says {words}",
            lambda: (text := said(cluster, namespace)) and (words in text) and text,
            limit_s,
        )
    )


def config_map(namespace, name="settings", **data) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data}


def mounted(name: str, path: str, **more) -> Json:
    return {"volumeMounts": [{"name": name, "mountPath": path, **more}]}


def phase(cluster, namespace, name="it") -> Json:
    return dict(cluster.call("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")["status"])


def ready(cluster, namespace, name="it") -> bool:
    return any(
        one["type"] == "Ready" and one["status"] == "True"
        for one in phase(cluster, namespace, name).get("conditions", ())
    )


def test_a_config_map_changes_in_a_running_pod_by_one_swap_of_a_link(cluster, namespace, rooted):
    script = (
        "cat /conf/one; readlink /conf/one /conf/..data > /tmp/before;"
        " while [ $(cat /conf/one) = first ]; do sleep 0.1; done; cat /conf/one /conf/two; readlink /conf/one;"
        " [ $(readlink /conf/..data) != $(tail -1 /tmp/before) ] && echo swapped; ls /conf"
    )
    volume = {"name": "conf", "configMap": {"name": "settings"}}
    cluster.make(
        config_map(namespace, one="first\n", old="x"),
        pod(namespace, script + WAIT, volumes=[volume], container=mounted("conf", "/conf")),
    )
    hears(cluster, namespace, "first")
    path = f"/api/v1/namespaces/{namespace}/configmaps/settings"
    cluster.call("PATCH", path, {"data": {"one": "second\n", "two": "too\n", "old": None}})
    assert hears(cluster, namespace, "two\n").split() == [
        "first", "second", "too", "..data/one", "swapped", "one", "two",
    ]  # fmt: skip


def test_a_pod_has_its_accounts_token_which_is_renewed_and_the_servers_certificate(bare, namespace, rooted):
    place = "/var/run/secrets/kubernetes.io/serviceaccount"
    script = (
        f"cat {place}/namespace; echo; echo $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT;"
        f" first=$(cat {place}/token); echo 1 $first;"
        f' while [ "$(cat {place}/token)" = "$first" ]; do sleep 0.2; done; echo 2 $(cat {place}/token);'
        f" head -1 {place}/ca.crt"
    )
    with bare.kubelet("tokens", "--token-life", "3"):
        chosen = {"kubernetes.io/hostname": "tokens"}
        security = {"runAsUser": 1234}
        bare.make(pod(namespace, script + WAIT, nodeSelector=chosen, securityContext=security))
        lines = hears(bare, namespace, "BEGIN CERTIFICATE").splitlines()
    assert lines[0] == namespace
    assert lines[1] == f"127.0.0.1 {bare.ports['api']}"
    tokens = [line.split()[1] for line in lines[2:4]]
    assert len(set(tokens)) == 2
    for token in tokens:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        status = bare.call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)["status"]
        assert status["user"]["username"] == f"system:serviceaccount:{namespace}:default"
        assert status["user"]["extra"]["authentication.kubernetes.io/pod-name"] == ["it"]


def test_a_token_is_renewed_at_four_fifths_of_its_life():
    assert renew_at(1000.0, 3600) == 1000 + 2880
    assert renew_at(1000.0, 3600, 5.0) == 1005


def test_a_claim_is_bound_and_outlives_its_pod(cluster, namespace, rooted):
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "state", "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    volume = {"name": "state", "persistentVolumeClaim": {"claimName": "state"}}
    security = {"runAsUser": 1001, "runAsGroup": 1001, "fsGroup": 2002, "runAsNonRoot": True}
    script = "cat /state/count 2>/dev/null; echo more >> /state/count; id; echo end; exit 0"
    given = {"volumes": [volume], "securityContext": security, "restartPolicy": "Never"}
    whole = pod(namespace, script, container=mounted("state", "/state"), **given)
    cluster.make(claim, whole)
    first = hears(cluster, namespace, "end")
    assert "uid=1001 gid=1001 groups=1001,2002" in first
    assert "more" not in first
    path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/state"
    bound = cluster.call("GET", path)
    assert bound["status"]["phase"] == "Bound"
    whole["metadata"]["name"] = "again"
    cluster.make(whole)
    cluster.until("it finds what was kept", lambda: "more\n" in said(cluster, namespace, "again"))
    for name in ("it", "again"):
        cluster.call("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds=0")
    cluster.call("DELETE", path)
    names = lambda: [one["metadata"]["name"] for one in cluster.items("/api/v1/persistentvolumes")]  # noqa: E731
    cluster.until("its volume goes with it", lambda: bound["spec"]["volumeName"] not in names())


def test_a_read_only_root_and_no_capability_are_for_real(cluster, namespace, rooted):
    security = {
        "runAsUser": 1001,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    script = (
        "touch /there 2>&1; touch /tmp/here && echo written;"
        " grep -E 'CapBnd|CapEff|NoNewPrivs' /proc/self/status | tr '\\t' ' '; echo pid $$$$; hostname; echo end"
    )
    tmp = {"volumes": [{"name": "tmp", "emptyDir": {}}]}
    cluster.make(pod(namespace, script + WAIT, container=mounted("tmp", "/tmp") | {"securityContext": security}, **tmp))
    text = hears(cluster, namespace, "end\n")
    assert "touch: cannot touch '/there': Read-only file system" in text
    assert "written" in text
    assert "CapEff: 0000000000000000" in text
    assert "CapBnd: 0000000000000000" in text
    assert "NoNewPrivs: 1" in text
    assert "pid 1\nit\n" in text


def test_a_pod_that_may_not_be_root_is_none(cluster, namespace, rooted):
    cluster.make(pod(namespace, "id" + WAIT, securityContext={"runAsNonRoot": True}))

    def why():
        return phase(cluster, namespace)["containerStatuses"][0]["state"]["waiting"]["message"]

    wanted = "container has runAsNonRoot and image will run as root"
    assert cluster.until("it does not start", lambda: phase(cluster, namespace).get("containerStatuses") and why()) == (
        wanted
    )


def test_an_image_is_a_root_of_its_own_and_what_is_written_there_is_thrown_away(bare, namespace, rooted, tmp_path):
    root = tmp_path / "image"
    (root / "bin").mkdir(parents=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        missing("busybox is missing; run scripts/need busybox")
    shutil.copy(busybox, root / "bin" / "busybox")
    said_by = {"Entrypoint": ["/bin/busybox", "sh", "-c"], "Env": ["GREETING=hello"], "User": "1001", "WorkingDir": "/"}
    (tmp_path / "image.json").write_text(json.dumps({"config": said_by}))
    with bare.kubelet("images", "--root", f"tiny:1={root}"):
        whole = pod(namespace, "", nodeSelector={"kubernetes.io/hostname": "images"})
        whole["spec"]["containers"][0] = {
            "name": "main",
            "image": "tiny:1",
            "args": ["/bin/busybox echo $GREETING; /bin/busybox id -u; /bin/busybox ls /; while :; do :; done"],
        }
        bare.make(whole)
        assert hears(bare, namespace, "sys").split() == ["hello", "1001", "bin", "dev", "etc", "proc", "sys", "var"]
    assert [path.name for path in root.iterdir()] == ["bin"]


def test_readiness_is_what_the_probe_says_and_a_failed_liveness_probe_starts_anew(cluster, namespace, rooted):
    script = (
        "cd /data; touch alive; echo begun; python3 -m http.server --bind 127.0.0.1 $PORT & cd /data;"
        " while :; do [ -e sick ] && rm -f sick alive; sleep 0.1; done"
    )
    port = free_port()
    container = {
        "env": [{"name": "PORT", "value": str(port)}],
        "ports": [{"name": "web", "containerPort": port}],
        **{
            f"{kind}Probe": {"httpGet": {"port": "web", "path": path}, "periodSeconds": 1, "failureThreshold": 2}
            for kind, path in (("readiness", "/ready"), ("liveness", "/alive"))
        },
        **mounted("data", "/data"),
    }
    cluster.make(pod(namespace, script, container=container, volumes=[{"name": "data", "emptyDir": {}}]))
    hears(cluster, namespace, "begun")
    time.sleep(1.5)
    assert not ready(cluster, namespace)
    uid = cluster.call("GET", f"/api/v1/namespaces/{namespace}/pods/it")["metadata"]["uid"]
    folder = cluster.folder / "node-one" / f"it-{uid}" / "volumes" / "data"
    (folder / "ready").touch()
    cluster.until("it is ready", lambda: ready(cluster, namespace))
    (folder / "ready").unlink()
    cluster.until("it is not", lambda: not ready(cluster, namespace))
    (folder / "ready").touch()
    (folder / "sick").touch()
    again = lambda: phase(cluster, namespace)["containerStatuses"][0]["restartCount"] == 1  # noqa: E731
    cluster.until("it is started anew", again)
    cluster.until("it is ready again", lambda: ready(cluster, namespace))


def test_a_kubelet_that_is_killed_leaves_no_process_and_no_mount(bare, namespace, rooted):
    def left() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                found.append(path.read_text(errors="replace"))
        return [one for one in found if f"mark-{namespace}" in one]

    with bare.kubelet("frail") as kubelet:
        script = f": mark-{namespace}; echo begun"
        tmp = {"volumes": [{"name": "tmp", "emptyDir": {}}], "nodeSelector": {"kubernetes.io/hostname": "frail"}}
        bare.make(pod(namespace, script + WAIT, container=mounted("tmp", "/tmp"), **tmp))
        hears(bare, namespace, "begun")
        assert left()
        kubelet.kill()
        bare.until("its processes are gone", lambda: not left())
    assert "node-frail" not in Path("/proc/mounts").read_text()


def test_files_are_shown_all_at_once(tmp_path):
    place = tmp_path / "volume"
    assert write(place, {"a": (b"1", 0o644), "deep/b": (b"2", 0o600)})
    assert not write(place, {"a": (b"1", 0o644), "deep/b": (b"2", 0o600)})
    before = (place / "..data").readlink()
    assert (place / "deep" / "b").read_bytes() == b"2"
    assert str((place / "a").readlink()) == "..data/a"
    assert write(place, {"a": (b"3", 0o644)})
    assert (place / "..data").readlink() != before
    assert sorted(path.name for path in place.iterdir() if not path.name.startswith("..")) == ["a"]
