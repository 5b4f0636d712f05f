"""What follows from what is known of a machine that we woke: tell it again, cut its power, or call it gone, and why.

Promises: pure; time is an argument. A machine is gone only by proof: its switch says off, or nothing of it is heard on
any way that it was heard on before. What nobody can tell is said to be so.
"""

from dataclasses import dataclass
from typing import Final

from fleetd.providers.rack.book import Record, Wake
from fleetd.providers.rack.power import State

Seconds = float
PACKETS: Final = 3
CUTS: Final = 3
REBOOT_S: Final = 2.0  # a boot that begins so long after the worker's is another one
FIRST_BACKOFF_S: Final = 60.0
MOST_BACKOFF_S: Final = 86_400.0
BOOT_FLOOR_S: Final = 60.0
BOOTS_KNOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what: between two packets or cuts, for a word, for an answer; how often to look."""

    again_s: Seconds = 15.0
    quiet_s: Seconds = 10.0  # a lease this old is no sign of life
    silent_s: Seconds = 10.0  # knocked at in vain for so long
    warm_s: Seconds = 30.0  # a machine that waits asks again every ten seconds
    beat_s: Seconds = 1.0
    look_s: Seconds = 5.0  # at machines that we woke; at one that is to go off, every beat
    idle_look_s: Seconds = 60.0  # at those that should be off


@dataclass(slots=True)
class Signs:
    """What was seen of a machine, each with when: filled in as it is seen."""

    stage: str = ""  # of its boot, by the boot service
    seen_at: Seconds = 0.0
    booted_at: Seconds = 0.0
    heard_at: Seconds = 0.0  # its worker's last word
    answered_at: Seconds = 0.0  # on the network
    silent_since: Seconds | None = None
    power: State | None = None  # by its switch
    power_at: Seconds = 0.0
    cuts: int = 0
    cut_at: Seconds = 0.0


@dataclass(frozen=True, slots=True)
class Can:
    """What a machine's switch can do: tell its state, cut its power. `off_s`: how long the way off may take."""

    tells: bool
    cuts: bool
    off_s: Seconds = 120.0


@dataclass(frozen=True, slots=True)
class Send:
    """Tell it to come on."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Switch it off from outside."""


@dataclass(frozen=True, slots=True)
class Gone:
    """It is no node any longer. `fault`: that was the machine's failure; `cut`: make sure that it is off."""

    reason: str
    fault: bool = False
    cut: bool = False


Verdict = Send | Cut | Gone | None


@dataclass(frozen=True, slots=True)
class Case:
    """A machine that we woke, what was seen of it, and how long to wait for what."""

    wake: Wake
    signs: Signs
    can: Can
    deadline_s: Seconds
    patience: Patience
    now: Seconds

    @property
    def off(self) -> bool:
        """Its switch says that it is off, and was asked after the machine was last told to come on, or to go."""
        wake, told_at = self.wake, max(self.wake.sent_at, self.wake.at)
        since = max(told_at + self.patience.beat_s, wake.stop_at or 0.0)
        return self.signs.power == "off" and self.signs.power_at > since

    def quiet(self, since: Seconds) -> bool:
        """Its worker has said nothing for long, all of it after `since`."""
        return self.now - max(self.signs.heard_at, since) > self.patience.quiet_s

    def silent(self, since: Seconds) -> bool:
        """Knocks found nobody for long, all of it after `since`."""
        begun = self.signs.silent_since
        return begun is not None and self.now - max(begun, since) > self.patience.silent_s

    @property
    def dark(self) -> bool:
        """Nothing but its worker's word can tell whether it is on."""
        knocked = self.signs.silent_since is not None or self.signs.answered_at > self.wake.at
        return not self.can.tells and not knocked


def judge(case: Case) -> Verdict:
    """Return what to do about a machine now."""
    wake, signs = case.wake, case.signs
    if wake.stop_at is not None:
        return _proof(case, wake.stop_at) or _escalated(case, wake.stop_at)
    began_at = wake.used_at if wake.used_at is not None else wake.up_at
    if began_at is not None and signs.booted_at > began_at + REBOOT_S:
        return Gone("rebooted by itself", fault=True)
    if wake.up_at is None:
        return _booting(case)
    if case.off:
        return Gone("went off by itself, says its switch", fault=True)
    if case.silent(wake.up_at) and case.quiet(wake.up_at):
        quiet_s = case.now - max(signs.heard_at, wake.up_at)
        why = f"fell silent: no word from its worker for {quiet_s:.0f} s, and no answer on the network"
        return Gone(why, fault=True, cut=case.can.cuts)
    return None


def _booting(case: Case) -> Verdict:
    wake, signs, now = case.wake, case.signs, case.now
    seen = signs.seen_at >= wake.at or signs.answered_at > wake.at
    long_ago = now - max(wake.sent_at, wake.at) > case.patience.again_s
    if now - wake.at > case.deadline_s:
        return Gone(_how_far(case), fault=True, cut=case.can.cuts)
    if case.off and wake.sent >= PACKETS and long_ago:
        return Gone(f"is off, though it was switched on {wake.sent} times", fault=True)
    if wake.sent == 0:
        waits = wake.at - signs.seen_at < case.patience.warm_s  # it asks the boot service, and needs no packet
        return Send() if not waits or long_ago else None
    return Send() if (case.off or not seen) and wake.sent < PACKETS and long_ago else None


def _how_far(case: Case) -> str:
    wake, signs, after = case.wake, case.signs, f"within {case.deadline_s:.0f} s"
    if signs.seen_at >= wake.at:
        came = f"came as far as {signs.stage!r}, {signs.seen_at - wake.at:.0f} s after it was woken"
        what = "was not let in" if wake.used_at is None else "did not speak"
        return f"{came}; its worker {what} {after}"
    if signs.answered_at > wake.at:
        return f"answers on the network, but did not ask the boot service {after}: does it boot from the network first?"
    if case.can.tells and signs.power == "on":
        return f"is on, says its switch, but did not ask the boot service {after}: cable, switch port, boot order?"
    packets = f"{wake.sent} magic packet{'s' if wake.sent != 1 else ''}"
    return f"did not answer {packets} {after}: cable, wake-on-LAN in its firmware, SecureOn password?"


def _proof(case: Case, stop_at: Seconds) -> Gone | None:
    """Return that a machine is off as it was told to, and how that is known."""
    if case.off:
        return Gone("stopped as asked: off, says its switch")
    if not case.quiet(stop_at):
        return None
    if not case.can.tells and case.silent(stop_at):
        return Gone("stopped as asked: nothing answers any longer")
    late = case.now > stop_at + _limit_s(case)
    if case.dark and ((case.wake.up_at is not None and not case.can.cuts) or (late and case.signs.cuts > 0)):
        how = "its power was cut" if case.signs.cuts else "its worker is silent"
        return Gone(f"stopped as asked: {how}; nothing else can tell whether it is off")
    return None


def _escalated(case: Case, stop_at: Seconds) -> Verdict:
    """Return the next step with a machine that is not known to be off when it should be."""
    now, signs, again_s = case.now, case.signs, case.patience.again_s
    if now <= stop_at + _limit_s(case):
        return None
    if signs.cuts and signs.silent_since is not None and not case.can.tells:
        return None  # nothing answers since; the proof takes its time
    if case.can.cuts and signs.cuts < CUTS:
        return Cut() if now - signs.cut_at > again_s else None
    if case.can.cuts and now - signs.cut_at <= max(again_s, case.patience.quiet_s + case.patience.silent_s):
        return None
    how = f"its power was cut {signs.cuts} times" if case.can.cuts else "nothing can cut its power"
    what = "cannot be known to be off" if case.dark else "did not go off"
    return Gone(f"{what} {now - stop_at:.0f} s after it was told to go; {how}: see to it", fault=True)


def _limit_s(case: Case) -> Seconds:
    """How long it may take to go off by itself: no worker that never spoke will obey."""
    if case.can.cuts and (case.wake.grace_s == 0 or case.wake.up_at is None):
        return 0.0
    return max(case.wake.grace_s, case.can.off_s)


# ── what is learned


def boot_deadline(record: Record | None, unknown_s: Seconds) -> Seconds:
    """How long a machine's boot may take: three times its slowest of late; `unknown_s` until it booted a few times."""
    boots = record.boots_s if record else ()
    floor_s = BOOT_FLOOR_S if len(boots) >= BOOTS_KNOWN else unknown_s
    return max(floor_s, 3.0 * max(boots, default=0.0))


def backoff_s(failures: int) -> Seconds:
    """How long a machine is kept out after so many failures in a row."""
    return float(min(MOST_BACKOFF_S, FIRST_BACKOFF_S * 4.0 ** min(failures - 1, 10)))
