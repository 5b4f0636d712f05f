"""Every policy that README.md or docs/ shows is one that loads, and other examples are what the code does."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from fleetd.config import Adapters, installed, load_text
from fleetd.config.findings import Findings
from fleetd.config.tree import Tree, parse
from fleetd.control.alerts import BLIND_S, CLEAR_S, _Post, conditions
from fleetd.core.model import AlertsPolicy
from tests.config.fakes import ADAPTERS

ROOT: Final = Path(__file__).parents[2]
FILES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
POLICY: Final = re.compile(r"^```ya?ml\n(version: 1\n.*?)^```", re.DOTALL | re.MULTILINE)


class AnySecret(Mapping[str, str]):
    """An environment that has every variable: a URL, because a webhook must be one."""

    def __getitem__(self, name: str) -> str:
        return f"https://chat.example/{name}"

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def adapters() -> Adapters:
    """The adapters that are here, and stand-ins for the kinds that are not."""
    here = installed()
    return Adapters({**ADAPTERS.sources, **here.sources}, {**ADAPTERS.providers, **here.providers})


def snippets() -> list[Any]:
    found = [(path, match) for path in FILES for match in POLICY.finditer(path.read_text())]
    return [
        pytest.param(match[1], id=f"{path.relative_to(ROOT)}:{path.read_text()[: match.start()].count(chr(10)) + 1}")
        for path, match in found
    ]


def with_folders(text: str, base: Path) -> str:
    """Make what the policy refers to, below `base`, absolute paths included; return the policy that says so."""
    tree = parse(text, Findings("policy"))
    assert tree is not None
    for path in sorted({value for app in entries(tree, "apps") if (value := at(app, "release", "path"))}):
        (base / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        text = text.replace(f"path: {path}", f"path: {path.lstrip('/')}")
    return text


def entries(tree: Tree, section: str) -> list[Tree]:
    found = tree.at((section,))
    return list(found.items.values()) if found else []


def at(tree: Tree, *path: str) -> str | None:
    found = tree.at(path)
    return str(found.value) if found else None


@pytest.mark.parametrize("text", snippets())
def test_a_policy_in_the_docs_loads(text: str, tmp_path: Path) -> None:
    policy = load_text(with_folders(text, tmp_path), "policy.yaml", tmp_path, adapters=adapters(), environ=AnySecret())
    assert policy.queues
    assert policy.pools


def test_a_policy_that_does_not_load_is_noticed(tmp_path: Path) -> None:
    (text,) = POLICY.findall((ROOT / "README.md").read_text())
    broken = text.replace("job_limit", "job_limits")
    assert broken != text
    with pytest.raises(Exception, match="unknown key; did you mean 'job_limit'"):
        load_text(with_folders(broken, tmp_path), "policy.yaml", tmp_path, adapters=adapters(), environ=AnySecret())


def test_the_docs_that_show_policies_are_found() -> None:
    shown = {str(path.relative_to(ROOT)) for path in FILES if POLICY.search(path.read_text())}
    assert {"README.md", "docs/policy.md", "docs/alerts.md", "docs/moving-over.md"} <= shown


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_of_ours_leads_to_one(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_python_in_the_new_docs_is_python() -> None:
    for block in re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs/moving-over.md").read_text(), re.DOTALL | re.MULTILINE
    ):
        ast.parse(block)


# ── docs/alerts.md

ALERTS: Final = (ROOT / "docs/alerts.md").read_text()


def test_the_payload_is_what_is_posted() -> None:
    (shown,) = re.findall(r"^```json\n(.*?)^```", ALERTS, re.DOTALL | re.MULTILINE)
    body = json.loads(shown)
    text = body["text"].removeprefix("fleet shop: ")
    reason = text.removeprefix("queue resize is blind: ")
    found = conditions({"queues": {"resize": {"blind": reason, "blind_s": BLIND_S}}})
    assert found == {body["alert"]: text}
    assert _Post("shop", body["alert"], "firing", text, 0.0, body["at"]).body() == body


def test_the_table_has_every_kind_and_the_times_of_the_code() -> None:
    kinds = re.findall(r"^\| `(\w+)` \| `\1", ALERTS, re.MULTILINE)
    assert tuple(kinds) == AlertsPolicy().on
    assert f"for {BLIND_S:.0f} s" in ALERTS
    assert ALERTS.count(f"{CLEAR_S:.0f} s") == 4
