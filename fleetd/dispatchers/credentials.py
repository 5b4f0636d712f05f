"""What we show a dispatcher and ask of it: a token, our certificate, the authority that signed its own.

Promises: the environment is read here and nowhere else; files are read anew for each connection, so that renewed ones
count; the token is in no error, log line or repr; what cannot be used is a `UsageError` that names the variable.

A dispatcher that knows no tokens (gearmand) is used all the same, with one line in the log: a process has one token
for all its dispatchers, and both kinds must be usable side by side while a fleet moves from one to the other.
"""

import logging
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fleetd.errors import UnreachableError, UsageError

TOKEN_VARIABLE: Final = "FLEETD_DISPATCHER_TOKEN"  # noqa: S105 - its name, not its value
TOKEN_FILE_VARIABLE: Final = "FLEETD_DISPATCHER_TOKEN_FILE"  # noqa: S105 - its name, not its value
CA_VARIABLE: Final = "FLEETD_TLS_CA"
CERT_VARIABLE: Final = "FLEETD_TLS_CERT"
KEY_VARIABLE: Final = "FLEETD_TLS_KEY"
_TOKEN: Final = re.compile(r"[!-~]{1,512}")
_LOG: Final = logging.getLogger(__name__)
_KNOW_NO_TOKEN: Final[set[str]] = set()


@dataclass(frozen=True, slots=True)
class Credentials:
    """`token`: proven on every connection where there is one. The others are files, PEM, for `tls://` addresses."""

    token: str = field(default="", repr=False)
    ca: str = ""
    cert: str = ""
    key: str = ""

    def context(self) -> ssl.SSLContext:
        """Return what a TLS connection is made with: names and chains are verified. Raises UsageError."""
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
        except OSError as error:
            raise UsageError(f"{CA_VARIABLE}: {self.ca}: {_said(error)}") from None
        if self.cert:
            try:
                # Without a password given, a key that is locked by one would stop everything at a prompt.
                context.load_cert_chain(self.cert, self.key or None, password="")
            except OSError as error:
                raise UsageError(f"{CERT_VARIABLE} {self.cert}, {KEY_VARIABLE} {self.key}: {_said(error)}") from None
        return context

    def hint(self) -> str:
        """What to look at where a TLS dispatcher hangs up without a word, as most do on a wrong or no certificate."""
        if self.cert:
            return f"does it accept the certificate of {CERT_VARIABLE}?"
        return f"does it ask for a client certificate? Then set {CERT_VARIABLE} and {KEY_VARIABLE}"


def read_credentials(environ: Mapping[str, str] = os.environ) -> Credentials:
    """Return what the environment holds; an empty variable is none. Raises UsageError."""
    token, file = environ.get(TOKEN_VARIABLE, ""), environ.get(TOKEN_FILE_VARIABLE, "")
    if token and file:
        raise UsageError(f"{TOKEN_VARIABLE}, {TOKEN_FILE_VARIABLE}: give one of the two")
    if file:
        try:
            token = Path(file).read_text("utf-8", "replace").strip()
        except OSError as error:
            raise UsageError(f"{TOKEN_FILE_VARIABLE}: {file}: {error.strerror}") from None
    if (token or file) and not _TOKEN.fullmatch(token):
        name = TOKEN_FILE_VARIABLE if file else TOKEN_VARIABLE
        raise UsageError(f"{name}: expected one word of letters and digits, as from `openssl rand -hex 32`")
    cert, key = environ.get(CERT_VARIABLE, ""), environ.get(KEY_VARIABLE, "")
    if key and not cert:
        raise UsageError(f"{KEY_VARIABLE}: needs {CERT_VARIABLE} as well")
    return Credentials(token, environ.get(CA_VARIABLE, ""), cert, key)


def refusal(said: str) -> str | None:
    """Return in our words what a dispatcher's error says about the token; None where it is about something else."""
    if "AUTHENTICATION_REQUIRED" in said:
        return f"it asks for a token: set {TOKEN_VARIABLE} or {TOKEN_FILE_VARIABLE}"
    if "AUTHENTICATION_FAILED" in said:
        return f"it refuses the token of {TOKEN_VARIABLE} or {TOKEN_FILE_VARIABLE}"
    return None


def heed(address: object, said: str) -> None:
    """Take the error that came in answer to the token: noted, once, where it knows no tokens; else UnreachableError."""
    if "UNKNOWN_OPTION" not in said and "UNKNOWN_COMMAND" not in said:
        raise UnreachableError(f"dispatcher {address}: {refusal(said) or f'the token was answered by {said!r:.80}'}")
    if str(address) not in _KNOW_NO_TOKEN:
        _KNOW_NO_TOKEN.add(str(address))
        _LOG.warning("dispatcher %s: knows no tokens and lets anybody in; it is used without", address)


def _said(error: OSError) -> str:
    """A file that is missing has an errno of its own; one that makes no sense has the TLS library's words."""
    return str((error.reason if isinstance(error, ssl.SSLError) else error.strerror) or "no certificate and key in PEM")
