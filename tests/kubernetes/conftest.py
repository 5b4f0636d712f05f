"""One control plane for all tests of a process, with one node; each test has a namespace of its own."""

import os
from collections.abc import Iterator

import pytest

from tests.kubernetes import plane
from tests.kubernetes.plane import Cluster


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane without a node."""
    with plane.start(tmp_path_factory.mktemp("kube")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster(bare: Cluster) -> Iterator[Cluster]:
    """The control plane, with a node."""
    with bare.kubelet():
        yield bare


@pytest.fixture
def rooted() -> None:
    """Pods can have walls around them."""
    if os.geteuid() != 0:
        plane.missing("pods with volumes need root (mounts, users): run these tests as root")


@pytest.fixture
def namespace(bare: Cluster) -> Iterator[str]:
    """A namespace of the test's own."""
    with bare.namespace() as name:
        yield name
