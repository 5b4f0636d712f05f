import asyncio
import http.client
import json
import ssl
from pathlib import Path

import pytest

from fleetd.boot.certificate import keep_certificate
from fleetd.codecs.lease import authorization, split_token, verify
from fleetd.codecs.scope import CREDENTIAL_S, read_scope
from fleetd.errors import UnreachableError, UsageError
from fleetd.worker.enrolled import RefusedError, cards, enrol
from tests import servers
from tests.boot.rack import MAC, OTHER, SECRET, Rack, serving


async def enrolled(rack: Rack, token: str, pem: str = "", macs: tuple[str, ...] = (MAC,), try_s: float = 5.0) -> str:
    return await asyncio.to_thread(enrol, rack.enrol, token, pem or rack.pem(), macs, try_s)


def told(rack: Rack) -> list[str]:
    return [text for _, _, text in rack.book.reports()]


def issued(rack: Rack, mac: str = MAC) -> str:
    token = rack.book.token(mac, rack.clock())
    assert token
    return token


async def test_a_token_becomes_a_credential_of_that_node_alone_which_ends(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        rack.now = 1_800_000_000.5
        wake = rack.wake()
        credential = await enrolled(rack, issued(rack))
        assert rack.book.sightings()[MAC].stage == "enrolled"
    scope = read_scope(split_token(credential)[0])
    assert (scope.fleet, scope.node, scope.until) == ("shop", wake.node, 1_800_000_000 + CREDENTIAL_S)
    header = authorization(credential, "POST", "/v1/lease", b"{}")
    assert verify(SECRET, header, "POST", "/v1/lease", b"{}")[0] == str(scope)


async def test_a_second_use_is_refused_and_reported(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        wake = rack.wake()
        token = issued(rack)
        await enrolled(rack, token)
        with pytest.raises(RefusedError, match="second time"):
            await enrolled(rack, token)
        assert len(told(rack)) == 1
        assert told(rack)[0].startswith(f"{wake.node}: its token was used a second time")


async def test_of_two_at_once_one_is_enrolled(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        rack.wake()
        token = issued(rack)
        found = await asyncio.gather(*(enrolled(rack, token) for _ in range(4)), return_exceptions=True)
        assert len([one for one in found if isinstance(one, str)]) == 1
        assert len([one for one in found if isinstance(one, RefusedError)]) == 3


async def test_a_late_an_unknown_and_a_replaced_token_are_refused_and_reported(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        rack.now = 1_800_000_000.0
        rack.wake(window_s=60.0)
        replaced = issued(rack)
        late = issued(rack)
        rack.now += 61.0
        for token, reason in ((late, "too late"), (replaced, "never issued"), ("guessed", "never issued")):
            with pytest.raises(RefusedError, match=reason):
                await enrolled(rack, token)
        assert len(told(rack)) == 3
        assert not any(token in line for token in (late, replaced) for line in told(rack))


async def test_a_token_from_another_machine_is_refused_used_up_and_reported(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        wake = rack.wake()
        token = issued(rack)
        with pytest.raises(RefusedError, match="other network cards"):
            await enrolled(rack, token, macs=(OTHER,))
        with pytest.raises(RefusedError, match="second time"):
            await enrolled(rack, token)
        assert told(rack)[0] == (
            f"{wake.node}: its token came from a machine with other network cards, {OTHER}: refused (from 127.0.0.1)"
        )


async def test_one_of_a_machines_cards_is_enough_and_odd_devices_are_passed_over(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        rack.wake()
        assert await enrolled(rack, issued(rack), macs=("00:00:00:00", "ff:ff:ff:ff:ff:ff", OTHER, MAC.upper()))


async def test_nothing_is_sent_to_whoever_shows_another_certificate(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        rack.wake()
        token = issued(rack)
        other = keep_certificate(tmp_path / "other", "rack3", "127.0.0.1")
        with pytest.raises(RefusedError, match="another certificate"):
            await enrolled(rack, token, other.pem)
        assert told(rack) == []
        assert await enrolled(rack, token)  # it is still good


async def test_guessing_is_stopped_before_it_fills_the_journal(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        for _ in range(5):
            with pytest.raises(RefusedError):
                await enrolled(rack, "guessed")
        rack.wake()
        with pytest.raises(UnreachableError, match="429"):
            await enrolled(rack, issued(rack), try_s=0.1)
        assert len(told(rack)) == 5


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"token": 1}', b'{"macs": []}', b'{"token": "a", "macs": "b"}', b'{"token": "\xc3\xa9"}'],
)
async def test_what_is_no_request_is_refused_in_a_line(tmp_path: Path, body: bytes) -> None:
    async with serving(tmp_path) as rack:
        code, content = await asyncio.to_thread(post, rack, "/v1/enrol", body)
        assert code == 422
        assert json.loads(content)["error"].startswith("body: must be")
        assert (await asyncio.to_thread(post, rack, "/v1/enroll", body))[0] == 404
        assert told(rack) == []


def post(rack: Rack, path: str, body: bytes) -> tuple[int, bytes]:
    context = ssl.create_default_context(cadata=rack.pem())
    link = http.client.HTTPSConnection("127.0.0.1", rack.enrols, timeout=10, context=context)
    link.request("POST", path, body)
    answer = link.getresponse()
    content = answer.read()
    link.close()
    return answer.status, content


async def test_the_plain_listener_enrols_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        link = http.client.HTTPConnection("127.0.0.1", rack.port, timeout=10)
        await asyncio.to_thread(link.request, "POST", "/v1/enrol", b'{"token": "a"}')
        assert (await asyncio.to_thread(link.getresponse)).status == 405
        link.close()


def test_a_service_that_is_away_is_asked_again_until_it_is_there() -> None:
    port = servers.free_port()
    pem = ssl.DER_cert_to_PEM_cert(b"0")
    with pytest.raises(UnreachableError, match=f"127.0.0.1:{port} does not answer"):
        enrol(f"https://127.0.0.1:{port}", "t", pem, (MAC,), try_s=0.5)


@pytest.mark.parametrize(
    ("url", "ca"),
    [("http://127.0.0.1:1", "x"), ("nonsense", "x"), ("https://127.0.0.1:1", "no certificate")],
)
def test_what_cannot_be_right_is_said_at_once(url: str, ca: str) -> None:
    with pytest.raises(UsageError):
        enrol(url, "t", ca, (MAC,))


def test_the_cards_of_this_machine_are_found_without_the_loopback(tmp_path: Path) -> None:
    for name, mac in (("lo", "00:00:00:00:00:00"), ("eth0", MAC), ("eth1", OTHER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "address").write_text(f"{mac}\n")
    assert cards(tmp_path) == [MAC, OTHER]


def test_a_certificate_stays_until_the_address_changes_and_its_key_is_the_owners_alone(tmp_path: Path) -> None:
    first = keep_certificate(tmp_path / "rack", "rack3", "10.77.0.1")
    assert keep_certificate(tmp_path / "rack", "rack3", "10.77.0.1").pem == first.pem
    assert first.key.stat().st_mode & 0o777 == 0o600
    second = keep_certificate(tmp_path / "rack", "rack3", "boot.example")
    assert second.pem != first.pem
    first.key.unlink()
    third = keep_certificate(tmp_path / "rack", "rack3", "boot.example")
    assert third.pem != second.pem
    assert third.context().minimum_version == ssl.TLSVersion.TLSv1_3
    assert len(third.fingerprint) == 95
