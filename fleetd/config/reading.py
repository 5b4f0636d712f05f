"""A policy file to a `Policy`: read, parsed, validated entry by entry, checked between entries, built.

Promises: a `Policy` or one `PolicyError` with every problem, whatever the file holds; relative paths count from the
file's folder; only the adapters that the policy names are imported.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any, Final, TypeVar

from fleetd.config.adapters import Adapters, Role, acts, conflicts, installed, names, options
from fleetd.config.build import Adapted, Parts, build
from fleetd.config.check import Valid, check
from fleetd.config.findings import TOP, Findings, Path, Place, quoted, suggestion
from fleetd.config.scalars import NAME_PATTERN, TITLE_PATTERN
from fleetd.config.shape import (
    VERSION,
    AppShape,
    LeaderShape,
    PolicyShape,
    PoolShape,
    QueueShape,
    ScheduleShape,
    SettingsShape,
    Shape,
    SourceShape,
)
from fleetd.config.tree import Tree, parse
from fleetd.config.values import Surroundings, validate
from fleetd.config.words import shown, unknown_key
from fleetd.core.model import Policy
from fleetd.errors import UsageError

MAX_BYTES: Final = 256 * 1024  # a policy with a thousand queues is half of that; more takes seconds to parse

ShapeT = TypeVar("ShapeT", bound=Shape)
_SECTIONS: Final = ("sources", "apps", "queues", "pools", "schedules")


def load(
    path: FilePath | str,
    *,
    adapters: Adapters | None = None,
    environ: Mapping[str, str] | None = None,
    code: bool = True,
) -> Policy:
    """Read a policy file. Raises PolicyError with every problem. Without `code`, the apps' folders may be missing."""
    path = FilePath(path)
    findings = Findings(str(path))
    text = _read(path, findings)
    findings.check()
    return load_text(text, str(path), path.parent, adapters=adapters, environ=environ, code=code)


def load_text(
    text: str,
    file_name: str,
    base_dir: FilePath | str,
    *,
    adapters: Adapters | None = None,
    environ: Mapping[str, str] | None = None,
    code: bool = True,
) -> Policy:
    """Read a policy's text as `load` does; `file_name` is what problems call it. Raises PolicyError."""
    findings = Findings(file_name)
    root = parse(text, findings)
    if root is None or not _is_our_version(root, findings):
        findings.check()
    assert root is not None
    around = Surroundings(FilePath(base_dir), os.environ if environ is None else environ, code)
    reader = _Reader(root, around, installed() if adapters is None else adapters, findings)
    parts = reader.parts()
    check(root, Valid(parts.pools, parts.schedules), findings)
    findings.check()
    return build(parts)


def _read(path: FilePath, findings: Findings) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            findings.add(TOP, (), f"is larger than {MAX_BYTES // 1024} KiB, too large for a policy")
            return ""
        return content.decode().removeprefix("\ufeff")
    except OSError as error:
        findings.add(TOP, (), f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        start = before.rfind(b"\n") + 1
        place = Place(before.count(b"\n") + 1, len(before[start:].decode(errors="replace")) + 1)
        findings.add(place, (), f"is not UTF-8 text: the byte 0x{content[error.start]:02x} may not be here")
    except ValueError:  # a path with a null character
        findings.add(TOP, (), "cannot be read: no valid file name")
    return ""


def _is_our_version(root: Tree, findings: Findings) -> bool:
    """Whether the file is of the version known here; of another, every further line would be a guess."""
    found = root.at(("version",))
    if found is None or found.broken or found.value is None or (type(found.value) is int and found.value == VERSION):
        return True
    findings.add(found.place, ("version",), f"this fleetd reads version {VERSION}, a number, got {shown(found)}")
    return False


@dataclass(slots=True)
class _Reader:
    """One policy on its way from tree to shapes."""

    root: Tree
    around: Surroundings
    adapters: Adapters
    findings: Findings
    adapted: dict[tuple[str, str], Adapted] = field(default_factory=dict)

    def parts(self) -> Parts:
        """Validate every entry by itself, so that an error in one hides none in another."""
        self._top_keys()
        parts = Parts(
            settings=self._settings(),
            sources=self._adapted("sources", SourceShape, "source"),
            apps=self._section("apps", AppShape),
            queues=self._section("queues", QueueShape),
            pools=self._adapted("pools", PoolShape, "provider"),
            schedules=self._section("schedules", ScheduleShape),
            adapted=self.adapted,
        )
        self._conflicts()
        return parts

    def _conflicts(self) -> None:
        """Find what pools of one kind must not share, where two of them are valid by themselves."""
        kinds: dict[str, dict[str, Any]] = {}
        for (section, name), adapted in self.adapted.items():
            if section == "pools" and adapted.options is not None:
                kinds.setdefault(adapted.kind, {})[name] = adapted.options
        for kind, pools in kinds.items():
            for name, text in conflicts(self.adapters, kind, pools) if len(pools) > 1 else ():
                tree = self.root.at(("pools", name, kind))
                self.findings.add(tree.key if tree else TOP, ("pools", name, kind), text)

    def _top_keys(self) -> None:
        """Find sections that are missing and keys that nobody knows."""
        known, present = set(PolicyShape.model_fields), self.root.items
        spelt = set()
        for key in set(present) - known:
            text, meant = unknown_key(key, known - set(present), known)
            self.findings.add(present[key].key, (key,), text)
            spelt.add(meant)
        for section in set(_SECTIONS) - set(present) - spelt:
            if PolicyShape.model_fields[section].is_required():
                self.findings.add(self.root.key, (section,), "is missing")

    def _settings(self) -> SettingsShape | None:
        rest = {key: tree for key, tree in self.root.items.items() if key not in _SECTIONS}
        controller = rest.get("controller")
        if controller is not None and "leader" in controller.items:
            self._one_adapted(("controller", "leader"), controller.items["leader"], LeaderShape, "leader")
            others = {key: tree for key, tree in controller.items.items() if key != "leader"}
            rest["controller"] = replace(controller, value=others)
        return validate(SettingsShape, replace(self.root, value=rest), (), self.around, self.findings)

    def _entries(self, section: str) -> dict[str, Tree]:
        """Return the entries of a section that have a name."""
        found = self.root.at((section,))
        if found is None or found.broken:
            return {}
        if not isinstance(found.value, Mapping):
            self.findings.add(found.place, (section,), "expected names, each with its keys; {} for none")
            return {}
        for name, entry in found.items.items():
            if not re.fullmatch(TITLE_PATTERN if section == "schedules" else NAME_PATTERN, name):
                text = f"a name is up to 63 letters, digits, '-' and '_', got {quoted(name)}"
                if section == "schedules":
                    text = f"a name is up to 63 characters without . : [ ] and line ends, got {quoted(name)}"
                self.findings.add(entry.key, (section, name), text)
        return dict(found.items)

    def _section(self, section: str, shape: type[ShapeT]) -> dict[str, ShapeT]:
        entries = self._entries(section).items()
        made = {name: validate(shape, tree, (section, name), self.around, self.findings) for name, tree in entries}
        return {name: one for name, one in made.items() if one is not None}

    def _adapted(self, section: str, shape: type[ShapeT], role: Role) -> dict[str, ShapeT]:
        """Validate entries that have one further key: the kind of adapter, with its options."""
        entries = self._entries(section).items()
        made = {name: self._one_adapted((section, name), tree, shape, role) for name, tree in entries}
        return {name: one for name, one in made.items() if one is not None}

    def _one_adapted(self, path: Path, tree: Tree, shape: type[ShapeT], role: Role) -> ShapeT | None:
        kinds = self._kinds(tree, shape, role)
        rest = {key: item for key, item in tree.items.items() if key not in kinds}
        own = replace(tree, value=rest) if isinstance(tree.value, Mapping) else tree
        made = validate(shape, own, path, self.around, self.findings)
        if len(kinds) == 1:
            self._options(kinds[0], tree.items[kinds[0]], path, role)
        elif isinstance(tree.value, Mapping):
            self._no_kind(kinds, tree, path, role)
        return made

    def _kinds(self, tree: Tree, shape: type[Shape], role: Role) -> list[str]:
        """Return the keys that name a kind: those known, or else those that are no misspelt key of our own."""
        further = [key for key in tree.items if key not in shape.model_fields]
        known = [key for key in further if key in names(self.adapters, role)]
        absent = [key for key in shape.model_fields if key not in tree.items]
        return known or [key for key in further if suggestion(key, absent) is None][:1]

    def _no_kind(self, kinds: list[str], tree: Tree, path: Path, role: Role) -> None:
        here = ", ".join(sorted(self.adapters.of(role)))
        text = f"has {' and '.join(kinds)}; give one" if kinds else f"needs a key that names the kind of {role}: {here}"
        self.findings.add(tree.key, path, text)

    def _options(self, kind: str, tree: Tree, path: Path, role: Role) -> None:
        try:
            model: Any = options(self.adapters, role, kind)
        except UsageError as error:
            self.findings.add(tree.key, (*path, kind), str(error))
            return
        if tree.value is None and not tree.broken:
            self.findings.add(tree.place, (*path, kind), "has no value; write {} where there is nothing to set")
            return
        made = validate(model, tree, (*path, kind), self.around, self.findings)
        by_itself = role != "provider" or acts(self.adapters, kind)
        self.adapted[str(path[0]), str(path[1])] = Adapted(kind, made, by_itself)
