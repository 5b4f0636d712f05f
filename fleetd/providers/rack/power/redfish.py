"""Redfish: a BMC over HTTPS, by `sushy`, which waits: so each call is in a thread of its own kind, under a time-out.

The connection is kept; after an error it is made anew. A certificate is verified unless the inventory says otherwise.
"""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import requests
import sushy
from sushy import auth, exceptions

from fleetd.errors import ProviderError
from fleetd.providers.rack.inventory import Machine
from fleetd.providers.rack.power import State

CALL_S: Final = 8.0  # each request; a BMC that is asked the first time is asked four times
LIMIT_S: Final = 20.0
_STATES: Final[dict[Any, State]] = {sushy.PowerState.ON: "on", sushy.PowerState.OFF: "off"}
logging.getLogger("sushy").setLevel(logging.CRITICAL)  # what it says, our own errors say in one line
_THREADS: Final = ThreadPoolExecutor(8, "redfish")  # BMCs that hang must not take the program's other threads


class RedfishBmc:
    """One machine behind a BMC."""

    tells = True
    cuts = True

    def __init__(self, machine: Machine) -> None:
        assert machine.power.redfish is not None, "the table gives it to machines that have one"
        self._machine, self._spec = machine, machine.power.redfish
        self._url = machine.fill(self._spec.url)
        self._turn = threading.Lock()
        self._root: Any = None

    async def on(self) -> None:
        """Switch it on unless it is."""
        await self._call(lambda system: self._reset(system, sushy.PowerState.ON, sushy.ResetType.ON))

    async def off(self) -> None:
        """Cut its power unless it is off."""
        await self._call(lambda system: self._reset(system, sushy.PowerState.OFF, sushy.ResetType.FORCE_OFF))

    async def state(self) -> State | None:
        """Ask for the power state; while it changes there is none."""
        return _STATES.get(await self._call(lambda system: system.power_state))

    async def close(self) -> None:
        """Nothing is held but what the next collection takes."""
        self._root = None

    def _reset(self, system: Any, wanted: Any, how: Any) -> None:
        if system.power_state != wanted:
            system.reset_system(how)

    async def _call(self, what: Any) -> Any:
        place = f"{self._machine.name}: Redfish at {self._url}"
        try:
            async with asyncio.timeout(LIMIT_S):
                return await asyncio.get_running_loop().run_in_executor(_THREADS, self._ask, what)
        except TimeoutError:
            raise ProviderError(f"{place}: no answer within {LIMIT_S:.0f} s") from None
        except exceptions.AccessError:
            raise ProviderError(f"{place}: refuses `user` and `password`") from None
        except (exceptions.SushyError, requests.RequestException, OSError, ValueError, LookupError) as error:
            raise ProviderError(f"{place}: {_sentence(error)}") from None

    def _ask(self, what: Any) -> Any:
        if not self._turn.acquire(timeout=LIMIT_S):
            raise TimeoutError("an earlier request has not been answered yet")
        try:
            return what(self._system())
        except BaseException:
            self._root = None
            raise
        finally:
            self._turn.release()

    def _system(self) -> Any:
        spec = self._spec
        if self._root is None:
            password = spec.password.get_secret_value() if spec.password else ""
            verify = {"true": True, "false": False}.get(spec.verify, spec.verify)
            # Sessions would have to be closed, and BMCs have few.
            basic = auth.BasicAuth(spec.user, password) if spec.user else None
            connector = sushy.connector.Connector(self._url, verify=verify, default_request_timeout=CALL_S)
            self._root = sushy.Sushy(self._url, auth=basic, connector=connector)
        systems = self._root.get_system_collection()
        identity = self._machine.fill(spec.system)
        named = [path for path in systems.members_identities if not identity or path.rpartition("/")[2] == identity]
        if len(named) != 1:
            there = ", ".join(path.rpartition("/")[2] for path in systems.members_identities) or "none"
            raise LookupError(f"give `system`, one of: {there}")
        return self._root.get_system(named[0])


def _sentence(error: Exception) -> str:
    text = " ".join(str(error.args[0] if isinstance(error, LookupError) else error).split())
    if "certificate verify failed" in text.lower():
        return "its certificate is not trusted: give `verify`, the file of the authority that signed it"
    if isinstance(error, exceptions.ConnectionError):
        return "cannot be reached: is that its address, and does the BMC have a link?"
    return text if len(text) <= 200 else f"{text[:197]}..."
