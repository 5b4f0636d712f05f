"""helm, kubectl and kubeconform as scripts/kube-tools built them; missing, they are a skip, in CI a failure."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from tests.kubernetes.plane import Json, missing

ROOT: Final = Path(__file__).resolve().parents[2]
CHART: Final = ROOT / "manifests" / "helm" / "fleetd"
KUSTOMIZE: Final = ROOT / "manifests" / "kustomize"
VALUES: Final = Path(__file__).with_name("values")
OVERLAYS: Final = ("base", "overlays/demo", "overlays/production")
Done = subprocess.CompletedProcess[str]


@cache
def folder() -> Path:
    """Where the programs are."""
    found = subprocess.run([ROOT / "scripts" / "kube-tools", "where"], capture_output=True, text=True, check=False)
    if found.returncode:
        missing(found.stderr.strip() or "no helm: run scripts/kube-tools")
    return Path(found.stdout.strip())


def run(program: str, *words: str, given: str = "", env: Mapping[str, str] | None = None, limit_s: float = 120) -> Done:
    """Run one of them; it knows no cluster but the one that it is told of."""
    bare = {key: value for key, value in os.environ.items() if not key.startswith(("KUBE", "HELM"))}
    return subprocess.run(
        [folder() / program, *words],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        env={**bare, "KUBECONFIG": os.devnull, **(env or {})},
        timeout=limit_s,
    )


def good(program: str, *words: str, **how: Any) -> str:
    """Run one of them, which must succeed, and return what it said."""
    done = run(program, *words, **how)
    assert done.returncode == 0, f"{program} {' '.join(words)}: {done.stderr}"
    return done.stdout


def read(text: str) -> list[Json]:
    """Return the objects of a text."""
    return [one for one in yaml.safe_load_all(text) if one]


def template(*files: Path, name: str = "r", namespace: str = "shop", words: Sequence[str] = ()) -> str:
    """Return what the chart makes of values."""
    values = [word for file in files for word in ("--values", str(file))]
    return good("helm", "template", name, str(CHART), "--namespace", namespace, *values, *words)


def kustomized(overlay: str | Path) -> str:
    """Return what an overlay makes."""
    return good("kubectl", "kustomize", str(KUSTOMIZE / overlay))


def of(found: Sequence[Json], kind: str, name: str = "") -> Json:
    """Return the one object of a kind, or of a kind and a name."""
    (one,) = [thing for thing in found if thing["kind"] == kind and name in ("", thing["metadata"]["name"])]
    return one


def pod_of(thing: Json) -> Json:
    """Return the pod in whatever holds one; {} where none is."""
    if thing["kind"] == "Pod":
        return thing
    return dict(thing.get("template") or thing.get("spec", {}).get("template") or {})


def pods(found: Sequence[Json]) -> dict[str, Json]:
    """Return every pod that is in one of these objects, by the object's name."""
    return {thing["metadata"]["name"]: pod_of(thing) for thing in found if pod_of(thing)}
