"""docs/policy.md: its tables are those of the models, its example loads, and its words are those of the errors."""

import re
from pathlib import Path

import pytest

from fleetd.config import installed, load_text
from fleetd.config.shape import PoolShape, QueueShape, ScheduleShape
from fleetd.core import units
from tests.config.fakes import HERE
from tests.config.keys import DOC, SCHEMA, renewed, table

TEXT = DOC.read_text()
SOURCES = DOC.with_name("sources.md").read_text()
BAD = Path(__file__).parent / "bad"


def test_the_tables_are_those_of_the_models():
    assert renewed(TEXT) == TEXT, "run: python -m tests.config.keys"
    assert TEXT.count("<!-- keys: ") == 12


def keys(node):
    if isinstance(node, dict):
        yield from node.get("properties", ())
        for value in node.values():
            yield from keys(value)


@pytest.mark.parametrize(("name", "shape"), [("Pool", PoolShape), ("Queue", QueueShape), ("Schedule", ScheduleShape)])
def test_a_table_has_a_row_for_every_key(name, shape):
    for key in {info.alias or own for own, info in shape.model_fields.items()}:
        assert re.search(rf"^\| `{key}[`.]", table(name), re.MULTILINE), key


def test_every_key_is_named():
    blocks, prose = re.findall(r"```.*?```", TEXT, re.DOTALL), re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    named = set(re.findall(r"[a-z_]+", " ".join([*blocks, *re.findall(r"`[^`\n]+`", prose)])))
    assert set(keys(SCHEMA)) - named == set()


@pytest.mark.parametrize("role", ["sources", "providers", "leaders"])
def test_every_option_of_an_adapter_of_ours_is_named(role):
    for kind, load in getattr(installed(), role).items():
        assert f"`{kind}`" in TEXT
        for name in load().Options.model_fields:
            assert f"| `{name}` |" in TEXT + SOURCES, f"{kind}: {name}"


def test_the_example_is_valid():
    (example,) = re.findall(r"```yaml\n(version: 1.*?)```", TEXT, re.DOTALL)
    policy = load_text(
        example, "policy.md", HERE, environ={"FLEETD_JOIN": "x" * 32, "CHAT_HOOK": "https://chat.example/x"}
    )
    assert set(policy.queues) == {"resize", "mail", "invoices"}


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("duration", units.seconds),
        ("price", units.money_per_h),
        ("share", units.share),
        ("rate", units.per_minute),
        ("size", units.size),
    ],
)
def test_the_units_are_read_as_the_doc_says(value, read):
    (forms,) = re.findall(rf"^\| {value} \| ([^|]+) \|", TEXT, re.MULTILINE)
    for form in re.findall(r"`([^`{]+)`", forms):
        assert read(form) > 0


def test_the_errors_are_quoted_as_they_are():
    said = {line.split(":", 3)[3].strip() for path in BAD.glob("*.txt") for line in path.read_text().splitlines()}
    shown = re.findall(r"^shop\.yaml:\d+:\d+: (.+)$", TEXT, re.MULTILINE)
    assert len(shown) == 4
    assert set(shown) <= said
    for words in ("unknown key", "is missing", "is given twice", "is not installed here", "is not YAML"):
        assert f"`{words}`" in TEXT
        assert any(words in line for line in said)
