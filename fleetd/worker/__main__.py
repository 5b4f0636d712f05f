"""`python -m fleetd.worker`."""

import sys

from fleetd.worker.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
