"""A real Kubernetes control plane on loopback: etcd, API server, controllers and scheduler, with RBAC and an audit log.

    with plane.start(folder) as cluster:
        with cluster.kubelet(), cluster.namespace("shop") as shop:
            config = cluster.account(shop, "fleetd", rules)     # a kubeconfig of an account with just these rules
            cluster.call("GET", f"/api/v1/namespaces/{shop}/pods")

All of it dies with the process that started it. What is missing (etcd, binaries, Go) is a skip with one line, and in
CI a failure.
"""

import contextlib
import json
import os
import secrets
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from tests import servers

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0
AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}
SCHEDULER = {
    "apiVersion": "kubescheduler.config.k8s.io/v1",
    "kind": "KubeSchedulerConfiguration",
    "leaderElection": {"leaderElect": False},
}
FAST = {"qps": 500, "burst": 1000}


class AnswerError(Exception):
    """The server said no: `status` and its message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


def missing(what: str) -> NoReturn:
    """Say what is missing: a skip, in CI a failure."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def assets() -> Path:
    """The folder of the control plane's binaries."""
    found = subprocess.run([ROOT / "scripts" / "kube-assets", "where"], capture_output=True, text=True, check=False)
    if found.returncode:
        missing(found.stderr.strip() or "no control plane: run scripts/kube-assets")
    return Path(found.stdout.strip())


@dataclass(slots=True)
class Cluster:
    """The control plane's handles."""

    folder: Path
    binaries: Path
    etcd: str
    ports: Mapping[str, int]
    tokens: Mapping[str, str]
    flags: Sequence[str] = ()
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where the API server listens."""
        return f"https://127.0.0.1:{self.ports['api']}"

    @property
    def authority(self) -> Path:
        """The certificate that it shows."""
        return self.folder / "certs" / "apiserver.crt"

    # ── asking it

    def call(self, method: str, path: str, body: Any = None, *, kind: str = "", token: str = "") -> Json:
        """Ask as the administrator, or by another token; raises AnswerError."""
        headers = {"Authorization": f"Bearer {token or self.tokens['admin']}", "Accept": "application/json"}
        headers["Content-Type"] = kind or ("application/merge-patch+json" if method == "PATCH" else "application/json")
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        context = ssl.create_default_context(cafile=self.authority)
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:
                said = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            with contextlib.suppress(ValueError, LookupError):
                text = json.loads(text)["message"]
            raise AnswerError(error.code, text) from None
        try:
            return dict(json.loads(said))
        except ValueError:
            return {"text": said.decode(errors="replace")}

    def make(self, *objects: Json) -> list[Json]:
        """Create objects where their kind says."""
        return [self.call("POST", collection(thing), thing) for thing in objects]

    def items(self, path: str) -> list[Json]:
        """The objects of a list."""
        return list(self.call("GET", path)["items"])

    def until(self, what: str, seen: Callable[[], Any], limit_s: float = 30.0) -> Any:
        """Wait for a positive event and return what was seen."""
        deadline = time.monotonic() + limit_s
        while True:
            with contextlib.suppress(AnswerError, OSError):
                result = seen()
                if result:
                    return result
            assert time.monotonic() < deadline, f"not seen within {limit_s:.0f} s: {what}"
            time.sleep(0.1)

    def audit(self, user: str = "") -> list[Json]:
        """The lines of the audit log: of an account, given as NAMESPACE:NAME, or all."""
        lines = []
        for path in sorted(self.folder.glob("audit*.log")):
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # the last line may be half written
                    lines.append(json.loads(line))
        name = f"system:serviceaccount:{user}"
        return [line for line in lines if not user or line["user"].get("username") == name]

    # ── who may ask

    @contextlib.contextmanager
    def namespace(self, prefix: str = "test") -> Iterator[str]:
        """A namespace of its own, deleted afterwards without waiting for it."""
        name = f"{prefix}-{secrets.token_hex(4)}"
        self.make({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        path = f"/api/v1/namespaces/{name}"
        self.until("its default account", lambda: self.call("GET", f"{path}/serviceaccounts/default"))
        try:
            yield name
        finally:
            with contextlib.suppress(AnswerError, OSError):
                self.call("DELETE", path)

    def account(self, namespace: str, name: str, rules: Sequence[Json]) -> Path:
        """Make a ServiceAccount with these rules in its namespace, and return a kubeconfig for it."""
        meta = {"name": name, "namespace": namespace}
        rbac = "rbac.authorization.k8s.io"
        self.make(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
            {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": meta, "rules": list(rules)},
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "RoleBinding",
                "metadata": meta,
                "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
            },
        )
        return self.kubeconfig(f"{namespace}-{name}", self.token(namespace, name), namespace)

    def token(self, namespace: str, name: str, lasts_s: int = 3600) -> str:
        """A token of an account; the server makes none for less than ten minutes."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        answer = self.call("POST", path, {**asked, "spec": {"expirationSeconds": lasts_s}})
        return str(answer["status"]["token"])

    def kubeconfig(self, name: str, token: str, namespace: str = "default", url: str = "") -> Path:
        """Write a kubeconfig."""
        path = self.folder / f"{name}.yaml"
        cluster = {"server": url or self.url, "certificate-authority": str(self.authority)}
        whole = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "it", "user": {"token": token}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it", "namespace": namespace}}],
        }
        path.write_text(yaml.safe_dump(whole))
        return path

    # ── its parts

    def start_api(self, *, wait: bool = True) -> None:
        """Start the API server, and wait until it is ready. It dies with the thread that starts it: not `to_thread`."""
        etcd, port = self.ports["etcd"], self.ports["api"]
        keys = self.folder / "accounts"
        self._run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={self.folder / 'certs'}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={keys}.key",
            f"--service-account-signing-key-file={keys}.key",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            f"--audit-policy-file={self.folder / 'audit.yaml'}",
            f"--audit-log-path={self.folder / 'audit.log'}",
            *self.flags,
        )
        if wait:
            self.until("the API server is ready", self.is_ready, START_S)

    def is_ready(self) -> bool:
        """Whether the API server says so."""
        with contextlib.suppress(OSError, AnswerError):
            return bool(self.call("GET", "/readyz")["text"] == "ok")
        return False

    def start_controllers(self) -> None:
        """Start the controllers and the scheduler."""
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={self.folder / 'kube-controller-manager.yaml'}",
            f"--secure-port={servers.free_port()}",
            f"--cert-dir={self.folder / 'certs-controllers'}",
            f"--service-account-private-key-file={self.folder / 'accounts'}.key",
            f"--root-ca-file={self.authority}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            "--node-monitor-grace-period=20s",
            "--node-monitor-period=2s",
        )
        self._run(
            "kube-scheduler",
            f"--config={self.folder / 'scheduler.yaml'}",
            f"--secure-port={servers.free_port()}",
            f"--cert-dir={self.folder / 'certs-scheduler'}",
        )

    def end(self, program: str, *, hard: bool = True) -> None:
        """End one of the programs, at once as a crash would."""
        process = self.running.pop(program)
        process.kill() if hard else process.terminate()
        process.wait(20)

    @contextlib.contextmanager
    def kubelet(self, name: str = "one", *flags: str) -> Iterator[subprocess.Popen[bytes]]:
        """A test kubelet that runs the pods of a node of this name: see tests/kubernetes/kubelet.py."""
        config = self.kubeconfig(f"kubelet-{name}", self.tokens["admin"])
        home = self.folder / f"node-{name}"
        command = [sys.executable, "-m", "tests.kubernetes.kubelet", "--kubeconfig", str(config), "--node", name]
        process = self._spawn(f"kubelet-{name}", [*command, "--home", str(home), *flags])
        try:
            path = f"/api/v1/nodes/{name}"
            self.until("the node is ready", lambda: _is_ready(self.call("GET", path)), START_S)
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()
            with contextlib.suppress(AnswerError, OSError):
                self.call("DELETE", f"/api/v1/nodes/{name}")

    def _run(self, program: str, *flags: str) -> None:
        self.running[program] = self._spawn(program, [str(self.binaries / program), *flags])

    def _spawn(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                preexec_fn=servers._die_with_parent,  # noqa: PLW1509
            )


def collection(thing: Json) -> str:
    """Where objects of this kind are made."""
    version, kind = thing["apiVersion"], thing["kind"]
    plural = {"NetworkPolicy": "networkpolicies", "StorageClass": "storageclasses"}.get(kind, kind.lower() + "s")
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    namespace = thing["metadata"].get("namespace")
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


def _is_ready(node: Json) -> bool:
    conditions = {one["type"]: one["status"] for one in node.get("status", {}).get("conditions", ())}
    # The controllers take the taint "not ready" off a little later.
    return conditions.get("Ready") == "True" and not node["spec"].get("taints")


@contextlib.contextmanager
def start(folder: Path, *flags: str, etcd_flags: Sequence[str] = ()) -> Iterator[Cluster]:
    """A control plane; `flags` go to the API server."""
    binaries = assets()
    etcd = shutil.which("etcd", path=f"{binaries}:{os.environ.get('PATH', '')}:/usr/sbin")
    if etcd is None:
        missing("etcd is missing; run scripts/need etcd")
    ports = {name: servers.free_port() for name in ("etcd", "peer", "api")}
    users = ("admin", "kube-controller-manager", "kube-scheduler")
    cluster = Cluster(folder, binaries, etcd, ports, {user: secrets.token_hex(16) for user in users}, flags)
    _write(cluster)
    try:
        cluster.running["etcd"] = cluster._spawn("etcd", [*_etcd(cluster), *etcd_flags])
        cluster.start_api()
        cluster.start_controllers()
        yield cluster
    finally:
        for name in list(cluster.running)[::-1]:
            cluster.end(name)


def _etcd(cluster: Cluster) -> list[str]:
    client, peer = (f"http://127.0.0.1:{cluster.ports[name]}" for name in ("etcd", "peer"))
    return [
        cluster.etcd,
        f"--data-dir={cluster.folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
    ]


def _write(cluster: Cluster) -> None:
    folder = cluster.folder
    folder.mkdir(parents=True, exist_ok=True)
    key = [servers.find("openssl"), "genrsa", "-out", f"{folder / 'accounts'}.key", "2048"]
    subprocess.run(key, check=True, capture_output=True, timeout=60)
    groups = {"admin": "system:masters", "kube-controller-manager": "", "kube-scheduler": ""}
    lines = []
    for user, token in cluster.tokens.items():
        name = user if user == "admin" else f"system:{user}"
        lines.append(f'{token},{name},{user},"{groups[user]}"' if groups[user] else f"{token},{name},{user}")
        cluster.kubeconfig(user, token)
    (folder / "tokens.csv").write_text("\n".join(lines) + "\n")
    (folder / "audit.yaml").write_text(yaml.safe_dump(AUDIT))
    connection = {"kubeconfig": str(folder / "kube-scheduler.yaml"), **FAST}
    (folder / "scheduler.yaml").write_text(yaml.safe_dump({**SCHEDULER, "clientConnection": connection}))
