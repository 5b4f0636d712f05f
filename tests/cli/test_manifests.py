"""`fleetd manifests`: what a policy's pools need, as YAML; a fault is one line, and no secret is printed unasked."""

from pathlib import Path

import pytest
import yaml

from fleetd.cli.entry import run
from fleetd.codecs.lease import join_token
from fleetd.providers.kubernetes.leader import KubernetesSeat, LeaseOptions
from fleetd.providers.kubernetes.names import lease_name
from fleetd.worker.main import _parser
from tests.kubernetes.plane import Json

EXAMPLE = Path(__file__).parents[2] / "examples" / "kubernetes.yaml"
POLICY = """\
version: 1
fleet: shop
sources: {{main: {{gearman: {{servers: ["10.0.0.5:4730"]}}}}}}
apps: {{films: {{release: pushed}}, celery: {{exec: [celery]}}}}
queues:
  cut: {{app: films, source: main, match: "cut_*", objective: {{wait: 10m}}, job_limit: 1h}}
  other: {{app: celery, source: main, match: "other_*", objective: {{wait: 10m}}}}
pools:
  pool: {{kubernetes: {{{options}}}, apps: [{apps}], slots: 2, max: 4}}
  here: {{process: {{}}, apps: [films, celery], slots: 1, max: 1}}
controller: {{listen: "{listen}", join: {{env: FLEETD_JOIN_HERE}}, leader: {{kubernetes: {{}}}}}}
"""
PODS = "mode: pods, namespace: shop, template: cutter"
SCALE = "mode: scale, namespace: shop, target: deployment/cutter"


@pytest.fixture
def policy(tmp_path):
    def write(options: str = PODS, apps: str = "films", listen: str = "10.0.0.2:8080") -> str:
        path = tmp_path / "shop.yaml"
        path.write_text(POLICY.format(options=options, apps=apps, listen=listen))
        return str(path)

    return write


def command(*argv: str) -> int:
    try:
        return run(["manifests", *argv])
    except SystemExit as end:
        return int(end.code or 0)


def printed(capsys) -> list[Json]:
    return [one for one in yaml.safe_load_all(capsys.readouterr().out) if one]


def of(found: list[Json], kind: str) -> Json:
    (one,) = [thing for thing in found if thing["kind"] == kind]
    return one


def test_the_example_needs_a_template_a_target_an_account_and_its_role(capsys):
    assert command("-p", str(EXAMPLE)) == 0
    found = printed(capsys)
    names = [(one["kind"], one["metadata"]["name"]) for one in found]
    assert names[:3] == [("ServiceAccount", "fleetd"), ("Role", "fleetd"), ("RoleBinding", "fleetd")]
    assert names[3:] == [
        *(("PodTemplate", "cutter"), ("Secret", "fleetd-cutters"), ("ConfigMap", "fleetd-cutters")),
        *(("Deployment", "shrinker"), ("Secret", "fleetd-shrinkers"), ("ConfigMap", "fleetd-shrinkers")),
        ("ConfigMap", "fleetd-shrinkers-orders"),
    ]
    assert {one["metadata"]["namespace"] for one in found} == {"shop"}
    subject = of(found, "RoleBinding")["subjects"]
    assert subject == [{"kind": "ServiceAccount", "name": "fleetd", "namespace": "shop"}]
    pod = of(found, "PodTemplate")["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 6 * 3600 + 30
    assert pod["automountServiceAccountToken"] is False


def test_a_scaled_target_has_the_workers_command_line_and_no_number_of_its_own(policy, capsys):
    assert command("-p", policy(SCALE)) == 0
    spec = of(printed(capsys), "Deployment")["spec"]
    assert "replicas" not in spec
    worker = spec["template"]["spec"]["containers"][0]
    said = _parser().parse_args(worker["args"])
    assert (said.app_name, said.fleet, said.pool, said.slots) == ("films", "shop", "pool", 2)
    assert (said.server, said.controller, said.job_limit) == (["10.0.0.5:4730"], "http://10.0.0.2:8080", 3600.0)
    assert said.node == "pool/$(FLEETD_POD).$(FLEETD_POD_UID)"
    token = {one["name"]: one for one in worker["env"]}["FLEETD_JOIN_TOKEN"]["valueFrom"]
    assert token == {"secretKeyRef": {"name": "fleetd-pool", "key": "token"}}
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 3630


def test_a_template_that_is_a_deployment_has_no_replicas_and_a_stateful_set_ends_in_any_order(policy, capsys):
    assert command("-p", policy("mode: pods, namespace: shop, template: deployment/cutter")) == 0
    assert of(printed(capsys), "Deployment")["spec"]["replicas"] == 0
    assert command("-p", policy("mode: scale, namespace: shop, target: statefulset/cutter")) == 0
    spec = of(printed(capsys), "StatefulSet")["spec"]
    assert (spec["podManagementPolicy"], "replicas" in spec) == ("Parallel", False)


def test_a_kind_of_the_owners_own_gets_its_arguments_said(policy, capsys):
    assert command("-p", policy("mode: scale, namespace: shop, target: example.org/v1/racks/r")) == 0
    out = capsys.readouterr().out
    assert "# pool pool: racks r is of a kind of your own: its pods' worker needs the arguments\n#   --app-name" in out


def test_one_pool_has_a_role_of_its_own_and_neither_account_nor_lease(policy, capsys):
    assert command("-p", policy(), "--pool", "pool", "--namespace", "control", "--account", "boss") == 0
    found = printed(capsys)
    assert [one["kind"] for one in found] == ["Role", "RoleBinding", "PodTemplate", "Secret", "ConfigMap"]
    assert of(found, "Role")["metadata"] == {"name": "fleetd-pool", "namespace": "shop"}
    assert of(found, "RoleBinding")["subjects"][0] == {
        "kind": "ServiceAccount",
        "name": "boss",
        "namespace": "control",
    }


def test_the_lease_is_where_fleetd_runs_and_so_is_the_right_to_it(policy, capsys):
    assert command("-p", policy(), "--namespace", "control") == 0
    found = printed(capsys)
    assert of(found, "Lease")["metadata"] == {"name": "fleetd-shop", "namespace": "control"}
    roles = {one["metadata"]["namespace"]: one["rules"] for one in found if one["kind"] == "Role"}
    assert {rule["resources"][0] for rule in roles["control"]} == {"leases"}
    assert "leases" not in {rule["resources"][0] for rule in roles["shop"]}
    assert KubernetesSeat("shop", LeaseOptions()).place == f"lease {lease_name('shop')}"


def test_a_secret_is_printed_when_asked_for_and_need_not_be_known_otherwise(policy, capsys, monkeypatch):
    monkeypatch.delenv("FLEETD_JOIN_HERE", raising=False)
    assert command("-p", policy()) == 0
    assert "stringData" not in of(printed(capsys), "Secret")
    assert command("-p", policy(), "--with-secret") == 2
    assert "the environment variable 'FLEETD_JOIN_HERE' is not set" in capsys.readouterr().err
    monkeypatch.setenv("FLEETD_JOIN_HERE", "a secret that is long enough")
    assert command("-p", policy(), "--with-secret") == 0
    token = join_token("a secret that is long enough", "shop", "pool")
    assert of(printed(capsys), "Secret")["stringData"] == {"token": token}


def test_a_secret_of_the_owners_is_no_business_of_fleetds(policy, capsys):
    assert command("-p", policy(f"{PODS}, join_secret: mine")) == 0
    found = printed(capsys)
    assert of(found, "Secret")["metadata"]["name"] == "mine"
    assert "secrets" not in {rule["resources"][0] for rule in of(found, "Role")["rules"]}


@pytest.mark.parametrize(
    ("given", "flags", "told"),
    [
        ({}, ["--pool", "pol"], "--pool: no pool 'pol'; did you mean 'pool'?"),
        ({}, ["--pool", "here"], "--pool: here is of the kind process, not kubernetes"),
        (
            {"listen": "0.0.0.0:8080"},
            [],
            "pool pool: kubernetes: needs `controller:`, the URL by which pods reach fleetd",
        ),
        (
            {"options": "mode: pods, template: cutter"},
            [],
            "--namespace: say where shop runs: its pools' `namespace:` is none",
        ),
        (
            {"options": SCALE, "apps": "films, celery"},
            [],
            "pool pool: mode scale runs one app, that of its target's template, not films, celery",
        ),
        ({"apps": "celery"}, [], "pool pool: app celery: only apps with a `release` run in pods yet"),
    ],
)
def test_what_is_wrong_is_one_line(policy, capsys, given, flags, told):
    assert command("-p", policy(**given), *flags) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"fleetd: {told}\n")


def test_a_policy_without_such_a_pool_needs_nothing(policy, capsys):
    path = Path(policy())
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "  pool:" not in line))
    assert command("-p", str(path)) == 2
    told = "fleetd: the policy has no pool of the kind kubernetes, so there is nothing to make\n"
    assert capsys.readouterr().err == told
