"""How a release comes to the nodes: waves, canaries, refusals, rollbacks. Values in, values out."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.codecs.lease import ReleaseCounts
from fleetd.core.decide import decide
from fleetd.core.memory import Memory, Node, PoolMemory, Rollout
from fleetd.core.model import (
    ActivateCommand,
    AppPolicy,
    LeaseView,
    Observation,
    PardonCommand,
    Phase,
    Policy,
    PoolPolicy,
    ReloadPolicy,
    RollbackCommand,
)
from fleetd.core.rollout import roll

OLD, NEW, OTHER = "a" * 64, "b" * 64, "c" * 64
APP = AppPolicy("photos", reload=ReloadPolicy(canary_s=30.0, probation_s=60.0))
POLICY = Policy("test", {}, {"photos": APP}, {}, {})


class Nodes:
    """Nodes that do what they are told, at once or when let, and tell it with their leases."""

    def __init__(self, count: int, active: str = OLD) -> None:
        self.now = 1000.0
        self.nodes = {
            f"local/{at}": Node(f"local/{at}", "local", "photos", Phase.READY, 0.0, 0.0, 1, digest=active)
            for at in range(count)
        }
        self.rollouts = {"photos": Rollout(active=active, active_at=0.0)}
        self.refused: dict[str, dict[str, str]] = {}
        self.counts: dict[str, dict[str, ReleaseCounts]] = {}
        self.said: list[str] = []
        self.bad: set[str] = set()

    def tick(self, *commands, step_s: float = 1.0, obey: bool = True) -> list[tuple[str, str]]:
        """One tick; returns who was told what."""
        self.now += step_s
        leases = {
            name: LeaseView(
                name,
                "local",
                "photos",
                "working",
                1,
                0,
                0.0,
                0.0,
                node.digest,
                self.refused.get(name, {}),
                self.counts.get(name, {}),
            )
            for name, node in self.nodes.items()
        }
        memory = Memory(now=self.now, nodes=self.nodes, rollouts=self.rollouts)
        self.rollouts, intents, events = roll(Observation(self.now, leases=leases, commands=commands), POLICY, memory)
        self.said += events
        for intent in intents if obey else ():
            if intent.digest in self.bad:
                self.refused.setdefault(intent.node, {})[intent.digest] = "ImportError: no such module"
            else:
                self.nodes[intent.node] = replace(self.nodes[intent.node], digest=intent.digest)
        return [(intent.node, intent.digest) for intent in intents]

    def running(self, digest: str) -> int:
        return sum(node.digest == digest for node in self.nodes.values())

    @property
    def rollout(self) -> Rollout:
        return self.rollouts["photos"]


def test_the_first_release_is_active_at_once():
    nodes = Nodes(0)
    nodes.rollouts = {}
    assert nodes.tick(ActivateCommand("photos", NEW)) == []
    assert nodes.rollout.active == NEW


def test_a_release_comes_by_waves_each_waiting_for_the_one_before():
    nodes = Nodes(10)
    assert len(nodes.tick(ActivateCommand("photos", NEW), obey=False)) == 3
    assert nodes.tick(obey=False) == [], "a node is told once"
    for name in ("local/0", "local/1", "local/2"):
        nodes.nodes[name] = replace(nodes.nodes[name], digest=NEW)
    assert len(nodes.tick()) == 2
    assert nodes.running(NEW) == 5
    assert len(nodes.tick()) == 5
    nodes.tick()
    assert (nodes.rollout.active, nodes.rollout.previous, nodes.rollout.candidate) == (NEW, OLD, "")


def test_a_canary_is_watched_for_its_time():
    nodes = Nodes(50)
    assert len(nodes.tick(ActivateCommand("photos", NEW, canary=0.1))) == 5
    for _ in range(30):
        nodes.tick()
    assert nodes.running(NEW) == 5
    for _ in range(6):
        nodes.tick()
    assert nodes.running(NEW) == 50
    assert nodes.rollout.active == NEW


def test_a_refusal_by_one_canary_node_stops_it_there():
    nodes = Nodes(50)
    nodes.bad = {NEW}
    told = nodes.tick(ActivateCommand("photos", NEW, canary=0.1))
    assert len(told) == 5
    nodes.tick()
    assert nodes.rollout.candidate == ""
    assert nodes.rollout.refused == {NEW: "local/0: ImportError: no such module"}
    for _ in range(100):
        assert nodes.tick() == []
    assert nodes.running(OLD) == 50
    assert "is refused, aaaaaaaaaaaa stays: local/0: ImportError" in nodes.said[-1]


def test_canary_nodes_that_took_it_go_back_when_another_refuses():
    nodes = Nodes(20)
    nodes.tick(ActivateCommand("photos", NEW, canary=0.5))
    assert nodes.running(NEW) == 10
    nodes.refused = {"local/3": {NEW: "2 jobs crashed it"}}
    back = nodes.tick()
    assert len(back) == 10
    assert nodes.running(OLD) == 20


def test_a_refused_release_is_not_activated_until_it_is_pardoned():
    nodes = Nodes(4)
    nodes.bad = {NEW}
    nodes.tick(ActivateCommand("photos", NEW))
    nodes.tick()
    assert nodes.tick(ActivateCommand("photos", NEW)) == []
    assert "stays out until it is pardoned" in nodes.said[-1]
    nodes.bad = set()
    pardons = nodes.tick(PardonCommand("photos", NEW))
    assert [digest for _, digest in pardons] == [OLD], "the node that refused it is told to forget that"
    nodes.refused = {}
    assert len(nodes.tick(ActivateCommand("photos", NEW))) == 1


def test_a_pardon_of_one_release_leaves_a_node_with_the_other_that_comes_in():
    """Found by chance, below: the node was told the active release with the pardon, and the candidate never again."""
    fleet = Nodes(1)
    fleet.bad = {NEW}
    fleet.tick(ActivateCommand("photos", NEW))
    fleet.tick()
    fleet.tick(ActivateCommand("photos", OTHER, canary=0.2))
    assert fleet.running(OTHER) == 1
    assert fleet.tick(PardonCommand("photos", NEW)) == [("local/0", OTHER)]


def test_failures_over_all_nodes_turn_a_canary_back_where_each_alone_proves_nothing():
    nodes = Nodes(20)
    nodes.counts = {name: {OLD: ReleaseCounts(done=500)} for name in nodes.nodes}
    nodes.tick(ActivateCommand("photos", NEW, canary=0.5))
    for at in range(10):
        nodes.counts[f"local/{at}"] = {OLD: ReleaseCounts(done=500), NEW: ReleaseCounts(done=8, failed=2)}
    nodes.tick()
    assert nodes.rollout.refused[NEW] == "20 of 100 jobs failed, where 0.0 % did before"


@pytest.mark.parametrize(("after_s", "active"), [(10.0, OLD), (90.0, NEW)])
def test_an_active_release_is_turned_back_on_trial_and_not_after_it(after_s, active):
    nodes = Nodes(3)
    nodes.tick(ActivateCommand("photos", NEW, at_once=True))
    nodes.tick()
    assert nodes.rollout.active == NEW
    nodes.tick(step_s=after_s)
    nodes.refused = {"local/1": {NEW: "no space left"}}
    nodes.tick()
    assert nodes.rollout.active == active
    assert nodes.running(active) == 3


def test_a_few_nodes_that_never_follow_hold_the_others_up_for_a_time_and_not_for_ever():
    """Seen to fail without `overdue`, and to go on too early with `LATE_S` at 0."""
    fleet = Nodes(12)
    fleet.tick(ActivateCommand("photos", NEW))

    def obey(ticks: int) -> None:
        for _ in range(ticks):
            for node, digest in fleet.tick(obey=False, step_s=10.0):
                if node != "local/1":
                    fleet.nodes[node] = replace(fleet.nodes[node], digest=digest)

    for node, digest in [("local/0", NEW), ("local/10", NEW)]:
        fleet.nodes[node] = replace(fleet.nodes[node], digest=digest)
    fleet.nodes["local/1"] = replace(fleet.nodes["local/1"], digest=OLD)
    obey(50)
    assert fleet.rollout.share == 0.25, "ten minutes are not over"
    obey(300)
    assert fleet.rollout.active == NEW
    assert fleet.running(NEW) == 11
    (said,) = [line for line in fleet.said if "is active on 11 of 12" in line]
    assert said.endswith("1 nodes did not follow within 600 s: local/1")


def test_a_canary_that_never_follows_stops_everything():
    fleet = Nodes(4)
    fleet.tick(ActivateCommand("photos", NEW, canary=0.25), obey=False)
    for _ in range(200):
        fleet.tick(step_s=10.0, obey=False)
    assert (fleet.rollout.active, fleet.rollout.candidate) == (OLD, NEW)


def test_an_operator_goes_back_and_forth():
    nodes = Nodes(3)
    nodes.tick(ActivateCommand("photos", NEW, at_once=True))
    nodes.tick()
    nodes.tick(RollbackCommand("photos"))
    assert (nodes.rollout.active, nodes.running(OLD)) == (OLD, 3)
    nodes.tick(RollbackCommand("photos"))
    assert nodes.running(NEW) == 3


def test_a_rollback_in_the_middle_takes_the_candidate_back():
    nodes = Nodes(8)
    nodes.tick(ActivateCommand("photos", NEW))
    nodes.tick(RollbackCommand("photos"))
    assert nodes.running(OLD) == 8
    assert (nodes.rollout.active, nodes.rollout.candidate) == (OLD, "")


def test_a_newer_release_replaces_one_that_is_coming_in():
    nodes = Nodes(8)
    nodes.tick(ActivateCommand("photos", NEW))
    for _ in range(5):
        nodes.tick(*([ActivateCommand("photos", OTHER)] if not nodes.running(OTHER) else []))
    assert nodes.running(OTHER) == 8
    assert (nodes.rollout.active, nodes.rollout.previous) == (OTHER, OLD)


def test_nodes_that_drain_are_left_alone():
    nodes = Nodes(2)
    nodes.nodes["local/1"] = replace(nodes.nodes["local/1"], phase=Phase.DRAINING)
    told = nodes.tick(ActivateCommand("photos", NEW, at_once=True))
    assert told == [("local/0", NEW)]


def test_a_node_that_starts_with_nothing_is_told_the_active_release():
    nodes = Nodes(2)
    nodes.nodes["local/1"] = replace(nodes.nodes["local/1"], phase=Phase.BOOTING, digest="")
    assert nodes.tick() == [("local/1", OLD)]


def test_few_failures_prove_nothing_and_many_do():
    before = ReleaseCounts(done=9_900, failed=100)
    assert ReleaseCounts(done=0, failed=4).worse_than(before) is None
    assert ReleaseCounts(done=990, failed=10).worse_than(before) is None
    assert ReleaseCounts(done=950, failed=50).worse_than(before) == "50 of 1000 jobs failed, where 1.0 % did before"
    assert ReleaseCounts(done=40, failed=6).worse_than(ReleaseCounts()) is not None


STEPS = st.lists(
    st.one_of(
        st.sampled_from([OLD, NEW, OTHER]).map(lambda digest: ActivateCommand("photos", digest)),
        st.sampled_from([NEW, OTHER]).map(lambda digest: ActivateCommand("photos", digest, canary=0.2)),
        st.just(RollbackCommand("photos")),
        st.sampled_from([NEW, OTHER]).map(lambda digest: PardonCommand("photos", digest)),
        st.none(),
    ),
    max_size=12,
)


@given(steps=STEPS, bad=st.sets(st.sampled_from([NEW, OTHER])), count=st.integers(0, 9))
def test_whatever_happens_all_nodes_come_to_run_the_active_release_and_never_a_refused_one(steps, bad, count):
    nodes = Nodes(count)
    nodes.bad = bad
    for command in steps:
        nodes.tick(*([command] if command else []), step_s=7.0)
        if isinstance(command, PardonCommand):
            for refused in nodes.refused.values():
                refused.pop(command.digest, None)
    for _ in range(40):
        nodes.tick(step_s=7.0)
    assert nodes.rollout.candidate == ""
    assert nodes.tick() == []
    good = [node for name, node in nodes.nodes.items() if nodes.rollout.active not in nodes.refused.get(name, {})]
    assert {node.digest for node in good} <= {nodes.rollout.active}
    assert not bad & {node.digest for node in nodes.nodes.values()}


def test_a_release_that_is_activated_lets_pools_be_asked_again():
    """Seen to fail without it: a pool that had no release to run stays shut for minutes."""
    pools = {"local": PoolPolicy("local", "fake", None, ("photos",), slots=1)}
    policy = replace(POLICY, pools=pools)
    shut = PoolMemory(failures=3, open_until=1300.0, why_open="refused: app photos has no active release")
    memory = Memory(now=1000.0, pools={"local": shut})
    observation = Observation(1001.0, commands=(ActivateCommand("photos", NEW),))
    plan, after = decide(observation, policy, memory)
    assert (after.pools["local"].open_until, after.rollouts["photos"].active) == (0.0, NEW)
    assert "pool local: asked again, since an operator changed the release of photos" in plan.events
