"""The decisions of fleetd. Pure: time is an argument, and nothing here reads, writes, waits or draws lots."""
