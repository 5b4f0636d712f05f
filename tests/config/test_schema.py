"""The JSON Schema: it accepts what `load` accepts, refuses what is wrong in a single place, and explains every key."""

import json
from collections.abc import Mapping

import pytest
from hypothesis import given, settings

from fleetd.config import Adapters, first_policy, schema
from fleetd.config.findings import Findings
from fleetd.config.tree import parse
from tests.config.accepts import accepts
from tests.config.fakes import ADAPTERS, FULL, HERE, read
from tests.config.test_fuzz import mutated, well_behaved
from tests.config.test_values import SMALL

SCHEMA = schema(adapters=ADAPTERS)


def plain(text):
    """Read YAML as an editor does, in version 1.2."""
    findings = Findings("policy.yaml")
    tree = parse(text, findings)
    assert tree is not None
    return _data(tree)


def _data(tree):
    match tree.value:
        case Mapping():
            return {key: _data(item) for key, item in tree.items.items()}
        case tuple():
            return [_data(item) for item in tree.value]
    return tree.value


@pytest.mark.parametrize("text", [FULL, SMALL], ids=["full", "small"])
def test_good_policies_are_valid(text):
    assert accepts(SCHEMA, plain(text))


def test_the_example_and_the_first_policy_are_valid_for_the_real_adapters():
    real = schema()
    assert accepts(real, plain((HERE.parent.parent / "examples" / "rush-hour.yaml").read_text()))
    assert accepts(real, plain(first_policy()))


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("version: 1", "version: 2"),
        ("fleet: small", "fleet: Small"),
        ("fleet: small", "fleet: small\nbudget: {}"),
        ("fleet: small", "fleet: small\nbudget: {month: -1}"),
        ("fleet: small", "fleet: small\ncontroller: {token: hunter2}"),
        ("fleet: small", "fleet: small\ncontroller: {token: {env: A, file: B}}"),
        ("fleet: small", "fleet: small\nlimits: {launches: 5/day}"),
        ("fleet: small", "fleet: small\nstability: bound"),
        ("fleet: small", "fleet: small\nsafe: 1"),
        ("slots: 1", 'slots: "1"'),
        ("slots: 1", "slots: 0"),
        ("process: {}", "process: {nicer: 1}"),
        ("process: {}", "process: {}, rack: {inventory: a, power: wol}"),
        ("process: {}, ", ""),
        ("max: 4", "maximum: 4"),
        ("max: 4", "max: 4, price: {max: 1, min: 0}"),
        ("wait: 90", "wait: 5 minutes"),
        ("wait: 90", "wait: 90, share: 1.5"),
        ("exec: [work]", "exec: []"),
        ("exec: [work]", "exec: [work], release: {path: photos}"),
        ("exec: [work]", "drain: {signal: SIGTERM}"),
        ("photos: {", "pho.tos: {"),
        ("max: 4", "max: 4, act: 1"),
        ("fleet: small", "fleet: small\nalerts: {}"),
        ("fleet: small", "fleet: small\nalerts: {webhook: ftp://a/b}"),
        ("fleet: small", 'fleet: small\nalerts: {webhook: "https://a/b c"}'),
        ("fleet: small", "fleet: small\nalerts: {webhook: {env: A}, on: [blind, death]}"),
        ("fleet: small", "fleet: small\nalerts: {webhook: {env: A}, on: []}"),
    ],
)
def test_a_mistake_is_seen_while_typing(was, becomes):
    assert was in SMALL
    assert not accepts(SCHEMA, plain(SMALL.replace(was, becomes)))


@settings(max_examples=200, deadline=None)
@given(mutated())
def test_whatever_is_loaded_is_valid(text):
    if well_behaved(lambda: read(text)) is not None:
        assert accepts(SCHEMA, plain(text))


@pytest.mark.parametrize("written", ["90", "30s", '"90"', "1h30m", "1.5h", "0.5"])
def test_a_duration_may_be_written_as_load_reads_it(written):
    text = SMALL.replace("wait: 90", f"wait: {written}")
    read(text)
    assert accepts(SCHEMA, plain(text))


@pytest.mark.parametrize("written", ["0.12/h", "0.002/min", "0.12", "0", "{max: 0.40/h}", "{max: 1}"])
def test_a_price_may_be_written_as_load_reads_it(written):
    text = SMALL.replace("max: 4", f"max: 4, price: {written}")
    read(text)
    assert accepts(SCHEMA, plain(text))


def properties(node, path=""):
    if isinstance(node, dict):
        for key, value in node.get("properties", {}).items():
            yield f"{path}.{key}", value
        for key, value in node.items():
            yield from properties(value, f"{path}.{key}")


def test_every_key_is_explained():
    found = dict(properties(SCHEMA))
    silent = [path for path, node in found.items() if not node.get("description") and not of_ref(node)]
    assert len(found) > 60
    assert silent == []


def of_ref(node):
    ref = node.get("$ref", "").removeprefix("#/$defs/")
    return SCHEMA["$defs"].get(ref, {}).get("description")


def test_no_object_takes_keys_that_nobody_knows():
    def objects(node):
        if isinstance(node, dict):
            yield from [node] if "properties" in node and node.get("type") == "object" else []
            for value in node.values():
                yield from objects(value)

    found = list(objects(SCHEMA))
    assert len(found) > 15
    assert all(node.get("additionalProperties") is not True and "additionalProperties" in node for node in found)


def test_nothing_of_python_shows():
    text = json.dumps(SCHEMA)
    assert '"null"' not in text
    assert "writeOnly" not in text
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_an_adapter_that_cannot_be_imported_is_left_out():
    made = schema(adapters=ADAPTERS)["$defs"]["SourceShape"]["properties"]
    assert set(made) == {"on_blind", "gearman", "redis"}
    assert set(schema(adapters=Adapters())["$defs"]["PoolShape"]["properties"]) == {
        *("apps", "slots", "min", "max", "price", "billing", "act"),
    }
