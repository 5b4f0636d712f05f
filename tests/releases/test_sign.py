"""Keys: a file that only its owner may read, a line for everybody; wrong ones are refused in one line."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fleetd.errors import FleetdError, UsageError
from fleetd.releases import sign as signing
from fleetd.releases.faults import BundleError
from fleetd.releases.sign import check_keys, make_key, sign, verify


def test_a_new_key_is_for_its_owner_alone_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "key"
    public = make_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public.startswith("ed25519:")
    assert check_keys([public]) == (public,)
    with pytest.raises(UsageError, match="is there already; a key is never overwritten"):
        make_key(path)
    with pytest.raises(FleetdError, match="none/key: cannot write the key: No such file"):
        make_key(tmp_path / "none" / "key")


def test_a_signature_is_over_these_bytes_by_this_key(tmp_path: Path) -> None:
    public, other = make_key(tmp_path / "a"), make_key(tmp_path / "b")
    line = sign(b"manifest", tmp_path / "a")
    verify(b"manifest", line, (other, public), "release")
    for body, keys, why in [
        (b"manifesto", (public,), "altered"),
        (b"manifest", (other,), "none of the trusted"),
    ]:
        with pytest.raises(BundleError, match=why):
            verify(body, line, keys, "release")
    forged = f"{public} {sign(b'manifest', tmp_path / 'b').partition(' ')[2]}"
    with pytest.raises(BundleError, match="altered"):
        verify(b"manifest", forged, (public,), "release")


def test_a_signature_for_another_purpose_is_none_of_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = make_key(tmp_path / "a")
    monkeypatch.setattr(signing, "PURPOSE", b"a letter\n")
    line = sign(b"manifest", tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(BundleError, match="altered"):
        verify(b"manifest", line, (public,), "release")


@pytest.mark.parametrize("line", ["", "ed25519:", "ed25519:AAAA", "rsa:" + "A" * 43 + "=", "ed25519:" + "!" * 44])
def test_a_line_that_is_no_public_key(line: str) -> None:
    with pytest.raises(UsageError, match="is no public key; it must be ed25519:BASE64"):
        check_keys([line])


def test_a_key_file_that_others_may_read_or_that_is_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "key"
    make_key(path)
    path.chmod(0o640)
    with pytest.raises(UsageError, match="others than its owner may read this key; chmod 600 it"):
        sign(b"", path)
    path.write_text("nothing")
    path.chmod(0o600)
    with pytest.raises(UsageError, match="is no Ed25519 private key in PEM"):
        sign(b"", path)
    rsa = generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(UsageError, match="is no Ed25519 private key in PEM"):
        sign(b"", path)
    with pytest.raises(FleetdError, match="cannot read the key: No such file"):
        sign(b"", tmp_path / "none")
