"""Declarations of jobs, and the context."""

from typing import Any

import pytest

from fleetd.codecs.gearman import Kind
from fleetd.errors import UsageError
from fleetd.worker.jobs import Context, make_job


def _one(payload: bytes) -> bytes:
    return payload


@pytest.mark.parametrize(
    ("function", "wants"),
    [
        (_one, False),
        (lambda payload, ctx: None, True),
        (lambda payload, ctx=None: None, True),
        (lambda *args: None, True),
        (lambda payload, *, option=1: None, False),
        (str, False),
    ],
)
def test_a_context_is_given_to_those_with_room_for_it(function: Any, wants: object) -> None:
    if function is str:
        assert make_job("f", bytes.upper).wants_context is False
    else:
        assert make_job("f", function).wants_context is wants


@pytest.mark.parametrize(
    ("name", "function", "options", "words"),
    [
        ("", _one, {}, "a name is printable"),
        ("two words", _one, {}, "a name is printable"),
        ("f", lambda: None, {}, "must take the payload"),
        ("f", lambda a, b, c: None, {}, "must take the payload"),
        ("f", lambda a, *, b: None, {}, "must take the payload"),
        ("f", 3, {}, "is not a function"),
        ("f", _one, {"timeout_s": 0}, "timeout_s must be above 0"),
        ("f", _one, {"attempts": 0}, "attempts must be 1 or more"),
    ],
)
def test_a_wrong_declaration_is_one_clear_line(name: str, function: Any, options: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        make_job(name, function, **options)
    assert "\n" not in str(caught.value)


def test_a_context_is_silent_after_its_job() -> None:
    said: list[Any] = []
    context = Context("f", "H:1", "u", lambda kind, args: said.append((kind, args)), None)
    context.progress(1, 2)
    context.end()
    context.progress(2, 2)
    assert said == [(Kind.WORK_STATUS, (b"1", b"2"))]


@pytest.mark.parametrize("method", ["data", "warning"])
def test_a_context_takes_bytes_only(method: str) -> None:
    context = Context("f", "H:1", "u", lambda kind, args: None, None)
    with pytest.raises(TypeError, match=f"Context.{method} takes bytes, not str"):
        getattr(context, method)("text")
