"""A real API server takes what the chart and the overlays make to the last field, under Pod Security `restricted`.

NetworkPolicies and seccomp profiles are checked by the server and enforced by nobody here: test nodes have neither.
"""

import contextlib
from functools import partial

import pytest
import yaml

from fleetd.cli.manifests import Asked, needed, text
from tests.kubernetes.plane import AnswerError, Cluster, Json
from tests.manifests import schemas
from tests.manifests.tools import KUSTOMIZE, OVERLAYS, ROOT, VALUES, good, kustomized, read, run, template

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(180)]
GOOD = sorted((VALUES / "good").glob("*.yaml"))
LABELS = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}


def printed(policy: str) -> str:
    """What `fleetd manifests` prints."""
    return text(needed(ROOT / policy, Asked(namespace="fleetd")))


SOURCES = {
    **{f"chart-{path.stem}": partial(template, path) for path in GOOD},
    **{f"kustomize-{overlay.split('/')[-1]}": partial(kustomized, overlay) for overlay in OVERLAYS},
    "manifests-example": partial(printed, "examples/kubernetes.yaml"),
}


@pytest.fixture(params=SOURCES)
def manifest(request) -> str:
    return str(SOURCES[request.param]())


def namespaces(server: Cluster, found: list[Json]) -> None:
    """Make the namespaces that objects are in."""
    for name in {one["metadata"].get("namespace", one["metadata"]["name"]) for one in found}:
        thing = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": LABELS}}
        with contextlib.suppress(AnswerError):  # it is there
            server.make(thing)


def apply(server: Cluster, manifest: str):
    words = ("apply", "--dry-run=server", "--validate=strict", "-f", "-")
    return run("kubectl", *words, given=manifest, env={"KUBECONFIG": str(server.folder / "admin.yaml")})


def test_the_server_takes_every_field(server, manifest):
    found = read(manifest)
    namespaces(server, found)
    done = apply(server, manifest)
    assert done.returncode == 0, done.stderr
    # Nor would Pod Security refuse a pod of them. Namespaces are there already, made by the test.
    assert [line for line in done.stderr.splitlines() if "resource namespaces/" not in line] == []
    assert len(done.stdout.splitlines()) == len(found)


def test_a_field_that_nobody_knows_and_a_pod_that_may_too_much_would_be_seen(server):
    found = read(template(VALUES / "good" / "plain.yaml"))
    namespaces(server, found)
    deployment = next(one for one in found if one["metadata"]["name"] == "r-fleetd" and one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    pod["securityContext"]["runAsNonRoots"] = pod["securityContext"].pop("runAsNonRoot")
    done = apply(server, yaml.safe_dump(deployment))
    assert (done.returncode, 'unknown field "spec.template.spec.securityContext.runAsNonRoots"' in done.stderr) == (
        1,
        True,
    )
    del pod["securityContext"]["runAsNonRoots"]
    done = apply(server, yaml.safe_dump(deployment))
    assert "would violate PodSecurity" in done.stderr


@pytest.fixture(scope="module")
def description(server) -> Json:
    return dict(server.call("GET", "/openapi/v2"))


def conform(folder, manifest: str):
    location = f"{folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    return run("kubeconform", "-strict", "-summary", "-schema-location", location, "-", given=manifest)


def test_the_schemas_of_the_server_fit(server, description, manifest, tmp_path):
    found = read(manifest)
    schemas.write(description, tmp_path, [(one["apiVersion"], one["kind"]) for one in found])
    done = conform(tmp_path, manifest)
    assert done.returncode == 0, done.stdout
    assert f"{len(found)} resources found" in done.stdout
    assert f"Valid: {len(found)}, Invalid: 0, Errors: 0, Skipped: 0" in done.stdout


def test_a_schema_of_the_server_refuses_what_it_does_not_know(server, description, tmp_path):
    found = read(kustomized("overlays/production"))
    schemas.write(description, tmp_path, [(one["apiVersion"], one["kind"]) for one in found])
    monitor = next(one for one in found if one["kind"] == "ServiceMonitor")
    monitor["spec"]["endpoints"][0]["intervall"] = "15s"
    done = conform(tmp_path, yaml.safe_dump(monitor))
    assert (done.returncode, "additional properties 'intervall' not allowed" in done.stdout) == (1, True)


def test_the_overlays_are_built_by_kubectl_alone():
    for overlay in OVERLAYS:
        assert good("kubectl", "kustomize", str(KUSTOMIZE / overlay))
