"""Files beside jobs: sent to the fleet's store and fetched from it, by clients and by workers.

The standard library is all that is needed. Where the bytes lie (the controller's folder, a bucket) is the controller's
business (fleetd/depot): it says where the next ones go, and where they come from.
"""
