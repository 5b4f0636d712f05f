"""The table of rights, and what is drawn from it: nothing more than is needed, and nothing out of step."""

import re
from itertools import pairwise

import pytest

from fleetd.providers.kubernetes.options import KubernetesOptions
from fleetd.providers.kubernetes.rights import RIGHTS, of_leader, of_pool, rules
from scripts.chart import DOC, MARKS, files
from tests.kubernetes.plane import Json

FILES = files()


def flat(found: list[Json]) -> set[tuple[str, str, str, str]]:
    """Return what rules allow, one by one: group, resource, verb, and the object's name or `*`."""
    return {
        (group, resource, verb, name)
        for rule in found
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", ["*"])
    }


def allowed(**options: object) -> set[tuple[str, str, str, str]]:
    return flat(rules([of_pool("films", KubernetesOptions.model_validate(options))]))


def test_a_pool_of_pods_may_make_pods_and_read_its_template_alone() -> None:
    may = allowed(mode="pods", template="cutter")
    assert {verb for _, resource, verb, _ in may if resource == "pods"} == {
        "list",
        "watch",
        "create",
        "patch",
        "delete",
    }
    assert ("", "podtemplates", "get", "cutter") in may
    assert not {one for one in may if one[1] in ("jobs", "deployments", "deployments/scale", "leases")}
    assert allowed(mode="pods", template="deployment/cutter") - may == {("apps", "deployments", "get", "cutter")}


def test_a_pool_of_jobs_makes_no_pods_itself() -> None:
    may = allowed(mode="pods", template="cutter", run="job")
    assert ("", "pods", "create", "*") not in may
    assert ("batch", "jobs", "create", "*") in may


def test_a_pool_that_scales_writes_the_number_of_its_target_and_makes_no_pods() -> None:
    may = allowed(mode="scale", target="statefulset/shrinker")
    assert {one for one in may if one[0] == "apps"} == {
        ("apps", "statefulsets", "get", "shrinker"),
        ("apps", "statefulsets/scale", "get", "shrinker"),
        ("apps", "statefulsets/scale", "update", "shrinker"),
    }
    assert ("", "pods", "create", "*") not in may
    assert {one[3] for one in may if one[1] == "configmaps"} == {"fleetd-films", "fleetd-films-orders"}
    assert ("example.org", "racks/scale", "update", "r") in allowed(mode="scale", target="example.org/v1/racks/r")


def test_no_secret_is_written_where_the_owner_keeps_it_and_none_is_ever_read() -> None:
    assert {one for one in allowed(mode="pods", template="cutter") if one[1] == "secrets"} == {
        ("", "secrets", "create", "fleetd-films"),
        ("", "secrets", "patch", "fleetd-films"),
    }
    assert not {one for one in allowed(mode="pods", template="cutter", join_secret="mine") if one[1] == "secrets"}


def test_what_two_pools_ask_for_stands_there_once() -> None:
    one, two = (of_pool(name, KubernetesOptions(mode="pods", template="cutter")) for name in ("films", "clips"))
    both = rules([one, two])
    assert flat(both) == flat(rules([one])) | flat(rules([two]))
    assert sum(rule["resources"] == ["events"] for rule in both) == 1


def test_the_lease_is_got_and_updated_by_its_name() -> None:
    assert flat(rules([of_leader("fleetd-shop")])) == {
        ("coordination.k8s.io", "leases", "get", "fleetd-shop"),
        ("coordination.k8s.io", "leases", "update", "fleetd-shop"),
        ("coordination.k8s.io", "leases", "create", "*"),
    }


def test_no_right_is_a_wildcard_and_every_one_says_what_for() -> None:
    for right in RIGHTS:
        assert "*" not in (right.resource, right.group, *right.verbs, *right.names)
        assert right.why


def test_the_documents_have_a_row_for_each_right() -> None:
    text = DOC.read_text()
    rows = text[text.index(MARKS[0]) : text.index(MARKS[1])].count("\n") - 3
    assert rows == len(RIGHTS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-2:]))
def test_what_is_drawn_from_elsewhere_is_in_step(path) -> None:
    assert path.read_text() == FILES[path], f"{path.name} is out of step: run python -m scripts.chart"


def test_every_value_of_the_chart_is_explained_where_it_stands() -> None:
    path = DOC.parents[1] / "manifests" / "helm" / "fleetd" / "values.yaml"
    lines = path.read_text().splitlines()
    bare = []
    for before, line in pairwise(lines):
        key = re.fullmatch(r"( *)([A-Za-z]+):.*", line)
        follows = re.match(r" *[A-Za-z]+:", before)  # a group of keys shares what is said above its first
        if key and not before.strip().startswith("#") and not follows and before.strip():
            bare.append(line)
    assert bare == []
