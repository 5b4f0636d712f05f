"""One call to a BMC, as a process of its own: what to do comes in as JSON, what came of it goes out as JSON.

Run by its path, so that nothing of fleetd is imported. It ends by itself where its caller has gone.
"""

import json
import signal
import sys

LIMIT_S = 25  # the caller gives up before


def main() -> None:
    """Do it, and say what came of it."""
    signal.alarm(LIMIT_S)
    given = json.load(sys.stdin)
    state, problem = "", ""
    try:
        from pyghmi.ipmi.command import Command  # noqa: PLC0415 - what cannot be imported is told like any other fault

        bmc = Command(given["host"], given["user"] or None, given["password"] or None, port=given["port"])
        answer = bmc.get_power() if given["what"] == "state" else bmc.set_power(given["what"])
        state = str(answer.get("powerstate") or answer.get("pendingpowerstate") or "")
    except Exception as error:  # noqa: BLE001 - pyghmi raises what it likes; all of it is an answer
        problem = " ".join(str(error).split())[:200] or type(error).__name__
    json.dump({"state": state, "problem": problem}, sys.stdout)


if __name__ == "__main__":
    main()
