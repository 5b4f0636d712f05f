"""Hands jobs of `reload_job` to a Gearman dispatcher."""

import os
from collections.abc import Sequence

from bench.apps.tally import BROKER
from fleetd.client import Client, Submission

_client = Client(os.environ[BROKER])


def send(batch: Sequence[tuple[str, str]]) -> None:
    """Queue the jobs, each a unique and a payload; returns once the dispatcher has confirmed all of them."""
    _client.submit_many([Submission("record", payload.encode(), unique) for unique, payload in batch], wait_s=60)
