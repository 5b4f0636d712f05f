"""The spool of dead letters."""

import base64
import json
import os
from pathlib import Path
from typing import Any

from fleetd.worker import dead


def _letter(reason: str = "r", payload: bytes = b"x") -> Any:
    return dead.make_letter("f", (b"H:1", b"u\xff"), payload, attempts=3, reason=reason, traceback="t")


def test_letters_survive_on_disk_until_acknowledged(tmp_path: Path) -> None:
    spool = tmp_path / "a" / "spool"
    letters = [_letter(), _letter()]
    assert all(dead.write(spool, letter) for letter in letters)
    assert {letter.id for letter in dead.waiting(spool)} == {letter.id for letter in letters}
    dead.acknowledge(spool, [letters[0].id, "../../etc/passwd", "unknown"])
    assert dead.waiting(spool) == [letters[1]]


def test_a_lease_carries_only_what_it_can(tmp_path: Path) -> None:
    for _ in range(5):
        dead.write(tmp_path, _letter(payload=b"y" * 300_000))
    assert 1 <= len(dead.waiting(tmp_path)) <= 3
    for _ in range(5):
        dead.acknowledge(tmp_path, [letter.id for letter in dead.waiting(tmp_path)])
    assert not dead.waiting(tmp_path)


def test_a_payload_too_large_to_send_stays_on_the_node(tmp_path: Path) -> None:
    payload = os.urandom(1_000_000)
    dead.write(tmp_path, _letter(payload=payload))
    (sent,) = dead.waiting(tmp_path)
    assert sent.payload == ""
    assert "too large to send" in sent.reason
    dead.acknowledge(tmp_path, [sent.id])
    assert not dead.waiting(tmp_path)
    (kept,) = tmp_path.glob("*.kept")
    assert base64.b64decode(json.loads(kept.read_text())["payload"]) == payload


def test_what_is_no_letter_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    dead.write(tmp_path, _letter())
    assert len(dead.waiting(tmp_path)) == 1
    assert (tmp_path / "x.json.bad").exists()


def test_a_spool_that_cannot_be_written_is_logged_not_raised(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert dead.write(tmp_path / "file" / "spool", _letter()) is False
