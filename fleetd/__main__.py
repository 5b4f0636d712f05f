"""`python -m fleetd` is the `fleetd` command."""

from fleetd.cli.entry import main

main()
