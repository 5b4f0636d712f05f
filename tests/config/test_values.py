"""A good policy: what stands in the file is what the rest of fleetd gets."""

import subprocess
import sys

import pytest

from fleetd.config import Adapters, first_policy, load, load_text
from fleetd.core.model import (
    AlertsPolicy,
    AppPolicy,
    BudgetPolicy,
    ControllerPolicy,
    FilesPolicy,
    LimitsPolicy,
    Objective,
    OnBlind,
    QueuePolicy,
    SchedulePolicy,
)
from fleetd.errors import PolicyError
from tests.config.fakes import ADAPTERS, ENVIRON, FULL, HERE, HOOK, ProcessOptions, read


def test_the_policy_of_the_design_is_read_in_full():
    policy = read(FULL)
    assert (policy.fleet, policy.timezone, policy.currency, policy.stability) == (
        "shop",
        "Europe/Berlin",
        "EUR",
        "calm",
    )
    assert policy.sources["main"].kind == "gearman"
    assert policy.sources["main"].options.servers == ["10.0.0.5:4730", "10.0.0.6:4730"]
    assert policy.sources["main"].on_blind == OnBlind(600.0, "keep")
    assert policy.sources["orders"].options.password.get_secret_value() == "s3cret-redis"
    assert policy.apps["photos"] == AppPolicy("photos", str(HERE / "photos"))
    assert policy.apps["billing"] == AppPolicy("billing", None, ("celery", "-A", "shop", "worker"), "TERM", 600.0)
    assert policy.queues["resize"] == QueuePolicy(
        "resize", "photos", "main", "resize_*", Objective(30.0, 0.95), "normal", None, 120.0
    )
    assert policy.queues["mail"].priority == "low"
    assert policy.queues["invoices"].service_s == 20.0
    assert policy.schedules["morning rush"] == SchedulePolicy(
        "morning rush", "30 7 * * mon-fri", 10800.0, {"photos": 24}
    )
    assert policy.budget == BudgetPolicy(5.0, 900.0, 0.8)
    assert policy.limits == LimitsPolicy(20.0, 10.0)
    assert policy.controller == ControllerPolicy("127.0.0.1", 7117, "s3cret-join", None)
    assert policy.alerts == AlertsPolicy(HOOK, ("blind", "dead"))
    assert [pool.act for pool in policy.pools.values()] == [True, True, False]


def test_a_leader_has_its_kind_and_its_options_and_is_none_where_the_policy_is_silent():
    assert read(FULL).controller.leader is None
    text = FULL.replace("join: {env: JOIN}", "join: {env: JOIN}, leader: {kubernetes: {name: it}}")
    leader = read(text).controller.leader
    assert leader is not None
    assert (leader.kind, leader.options.name) == ("kubernetes", "it")
    assert read(text).controller.port == 7117


def test_a_pool_has_its_sizes_its_price_at_the_maximum_and_its_options():
    burst = read(FULL).pools["burst"]
    assert (burst.kind, burst.options.region, burst.apps) == ("ec2", "eu-central-1", ("photos", "billing"))
    assert (burst.slots, burst.min_nodes, burst.max_nodes) == (8, 0, 10)
    assert (burst.price_per_h, burst.billing_minimum_s) == (0.40, 60.0)


def test_an_adapter_finds_the_folder_of_the_policy():
    assert read(FULL).pools["rack3"].options.inventory == str(HERE / "rack3.yaml")


SMALL = """\
version: 1
fleet: small
sources: {main: {gearman: {servers: [a]}}}
apps: {photos: {exec: [work]}}
queues: {all: {app: photos, source: main, match: "*", objective: {wait: 90}}}
pools: {local: {process: {}, apps: [photos], slots: 1, max: 4}}
"""


def test_what_is_left_out_has_the_default_of_the_model():
    policy = read(SMALL)
    assert (policy.timezone, policy.currency, policy.stability, policy.schedules) == ("UTC", "EUR", "calm", {})
    assert (policy.budget, policy.limits, policy.controller) == (BudgetPolicy(), LimitsPolicy(), ControllerPolicy())
    assert policy.alerts == AlertsPolicy(None, ("blind", "breaker", "budget", "dead"))
    assert policy.sources["main"].on_blind == OnBlind()
    assert policy.queues["all"] == QueuePolicy("all", "photos", "main", "*", Objective(90.0))
    assert policy.pools["local"].price_per_h == 0.0


@pytest.mark.parametrize("word", ["calm", "thrifty", "bounded"])
@pytest.mark.parametrize(("written", "safe"), [("true", True), ("false", False)])
def test_the_dials_are_read(word, written, safe):
    policy = read(SMALL.replace("version: 1", f"version: 1\nstability: {word}\nsafe: {written}"))
    assert (policy.stability, policy.safe) == (word, safe)


def test_left_alone_the_dials_stand_at_calm_and_not_safe():
    assert (read(SMALL).stability, read(SMALL).safe) == ("calm", False)


def test_words_that_old_yaml_takes_for_something_else_are_text():
    text = SMALL.replace('"*"', "no").replace("[work]", "[on, 12:30, 2026-11-24, y]")
    policy = read(text)
    assert policy.queues["all"].match == "no"
    assert policy.apps["photos"].exec == ("on", "12:30", "2026-11-24", "y")


def test_an_anchor_may_be_used_again():
    text = SMALL.replace("version: 1", "version: 1\nstability: &word calm").replace("[work]", "[*word, *word]")
    assert read(text).apps["photos"].exec == ("calm", "calm")


def test_a_pool_may_have_one_size():
    assert read(SMALL.replace("max: 4", "min: 4, max: 4")).pools["local"].min_nodes == 4


@pytest.mark.parametrize(
    ("word", "written", "acts"),
    [
        ({}, "", True),
        ({}, ", act: false", False),
        ({"acts": False}, "", False),
        ({"acts": False}, ", act: true", True),
        ({"acts": False}, ", act: false", False),
        ({"acts": True}, "", True),
    ],
)
def test_a_pool_acts_as_the_policy_says_and_else_as_its_kind_does(word, written, acts):
    provider = type("Adapter", (), {"Options": ProcessOptions, **word})
    adapters = Adapters(ADAPTERS.sources, {"process": lambda: provider})
    text = SMALL.replace("max: 4", f"max: 4{written}")
    assert load_text(text, "policy.yaml", HERE, adapters=adapters, environ={}).pools["local"].act is acts


def test_a_fleet_whose_every_pool_is_only_watched_is_legal():
    text = FULL.replace("slots: 4,", "slots: 4, act: false,").replace("slots: 2,", "slots: 2, act: false,")
    assert not any(pool.act for pool in read(text).pools.values())


@pytest.mark.parametrize(
    "written", ["https://chat.example/s3cret", "HTTP://u:s3cret@10.0.0.1:9000", "http://[::1]/a?b=c"]
)
def test_a_webhook_may_stand_in_the_policy(written):
    policy = read(f'{SMALL}alerts: {{webhook: "{written}", on: [dead, dead]}}\n')
    assert policy.alerts == AlertsPolicy(written, ("dead",))
    assert "s3cret" not in repr(policy)


def test_a_webhook_may_be_named_as_a_secret_is(tmp_path):
    (tmp_path / "hook").write_text(f"{HOOK}\n")
    for named in ("{file: hook}", "{env: HOOK}"):
        policy = read(f"{SMALL}alerts: {{webhook: {named}}}\n", base_dir=tmp_path)
        assert policy.alerts.webhook == HOOK


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("mail_*", "mail_*", True),
        ("mail_?", "mail_?", True),
        ("*", "mail_?", True),
        ("mail_urgent", "mail_*", True),
        ("mail_[ab]", "mail_a", True),
        ("mail_?", "mail_*", True),
        ("mail_a*", "mail_?*", False),  # they do share jobs; to be certain of it would take more than a look
        ("mail_[?]", "mail_?", False),
        ("mail_*", "*_big", False),
        ("mail", "mail_*", False),
    ],
)
def test_two_queues_may_not_certainly_share_jobs(first, second, shared):
    queue = "{{app: photos, source: main, match: '{}', objective: {{wait: 5}}}}"
    line = next(line for line in SMALL.splitlines() if line.startswith("queues:"))
    text = SMALL.replace(line, f"queues: {{a: {queue.format(first)}, b: {queue.format(second)}}}")
    try:
        read(text)
    except PolicyError as error:
        found = error.problems
    else:
        found = ()
    assert len(found) == shared
    assert all("match the same jobs" in line for line in found)


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [("127.0.0.1:0", "127.0.0.1", 0), ("[::1]:7117", "::1", 7117), ("localhost:80", "localhost", 80)],
)
def test_listening_on_this_machine_needs_no_secret(listen, host, port):
    controller = read(f'{SMALL}controller: {{listen: "{listen}"}}\n').controller
    assert (controller.host, controller.port) == (host, port)


def test_listening_for_others_needs_the_join_secret():
    assert read(f'{SMALL}controller: {{listen: "0.0.0.0:7117", join: {{env: JOIN}}}}\n').controller.host == "0.0.0.0"
    with pytest.raises(PolicyError) as caught:
        read(f'{SMALL}controller: {{listen: "0.0.0.0:7117"}}\n')
    why = "listens on 0.0.0.0, beyond this machine: leases are code execution, so it needs 'join'"
    assert caught.value.problems == (f"policy.yaml:7:1: controller: {why}",)


def test_a_secret_file_is_read_beside_the_policy_without_its_last_line_end(tmp_path):
    (tmp_path / "token").write_text("s3cret with space \n")
    policy = read(f"{SMALL}controller: {{token: {{file: token}}}}\n", base_dir=tmp_path)
    assert policy.controller.token == "s3cret with space "


def test_no_secret_shows_in_a_policy_or_in_an_error():
    assert "s3cret" not in repr(read(FULL))
    with pytest.raises(PolicyError) as caught:
        read(FULL.replace("REDIS_PASSWORD", "WEAK").replace("EUR", "eur"))
    assert caught.value.problems[1] == "policy.yaml:7:44: sources.orders.redis.password: [hidden] is a weak password"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_secrets_are_resolved_wherever_an_adapter_has_a_secret_field(tmp_path):
    (tmp_path / "key").write_text("s3cret-key")
    nested = "tls: {ca: x, key: {file: key}}, spares: [{env: JOIN}, {env: REDIS_PASSWORD}]"
    text = SMALL.replace("{gearman: {servers: [a]}}", f"{{redis: {{url: x, {nested}}}}}")
    options = read(text, base_dir=tmp_path).sources["main"].options
    assert options.tls.key.get_secret_value() == "s3cret-key"
    assert [spare.get_secret_value() for spare in options.spares] == ["s3cret-join", "s3cret-redis"]


def test_relative_paths_count_from_the_file_wherever_one_stands(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "p.yaml").write_text(SMALL.replace("exec: [work]", "release: {path: code}"))
    monkeypatch.chdir("/")
    policy = load(tmp_path / "p.yaml", adapters=ADAPTERS, environ=ENVIRON)
    assert policy.apps["photos"].path == str(tmp_path / "code")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "p.yaml").write_text(f"\ufeff{SMALL}")
    assert load(tmp_path / "p.yaml", adapters=ADAPTERS).fleet == "small"


def test_the_first_policy_is_valid_with_the_real_adapters(tmp_path):
    (tmp_path / "app").mkdir()
    policy = load_text(first_policy(), "fleetd.yaml", tmp_path)
    assert policy.fleet == "first"
    assert policy.queues["greet"].match == "greet"
    assert policy.sources["main"].options.servers == ["127.0.0.1:4730"]


def test_the_first_policy_takes_names_that_need_quotes(tmp_path):
    (tmp_path / 'my "app"').mkdir()
    text = first_policy(path='my "app"', match="a: #b", listen="[::1]:4731")
    policy = load_text(text, "fleetd.yaml", tmp_path)
    assert policy.apps["app"].path == str(tmp_path / 'my "app"')
    assert policy.queues["greet"].match == "a: #b"


def test_the_example_of_the_rush_is_valid_with_the_real_adapters():
    policy = load(HERE.parent.parent / "examples" / "rush-hour.yaml")
    assert policy.queues["thumbnails"].objective == Objective(10.0, 0.95)
    assert policy.queues["thumbnails"].job_limit_s == 60.0
    pool = policy.pools["local"]
    assert (pool.kind, pool.slots, pool.min_nodes, pool.max_nodes, pool.price_per_h) == ("process", 1, 0, 6, 0.0)


def test_loading_imports_no_adapter_and_no_scheduler_that_the_policy_does_not_use():
    code = (
        "import sys, fleetd.config; from tests.config.test_values import SMALL; from tests.config.fakes import read;"
        "read(SMALL); print([m for m in sys.modules if m.startswith(('apscheduler', 'fleetd.sources.', "
        "'fleetd.providers.'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=HERE.parent.parent
    )
    assert done.stdout == "[]\n"


def test_the_store_of_files_has_its_values_and_its_secrets_by_reference():
    assert read(FULL).files == FilesPolicy()
    hooks = 'webhooks: ["https://shop.example/hooks"], secret: {env: LONG}, tokens: [{env: LONG}]'
    text = f"{FULL}files: {{store: s3://bucket/files, cap: 64KB, keep: 2h, longest: 7d, most: 1GB, {hooks}}}\n"
    files = read(text, environ={**ENVIRON, "LONG": "s" * 20}).files
    assert (files.store, files.cap, files.keep_s, files.longest_s, files.most) == (
        "s3://bucket/files", 64 * 1024, 7200.0, 7 * 86400.0, 1024**3,
    )  # fmt: skip
    assert files.webhooks == ("https://shop.example/hooks",)
    assert files.secret == files.tokens[0] == "s" * 20
    assert files.secret not in repr(files)
