"""Machines without disks: the image they run, the service they boot from, how they are enrolled."""
