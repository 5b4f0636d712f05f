"""The difference of two policies, in the words of the file."""

from dataclasses import fields, replace

import pytest

from fleetd.config import diff
from tests.config.fakes import ENVIRON, FULL, read

OLD = read(FULL)


def changed(was, becomes, **given):
    assert was in FULL
    return diff(OLD, read(FULL.replace(was, becomes), **given))


def test_a_policy_does_not_differ_from_itself():
    assert diff(OLD, read(FULL)) == []


@pytest.mark.parametrize(
    ("was", "becomes", "line"),
    [
        ("max: 12", "max: 8", "pools.rack3.max: 12 -> 8"),
        ("min: 1,", "min: 2,", "pools.pods.min: 1 -> 2"),
        ("price: 0.03/h", "price: 0.001/min", "pools.rack3.price: 0.03/h -> 0.06/h"),
        ("slots: 4", "slots: 2", "pools.rack3.slots: 4 -> 2"),
        ("{minimum: 60s}", "{minimum: 90s}", "pools.burst.billing.minimum: 1m -> 1m30s"),
        ("power: wol", "power: ipmi", "pools.rack3.rack.power: wol -> ipmi"),
        (
            "apps: [photos], slots: 2",
            "apps: [photos, billing], slots: 2",
            "pools.pods.apps: [photos] -> [photos, billing]",
        ),
        ("hold: 10m", "hold: 5m", "sources.main.on_blind.hold: 10m -> 5m"),
        ('"10.0.0.6:4730"', "b", "sources.main.gearman.servers: [10.0.0.5:4730, 10.0.0.6:4730] -> [10.0.0.5:4730, b]"),
        ("share: 95%", "share: 0.995", "queues.resize.objective.share: 95% -> 99.5%"),
        ("wait: 5m", "wait: 10m", "queues.mail.objective.wait: 5m -> 10m"),
        ("priority: low", "priority: high", "queues.mail.priority: low -> high"),
        ("service: 20s, ", "", "queues.invoices.service: 20s -> unset"),
        ("deadline: 10m", "deadline: 20m", "apps.billing.drain.deadline: 10m -> 20m"),
        ('"-A", "shop", ', "", "apps.billing.exec: [celery, -A, shop, worker] -> [celery, worker]"),
        ("{photos: 24}", "{photos: 25}", "schedules.morning rush.floor.photos: 24 -> 25"),
        ("{photos: 24}", "{billing: 1, photos: 24}", "schedules.morning rush.floor.billing: unset -> 1"),
        ("for: 3h", "for: 4h", "schedules.morning rush.for: 3h -> 4h"),
        ("hour: 5", "hour: 5.5", "budget.hour: 5 -> 5.5"),
        ("launches: 20/min", "launches: 1/s", "limits.launches: 20/min -> 60/min"),
        ("stability: calm", "stability: thrifty", "stability: calm -> thrifty"),
        ("stability: calm", "stability: bounded", "stability: calm -> bounded"),
        ("stability: calm", "stability: calm\nsafe: true", "safe: false -> true"),
        ("127.0.0.1:7117", "127.0.0.1:7118", "controller.listen.port: 7117 -> 7118"),
        ("act: false", "act: true", "pools.burst.act: false -> true"),
        ("on: [blind, dead]", "on: [dead]", "alerts.on: [blind, dead] -> [dead]"),
        ("Europe/Berlin", "UTC", "timezone: Europe/Berlin -> UTC"),
    ],
)
def test_a_change_is_one_line(was, becomes, line):
    assert changed(was, becomes) == [line]


def test_entries_come_and_go_in_one_line_each():
    mail = next(line for line in FULL.splitlines(keepends=True) if line.startswith("  mail:"))
    assert changed(mail, "") == ["queues.mail: removed"]
    assert changed(mail, mail + mail.replace("mail", "post")) == ["queues.post: added"]


def test_a_secret_is_shown_as_changed():
    environ = {**ENVIRON, "JOIN": "s3cret-other", "REDIS_PASSWORD": "s3cret-new"}
    lines = diff(OLD, read(FULL, environ=environ))
    assert lines == ["sources.orders.redis.password: changed", "controller.join: changed"]


def test_a_webhook_is_shown_as_changed_and_never_by_its_url():
    assert diff(OLD, read(FULL, environ={**ENVIRON, "HOOK": "https://chat.example/other"})) == [
        "alerts.webhook: changed"
    ]
    (alerts,) = [line for line in FULL.splitlines(keepends=True) if line.startswith("alerts:")]
    all_four = "[blind, dead] -> [blind, breaker, budget, dead]"
    assert changed(alerts, "") == ["alerts.webhook: changed", f"alerts.on: {all_four}"]


def test_a_leader_that_comes_or_changes_is_shown():
    def led(options: str):
        return read(FULL.replace("join: {env: JOIN}", f"join: {{env: JOIN}}, leader: {{kubernetes: {options}}}"))

    name = "controller.leader.kubernetes.name"
    assert diff(led("{name: it}"), led("{name: that}")) == [f"{name}: it -> that"]
    came = ["controller.leader.kind: unset -> kubernetes", f"{name}: unset -> it"]
    assert diff(read(FULL), led("{name: it}")) == came


def test_another_kind_of_pool_shows_its_kind_and_options():
    lines = changed("rack: {inventory: rack3.yaml, power: wol}", "process: {}")
    assert lines[0] == "pools.rack3.kind: rack -> process"
    assert "pools.rack3.process.nice: unset -> 0" in lines


def fields_of(kind):
    """Return the fields of a kind of policy value that may change."""
    return [field.name for field in fields(kind) if field.name not in ("name", "options")]


@pytest.mark.parametrize("section", ["sources", "apps", "queues", "pools", "schedules"])
def test_no_field_of_an_entry_changes_in_silence(section):
    entries = getattr(OLD, section)
    name, entry = next(iter(entries.items()))
    for field in fields_of(type(entry)):
        other = replace(entry, **{field: different(getattr(entry, field))})
        assert diff(OLD, replace(OLD, **{section: {**entries, name: other}})), field


@pytest.mark.parametrize("name", ["budget", "limits", "controller", "alerts", "releases"])
def test_no_field_at_the_top_changes_in_silence(name):
    value = getattr(OLD, name)
    for field in fields_of(type(value)):
        other = replace(value, **{field: different(getattr(value, field))})
        assert diff(OLD, replace(OLD, **{name: other})), field


def different(value):
    match value:
        case None | str():
            return f"{value}x" if value else 1.0
        case int() | float():
            return value + 1
        case tuple():
            return (*value, "x")
        case dict():
            return {**value, "x": 1}
    field = fields(value)[0].name
    return replace(value, **{field: different(getattr(value, field))})
