"""Bytes to values and back. Pure: no sockets, no clock, no chance."""
