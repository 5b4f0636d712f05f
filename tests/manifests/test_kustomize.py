"""The overlays are in step with the chart: the same policy gives the same objects, but for names, labels and notes."""

import pytest
import yaml

from fleetd.config import load_text
from tests.kubernetes.plane import Json
from tests.manifests.test_chart import Everything
from tests.manifests.test_rights import flat
from tests.manifests.tools import KUSTOMIZE, kustomized, of, pod_of, pods, read, template

pytestmark = [pytest.mark.real, pytest.mark.slow]
OVERLAYS = ("demo", "production")
SECRET = {"FLEETD_JOIN": "0123456789abcdef", "FLEETD_TOKEN": "0123456789abcdef"}


def policy(overlay: str) -> Json:
    return dict(yaml.safe_load((KUSTOMIZE / "overlays" / overlay / "policy.yaml").read_text()))


@pytest.fixture(params=OVERLAYS)
def both(request, tmp_path) -> tuple[list[Json], list[Json]]:
    """What an overlay makes, and what the chart makes of its policy."""
    kept = request.param == "production"
    sized = {"pods": 1, "cutters": 1, "shrinkers": 4}
    given = policy(request.param)
    workers = {
        name: {"resources": {"requests": {"cpu": str(sized[name]), "memory": f"{256 * sized[name]}Mi"}}}
        for name in given["pools"]
    }
    if kept:
        workers["cutters"] = {"resources": {"requests": {"cpu": "2", "memory": "2Gi"}}}
    monitoring = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    values = {
        "policy": given,
        "fullnameOverride": "fleetd",
        "secret": {"existing": "fleetd"},
        "state": {"persistent": kept},
        "networkPolicy": {"enabled": kept, "from": monitoring},
        "serviceMonitor": {"enabled": kept},
        "prometheusRule": {"enabled": kept},
        "workers": workers,
    }
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    return read(kustomized(f"overlays/{request.param}")), read(template(path, namespace="fleetd"))


def same(thing: Json) -> Json:
    """Return an object without what only the chart, or only an overlay, has in labels, selectors, notes and names."""
    text = yaml.safe_dump(thing["spec"] if "spec" in thing else thing["template"])
    made = yaml.safe_load(text)

    def strip(node):
        if isinstance(node, dict):
            own = {key: strip(value) for key, value in node.items() if key not in ("imagePullPolicy", "annotations")}
            return {key: value for key, value in own.items() if key != "app.kubernetes.io/instance"}
        if isinstance(node, list):
            return [strip(item) for item in node]
        return node.split("-policy-")[0] if isinstance(node, str) else node

    return dict(strip(made))


def test_the_same_objects_are_made(both):
    overlay, chart = (
        {(one["kind"], one["metadata"].get("namespace"), name_of(one)) for one in found} for found in both
    )
    assert chart - overlay == {("Pod", "fleetd", "fleetd-test")}  # `helm test` has no counterpart
    extra = {kind for kind, _, name in overlay - chart if name != "gearman"}  # the demo has a dispatcher and a Secret
    assert extra <= {"Namespace", "Secret"}


def name_of(thing: Json) -> str:
    """Return an object's name; that of a Role, and a digest at its end, are each one's own affair."""
    if thing["kind"] in ("Role", "RoleBinding"):
        return "fleetd"
    return str(thing["metadata"]["name"].split("-policy-")[0].removesuffix("-policy"))


def test_the_controller_its_service_and_what_guards_it_are_the_same(both):
    overlay, chart = both
    for kind in (
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "NetworkPolicy",
        "ServiceMonitor",
        "PersistentVolumeClaim",
    ):
        theirs = [one for one in chart if one["kind"] == kind and one["metadata"]["name"].startswith("fleetd")]
        for thing in theirs:
            assert plain(same(of(overlay, kind, thing["metadata"]["name"]))) == plain(same(thing))


def plain(spec: Json) -> Json:
    """Return a spec without the names of the policy and the Secret: an overlay's may bear a digest."""
    pod = spec.get("template", {}).get("spec", {})
    for volume in pod.get("volumes", ()):
        volume.pop("configMap", None)
    pod.get("volumes", []).sort(key=lambda volume: volume["name"])
    for container in pod.get("containers", ()):
        container.pop("envFrom", None)
    return spec


def test_the_alerts_are_the_same(both):
    overlay, chart = both
    for rule in (one for one in chart if one["kind"] == "PrometheusRule"):
        assert of(overlay, "PrometheusRule")["spec"] == rule["spec"]


def test_the_workers_and_the_rights_are_the_same(both):
    overlay, chart = both
    mine, theirs = (
        {one["metadata"]["namespace"]: flat(one["rules"]) for one in found if one["kind"] == "Role"} for found in both
    )
    assert mine == theirs
    for thing in chart:
        if pod_of(thing).get("metadata", {}).get("labels", {}).get("app.kubernetes.io/component") == "worker":
            own, found = same(thing), same(of(overlay, thing["kind"], thing["metadata"]["name"]))
            words = [_container(spec).pop("args", []) for spec in (own, found)]
            assert sorted(words[0]) == sorted(words[1])
            envs = [{one["name"]: one for one in _container(spec).pop("env")} for spec in (own, found)]
            assert envs[0] == envs[1]
            assert own == found


def _container(spec: Json) -> Json:
    pod = spec.get("template", spec)
    return dict(pod["spec"])["containers"][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_policy_of_an_overlay_is_one_that_fleetd_takes_and_mounts(overlay):
    found = read(kustomized(f"overlays/{overlay}"))
    (mounted,) = [one for one in found if "policy.yaml" in one.get("data", {})]
    assert load_text(mounted["data"]["policy.yaml"], "policy.yaml", ".", environ=Everything(), code=False).pools
    volumes = {one["name"]: one for one in pods(found)["fleetd"]["spec"]["volumes"]}
    assert volumes["policy"]["configMap"]["name"] == mounted["metadata"]["name"]
    # Where it is read anew, its name must stay; where a change is to roll out, its name is the change.
    assert (mounted["metadata"]["name"] == "fleetd-policy") is (overlay == "production")
