"""An authority of the tests' own, and certificates by it, made with the `openssl` command in a fraction of a second."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from fleetd.dispatchers.credentials import CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE
from tests import servers

_CONFIG = """
[ca]
default_ca = here
[here]
database = {folder}/index
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
policy = names
copy_extensions = copy
x509_extensions = leaf
unique_subject = no
[names]
commonName = supplied
[req]
distinguished_name = empty
[empty]
[root]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = CA:false
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""
_PAST = ("-startdate", "20200101000000Z", "-enddate", "20200201000000Z")


@dataclass(frozen=True, slots=True)
class Certificates:
    """A folder of PEM files: `name.pem` and `name.key`."""

    folder: Path

    def pem(self, name: str) -> str:
        return str(self.folder / f"{name}.pem")

    def key(self, name: str) -> str:
        return str(self.folder / f"{name}.key")

    def serve(self, name: str = "server") -> list[str]:
        """The dispatcher's options."""
        return ["--tls-cert", self.pem(name), "--tls-key", self.key(name)]

    def environ(self, *, ca: str = "ca", cert: str = "") -> dict[str, str]:
        """The environment of clients, sources and workers."""
        own = {CERT_VARIABLE: self.pem(cert), KEY_VARIABLE: self.key(cert)} if cert else {}
        return {CA_VARIABLE: self.pem(ca), **own}


def make(folder: Path) -> Certificates:
    """Make `ca` with `server` (localhost, 127.0.0.1), `elsewhere`, `expired` and `client`; `other` is not its own."""
    made = Certificates(folder)
    (folder / "config").write_text(_CONFIG.format(folder=folder))
    (folder / "index").touch()
    for root in ("ca", "other"):
        _key(made, root)
        _openssl(made, "req", "-x509", "-new", *_own(made, root), "-extensions", "root", "-days", "30")
    _sign(made, "server", "DNS:localhost,IP:127.0.0.1")
    _sign(made, "elsewhere", "DNS:elsewhere.example")
    _sign(made, "expired", "DNS:localhost,IP:127.0.0.1", dates=_PAST)
    _sign(made, "client", "DNS:worker")
    _sign(made, "stranger", "DNS:worker", ca="other")
    return made


def _sign(
    made: Certificates, name: str, for_: str, *, dates: tuple[str, ...] = ("-days", "30"), ca: str = "ca"
) -> None:
    request = str(made.folder / f"{name}.csr")
    _key(made, name)
    own = ["-key", made.key(name), "-out", request, "-subj", f"/CN={name}"]
    _openssl(made, "req", "-new", *own, "-addext", f"subjectAltName={for_}")
    by = ["-cert", made.pem(ca), "-keyfile", made.key(ca)]
    _openssl(made, "ca", "-batch", "-notext", *by, *dates, "-in", request, "-out", made.pem(name))


def _key(made: Certificates, name: str) -> None:
    _openssl(made, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", made.key(name))


def _own(made: Certificates, name: str) -> list[str]:
    return ["-key", made.key(name), "-out", made.pem(name), "-subj", f"/CN={name}"]


def _openssl(made: Certificates, command: str, *args: str) -> None:
    config = ["-config", str(made.folder / "config")] if command in ("ca", "req") else []
    call = [servers.find("openssl"), command, *config, *args]
    run = subprocess.run(call, check=False, capture_output=True, text=True, timeout=30)
    assert run.returncode == 0, run.stderr
