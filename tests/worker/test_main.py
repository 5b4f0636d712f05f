"""Settings, messages, log lines and wrong arguments."""

import logging
import os
from pathlib import Path

import pytest

from fleetd.dispatchers.address import Address
from fleetd.worker import settings as settings_text
from fleetd.worker.control import Control, pair
from fleetd.worker.logs import _Text
from fleetd.worker.main import main
from fleetd.worker.settings import Settings


def test_settings_survive_their_journey() -> None:
    settings = Settings((Address("::1", 4731, tls=True), Address("h")), Path("/a"), 3, Path("/s"), job_limit_s=2.5)
    assert settings_text.load(settings_text.dump(settings)) == settings


def test_messages_carry_descriptors_and_an_end() -> None:
    ours, bare = pair()
    theirs = Control(bare)
    with pytest.raises(BlockingIOError):
        ours.receive()
    read, write = os.pipe()
    assert theirs.send({"socket": 1}, write)
    message = ours.receive()
    assert message is not None
    assert message.body == {"socket": 1}
    os.write(message.fds[0], b"x")
    assert os.read(read, 1) == b"x"
    theirs.close()
    assert ours.receive() is None
    assert ours.send({"x": 1}) is False
    ours.close()
    for fd in (read, write, *message.fds):
        os.close(fd)


def test_a_log_line_stays_one_line() -> None:
    record = logging.makeLogRecord({"msg": "it\nfailed", "fields": {"reason": "a b\nc", "empty": "", "n": 1.5}})
    line = _Text({"slot": 0}).format(record)
    assert "\n" not in line
    assert line.endswith(r'it failed  reason="a b\nc" n=1.500 slot=0')


@pytest.mark.parametrize(
    "args",
    [
        ["--server", "no:port:here", "--app", "."],
        ["--server", "127.0.0.1:1", "--app", "/nonexistent"],
        ["--server", "127.0.0.1:1", "--app", __file__, "--controller", "ftp://x"],
    ],
)
def test_wrong_arguments_exit_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
