"""The journal and the memory of a fleet, on disk."""
