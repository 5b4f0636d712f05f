"""The policy under a virtual clock: a simulated world, the peers' rules, the clairvoyant bound, the report."""
