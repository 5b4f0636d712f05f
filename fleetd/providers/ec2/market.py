"""Where the next instances could come from: what is out, what is too dear, and what the rest costs. Pure.

Promises: a stockout of a type in a zone on a market is remembered for minutes, and not asked for meanwhile; nothing
dearer than the pool's price is asked for; the time is an argument.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from fleetd.core.model import Offer, Seconds
from fleetd.providers.ec2.options import Ec2Options
from fleetd.providers.ec2.seen import Choice, Market

QUOTA_S: Final = 300.0
SHOWN: Final = 3


@dataclass(slots=True)
class Books:
    """What is known of the markets that a pool may buy in."""

    options: Ec2Options
    limit: float  # the most an instance may cost an hour; 0: no matter
    zones: Mapping[str, str] = field(default_factory=dict)  # by subnet
    absent: frozenset[tuple[str, str]] = frozenset()  # types that a zone does not have at all
    on_demand: dict[str, float] = field(default_factory=dict)  # by type
    spot: dict[tuple[str, str], float] = field(default_factory=dict)  # by type and zone
    out: dict[Choice, tuple[Seconds, str]] = field(default_factory=dict)  # until when, and why
    full: dict[Market, tuple[Seconds, str]] = field(default_factory=dict)  # a quota that is used up

    def markets(self) -> tuple[Market, ...]:
        """Return the markets that the pool may buy in, the first choice first."""
        if self.options.spot <= 0.0:
            return ("on-demand",)
        return ("spot", "on-demand") if self.options.on_demand or self.options.spot < 1.0 else ("spot",)

    def all(self, market: Market) -> list[Choice]:
        """Return everything that could be asked for."""
        pairs = {(kind, zone): None for zone in self.zones.values() for kind in self.options.types}
        return [Choice(kind, zone, market) for kind, zone in pairs if (kind, zone) not in self.absent]

    def open(self, market: Market, now: Seconds) -> list[Choice]:
        """Return what is worth asking for now."""
        if market in self.full and now < self.full[market][0]:
            return []
        return [one for one in self.all(market) if not self._shut(one, now) and not self._dear(one)]

    def note(self, choice: Choice, code: str, now: Seconds) -> None:
        """Remember that a choice is out."""
        self.out[choice] = now + self.options.stockout, code

    def note_quota(self, market: Market, code: str, now: Seconds) -> None:
        """Remember that a market's quota is used up."""
        self.full[market] = now + QUOTA_S, code

    def split(self, count: int, spot: int, total: int) -> dict[Market, int]:
        """Return how many of `count` to ask of each market, where the pool has `total`, of which `spot` are spot."""
        if self.options.spot <= 0.0:
            return {"on-demand": count}
        wanted = ceil(self.options.spot * (total + count)) - spot
        ours = min(count, max(0, wanted))
        shares: dict[Market, int] = {"spot": ours, "on-demand": count - ours}
        return {market: number for market, number in shares.items() if number}

    def price(self, choice: Choice) -> float | None:
        """Return what an instance costs an hour, where it is known."""
        if choice.market == "spot":
            return self.spot.get((choice.type, choice.zone))
        return self.on_demand.get(choice.type)

    def offer(self, now: Seconds) -> Offer:
        """Return what more is to be had, and at what price."""
        for market in self.markets():
            choices = self.open(market, now)
            if choices:
                known = [price for one in choices if (price := self.price(one)) is not None]
                return Offer(None, min(known) if known else None)
        return Offer(0, None, self.why(now))

    def why(self, now: Seconds) -> str:
        """Say why nothing is to be had."""
        said = [f"{market}: quota: {code}" for market, (until, code) in self.full.items() if now < until]
        said += [f"{one}: {code}" for one, (until, code) in self.out.items() if now < until]
        dear = [one for market in self.markets() for one in self.all(market) if self._dear(one)]
        said += [f"{one} costs {self.price(one):g}, more than {self.limit:g}" for one in dear]
        more = f" and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
        return "; ".join(said[:SHOWN]) + more

    def take_spot(self, prices: Iterable[tuple[str, str, float]]) -> None:
        """Take in spot prices, each of a type in a zone."""
        self.spot.update({(kind, zone): price for kind, zone, price in prices})

    def _shut(self, choice: Choice, now: Seconds) -> bool:
        return choice in self.out and now < self.out[choice][0]

    def _dear(self, choice: Choice) -> bool:
        price = self.price(choice)
        return bool(self.limit) and price is not None and price > self.limit
