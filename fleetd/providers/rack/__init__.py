"""Machines of a rack of your own as nodes: woken over the LAN, booted without disks, drained, switched off."""
