"""The HTTP side of the controller."""
