"""Fixtures that all tests share."""

from collections.abc import Iterator

import pytest

from tests import servers
from tests.certificates import Certificates, make


@pytest.fixture
def gearmand() -> Iterator[servers.Server]:
    """A gearmand of this test's own."""
    with servers.gearmand() as server:
        yield server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority and its certificates, made once."""
    return make(tmp_path_factory.mktemp("certificates"))
