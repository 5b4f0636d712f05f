"""Why a connection failed, in one line of words: the system's errors and those of TLS.

Promises: pure; one line without numbers; what the reader can mend is named.
"""

import ssl
from typing import Final

from fleetd.dispatchers.credentials import CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE

PLAIN_TEXT: Final = (
    "answers in plain text; Debian's gearmand has no TLS and ignores --ssl: use a tunnel, or fleetd dispatcher"
)
_NO_ISSUER: Final = frozenset({18, 19, 20, 21})  # OpenSSL's: signed by itself or by somebody who is not known
_ASKS: Final = f"it asks for a client certificate: set {CERT_VARIABLE} and {KEY_VARIABLE}"


def reason(error: Exception) -> str:
    """Return the words of an error."""
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = f"; is {CA_VARIABLE} the authority that signed it?" if error.verify_code in _NO_ISSUER else ""
        return f"its certificate is refused: {error.verify_message.rstrip('.')}{hint}"
    if isinstance(error, ssl.SSLError):
        name = error.reason or "unknown error"
        if "CERTIFICATE_REQUIRED" in name:
            return _ASKS
        if "ALERT" in name and any(word in name for word in ("CA", "CERTIFICATE", "HANDSHAKE_FAILURE")):
            return f"it refuses our certificate ({_words(name)}): see {CERT_VARIABLE} and {KEY_VARIABLE}"
        return f"TLS: {_words(name)}"
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def hung_up(error: Exception) -> bool:
    """Whether the other side closed the connection, in one way or another."""
    return isinstance(error, ssl.SSLEOFError | ConnectionResetError | ConnectionAbortedError | BrokenPipeError)


def _words(name: str) -> str:
    return name.lower().replace("_", " ")
