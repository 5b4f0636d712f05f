"""The policy's scalar types: `core.units` and a few names, as pydantic types that carry their own JSON Schema.

Promises: each raises ValueError with a plain sentence; each accepts exactly what its schema describes, but for limits
that a schema cannot say.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Annotated, Any, Final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, WithJsonSchema

from fleetd.config.findings import cut, did_you_mean, quoted
from fleetd.core import units

NAME_PATTERN: Final = "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"  # names stand in URLs, tokens, labels and process lists
TITLE_PATTERN: Final = r"^[^\s.:\[\]]([^.:\[\]]{0,61}[^\s.:\[\]])?$"
FLEET_PATTERN: Final = "^[a-z0-9][a-z0-9-]{0,62}$"
WEBHOOK_PATTERN: Final = r"^[Hh][Tt][Tt][Pp][Ss]?://[!-~]+$"
MAX_URL: Final = 2048
LISTEN_PATTERN: Final = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$"


def _schema(*forms: dict[str, Any], examples: list[Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": list(forms), "examples": examples})


def _price(value: object) -> float:
    """Read a price; `{max: 0.40/h}` is a price that varies, counted at its highest."""
    if not isinstance(value, Mapping):
        return units.money_per_h(value)
    if set(value) != {"max"}:
        raise ValueError("expected a price such as 0.12/h, or {max: 0.40/h} for one that varies")
    return units.money_per_h(value["max"])


def _above_zero(value: float) -> float:
    if value <= 0:
        raise ValueError("must be more than 0")
    return value


def _amount(value: object) -> float:
    if isinstance(value, str):
        raise ValueError(f"expected a number, an amount in the policy's currency, got {quoted(value)}")  # noqa: TRY004
    return units.money_per_h(value)


def _fleet(value: str) -> str:
    if not re.fullmatch(FLEET_PATTERN, value):
        raise ValueError(f"expected up to 63 small letters, digits and '-', as in shop-1, got {quoted(value)}")
    return value


def _currency(value: str) -> str:
    if not re.fullmatch("[A-Z]{3}", value):
        raise ValueError(f"expected three capital letters, as in EUR, got {quoted(value)}")
    return value


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: "Europe" is a folder of the database
        hint = did_you_mean(value, available_timezones()) or "; they are named as in Europe/Berlin"
        raise ValueError(f"no time zone {quoted(value)}{hint}") from None
    return value


def _cron(value: str) -> str:
    fields = value.split()
    if len(fields) != 5:
        raise ValueError(f"expected five fields (minute hour day month weekday), got {len(fields)}")
    _, _, day, _, weekday = fields
    if re.search("[0-9]", weekday):  # 0 is Sunday to cron and Monday to APScheduler
        raise ValueError(f"write weekdays by name, as in mon-fri: programs differ in what {quoted(weekday)} means")
    if day != "*" and weekday != "*":
        raise ValueError("give a day or a weekday and '*' for the other: programs differ in what both together mean")
    # Imported only by a fleet that has schedules: it costs memory that others need not pay.
    from apscheduler.triggers.cron import CronTrigger  # noqa: PLC0415

    try:
        trigger = CronTrigger.from_crontab(value, timezone=UTC)  # type: ignore[no-untyped-call]
        fires = trigger.get_next_fire_time(None, datetime(2024, 1, 1, tzinfo=UTC))
    except ValueError as error:
        raise ValueError(f"{quoted(value)} is no cron expression: {cut(str(error), 120)}") from None
    if fires is None:
        raise ValueError(f"{quoted(value)} never comes")
    return value


def _listen(value: str) -> str:
    if not re.fullmatch(LISTEN_PATTERN, value):
        raise ValueError(f"expected HOST:PORT, as in 127.0.0.1:7117 or [::1]:7117, got {quoted(value)}")
    host, port = split_listen(value)
    if port > 65535:
        raise ValueError(f"a port is 0 to 65535, got {port}")
    if ":" in host or re.fullmatch("[0-9.]+", host):
        try:
            ip_address(host)
        except ValueError:
            raise ValueError(f"{quoted(host)} is no IP address") from None
    return value


def _webhook(value: SecretStr | str) -> SecretStr:
    """Check a URL whose path may be a secret: what is wrong is said without showing it."""
    url = value.get_secret_value() if isinstance(value, SecretStr) else value
    form = "expected a URL such as https://chat.example/hooks/1"
    if not re.fullmatch(WEBHOOK_PATTERN, url):
        raise ValueError(f"{form}: http or https, without spaces")
    if len(url) > MAX_URL:
        raise ValueError(f"is longer than {MAX_URL} characters")
    try:
        parts = urlsplit(url)
        fit = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port beyond 65535, a bracket that is not closed
        fit = False
    if not fit:
        raise ValueError(f"{form}: its host or port is missing or wrong")
    return SecretStr(url)


def split_listen(value: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port of a valid `listen`."""
    host, _, port = value.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine reaches a listener on `host`; a name other than localhost may be anything."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_DURATION: Final = _schema(
    {"type": "number", "minimum": 0, "maximum": units.MAX_S},
    {"type": "string", "pattern": units.DURATION_PATTERN},
    examples=["30s", "5m", "1h30m", 90],
)
DurationOrZero = Annotated[float, BeforeValidator(units.seconds), _DURATION]
Duration = Annotated[float, BeforeValidator(units.seconds), AfterValidator(_above_zero), _DURATION]

_PRICES: Final = ({"type": "number", "minimum": 0}, {"type": "string", "pattern": units.PRICE_PATTERN})
Price = Annotated[
    float,
    BeforeValidator(_price),
    _schema(
        *_PRICES,
        {
            "type": "object",
            "properties": {"max": {"anyOf": list(_PRICES), "description": "The highest it may become."}},
            "required": ["max"],
            "additionalProperties": False,
        },
        examples=["0.12/h", "0.002/min", {"max": "0.40/h"}],
    ),
]
Share = Annotated[
    float,
    BeforeValidator(units.share),
    _schema(
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "string", "pattern": units.SHARE_PATTERN},
        examples=["95%", 0.95],
    ),
]
Rate = Annotated[
    float,
    BeforeValidator(units.per_minute),
    AfterValidator(_above_zero),
    _schema(
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "string", "pattern": units.RATE_PATTERN},
        examples=["20/min"],
    ),
]
Size = Annotated[
    int,
    BeforeValidator(units.size),
    _schema(
        {"type": "integer", "minimum": 0}, {"type": "string", "pattern": units.SIZE_PATTERN}, examples=["512MB", "2GB"]
    ),
]
Amount = Annotated[float, BeforeValidator(_amount), WithJsonSchema({"type": "number", "minimum": 0})]

Fleet = Annotated[str, AfterValidator(_fleet), WithJsonSchema({"type": "string", "pattern": FLEET_PATTERN})]
Currency = Annotated[str, AfterValidator(_currency), WithJsonSchema({"type": "string", "pattern": "^[A-Z]{3}$"})]
Timezone = Annotated[str, AfterValidator(_timezone)]
Listen = Annotated[str, AfterValidator(_listen), WithJsonSchema({"type": "string", "pattern": LISTEN_PATTERN})]
# Text is taken too: where the URL holds no secret, it may stand in the policy.
_Url = Annotated[str, WithJsonSchema({"type": "string", "pattern": WEBHOOK_PATTERN, "maxLength": MAX_URL})]
Webhook = Annotated[SecretStr | _Url, AfterValidator(_webhook)]
Cron = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_cron)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
