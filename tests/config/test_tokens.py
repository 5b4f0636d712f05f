"""Tokens with roles in the policy: by reference alone, long enough, told as changed and never shown."""

from dataclasses import replace

import pytest

from fleetd.config import diff
from fleetd.errors import PolicyError
from tests.config.fakes import ENVIRON, FULL, read

TOKENS = {"ANNA": "a" * 16, "WALL": "w" * 40, "SHORT": "s" * 15, "SPACED": "x" * 20 + " x", "WIDE": "ü" * 20}
LISTEN = 'listen: "127.0.0.1:7117"'


def policy(tokens: str):
    text = FULL.replace(LISTEN, f"{LISTEN}, tokens: {tokens}")
    assert text != FULL
    return read(text, environ={**ENVIRON, **TOKENS})


def test_each_role_has_its_tokens():
    controller = policy("{viewer: [{env: WALL}, {env: ANNA}], operator: [{env: ANNA}]}").controller
    assert controller.viewers == ("w" * 40, "a" * 16)
    assert controller.operators == ("a" * 16,)
    assert "aaa" not in repr(controller)
    assert policy("{}").controller.viewers == ()


@pytest.mark.parametrize("name", ["SHORT", "SPACED", "WIDE"])
def test_a_token_that_is_short_or_fits_no_header_is_refused_and_not_shown(name):
    with pytest.raises(PolicyError) as caught:
        policy(f"{{viewer: [{{env: {name}}}]}}")
    (line,) = caught.value.problems
    assert "controller.tokens.viewer" in line
    assert "a token has at least 16 characters of ASCII, and no space or line break" in line
    assert TOKENS[name] not in line


def test_a_token_in_the_file_itself_is_refused():
    with pytest.raises(PolicyError) as caught:
        policy("{operator: [aaaaaaaaaaaaaaaaaaaa]}")
    (line,) = caught.value.problems
    assert "a secret is never written into the policy; give {env: NAME} or {file: PATH}" in line


def test_a_change_is_told_and_no_token_is():
    was, now = policy("{viewer: [{env: ANNA}]}"), policy("{viewer: [{env: WALL}], operator: [{env: ANNA}]}")
    assert diff(was, now) == ["controller.tokens.viewer: changed", "controller.tokens.operator: changed"]
    assert diff(was, replace(was)) == []
