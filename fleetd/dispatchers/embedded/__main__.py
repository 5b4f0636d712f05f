"""`python -m fleetd.dispatchers.embedded`."""

import sys

from fleetd.dispatchers.embedded.main import main

sys.exit(main(sys.argv[1:]))
