"""IPMI 2.0 over the LAN, by `pyghmi`, in a short-lived process for each call.

pyghmi keeps one event loop for all BMCs of a process and waits in it: one that is dead would hold up the others, and a
time-out could not be held. A process can be ended. The password goes in by its standard input, never by its words.
"""

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from fleetd.errors import ProviderError
from fleetd.providers.rack.inventory import Machine
from fleetd.providers.rack.power import State

LIMIT_S: Final = 20.0
CALL: Final = Path(__file__).with_name("ipmi_call.py")


class IpmiBmc:
    """One machine behind a BMC."""

    tells = True
    cuts = True

    def __init__(self, machine: Machine) -> None:
        assert machine.power.ipmi is not None, "the table gives it to machines that have one"
        self._machine, self._spec = machine, machine.power.ipmi
        self._host = machine.fill(self._spec.host)

    async def on(self) -> None:
        """Switch it on unless it is."""
        await self._call("on")

    async def off(self) -> None:
        """Cut its power unless it is off."""
        await self._call("off")

    async def state(self) -> State | None:
        """Ask for the power state."""
        return {"on": "on", "off": "off"}.get(await self._call("state"))  # type: ignore[return-value]

    async def close(self) -> None:
        """Nothing is held."""

    async def _call(self, what: str) -> str:
        place, spec = f"{self._machine.name}: IPMI at {self._host}", self._spec
        password = spec.password.get_secret_value() if spec.password else ""
        words = {"host": self._host, "port": spec.port, "user": spec.user, "password": password, "what": what}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(CALL),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                out, _ = await process.communicate(json.dumps(words).encode())
        except TimeoutError:
            raise ProviderError(f"{place}: no answer within {LIMIT_S:.0f} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())
        try:
            said = json.loads(out)
            state, problem = str(said["state"]), str(said["problem"])
        except (ValueError, TypeError, LookupError):
            raise ProviderError(f"{place}: pyghmi ended with {process.returncode} and no answer") from None
        if problem:
            raise ProviderError(f"{place}: {problem}")
        return state
