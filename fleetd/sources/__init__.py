"""Adapters that tell the depth of queues, one file each; found by the entry points `fleetd.sources`."""
