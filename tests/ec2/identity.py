"""What stands for AWS's signature of an instance identity document: an RSA key of 1024 bits, as AWS's are."""

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Authority:
    """Signs documents; `certificate` is what a pool's `identity:` names, in PEM."""

    key: rsa.RSAPrivateKey
    certificate: str

    def sign(self, document: str) -> str:
        """Return the signature as the metadata service has it: base64, in lines."""
        raw = self.key.sign(document.encode(), PKCS1v15(), SHA256())
        return base64.encodebytes(raw).decode()


def authority(name: str = "aws") -> Authority:
    """Return one of that name."""
    return _made(name)


@cache
def _made(name: str) -> Authority:
    key = rsa.generate_private_key(65537, 1024)
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
    began = datetime(2014, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(began).not_valid_after(began + timedelta(days=365))  # long over
    return Authority(key, builder.sign(key, SHA256()).public_bytes(Encoding.PEM).decode())


def document(instance: str, region: str = "eu-central-1") -> str:
    """Return the identity document of an instance."""
    values = {
        "accountId": "123456789012",
        "architecture": "x86_64",
        "availabilityZone": f"{region}a",
        "imageId": "ami-0123456789abcdef0",
        "instanceId": instance,
        "instanceType": "c7a.large",
        "pendingTime": "2026-11-24T10:00:00Z",
        "privateIp": "10.0.0.7",
        "region": region,
        "version": "2017-09-30",
    }
    return json.dumps(values, indent=2)


def pages(instance: str, by: Authority, region: str = "eu-central-1") -> dict[str, bytes]:
    """Return what the metadata service of an instance says of who it is."""
    text = document(instance, region)
    return {
        "/latest/meta-data/instance-id": instance.encode(),
        "/latest/dynamic/instance-identity/document": text.encode(),
        "/latest/dynamic/instance-identity/signature": by.sign(text).encode(),
    }
