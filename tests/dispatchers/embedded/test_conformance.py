"""The suite of every dispatcher, against Debian's gearmand and against ours."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.conformance.dispatcher import Differences, DispatcherConformance
from tests.dispatchers.embedded.serving import embedded
from tests.servers import Server

OURS = Differences(
    keeps_joined=True,
    cant_do_requeues=False,
    takes_turns=True,
    fail_tail=b"",
    epoch_waits=False,
    epoch_wakes=True,
    wakes_all=False,
    counts_abandoned=False,
    takes_nameless=False,
    closes_malformed=True,
    knows_oldest=True,
)


@pytest.mark.real
class TestGearmand(DispatcherConformance):
    """Debian's, as it starts without options."""

    @pytest.fixture
    def server(self) -> Iterator[Server]:
        with servers.gearmand() as server:
            yield server


@pytest.mark.real
class TestEmbedded(DispatcherConformance):
    """Ours in memory."""

    differs = OURS

    @pytest.fixture
    def server(self) -> Iterator[Server]:
        with embedded() as server:
            yield server


@pytest.mark.real
class TestDurable(DispatcherConformance):
    """Ours with a journal: the same, a commit later."""

    differs = OURS

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[Server]:
        with embedded(data=tmp_path / "data") as server:
            yield server
