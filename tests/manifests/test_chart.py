"""The chart says what the code says, and refuses in one line what cannot be; its pods may do no more than they must."""

from pathlib import Path

import pytest
import yaml

from fleetd.config import load_text
from fleetd.control.wiring import Home, worker_launch
from fleetd.providers.kubernetes.manifest import Maker
from fleetd.providers.kubernetes.names import kept_name, label, lease_name
from fleetd.providers.kubernetes.rights import Asked, of_leader, of_pool, rules
from fleetd.worker.main import _parser
from tests.kubernetes.plane import Json
from tests.manifests.test_rights import flat
from tests.manifests.tools import CHART, VALUES, good, of, pod_of, pods, read, run, template

pytestmark = [pytest.mark.real, pytest.mark.slow]
GOOD = sorted((VALUES / "good").glob("*.yaml"))
BAD = sorted((VALUES / "bad").glob("*.yaml"))
PLAIN, EVERYTHING = VALUES / "good" / "plain.yaml", VALUES / "good" / "everything.yaml"


def named(path: Path) -> str:
    return path.stem


class Everything(dict[str, str]):
    """An environment in which all is set."""

    def get(self, name: str, default: object = None) -> str:
        return "https://unknown.invalid/and-not-needed"


def changed(before: Json, change: Json) -> Json:
    """Return values with a change in them; null leaves a key out."""
    after = dict(before)
    for key, value in change.items():
        deeper = isinstance(value, dict) and isinstance(before.get(key), dict)
        after[key] = changed(before[key], value) if deeper else value
    return {key: value for key, value in after.items() if value is not None or key == "leader"}


def policy_in(found: list[Json]):
    """Return the policy that the chart mounts, as fleetd reads it: it is a good one, or this raises."""
    text = next(one["data"]["policy.yaml"] for one in found if "policy.yaml" in one.get("data", {}))
    return load_text(text, "policy.yaml", ".", environ=Everything(), code=False)


def makers(policy, namespace: str = "shop") -> dict[str, Maker]:
    """Return what fleetd itself would make each pool's objects with."""
    launch = worker_launch(policy, Home(Path(), "", "http://unused", "secret"))
    pools = {name: pool for name, pool in policy.pools.items() if pool.kind == "kubernetes"}
    return {name: Maker(p, p.options, launch, p.options.namespace or namespace) for name, p in pools.items()}


@pytest.mark.parametrize("values", GOOD, ids=named)
def test_good_values_pass_the_linter_and_give_a_policy_that_fleetd_takes(values):
    said = good("helm", "lint", "--strict", str(CHART), "--values", str(values))
    assert "0 chart(s) failed" in said
    found = read(template(values))
    assert policy_in(found).fleet == yaml.safe_load(values.read_text())["policy"]["fleet"]
    keys = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in found]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("values", BAD, ids=named)
def test_bad_values_are_refused_with_what_is_wrong(values, tmp_path):
    told = values.read_text().splitlines()[0].removeprefix("# told: ")
    whole = tmp_path / "values.yaml"
    whole.write_text(yaml.safe_dump(changed(yaml.safe_load(PLAIN.read_text()), yaml.safe_load(values.read_text()))))
    done = run("helm", "template", "r", str(CHART), "--values", str(whole))
    assert (done.returncode, done.stdout) == (1, "")
    lines = [line for line in done.stderr.splitlines() if told in line]
    assert len(lines) == 1, done.stderr


@pytest.mark.parametrize("values", GOOD, ids=named)
def test_the_roles_are_those_of_the_table(values):
    found = read(template(values))
    policy = policy_in(found)
    asked: dict[str, list[Asked]] = {}
    for name, maker in makers(policy).items():
        asked.setdefault(maker.namespace, []).append(of_pool(name, maker.options))
    if policy.controller.leader:
        options = policy.controller.leader.options
        asked.setdefault(options.namespace or "shop", []).append(of_leader(options.name or lease_name(policy.fleet)))
    roles = [one for one in found if one["kind"] == "Role"]
    if yaml.safe_load(values.read_text()).get("rbac") is False:
        assert roles == []
        return
    assert len(roles) == len(asked) == sum(one["kind"] == "RoleBinding" for one in found)
    assert {one["metadata"]["namespace"]: flat(one["rules"]) for one in roles} == {
        namespace: flat(rules(all_of)) for namespace, all_of in asked.items()
    }
    account = pod_of(of(found, "Deployment", roles[0]["metadata"]["name"].removeprefix("shop-")))["spec"]
    for one in found:
        if one["kind"] == "RoleBinding":
            subject = {"kind": "ServiceAccount", "name": account["serviceAccountName"], "namespace": "shop"}
            assert one["subjects"] == [subject]


@pytest.mark.parametrize("values", [PLAIN, EVERYTHING], ids=named)
def test_workers_have_the_command_line_that_fleetd_would_have_given_them(values):
    found = read(template(values))
    policy = policy_in(found)
    seen = 0
    for name, maker in makers(policy).items():
        source = maker.options.source
        things = [one for one in found if (one["kind"], one["metadata"]["name"]) == (source.kind.name, source.name)]
        if not things:
            continue
        seen += 1
        assert things[0]["metadata"]["namespace"] == maker.namespace
        pod = pod_of(things[0])["spec"]
        (worker,) = pod["containers"]
        apps = [policy.apps[app] for app in maker.pool.apps]
        least_s = max(maker.grace_s(app, 0.0) for app in apps)
        assert pod["terminationGracePeriodSeconds"] == (90000 if name == "Cut_Big" else int(least_s))
        if maker.options.container:
            assert worker["name"] == maker.options.container
        if maker.options.mode == "pods":
            assert "args" not in worker or worker["args"] == ["--log-format", "json"]
            continue
        own = maker.worker({}, apps[0])
        assert {**vars(_parser().parse_args(worker["args"])), "server": []} == {
            **vars(_parser().parse_args(own["args"])),
            "server": [],
        }
        servers = [_parser().parse_args(words).server for words in (worker["args"], own["args"])]
        assert sorted(servers[0]) == sorted(set(servers[1]))
        kept = {one["name"]: one for one in own["env"]}
        assert {one["name"]: one for one in worker["env"] if one["name"] in kept} == kept
        assert "replicas" not in things[0]["spec"]
    assert seen == {"plain": 2, "everything": 4}[values.stem]


@pytest.mark.parametrize("values", GOOD, ids=named)
def test_what_fleetd_keeps_is_there_empty_under_the_names_that_it_will_use(values):
    found = read(template(values))
    for name, maker in makers(policy_in(found)).items():
        names = {kept_name(name)} | ({f"{kept_name(name)}-orders"} if maker.options.mode == "scale" else set())
        maps = {
            one["metadata"]["name"]
            for one in found
            if one["kind"] == "ConfigMap" and one["metadata"].get("labels", {}).get("fleetd.dev/pool") == label(name)
        }
        assert maps == names
        secrets = [one for one in found if one["kind"] == "Secret" and one["metadata"]["name"] == kept_name(name)]
        assert len(secrets) == (0 if maker.options.join_secret else 1)
        assert all("data" not in one and "stringData" not in one for one in secrets)


@pytest.mark.parametrize("values", GOOD, ids=named)
def test_no_pod_of_the_chart_may_do_more_than_it_must(values):
    found = pods(read(template(values)))
    assert found
    for pod in found.values():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["runAsUser"] > 0
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["spec"]["containers"]:
            own = container["securityContext"]
            assert (own["allowPrivilegeEscalation"], own["capabilities"]) == (False, {"drop": ["ALL"]})
            assert own["readOnlyRootFilesystem"] is (container["name"] != "cut")  # that one asked for it
            assert {"cpu", "memory"} <= {
                **container["resources"].get("limits", {}),
                **container["resources"].get("requests", {}),
            }.keys()


def test_workers_get_no_token_of_an_account_unless_they_name_one():
    found = pods(read(template(EVERYTHING)))
    given = {name: found[name]["spec"]["automountServiceAccountToken"] for name in ("cutter", "job", "clips", "sums")}
    assert given == {"cutter": False, "job": True, "clips": False, "sums": False}


def test_a_changed_policy_rolls_out_only_where_that_is_asked_for(tmp_path):
    change = tmp_path / "more.yaml"
    change.write_text("policy: {pools: {cutters: {max: 41}}}")

    def pod(*files: Path, reload: str) -> Json:
        return pod_of(of(read(template(*files, words=["--set", f"reload={reload}"])), "Deployment", "r-fleetd"))

    assert pod(PLAIN, reload="watch") == pod(PLAIN, change, reload="watch")
    assert "--follow" in pod(PLAIN, reload="watch")["spec"]["containers"][0]["args"]
    before, after = pod(PLAIN, reload="rollout"), pod(PLAIN, change, reload="rollout")
    assert before["metadata"]["annotations"]["checksum/policy"] != after["metadata"]["annotations"]["checksum/policy"]
    assert "--follow" not in before["spec"]["containers"][0]["args"]


def test_a_changed_secret_always_rolls_out(tmp_path):
    change = tmp_path / "more.yaml"
    change.write_text("secret: {data: {FLEETD_TOKEN: another-token-of-16}}")
    one, two = (pods(read(template(*files)))["r-fleetd"] for files in ([PLAIN], [PLAIN, change]))
    assert one["spec"] == two["spec"]
    assert one["metadata"]["annotations"] != two["metadata"]["annotations"]


def test_pools_without_an_address_of_the_controller_get_that_of_the_service():
    found = read(template(EVERYTHING, namespace="here"))
    pools = policy_in(found).pools
    assert pools["sums"].options.controller == "http://control.here:9090"
    assert pools["clips"].options.controller == "https://fleetd.example:8443"
    assert of(found, "Service")["spec"]["ports"] == [{"name": "http", "port": 9090, "targetPort": "http"}]
