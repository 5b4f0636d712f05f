"""The certificate of a rack's enrolment: made once, kept beside the rack's book, pinned in what a machine boots.

Promises: the key is readable by its owner alone and never leaves the folder; both files are there or are made anew; a
certificate that is not for the address in use is replaced. No machine looks at its dates (worker/enrolled.py).
"""

import ipaddress
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

from fleetd.errors import FleetdError

YEARS: Final = 20
MISSING: Final = "enrolment: needs the package cryptography; install it with `pip install 'fleetd[releases]'`"


@dataclass(frozen=True, slots=True)
class Certificate:
    """Where certificate and key are, and the certificate in PEM."""

    path: Path
    key: Path
    pem: str

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` shows it."""
        return ":".join(f"{byte:02X}" for byte in sha256(ssl.PEM_cert_to_DER_cert(self.pem)).digest())

    def context(self) -> ssl.SSLContext:
        """Return what a listener needs; raises FleetdError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_cert_chain(self.path, self.key)
        except (OSError, ssl.SSLError) as error:
            raise FleetdError(f"{self.path}: is of no use with {self.key}: {error}; remove both to make new") from None
        return context


def keep_certificate(folder: Path, pool: str, host: str) -> Certificate:
    """Return the certificate of a pool's enrolment at `host`, made now where there is none; raises FleetdError."""
    path, key = folder / f"{pool}.pem", folder / f"{pool}.key"
    try:
        if not (key.exists() and path.exists() and _is_for(path.read_bytes(), host)):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _make(path, key, pool, host)
        return Certificate(path, key, path.read_text("ascii"))
    except ModuleNotFoundError:
        raise FleetdError(MISSING) from None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is no certificate in PEM; remove it to make a new one"
        raise FleetdError(f"{path}: {why}") from None


def _is_for(pem: bytes, host: str) -> bool:
    from cryptography import x509  # noqa: PLC0415 - half a second that no other command needs

    try:
        names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound):
        return False
    return _name(host) in names.value


def _name(host: str) -> "x509.GeneralName":  # type: ignore[name-defined] # noqa: F821 - imported where it is needed
    from cryptography import x509  # noqa: PLC0415

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _make(path: Path, key: Path, pool: str, host: str) -> None:
    """Write both files, the key first: a certificate without its key would be taken for one that can be used."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    private = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"fleetd enrolment of {pool}"[:64])])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * YEARS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_name(host)]), critical=False)
        .sign(private, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    own = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path.unlink(missing_ok=True)
    for place, content in ((key, own), (path, made.public_bytes(serialization.Encoding.PEM))):
        new = place.with_name(f"{place.name}.new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        new.replace(place)
