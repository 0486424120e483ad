"""The lease machine in a bad world, and proof that the world would notice a bad machine."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulator import Simulation, Trouble, Violation

from manyhands.fleet.board import OpenLease
from manyhands.fleet.events import Event, Instruction
from manyhands.fleet.leases import LeaseMachine
from manyhands.fleet.policy import Policy
from manyhands.fleet.tree import bits

ROUGH = Trouble(coordinator_crashes=0.3, delayed=0.3, repeated=0.2, forged=0.3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    num_nodes=st.integers(1, 7),
    max_leaves=st.sampled_from([1, 2, 5, 16, 40]),
    trouble=st.builds(
        Trouble,
        lost=st.sampled_from([0.0, 0.01, 0.05]),
        repeated=st.sampled_from([0.0, 0.2]),
        delayed=st.sampled_from([0.0, 0.1, 0.4]),
        node_events=st.sampled_from([0.0, 0.3, 0.8]),
        coordinator_crashes=st.sampled_from([0.0, 0.02, 0.2]),
        poisoned=st.sampled_from([0.0, 0.0, 0.02]),
    ),
    verify=st.sampled_from([0.0, 0.0, 0.3, 1.0]),
    max_copies=st.sampled_from([1, 2, 3]),
)
def test_every_leaf_counts_once_whatever_happens(
    seed: int, num_nodes: int, max_leaves: int, trouble: Trouble, verify: float, max_copies: int
) -> None:
    policy = Policy(on_nonfinite="skip_step", verify=verify, max_copies=max_copies)
    Simulation(seed, num_nodes=num_nodes, max_leaves=max_leaves, trouble=trouble, policy=policy).run(1500)


def test_the_world_is_as_bad_as_it_says() -> None:
    """Guards the tests above: a simulation in which nothing happens proves nothing."""
    world = Simulation(5, num_nodes=5, trouble=Trouble(poisoned=0.01, coordinator_crashes=0.01)).run(20_000)
    assert world.completed > 300
    assert world.crashes > 3
    assert world.skipped > 10
    assert world.nodes_made > 30
    counts = Simulation(6, num_nodes=5, trouble=Trouble(coordinator_crashes=0.0)).run(20_000).machine.counts
    assert min(counts.reissued, counts.refused, counts.late, counts.duplicates) > 20


def test_broken_nodes_are_benched_and_honest_ones_are_not() -> None:
    benched = 0
    for seed in range(6):
        trouble = Trouble(broken=0.4, poisoned=0.003, coordinator_crashes=0.0)
        benched += Simulation(seed, num_nodes=6, trouble=trouble).run(4_000).benched
    assert benched > 6


def test_nothing_piles_up_over_many_events() -> None:
    world = Simulation(7, num_nodes=6, trouble=Trouble(coordinator_crashes=0.0)).run(100_000)
    roster = world.machine._roster
    assert len(roster.nodes) <= 8
    assert set(roster.idle) <= set(roster.nodes)
    assert len(world.machine._granter.board.leases) < 200


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_events() -> None:
    for seed in range(10):
        trouble = Trouble(poisoned=0.005 * (seed % 2))
        policy = Policy(on_nonfinite="skip_step", verify=0.1 * (seed % 3))
        Simulation(seed, num_nodes=2 + seed, trouble=trouble, policy=policy).run(100_000)


def test_a_log_replays_to_the_same_instructions() -> None:
    world = Simulation(11, num_nodes=4, trouble=Trouble(coordinator_crashes=0.0, poisoned=0.01)).run(5_000)
    written = msgspec.msgpack.encode(world.log)
    log = msgspec.msgpack.decode(written, type=list[tuple[Event, float]])
    first, second = LeaseMachine(1, world.policy), LeaseMachine(1, world.policy)
    for event, now in log:
        assert first.apply(event, now) == second.apply(event, now)
    assert first.counts == second.counts == world.machine.counts
    assert first.nodes() == world.machine.nodes()


class NoFence(LeaseMachine):
    """Forgets to look at the incarnation."""

    def __init__(self, incarnation: int, policy: Policy | None = None) -> None:
        super().__init__(incarnation, policy)
        self._fences.refusal = lambda incarnation: None  # type: ignore[method-assign]


class CreditsEachAnswer(LeaseMachine):
    """Credits what an answer brings, not what it covers for the first time."""

    def _credits(self, leaves: int, fresh: int) -> tuple[int, ...]:
        return tuple(bits(leaves))


class LeakyLease(LeaseMachine):
    """Ends a lease for its node, and leaves it in the book of open ones."""

    def __init__(self, incarnation: int, policy: Policy | None = None) -> None:
        super().__init__(incarnation, policy)
        honest = self._granter.end

        def end(lease: OpenLease, out: list[Instruction] | None) -> None:
            honest(lease, out)
            self._granter.board.open[lease.id] = lease

        self._granter.end = end  # type: ignore[method-assign]


class DropsLeaves(LeaseMachine):
    """Forgets the leaves of a node that leaves."""

    def __init__(self, incarnation: int, policy: Policy | None = None) -> None:
        super().__init__(incarnation, policy)

        def release(lease: OpenLease, out: list[Instruction] | None) -> None:
            self._granter.end(lease, out)
            del self._granter.board.leases[lease.id]

        self._members.release = release  # type: ignore[method-assign]


def reused_fence(incarnation: int, policy: Policy) -> LeaseMachine:
    """The incarnation was not on disk before the crash, so its counter starts again under the same one."""
    return LeaseMachine(1, policy)


def run_rough_worlds(num_worlds: int, factory: Callable[[int, Policy], LeaseMachine]) -> None:
    for seed in range(num_worlds):
        Simulation(seed, factory=factory, num_nodes=4, trouble=ROUGH).run(5_000)


@pytest.mark.parametrize(
    ("factory", "promise"),
    [
        (NoFence, "earlier opening"),
        (reused_fence, "earlier opening"),
        (LeakyLease, "stay|two leases"),
        (CreditsEachAnswer, "credited twice"),
        (DropsLeaves, "idles while|takes"),
    ],
    ids=["no fence", "reused fence", "leaking lease", "credit per answer", "dropped leaves"],
)
def test_planted_bugs_are_found(factory: type[LeaseMachine], promise: str) -> None:
    with pytest.raises(Violation, match=promise):
        run_rough_worlds(20, factory)


def test_the_honest_machine_passes_where_planted_bugs_are_found() -> None:
    run_rough_worlds(10, LeaseMachine)
