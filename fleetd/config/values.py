"""A tree against a pydantic model: plain data with secrets resolved, then the model or findings in plain words.

Promises: a secret is `{env: NAME}` or `{file: PATH}` wherever a field's annotation holds `pydantic.SecretStr`, and
nowhere else; an adapter needs no more than that annotation. Its value goes into the model alone: findings show what
the file says. Where the annotation holds `str` too, text in the policy is taken as it is. Adapters find the policy's
folder in the validation context as `base_dir`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError

from fleetd.config.findings import Findings, Path, quoted
from fleetd.config.tree import Tree
from fleetd.config.words import unknown_key, worded

MAX_SECRET_BYTES: Final = 64 * 1024
ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a policy file may refer to: the folder it stands in and the environment. `code`: the apps must be there."""

    base_dir: FilePath
    environ: Mapping[str, str]
    code: bool = True


class _SecretError(Exception):
    """A secret cannot be had, and why."""


def validate(model: type[ModelT], tree: Tree, path: Path, around: Surroundings, findings: Findings) -> ModelT | None:
    """Return the model made from what stands at `path`, or None with findings."""
    if tree.broken:
        return None
    data = _data(tree, [model], path, around, findings)
    try:
        return model.model_validate(data, context={"base_dir": around.base_dir, "code": around.code})
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    _report(model, tree, path, details, findings)
    return None


def _report(model: Any, tree: Tree, path: Path, details: list[Any], findings: Findings) -> None:
    """Turn pydantic's errors into findings; a misspelt key speaks for the one that is missing because of it."""
    spelt: set[Path] = set()
    for detail in details:
        if detail["type"] == "extra_forbidden":
            parent, key = detail["loc"][:-1], str(detail["loc"][-1])
            known = _keys(model, parent)
            text, meant = unknown_key(key, [one for one in known if tree.at((*parent, one)) is None], known)
            spelt.add((*parent, meant or ""))
            found = tree.at(detail["loc"])
            findings.add(found.key if found else tree.key, (*path, *detail["loc"]), text)
    for detail in details:
        loc = _in_tree(tree, detail)
        if detail["type"] == "extra_forbidden" or loc in spelt or findings.has((*path, *loc)):
            continue
        found = tree.at(loc)
        near = found or tree.nearest(loc)
        entry = found is not None and detail["type"] == "value_error" and isinstance(found.value, Mapping)
        if entry and findings.has_below((*path, *loc)):  # judged without what is broken in it
            continue
        whole = found is None or entry
        findings.add(near.key if whole else near.place, (*path, *loc), worded(detail, found))


def _in_tree(tree: Tree, detail: Any) -> Path:
    """Drop what pydantic adds to a path: tags of unions, names of validators. A missing key stays as the last part."""
    real: Path = ()
    for part in detail["loc"]:
        if tree.at((*real, part)) is not None:
            real = (*real, part)
    gone = detail["type"] == "missing" and real[-1:] != detail["loc"][-1:]
    return (*real, detail["loc"][-1]) if gone else real


# ── annotations


def _leaves(annotations: Sequence[Any]) -> Iterator[Any]:
    """Yield what annotations may be, unions and Annotated taken apart."""
    for annotation in annotations:
        origin = get_origin(annotation)
        if origin is Annotated:
            yield from _leaves(get_args(annotation)[:1])
        elif origin in (Union, UnionType):
            yield from _leaves(get_args(annotation))
        else:
            yield annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and not get_args(annotation) and issubclass(annotation, BaseModel)


def _below(annotations: list[Any], part: str | int) -> list[Any]:
    """Return the annotations of a key or an item."""
    below: list[Any] = []
    for leaf in _leaves(annotations):
        if _is_model(leaf):
            below += [info.annotation for name, info in leaf.model_fields.items() if part in (name, info.alias)]
        elif get_args(leaf):
            below.append(get_args(leaf)[-1 if isinstance(part, str) else 0])
    return below


def _keys(model: Any, path: Path) -> list[str]:
    """Return the keys that a model knows at a path."""
    annotations: list[Any] = [model]
    for part in path:
        annotations = _below(annotations, part)
    models = [leaf for leaf in _leaves(annotations) if _is_model(leaf)]
    return sorted({info.alias or name for one in models for name, info in one.model_fields.items()})


# ── data and secrets


def _data(tree: Tree, annotations: list[Any], path: Path, around: Surroundings, findings: Findings) -> Any:
    """Return plain data, without what is broken already: a finding speaks for it."""
    leaves = list(_leaves(annotations))
    if SecretStr in leaves and not (str in leaves and isinstance(tree.value, str)):
        return _secret(tree, path, around, findings)
    if isinstance(tree.value, Mapping):
        pairs = ((key, item, _below(annotations, key)) for key, item in tree.items.items())
        made = {key: _data(item, below, (*path, key), around, findings) for key, item, below in pairs}
        return {key: value for key, value in made.items() if value is not None}
    if isinstance(tree.value, tuple):
        inner = _below(annotations, 0)
        return [_data(item, inner, (*path, at), around, findings) for at, item in enumerate(tree.value)]
    if tree.value is None and not tree.broken:
        findings.add(tree.place, path, "has no value; give it one or leave the key out")
    return tree.value


def _secret(tree: Tree, path: Path, around: Surroundings, findings: Findings) -> SecretStr:
    """Return a secret; one that cannot be had is a finding, and a stand-in so that nothing else calls it missing."""
    if tree.broken or any(item.broken for item in tree.items.values()):
        return SecretStr("broken")
    try:
        value = _resolved(tree, around)
    except _SecretError as error:
        findings.add(tree.place, path, str(error))
        return SecretStr("broken")
    findings.hide(value)
    return SecretStr(value)


def _resolved(tree: Tree, around: Surroundings) -> str:
    if not isinstance(tree.value, Mapping):
        raise _SecretError("a secret is never written into the policy; give {env: NAME} or {file: PATH}")
    (key, item), *more = tree.items.items() or [("", tree)]
    if more or key not in ("env", "file") or not isinstance(item.value, str) or not item.value:
        raise _SecretError("a secret is given as {env: NAME} or {file: PATH}, one of the two")
    name = quoted(item.value)
    value = around.environ.get(item.value) if key == "env" else _from_file(around.base_dir / item.value, name)
    what = f"the file {name}" if key == "file" else f"the environment variable {name}"
    if value is None:
        raise _SecretError(f"{what} is not set")
    if not value:
        raise _SecretError(f"{what} is empty")
    return value


def _from_file(path: FilePath, name: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET_BYTES + 1)
        if len(content) > MAX_SECRET_BYTES:
            raise _SecretError(f"the file {name} is too large for a secret")
        return content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise _SecretError(f"the file {name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _SecretError(f"the file {name} is not UTF-8 text") from None
