"""The peers' policies, one short file each, faithful to the document that it names; `PEERS` has them by name.

Each is measured before it is compared with: it has to give what was found for it independently. Where a document leaves
a number open, the number is a constant of the file with that said in its first lines, and the same for all loads.
"""

from collections.abc import Mapping
from typing import Final

from fleetd.sim.peers.asg import TargetTracking
from fleetd.sim.peers.celery import Autoscale
from fleetd.sim.peers.dask import Adaptive
from fleetd.sim.peers.delayedoff import DelayedOff
from fleetd.sim.peers.keda import Keda
from fleetd.sim.peers.static import Static
from fleetd.sim.peers.step import StepScaling
from fleetd.sim.scaler import Scaler

PEERS: Final[Mapping[str, type[Scaler]]] = {
    peer.name: peer for peer in (Keda, TargetTracking, StepScaling, Adaptive, Autoscale, DelayedOff, Static)
}
