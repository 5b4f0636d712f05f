"""One moto server for all tests of a process; each test begins with an empty one, and a proxy of its own."""

from collections.abc import Iterator

import pytest

from tests.ec2 import cloud as clouds
from tests.ec2 import proxy as proxies
from tests.ec2.cloud import Cloud
from tests.ec2.proxy import Proxy


@pytest.fixture(scope="session")
def server() -> Iterator[Cloud]:
    """The server."""
    with clouds.start() as made:
        yield made


@pytest.fixture
def cloud(server: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """The server, with nothing in it but a template, and credentials for it."""
    for name, value in clouds.ENVIRON.items():
        monkeypatch.setenv(name, value)
    server.reset()
    return server


@pytest.fixture
def proxy(cloud: Cloud) -> Iterator[Proxy]:
    """A proxy before it; what moto itself could not do fails the test."""
    made = proxies.start(cloud.port)
    made.zones = dict(cloud.subnets)
    try:
        yield made
    finally:
        made.close()
    assert made.bad == []
