"""What the environment may hold, and what is told to whoever set it wrongly."""

import logging
from pathlib import Path

import pytest

from fleetd.dispatchers.credentials import Credentials, heed, read_credentials
from fleetd.errors import UnreachableError, UsageError
from tests.certificates import Certificates

TOKEN = "0123456789abcdef"


def test_an_empty_environment_is_no_credential():
    assert read_credentials({}) == Credentials()
    assert read_credentials({"FLEETD_DISPATCHER_TOKEN": "", "FLEETD_TLS_CA": ""}) == Credentials()


def test_a_token_is_read_from_the_variable_or_from_a_file(tmp_path: Path):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_credentials({"FLEETD_DISPATCHER_TOKEN": TOKEN}).token == TOKEN
    assert read_credentials({"FLEETD_DISPATCHER_TOKEN_FILE": str(file)}).token == TOKEN


def test_certificates_are_read_by_path():
    found = read_credentials({"FLEETD_TLS_CA": "a", "FLEETD_TLS_CERT": "c", "FLEETD_TLS_KEY": "k"})
    assert found == Credentials(ca="a", cert="c", key="k")


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"FLEETD_DISPATCHER_TOKEN": "two words"}, "FLEETD_DISPATCHER_TOKEN: expected one word"),
        ({"FLEETD_DISPATCHER_TOKEN": "x\0y"}, "FLEETD_DISPATCHER_TOKEN: expected one word"),
        ({"FLEETD_DISPATCHER_TOKEN": "a", "FLEETD_DISPATCHER_TOKEN_FILE": "f"}, "give one of the two"),
        ({"FLEETD_DISPATCHER_TOKEN_FILE": "/nonexistent"}, "FLEETD_DISPATCHER_TOKEN_FILE: /nonexistent: No such file"),
        ({"FLEETD_DISPATCHER_TOKEN_FILE": "/dev/null"}, "FLEETD_DISPATCHER_TOKEN_FILE: expected one word"),
        ({"FLEETD_TLS_KEY": "k"}, "FLEETD_TLS_KEY: needs FLEETD_TLS_CERT as well"),
    ],
)
def test_what_cannot_be_used_names_its_variable(environ, says):
    with pytest.raises(UsageError) as caught:
        read_credentials(environ)
    assert says in str(caught.value)
    assert "two words" not in str(caught.value)


def test_files_that_cannot_be_used_are_named(certificates: Certificates):
    with pytest.raises(UsageError, match="FLEETD_TLS_CA: /nonexistent: No such file"):
        Credentials(ca="/nonexistent").context()
    with pytest.raises(UsageError, match=r"FLEETD_TLS_CA: .*\.py: "):
        Credentials(ca=__file__).context()
    mixed = Credentials(ca=certificates.pem("ca"), cert=certificates.pem("client"), key=certificates.key("server"))
    with pytest.raises(UsageError, match=r"FLEETD_TLS_CERT .*client\.pem, FLEETD_TLS_KEY .*server\.key: KEY_VALUES"):
        mixed.context()


def test_the_token_is_not_shown():
    assert TOKEN not in repr(Credentials(TOKEN))


def test_a_dispatcher_that_knows_no_tokens_is_noted_once(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "fleetd.dispatchers"):
        heed("old:4730", "UNKNOWN_OPTION")
        heed("old:4730", "ERR UNKNOWN_COMMAND Unknown+server+commandtoken")
    assert [record.getMessage() for record in caplog.records] == [
        "dispatcher old:4730: knows no tokens and lets anybody in; it is used without"
    ]


def test_any_other_answer_to_the_token_is_an_error():
    with pytest.raises(UnreachableError, match="dispatcher h:1: the token was answered by 'NO'"):
        heed("h:1", "NO")
