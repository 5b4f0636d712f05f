"""CreateFleet of type instant: "CreateFleet" (Amazon EC2 API Reference), "Ensuring idempotency in Amazon EC2 API
requests" and "EC2 Fleet type instant" (Amazon EC2 User Guide).

Added to moto: a ClientToken that was used before is answered as before, with other parameters by
IdempotentParameterMismatch; capacity by type, zone and market, so that a fleet comes in part and `errorSet` says why;
instances spread over the overrides rather than all in the first.
"""

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.ec2.proxy import faults
from tests.ec2.proxy.plumbing import Call, Reply

if TYPE_CHECKING:
    from tests.ec2.proxy.plumbing import Proxy

_OVERRIDE = "LaunchTemplateConfigs.1.Overrides."
_SPEC = "LaunchTemplateConfigs.1.LaunchTemplateSpecification."
_TARGET = "TargetCapacitySpecification."
OUT = "InsufficientInstanceCapacity"


def answer(proxy: "Proxy", call: Call) -> Reply:
    """Answer from the token's first answer, or start what there is capacity for."""
    token = call.params.get("ClientToken", "")
    with proxy.lock:  # the same token twice at the same time is one, too
        if token in proxy.tokens:
            body, reply = proxy.tokens[token]
            if body == call.body:
                return reply
            told = "Idempotent request parameters do not match those of the earlier one."
            return faults.error("ec2", "IdempotentParameterMismatch", told)
        reply = _start(proxy, call)
        if token and reply.status == 200:
            proxy.tokens[token] = call.body, reply
        return reply


def _start(proxy: "Proxy", call: Call) -> Reply:
    params = call.params
    market = params[f"{_TARGET}DefaultTargetCapacityType"]
    count = int(params[f"{_TARGET}TotalTargetCapacity"])
    parts: list[bytes] = []
    errors: list[str] = []
    short: list[str] = []  # of choices that gave some
    for override in _overrides(params):
        place = override["InstanceType"], proxy.zones.get(override["SubnetId"], ""), market
        if market in proxy.refusals:
            errors.append(_error(override, market, proxy.refusals[market], f"told so of {market}"))
            continue
        left = proxy.capacity.get(place, count)
        said = f"We currently do not have sufficient {place[0]} capacity in the zone you requested ({place[1]})."
        if left <= 0:
            errors.append(_error(override, market, OUT, said))
        elif count > 0:
            taken = min(left, count)
            reply = proxy.forward(call.with_params(_one(params, override, market, taken)))
            if reply.status != 200:
                return reply
            parts.append(_items(reply.body))
            if taken < count:
                short.append(_error(override, market, OUT, said))
            count -= taken
            if place in proxy.capacity:
                proxy.capacity[place] = left - taken
    return _whole(proxy, parts, errors + short if count else errors)


def _overrides(params: dict[str, str]) -> Sequence[dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    for key, value in params.items():
        if key.startswith(_OVERRIDE):
            number, _, name = key.removeprefix(_OVERRIDE).partition(".")
            found.setdefault(int(number), {})[name] = value
    return [found[number] for number in sorted(found)]


def _one(params: dict[str, str], override: dict[str, str], market: str, count: int) -> dict[str, str]:
    kept = {key: value for key, value in params.items() if not key.startswith((_OVERRIDE, _TARGET))}
    kept |= {f"{_OVERRIDE}1.{name}": value for name, value in override.items()}
    return kept | {
        f"{_TARGET}TotalTargetCapacity": str(count),
        f"{_TARGET}SpotTargetCapacity": str(count if market == "spot" else 0),
        f"{_TARGET}OnDemandTargetCapacity": str(count if market == "on-demand" else 0),
        f"{_TARGET}DefaultTargetCapacityType": market,
    }


def _items(body: bytes) -> bytes:
    found = re.search(rb"<fleetInstanceSet>(.*)</fleetInstanceSet>", body, re.DOTALL)
    return found[1] if found else b""


def _whole(proxy: "Proxy", parts: list[bytes], errors: list[str]) -> Reply:
    items = b"".join(parts).decode()
    now = time.time()
    proxy.born.update(dict.fromkeys(re.findall(r"\bi-[0-9a-f]{8,17}\b", items), now))
    body = (
        '<CreateFleetResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>r</requestId>'
        f"<fleetId>fleet-1</fleetId><fleetInstanceSet>{items}</fleetInstanceSet>"
        f"<errorSet>{''.join(errors)}</errorSet></CreateFleetResponse>"
    )
    return Reply(200, body.encode())


def _error(override: dict[str, str], market: str, code: str, message: str) -> str:
    told = f"<instanceType>{override['InstanceType']}</instanceType><subnetId>{override['SubnetId']}</subnetId>"
    return (
        f"<item><launchTemplateAndOverrides><overrides>{told}</overrides></launchTemplateAndOverrides>"
        f"<lifecycle>{market}</lifecycle><errorCode>{code}</errorCode><errorMessage>{message}</errorMessage></item>"
    )
