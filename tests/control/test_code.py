"""The shelf that a controller gives code from follows its policy."""

from dataclasses import replace

import pytest

from fleetd.control.code import Code
from fleetd.core.model import Policy, ReleasesPolicy
from fleetd.errors import FleetdError
from tests.releases import sample

KEY = "ed25519:0amqu2H9gh83J5V5erMide+3MM74j21tK48pxvZOS5k="


def test_a_key_that_a_reload_brings_counts_at_once(tmp_path):
    """Seen to fail with the shelf opened once for all."""
    policies = [Policy("test", {}, {}, {}, {})]
    code = Code(lambda: policies[-1], tmp_path / "state")
    path = tmp_path / "unsigned"
    digest = sample.bundle(path)
    assert code.put(path).digest == digest
    assert code.fit("photos", digest).signed is False
    policies.append(replace(policies[0], releases=ReleasesPolicy(keys=(KEY,))))
    for refused in (lambda: code.fit("photos", digest), lambda: code.open(digest), lambda: code.put(path)):
        with pytest.raises(FleetdError, match="is not signed, and signatures are asked for"):
            refused()
