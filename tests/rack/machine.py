"""A machine for tests, without disks or anything else: it boots for a while, then answers until it is told off.

    python machine.py ADDRESS PORT BOOT_S

TERM is its worker's own power-off, which a real one does by its last order; at USR1 it hangs: it is on, and mute.
"""

import contextlib
import signal
import socket
import sys
import time


def main() -> None:
    """Boot, listen, go."""
    address, port, boot_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    time.sleep(boot_s)
    with socket.create_server((address, port), backlog=64) as server:
        signal.signal(signal.SIGUSR1, lambda *_: hang(server))
        print("up", flush=True)
        while True:
            with contextlib.suppress(OSError):
                server.accept()[0].close()


def hang(server: socket.socket) -> None:
    """Answer nobody any longer."""
    server.close()
    time.sleep(3600)


if __name__ == "__main__":
    main()
