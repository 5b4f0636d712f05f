"""Durations, prices, shares, rates and sizes: from what an owner writes to numbers, and back.

Promises: pure and total. A reader returns a finite number or raises ValueError with one short sentence that names
what was expected and never more than the start of what it got. A writer returns text that its reader turns into the
same number.
"""

import re
from collections.abc import Mapping
from math import inf, isnan
from typing import Final

from fleetd.core.model import Seconds

MAX_S: Final = 3650 * 86400.0  # beyond ten years a duration is a slip, and time arithmetic stays far from its ends
MAX_NUMBER: Final = 1e12

_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
NUMBER_PATTERN: Final = rf"^ *{_NUMBER} *$"
DURATION_PATTERN: Final = rf"^ *(?:{_NUMBER}|(?=[0-9])" + "".join(rf"(?:{_NUMBER}{u})?" for u in "dhms") + r") *$"
PRICE_PATTERN: Final = rf"^ *{_NUMBER}(?: */ *(?:h|min|s))? *$"
RATE_PATTERN: Final = PRICE_PATTERN
SIZE_PATTERN: Final = rf"^ *({_NUMBER}) *([KMG]?)i?B? *$"
SHARE_PATTERN: Final = rf"^ *{_NUMBER} *%? *$"

_UNIT_S: Final[Mapping[str, Seconds]] = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_PER_S: Final[Mapping[str, Seconds]] = {"h": 3600.0, "min": 60.0, "s": 1.0}
_PART: Final = re.compile(rf"({_NUMBER})([dhms])")


def seconds(value: object) -> Seconds:
    """Read `90`, "90", "30s", "5m", "1h30m" or "1.5d" as seconds."""
    expected = "expected a duration such as 30s, 5m, 2h or 1h30m"
    if isinstance(value, str) and not re.match(NUMBER_PATTERN, value):
        if not re.match(DURATION_PATTERN, value):
            raise ValueError(f"{expected}, got {_shown(value)}")
        parts = _PART.findall(value)
        result = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    else:
        result = _number(value, expected)
    if result > MAX_S:
        raise ValueError(f"{_shown(value)} is longer than ten years")
    return result


def size(value: object) -> int:
    """Read `1048576`, "512MB" or "2 GiB" as bytes; K, M and G count by 1024, as the kernel does."""
    expected = "expected a size such as 512MB or 2GB"
    found = re.fullmatch(SIZE_PATTERN, value) if isinstance(value, str) else None
    number = _number(found[1], expected, value) if found else _number(value, expected)
    result = number * 1024 ** " KMG".index(found[2] or " ") if found else number
    if result > MAX_NUMBER or not result.is_integer():
        raise ValueError(f"{expected}, got {_shown(value)}")
    return int(result)


def money_per_h(value: object) -> float:
    """Read `0.12`, "0.12/h", "0.002/min" or "0.0001/s" as money per hour."""
    return _per(value, "h", "expected a price such as 0.12/h or 0.002/min")


def per_minute(value: object) -> float:
    """Read `20`, "20/min", "1/s" or "600/h" as a rate per minute."""
    return _per(value, "min", "expected a rate such as 20/min")


def share(value: object) -> float:
    """Read "95%" or `0.95` as a share above 0 and up to 1."""
    expected = "expected a share such as 95% or 0.95"
    text = value.strip() if isinstance(value, str) else ""
    if text.endswith("%"):
        return _share_of(_number(text[:-1].strip(), expected, value) / 100, value)
    number = _number(value, expected)
    if 1 < number <= 100:
        raise ValueError(f"a share is at most 1, got {_shown(value)}; for percent write {number:g}%")
    return _share_of(number, value)


def show_seconds(value_s: Seconds) -> str:
    """Write seconds as `seconds` reads them: 5400.0 is "1h30m"."""
    whole, parts = int(value_s), []
    if whole != value_s:
        return f"{_decimal(value_s)}s"
    for unit, unit_s in _UNIT_S.items():
        count, whole = divmod(whole, int(unit_s))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def show_size(value: int) -> str:
    """Write bytes as `size` reads them: 536870912 is "512MB"."""
    for unit, factor in (("GB", 1024**3), ("MB", 1024**2), ("KB", 1024)):
        if value and value % factor == 0:
            return f"{value // factor}{unit}"
    return str(value)


def show_money_per_h(value: float) -> str:
    """Write a price as `money_per_h` reads it."""
    return f"{_decimal(value)}/h"


def show_per_minute(value: float) -> str:
    """Write a rate as `per_minute` reads it."""
    return f"{_decimal(value)}/min"


def show_share(value: float) -> str:
    """Write a share as `share` reads it: in percent, where that loses nothing."""
    percent = _decimal(round(value * 100, 9))
    return f"{percent}%" if float(percent) / 100 == value else _decimal(value)


def _per(value: object, unit: str, expected: str) -> float:
    if not isinstance(value, str) or "/" not in value:
        return _number(value, expected)
    number, _, per = value.partition("/")
    if per.strip() not in _PER_S:
        raise ValueError(f"{expected}, got {_shown(value)}")
    return _number(number.strip(), expected, value) * (_PER_S[unit] / _PER_S[per.strip()])


def _number(value: object, expected: str, written: object = None) -> float:
    """Read a number that is finite and not negative; `written` is what to show where `value` is a part of it."""
    shown = _shown(value if written is None else written)
    if isinstance(value, str):
        if value.strip().startswith("-"):
            raise ValueError(f"must not be negative, got {shown}")
        if not re.match(NUMBER_PATTERN, value):
            raise ValueError(f"{expected}, got {shown}")
        result = float(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        result = float(value) if isinstance(value, float) or abs(value) <= MAX_NUMBER else inf if value > 0 else -inf
    else:
        raise ValueError(f"{expected}, got {shown}")  # noqa: TRY004 - pydantic turns ValueError into a finding
    if result < 0:
        raise ValueError(f"must not be negative, got {shown}")
    if isnan(result):
        raise ValueError(f"{expected}, got {shown}")
    if result > MAX_NUMBER:
        raise ValueError(f"{shown} is too large")
    return result


def _share_of(number: float, value: object) -> float:
    if not 0 < number <= 1:
        raise ValueError(f"a share is above 0% and at most 100%, got {_shown(value)}")
    return number


def _decimal(value: float) -> str:
    """Write a number without an exponent and without loss."""
    text = repr(float(value))
    if "e" in text:
        text = f"{value:.15f}".rstrip("0")
    return text.removesuffix(".0").removesuffix(".")


def _shown(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            text = repr(value) if isinstance(value, str) or not abs(value) > MAX_NUMBER else "a number"
            return text if len(text) <= 40 else f"{text[:37]}..."
        case Mapping():
            return "keys and values"
        case _:
            return "a list" if isinstance(value, list | tuple) else "something else"
