"""The pure parts of the EC2 provider: options, what a list lacks, what the markets have, what a code means."""

import pytest
from pydantic import ValidationError

from fleetd.errors import ExhaustedError, ProviderError, RefusedError
from fleetd.providers.ec2 import names
from fleetd.providers.ec2.faults import AwsError, fault, kind_of
from fleetd.providers.ec2.ledger import Attempt, Entry, Ledger
from fleetd.providers.ec2.market import Books
from fleetd.providers.ec2.options import Ec2Options
from fleetd.providers.ec2.request import create_fleet, read_answer
from fleetd.providers.ec2.seen import Choice, Seen, see
from fleetd.providers.ec2.state import lacking_for
from fleetd.providers.ec2.view import ABSENT_S, GOING_S, YOUNG_S, View

FLEET = {
    "mode": "fleet",
    "region": "eu-central-1",
    "launch_template": "worker",
    "types": ["m5.large", "c5.large"],
    "subnets": ["subnet-0a", "subnet-0b"],
}
ZONES = {"subnet-0a": "a", "subnet-0b": "b"}
SPOT = Choice("m5.large", "a", "spot")


def options(**changes):
    return Ec2Options(**{key: value for key, value in {**FLEET, **changes}.items() if value is not None})


def instance(name, state="running", key="1-1"):
    return Seen(name, f"burst/{name}", state, SPOT, "photos", key, "me")


# ── options


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"types": None}, "mode fleet needs `types:`"),
        ({"launch_template": None}, "mode fleet needs `launch_template:`"),
        ({"group": "x"}, "`group:` is of mode asg"),
        ({"mode": "asg"}, "mode asg needs `group:`"),
        ({"mode": "asg", "group": "x"}, "`launch_template:` is of mode fleet; in mode asg the group says it"),
        ({"types": [f"m{at}.large" for at in range(151)]}, "are more than 300 choices"),
        ({"region": "Frankfurt"}, "region"),
        ({"subnets": ["10.0.0.0/8"]}, "subnets"),
        ({"spot": "120%"}, "share"),
        ({"endpoint": "localhost:4566"}, "endpoint"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_the_reason(given, told):
    with pytest.raises(ValidationError, match=told):
        options(**given)


# ── the view


def listed(view):
    from fleetd.core.model import Offer  # noqa: PLC0415

    return {sighting.node.rpartition("/")[2]: sighting.state for sighting in view.world(Offer()).sightings}


def test_what_was_just_started_is_listed_though_no_answer_shows_it_until_that_cannot_be_lag():
    view = View()
    view.started([instance("i-1", "pending")], 0.0)
    for now in (1.0, 50.0, YOUNG_S - 1):
        assert view.take([], now) == ["i-1"]
        view.confirm(["i-1"], [], now)
        assert listed(view) == {"i-1": "booting"}
    view.confirm(["i-1"], [], YOUNG_S)
    assert listed(view) == {}
    assert view.gone == {"burst/i-1": "EC2 knows nothing of it any more"}


def test_one_seen_before_is_given_up_only_after_repeated_denials_for_a_while():
    view = View()
    view.take([instance("i-1")], 0.0)
    for now in (1.0, 2.0, 3.0, ABSENT_S):
        view.confirm(["i-1"], [], now)
        assert listed(view) == {"i-1": "up"}
    view.confirm(["i-1"], [], ABSENT_S + 1.0)
    assert listed(view) == {}


def test_an_old_answer_brings_nobody_back():
    view = View()
    view.take([instance("i-1")], 0.0)
    view.confirm(["i-1"], [instance("i-1", "terminated")], 1.0)
    view.take([instance("i-1")], 2.0)
    assert listed(view) == {}


def test_what_was_told_to_end_is_not_listed_but_is_again_if_it_does_not_end():
    view = View()
    view.take([instance("i-1")], 0.0)
    view.told(["i-1"], 0.0)
    view.take([instance("i-1")], GOING_S - 1)
    assert listed(view) == {}
    view.take([instance("i-1")], GOING_S)
    assert listed(view) == {"i-1": "up"}


def test_an_interruption_is_called_one():
    raw = {"InstanceId": "i-1", "State": {"Name": "terminated"}, "InstanceType": "m5.large"}
    seen = see("burst", {**raw, "StateReason": {"Code": "Server.SpotInstanceTermination", "Message": "x"}})
    assert seen.why == "spot interruption: AWS took it back"


# ── the markets


def books(limit=0.0, **changes):
    made = Books(options(**changes), limit, zones=ZONES)
    made.on_demand = dict(made.options.prices)
    return made


def test_a_stockout_is_of_one_type_in_one_zone_on_one_market_for_its_time():
    made = books(spot="100%", stockout="3m")
    made.note(SPOT, "InsufficientInstanceCapacity", 0.0)
    assert SPOT not in made.open("spot", 179.0)
    assert len(made.open("spot", 179.0)) == 3
    assert Choice("m5.large", "a", "on-demand") in made.open("on-demand", 0.0)
    assert SPOT in made.open("spot", 180.0)


def test_nothing_is_offered_once_all_is_out_and_the_first_reasons_are_said():
    made = books(spot="100%", on_demand=False)
    for choice in made.all("spot"):
        made.note(choice, "InsufficientInstanceCapacity", 0.0)
    offer = made.offer(1.0)
    assert offer.headroom == 0
    assert offer.why.endswith("and 1 more")
    assert "spot m5.large in a: InsufficientInstanceCapacity" in offer.why


def test_a_quota_shuts_its_market_alone():
    made = books(spot="100%")
    made.note_quota("spot", "MaxSpotInstanceCountExceeded", 0.0)
    assert made.open("spot", 1.0) == []
    assert len(made.open("on-demand", 1.0)) == 4


def test_what_costs_more_than_the_pools_price_is_left_out():
    made = books(limit=0.1, prices={"m5.large": "0.107/h"})
    made.take_spot([("c5.large", "a", 0.11), ("c5.large", "b", 0.04)])
    assert {one.type for one in made.open("on-demand", 0.0)} == {"c5.large"}
    assert ("c5.large", "a") not in {(one.type, one.zone) for one in made.open("spot", 0.0)}


@pytest.mark.parametrize(
    ("count", "spot", "total", "shares"),
    [
        (4, 0, 0, {"spot": 3, "on-demand": 1}),
        (1, 0, 0, {"spot": 1}),
        (4, 3, 4, {"spot": 3, "on-demand": 1}),
        (2, 0, 4, {"spot": 2}),
        (2, 4, 4, {"spot": 1, "on-demand": 1}),
    ],
)
def test_the_share_of_spot_is_kept_over_the_whole_pool(count, spot, total, shares):
    assert books(spot="75%").split(count, spot, total) == shares


# ── requests, answers, codes


def test_a_request_names_only_what_is_worth_asking_for():
    choices = [Choice("m5.large", "a", "spot"), Choice("c5.large", "b", "spot")]
    request = create_fleet(options(), choices, ZONES, 3, token="t", limit=0.5, tags={"fleetd:order": "1-1"})
    overrides = request["LaunchTemplateConfigs"][0]["Overrides"]
    assert [(one["InstanceType"], one["SubnetId"]) for one in overrides] == [
        ("m5.large", "subnet-0a"),
        ("c5.large", "subnet-0b"),
    ]
    assert request["TargetCapacitySpecification"]["SpotTargetCapacity"] == 3
    assert request["SpotOptions"]["MaxTotalPrice"] == "1.5"


def test_an_answers_errors_are_read_by_choice():
    override = {"Overrides": {"InstanceType": "m5.large", "SubnetId": "subnet-0a"}}
    error = {"LaunchTemplateAndOverrides": override, "Lifecycle": "spot", "ErrorCode": "X", "ErrorMessage": "y\nz"}
    (refusal,) = read_answer("burst", {"Errors": [error]}, ZONES, {}).refusals
    assert (refusal.choice, refusal.code, refusal.message) == (SPOT, "X", "y z")


@pytest.mark.parametrize(
    ("code", "status", "error", "again", "kind"),
    [
        ("InsufficientInstanceCapacity", 500, ExhaustedError, False, "out"),
        ("VcpuLimitExceeded", 400, RefusedError, False, "quota"),
        ("RequestLimitExceeded", 503, AwsError, True, "moment"),
        ("InternalError", 500, AwsError, True, "moment"),
        ("NobodyKnows", 502, AwsError, True, "no"),
        ("NobodyKnows", 400, RefusedError, False, "no"),
        ("UnauthorizedOperation", 403, RefusedError, False, "no"),
    ],
)
def test_what_a_code_means(code, status, error, again, kind):
    made = fault("pool burst", "CreateFleet", code, "some\nwords", status)
    assert isinstance(made, error)
    assert made.again is again
    assert str(made).startswith(f"pool burst: CreateFleet: {code}: some words")
    assert kind_of(code) == kind


def test_a_failed_activity_tells_a_stockout_and_another_does_not():
    assert "InsufficientInstanceCapacity" in lacking_for(
        [{"StatusCode": "Failed", "StatusMessage": "Could not launch Spot Instances. InsufficientInstanceCapacity - x"}]
    )
    assert lacking_for([{"StatusCode": "Successful", "StatusMessage": "InsufficientInstanceCapacity"}]) == ""
    assert lacking_for([{"StatusCode": "Failed", "StatusMessage": "Client.InternalError"}]) == ""


# ── the ledger


def test_a_token_is_the_same_again_for_an_attempt_and_fits_what_aws_takes():
    class Launch:
        instance = "x" * 32

    made = {names.token(Launch, "burst", "12-345", at) for at in (0, 0, 1)}  # type: ignore[arg-type]
    assert len(made) == 2
    assert all(len(one) <= 64 and one.isascii() for one in made)


def test_what_was_written_is_read_and_what_is_old_is_removed(tmp_path):
    now = [1000.0]
    ledger = Ledger("pool burst", tmp_path / "deep" / "burst", lambda: now[0])
    entry = Entry(
        "1-1", [Attempt("t", "spot", {"a": [1]}, 5.0, [{"InstanceIds": ["i-1"]}]), Attempt("u", "spot", {}, 6.0)]
    )
    ledger.write(entry)
    assert ledger.read("1-1") == entry
    assert ledger.read("1-2") == Entry("1-2")
    import time  # noqa: PLC0415

    now[0] = time.time() + 10.0
    assert ledger.recent(60.0) == [entry]
    now[0] += 2 * 86400.0
    assert ledger.recent(60.0) == []
    assert list((tmp_path / "deep" / "burst").iterdir()) == []


def test_a_damaged_entry_is_told_and_not_taken_for_none(tmp_path):
    ledger = Ledger("pool burst", tmp_path)
    (tmp_path / "1-1.json").write_text("{")
    with pytest.raises(ProviderError, match=r"^pool burst: .*1-1.json cannot be read; look for instances of order 1-1"):
        ledger.read("1-1")
