"""Programs of your own: a switchable socket, a script, `ssh`. Words, never a shell; each ends within its time-out."""

import asyncio
import os
import signal
from contextlib import suppress
from typing import Final

from fleetd.errors import ProviderError
from fleetd.providers.rack.inventory import Machine
from fleetd.providers.rack.power import State, packet_of
from fleetd.providers.rack.shapes import Words

SAID: Final = 200


class Commands:
    """Switches by `on`, `off` and `status`; without `on`, a magic packet wakes."""

    def __init__(self, machine: Machine) -> None:
        assert machine.power.command is not None, "the table gives it to machines that have one"
        self._machine, self._words = machine, machine.power.command
        self._packet = None if self._words.on else packet_of(machine)
        self.tells = self._words.status is not None
        self.cuts = self._words.off is not None

    async def on(self) -> None:
        """Run `on`; anything but exit code 0 is a failure."""
        if self._packet is not None:
            await self._packet.on()
            return
        await self._done("on", self._words.on or ())

    async def off(self) -> None:
        """Run `off`; anything but exit code 0 is a failure."""
        if self._words.off is None:
            raise ProviderError(f"{self._machine.name}: its command has no `off`")
        await self._done("off", self._words.off)

    async def state(self) -> State | None:
        """Run `status`: 0 is on, 1 is off, anything else tells nothing."""
        if self._words.status is None:
            return None
        code, _ = await self._run("status", self._words.status)
        return {0: "on", 1: "off"}.get(code)  # type: ignore[return-value]

    async def close(self) -> None:
        """Nothing is held."""

    async def _done(self, what: str, words: Words) -> None:
        code, said = await self._run(what, words)
        if code:
            raise ProviderError(f"{self._machine.name}: its `{what}` command ended with {code}{said}")

    async def _run(self, what: str, words: Words) -> tuple[int, str]:
        filled = [self._machine.fill(word) for word in words]
        place = f"{self._machine.name}: its `{what}` command"
        try:
            process = await asyncio.create_subprocess_exec(
                *filled,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # so that what it starts ends with it
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ProviderError(f"{place}: {filled[0]} cannot be run: {why}") from None
        try:
            async with asyncio.timeout(self._words.timeout):
                out, _ = await process.communicate()
        except TimeoutError:
            raise ProviderError(f"{place} took longer than {self._words.timeout:g} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await asyncio.shield(process.wait())
        lines = out.decode(errors="replace").split()
        return process.returncode or 0, f": {' '.join(lines)[-SAID:]}" if lines else ""
