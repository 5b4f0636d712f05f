"""Fixtures that all tests share."""

from collections.abc import Iterator

import pytest

from tests import servers


@pytest.fixture
def gearmand() -> Iterator[servers.Server]:
    """A gearmand of this test's own."""
    with servers.gearmand() as server:
        yield server
