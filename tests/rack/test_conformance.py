"""The common suite over machines that are processes, woken by real magic packets with the card's password."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.provider import ProviderConformance
from tests.rack.rig import RackRig

pytestmark = pytest.mark.slow


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[RackRig]:
    rig = RackRig(tmp_path)
    try:
        yield rig
    finally:
        rig.close()


class TestRack(ProviderConformance):
    """Woken by a packet, verified by the network's silence, cut by a command."""
