"""Enrols instances of a cloud: for what AWS has signed of an instance, the credential of its node, which ends soon.

Promises: only an instance that its pool's provider has seen, and whose worker has never spoken, is enrolled: from then
on code of others runs there, which could ask for the same. Nothing is kept here: what is enrolled is in the memory by
its lease. Whoever lacks proof is told no more than that.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fleetd.codecs.scope import CREDENTIAL_S, node_token
from fleetd.control.loop import Controller
from fleetd.control.wiring import Home, worker_launch
from fleetd.core.memory import Node
from fleetd.core.model import Phase, PoolPolicy, Seconds
from fleetd.errors import FleetdError, UsageError

COMING: Final = (Phase.REQUESTED, Phase.BOOTING)


class NoProofError(FleetdError):
    """What was shown proves nothing, or not what is asked for. Asking again does not help."""


class NotYetError(FleetdError):
    """It may be right, and cannot be told yet: to be asked again."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What an instance is given. `arguments`: what the policy says of its worker's command line."""

    credential: str
    node: str
    for_s: Seconds
    app: str
    key: str
    arguments: Sequence[str]


class Desk:
    """Enrols the instances of one fleet. `secret` is the fleet's: from it the credentials are made."""

    def __init__(self, controller: Controller, secret: str) -> None:
        self._controller, self._secret = controller, secret

    def enrol(self, pool: str, document: str, signature: str) -> Enrolled:
        """Enrol an instance; raises NoProofError and NotYetError."""
        policy = self._controller.policy
        known = policy.pools.get(pool)
        certificates = certificates_of(known) if known else ()
        if known is None or not certificates:
            raise NoProofError(f"pool {pool!r:.100} enrols no instances: it lacks `identity:`, or is not there")
        if not _signed(document.encode(), signature, certificates):
            raise NoProofError(f"pool {pool}: the identity document is not signed by what its `identity:` names")
        node = self._node(f"{pool}/{_instance(pool, document, known)}")
        if node.app not in policy.apps:
            raise NoProofError(f"{node.id}: the policy has no app {node.app!r} any more")
        token = node_token(self._secret, policy.fleet, node.id, self._controller.clock() + CREDENTIAL_S)
        launch = worker_launch(policy, Home(Path(), "", "", self._secret))
        words = launch.options(policy.apps[node.app], known)
        return Enrolled(token, node.id, CREDENTIAL_S, node.app, node.key, words)

    def _node(self, name: str) -> Node:
        """Return a node that is coming."""
        node = self._controller.memory.nodes.get(name)
        if node is None:
            raise NotYetError(f"{name} is not known here yet")
        entry = self._controller.leases.entries.get(name)
        # Not `heard_at`: a restarted controller sets it for all. A node that is still to come has never spoken.
        if entry is not None and entry.lease is not None:
            raise NoProofError(f"{name}: its worker has spoken already: it has its credential")
        if node.phase not in COMING:
            raise NoProofError(f"{name} is {node.phase}, and not to come")
        return node


def certificates_of(pool: PoolPolicy) -> Sequence[Any]:
    """Return the public certificates by which a pool's instances prove who they are; raises UsageError."""
    told = getattr(pool.options, "identity", None)
    if told is None:
        return ()
    text = told if isinstance(told, str) else told.get_secret_value()
    try:
        from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415 - only where instances are enrolled

        return load_pem_x509_certificates(text.encode())
    except ImportError:
        raise UsageError(f"pool {pool.name}: identity: needs cryptography: pip install 'fleetd[ec2]'") from None
    except ValueError:
        raise UsageError(f"pool {pool.name}: identity: holds no certificate in PEM") from None


def _signed(document: bytes, signature: str, certificates: Sequence[Any]) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415

    try:
        raw = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        return False
    for certificate in certificates:
        key = certificate.public_key()
        if not isinstance(key, RSAPublicKey):
            continue
        try:
            key.verify(raw, document, PKCS1v15(), SHA256())
        except InvalidSignature:
            continue
        return True
    return False


def _instance(pool: str, document: str, known: PoolPolicy) -> str:
    """Return whom a signed document is about."""
    try:
        raw = json.loads(document)
        instance, region = raw["instanceId"], raw["region"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NoProofError(f"pool {pool}: the identity document names no instance and region") from None
    if region != known.options.region:
        raise NoProofError(f"pool {pool}: an instance of {region!r:.40} is none of {known.options.region}")
    return str(instance)
