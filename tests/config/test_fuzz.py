"""Whatever happens to a policy's text, the outcome is a Policy or a PolicyError whose every line has its place."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetd.config import load
from fleetd.core.model import Policy
from fleetd.errors import PolicyError
from tests.config.fakes import ADAPTERS, ENVIRON, FULL, read

pytestmark = pytest.mark.slow
LINE = re.compile(r"[^:]+:[0-9]+:[0-9]+: .+")
MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHORT = (
    st.sampled_from(
        ["{", "}", "[", "]", ":", ", ", "\n", "\t", "&a ", "*a", "!!int ", "? ", "- ", "|\n", "'", '"', "#", "~"]
    )
    | st.sampled_from(
        ["010", "1e9", ".nan", "yes", "1h", "-1", "null", "env", "\\x00", "\ud800", "\u2028", "%YAML 1.1\n"]
    )
    | st.text(max_size=3)
)


def well_behaved(act) -> Policy | None:
    try:
        policy = act()
    except PolicyError as error:
        problems = error.problems
    else:
        assert isinstance(policy, Policy)
        return policy
    assert problems
    for line in problems:
        assert LINE.fullmatch(line), line
        assert line.isprintable(), line
        assert "s3cret" not in line, line
    return None


@st.composite
def mutated(draw):
    text = FULL
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        change = draw(st.sampled_from(["delete", "double", "swap", "insert", "cut"]))
        part = text[start:end]
        new = {"delete": "", "double": part * 2, "swap": part[::-1], "insert": draw(SHORT) + part, "cut": part}[change]
        text = text[:start] + new + ("" if change == "cut" else text[end:])
    return text


@MANY
@given(mutated())
def test_a_mutated_policy_is_read_or_refused_in_lines(text):
    well_behaved(lambda: read(text))


@MANY
@given(st.lists(SHORT | st.sampled_from(["version: 1", "pools", "queues: {", "a"]), max_size=30).map("".join))
def test_any_text_is_read_or_refused_in_lines(text):
    assert well_behaved(lambda: read(text)) is None


@MANY
@given(st.integers(0, len(FULL) - 1), st.binary(min_size=1, max_size=4), st.booleans())
def test_a_file_with_random_bytes_is_read_or_refused_in_lines(tmp_path, at, noise, replaced):
    content = FULL.encode()
    path = tmp_path / "policy.yaml"
    path.write_bytes(content[:at] + noise + content[at + len(noise) * replaced :])
    (tmp_path / "photos").mkdir(exist_ok=True)
    well_behaved(lambda: load(path, adapters=ADAPTERS, environ=ENVIRON))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
VALUES = [r"(?<=: )[^{}\[\],\s]+(?=[,}\n])", r"(?<=: )\{[^{}]*\}", r"(?<=: )\[[^\[\]]*\]"]
PLACES = [found.span() for pattern in VALUES for found in re.finditer(pattern, FULL)]


@MANY
@given(st.sampled_from(PLACES), values)
def test_a_value_of_another_type_is_read_or_refused_in_lines(span, value):
    import json  # noqa: PLC0415 - YAML takes JSON as it is

    written = json.dumps(value, ensure_ascii=False)
    well_behaved(lambda: read(FULL[: span[0]] + written + FULL[span[1] :]))


def test_the_places_to_change_are_really_values():
    found = [FULL[start:end] for start, end in PLACES]
    assert len(found) > 40
    assert {"95%", "0.03/h", "{env: REDIS_PASSWORD}", "[photos, billing]"} <= set(found)
