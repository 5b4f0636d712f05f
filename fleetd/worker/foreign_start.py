"""What runs between a foreign worker's supervisor and its program: a few calls, then the program in the same process.

Run as a file, without any package: `foreign_start.py SIGNAL CGROUP PROGRAM [WORD…]`. Promises: should the supervisor
die, the program is sent its drain SIGNAL by the kernel, so that it finishes and does not live on unseen; the memory
limit of CGROUP ("" for none) holds from its first page; what cannot be started is one line and exit code 127.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(number: str, group: str, words: list[str]) -> int:
    """Become the program."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        return 0  # the supervisor has just died: nothing has begun
    if group:
        with open(group, "w", encoding="ascii") as file:  # noqa: PTH123 - pathlib costs as much as all the rest
            file.write(f"{os.getpid()}")
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and that would be inherited
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvp(words[0], words)  # noqa: S606 - no shell is the point
    except OSError as error:
        sys.stderr.write(f"cannot start {words[0]}: {error.strerror}\n")
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
