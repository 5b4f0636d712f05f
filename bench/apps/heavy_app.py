"""A no-op in an app with some weight: a few of the library's larger modules and a table of 200,000 entries."""

import decimal
import http.client
import json
import sqlite3

from bench.apps.tally import tick
from fleetd.worker import job

MODULES = (decimal, http.client, json, sqlite3)
TABLE = {f"key-{number}": number for number in range(200_000)}


@job
def noop(payload: bytes) -> str:  # noqa: ARG001
    """Look one entry up."""
    tick()
    return str(TABLE["key-4711"])
