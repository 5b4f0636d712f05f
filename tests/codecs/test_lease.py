"""Leases, orders and their signatures: what is said comes back, and no wrong word passes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.codecs import lease as codec
from fleetd.codecs.lease import DeadLetter, JobCounts, Lease, LeaseAnswer, WorkerOrder
from fleetd.errors import ProtocolError

LEASE = Lease(
    fleet="shop",
    pool="rack3",
    node="rack3/52:54:00:12:34:56",
    boot="b1",
    seq=7,
    app="photos",
    state="working",
    slots=4,
    busy=2,
    idle_s=1.5,
    pid=42,
    key="k",
    digest="d",
    crashes=1,
    jobs={"resize": JobCounts(5, 3, 1, 12.5, {"40": 3}, [0.5, 2.0])},
    dead=[DeadLetter("i", "resize", "u", "H:a:1", 3, "raised", "Traceback", "eA==")],
)
SECRET = "s3cret"


def altered(**changes: object) -> bytes:
    return json.dumps({**json.loads(codec.dump(LEASE)), **changes}).encode()


def test_messages_come_back_as_they_were_sent():
    assert codec.load_lease(codec.dump(LEASE)) == LEASE
    answer = LeaseAnswer(next_s=2.0, ttl_s=10.0, dead=["i"])
    assert codec.load_answer(codec.dump(answer)) == answer
    order = WorkerOrder(3, "drain", deadline_s=30.0, epoch=2)
    assert codec.load_order(codec.dump(order)) == order
    assert codec.load_order(codec.dump(WorkerOrder(1, "work"))).deadline_s is None


def test_what_a_newer_side_adds_is_passed_over():
    jobs = {"resize": {"started": 1, "colour": "red"}}
    lease = codec.load_lease(altered(mood="fine", jobs=jobs, dead=[]))
    assert lease.jobs == {"resize": JobCounts(started=1)}


def test_what_may_be_left_out_has_its_default():
    raw = json.loads(codec.dump(LEASE))
    for name in ("idle_s", "pid", "key", "digest", "crashes", "jobs", "dead"):
        del raw[name]
    lease = codec.load_lease(json.dumps(raw).encode())
    assert (lease.idle_s, lease.jobs, lease.dead) == (0.0, {}, [])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"protocol": 2}, "lease: protocol 2 is not spoken here, only 1"),
        ({"protocol": True}, "lease: protocol True is not spoken here, only 1"),
        ({"protocol": 1.0}, "lease: protocol 1.0 is not spoken here, only 1"),
        ({"seq": "7"}, "lease: seq: '7' is not a int"),
        ({"seq": -1}, "lease: seq: -1 is not a int"),
        ({"seq": True}, "lease: seq: True is not a int"),
        ({"seq": 1.5}, "lease: seq: 1.5 is not a int"),
        ({"idle_s": float("nan")}, "lease: "),
        ({"idle_s": float("inf")}, "lease: "),
        ({"idle_s": -0.1}, "lease: idle_s: -0.1 is not a float"),
        ({"idle_s": None}, "lease: idle_s: None is not a float"),
        ({"node": ["x"]}, "lease: node: ['x'] is not a str"),
        ({"busy": 5}, "lease: busy: 5 of 4 slots is impossible"),
        ({"state": "asleep"}, "lease: state: unknown state 'asleep'"),
        ({"state": ["working"]}, "lease: state: unknown state"),
        ({"state": {}}, "lease: state: unknown state"),
        ({"jobs": []}, "lease: jobs: must be an object"),
        ({"jobs": {"resize": 3}}, "lease: jobs: resize: must be an object"),
        ({"jobs": {"resize": {"done": "x"}}}, "lease: jobs: resize: done: 'x' is not a int"),
        ({"jobs": {"resize": {"buckets": {"4": "x"}}}}, "lease: jobs: resize: buckets:"),
        ({"jobs": {"resize": {"buckets": {"4": 1.5}}}}, "lease: jobs: resize: buckets:"),
        ({"jobs": {"resize": {"buckets": {"four": 1}}}}, "lease: jobs: resize: buckets:"),
        ({"jobs": {"resize": {"running_s": [None]}}}, "lease: jobs: resize: running_s:"),
        ({"app": "\ud800"}, "lease: app: '\\ud800' is not a str"),
        ({"jobs": {"\ud800": {}}}, "lease: jobs: a name is no valid text"),
        ({"dead": {}}, "lease: dead: must be a list"),
        ({"dead": [{}]}, "lease: dead: 0: id: is missing"),
        ({"dead": ["x"]}, "lease: dead: 0: must be an object"),
    ],
)
def test_a_wrong_field_is_named(changes, says):
    with pytest.raises(ProtocolError) as caught:
        codec.load_lease(altered(**changes))
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["fleet", "pool", "node", "boot", "seq", "app", "state", "slots", "busy"])
def test_a_missing_field_is_named(name):
    raw = json.loads(codec.dump(LEASE))
    del raw[name]
    with pytest.raises(ProtocolError, match=f"lease: {name}: is missing"):
        codec.load_lease(json.dumps(raw).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a":' * 50_000])
def test_what_is_no_object_is_refused(body):
    for load in (codec.load_lease, codec.load_answer, codec.load_order):
        with pytest.raises(ProtocolError):
            load(body)


def test_a_body_beyond_4_mib_is_refused_unread():
    with pytest.raises(ProtocolError, match="lease: 4194305 bytes, more than the 4194304 allowed"):
        codec.load_lease(b" " * (4 * 1024 * 1024 + 1))


@pytest.mark.parametrize("text", ["1e400", "NaN", "-Infinity", "1" * 5000])
def test_no_number_beyond_reason_comes_in(text):
    body = b'{"protocol": 1, "next_s": ' + text.encode() + b', "ttl_s": 1}'
    with pytest.raises(ProtocolError):
        codec.load_answer(body)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"state": "dance"}, "order: state: unknown state 'dance'"),
        ({"state": []}, "order: state: unknown state"),
        ({"number": None}, "order: number: None is not a int"),
        ({"deadline_s": "1"}, "order: deadline_s: '1' is not a float | None"),
    ],
)
def test_a_wrong_order_is_named(changes, says):
    body = json.dumps({**json.loads(codec.dump(WorkerOrder(1, "work"))), **changes}).encode()
    with pytest.raises(ProtocolError) as caught:
        codec.load_order(body)
    assert says in str(caught.value)


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_protocol_errors(noise):
    with pytest.raises(ProtocolError):
        codec.load_lease(noise)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(json.loads(codec.dump(LEASE)))), JSON)
def test_any_value_in_any_field_is_taken_or_refused(name, value):
    try:
        lease = codec.load_lease(altered(**{name: value}))
    except ProtocolError:
        return
    assert codec.load_lease(codec.dump(lease)) == lease


# ── signatures ───────────────────────────────────────────────────────────────────────────────────────────────────


def signed(method: str = "POST", path: str = "/v1/lease", body: bytes = b"{}") -> str:
    return codec.authorization(codec.join_token(SECRET, "shop", "rack3"), method, path, body)


def test_a_signed_request_is_known_by_its_scope():
    token = codec.join_token(SECRET, "shop", "rack3")
    scope, key = codec.split_token(token)
    assert scope == "shop/rack3"
    found = codec.verify(SECRET, signed(), "POST", "/v1/lease", b"{}")
    assert found == ("shop/rack3", key, codec.sign(key, "POST", "/v1/lease", b"{}"))


def test_the_key_never_travels():
    _, key = codec.split_token(codec.join_token(SECRET, "shop", "rack3"))
    assert key not in signed()
    assert SECRET not in signed()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", "/v1/lease", b"{}"), ("POST", "/v1/leases", b"{}"), ("POST", "/v1/lease", b"{} ")],
)
def test_a_signature_holds_for_one_request_only(method, path, body):
    with pytest.raises(ProtocolError, match="the signature for 'shop/rack3' is wrong"):
        codec.verify(SECRET, signed(), method, path, body)


def test_a_pool_cannot_speak_for_another():
    header = signed().replace("shop/rack3", "shop/rack4")
    with pytest.raises(ProtocolError, match="the signature for 'shop/rack4' is wrong"):
        codec.verify(SECRET, header, "POST", "/v1/lease", b"{}")


def test_another_fleets_secret_does_not_verify():
    with pytest.raises(ProtocolError, match="is wrong"):
        codec.verify("other", signed(), "POST", "/v1/lease", b"{}")


@pytest.mark.parametrize("header", ["", "Basic abc", "Fleetd-HMAC-SHA256 shop/rack3", "Fleetd-HMAC-SHA256 a b c d"])
def test_a_malformed_header_is_refused(header):
    with pytest.raises(ProtocolError, match="authorization: must be"):
        codec.verify(SECRET, header, "POST", "/", b"")


def test_a_signature_of_odd_characters_is_wrong_not_a_crash():
    for signature in ("ü" * 64, "\ud800" * 64):
        with pytest.raises(ProtocolError, match="is wrong"):
            codec.verify(SECRET, f"{codec.SCHEME} shop/rack3 {signature}", "POST", "/", b"")


def test_a_scope_of_odd_characters_is_refused():
    with pytest.raises(ProtocolError, match="the scope is no valid text"):
        codec.verify(SECRET, f"{codec.SCHEME} \ud800 {'a' * 64}", "POST", "/", b"")


def test_an_answer_is_bound_to_its_request():
    _, key = codec.split_token(codec.join_token(SECRET, "shop", "rack3"))
    first = codec.sign_answer(key, "sig-1", b"{}")
    assert first == codec.sign_answer(key, "sig-1", b"{}")
    assert first != codec.sign_answer(key, "sig-2", b"{}")
    assert first != codec.sign_answer(key, "sig-1", b"{ }")


@pytest.mark.parametrize("token", ["", "shop/rack3", "rack3." + "a" * 64, "shop/rack3." + "a" * 63])
def test_a_malformed_token_is_refused_without_showing_it(token):
    with pytest.raises(ProtocolError) as caught:
        codec.split_token(token)
    assert "a" * 63 not in str(caught.value)


def test_a_pool_name_may_hold_dots():
    scope, key = codec.split_token(codec.join_token(SECRET, "shop.eu", "rack.3"))
    assert scope == "shop.eu/rack.3"
    assert len(key) == 64
