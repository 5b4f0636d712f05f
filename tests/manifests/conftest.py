"""One control plane for the tests of manifests of a process: it knows the Prometheus Operator's kinds."""

import json
from collections.abc import Iterator

import pytest
import yaml

from tests.kubernetes import plane
from tests.kubernetes.plane import Cluster
from tests.manifests.tools import folder

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane without a node."""
    definitions = sorted(folder().glob("monitoring.coreos.com_*.yaml"))
    assert len(definitions) == 2
    with plane.start(tmp_path_factory.mktemp("kube")) as cluster:
        for path in definitions:
            thing = yaml.load(path.read_text(), yaml.CSafeLoader)  # a safe one, written in C
            cluster.call("POST", CRDS, thing)
        cluster.until(
            "the kinds are known",
            lambda: (
                {"servicemonitors", "prometheusrules"}
                <= {one["name"] for one in cluster.call("GET", "/apis/monitoring.coreos.com/v1")["resources"]}
            ),
        )
        # What the server says of its kinds follows a little later.
        cluster.until(
            "they are described", lambda: "ServiceMonitor" in json.dumps(cluster.call("GET", "/openapi/v2")), 60
        )
        yield cluster
