"""Adapters that start and stop nodes, one file each; loaded only when a policy names them."""
