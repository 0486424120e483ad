"""What the machine answers to each event: lists of instructions, compared whole."""

from __future__ import annotations

import pytest

from manyhands.errors import UsageError
from manyhands.fleet.events import (
    Alive,
    Answer,
    Ban,
    Complete,
    Cut,
    Drain,
    Duplicate,
    Grant,
    HandBack,
    Instruction,
    Join,
    Lease,
    Leave,
    Open,
    Receipt,
    Refuse,
    Take,
    Tick,
)
from manyhands.fleet.leases import LeaseMachine
from manyhands.fleet.policy import Policy

INCARNATION = 3


def machine_with(*keys: str, policy: Policy | None = None, manual: bool = False) -> LeaseMachine:
    machine = LeaseMachine(INCARNATION, policy)
    for key in keys:
        assert machine.apply(Join(key, manual=manual), 0.0) == []
    return machine


def grant(key: str, lease: int, *subtrees: int, step: int = 0, at: float = 0.0, until: float = 30.0) -> Grant:
    return Grant(key, Lease(lease, INCARNATION, step, key, subtrees, at, until))


def answer(key: str, lease: int, subtree: int, step: int = 0, digest: int = 9) -> Answer:
    return Answer(key, INCARNATION, step, lease, subtree, digest)


def refusal(out: list[Instruction]) -> str:
    assert len(out) == 1
    assert isinstance(out[0], Refuse)
    return out[0].reason


def states(machine: LeaseMachine) -> dict[str, str]:
    return {view.key: view.state for view in machine.nodes()}


def warm(machine: LeaseMachine, seconds: dict[str, float]) -> None:
    """Run step 0 with a leaf a node, so that the machine knows each node's speed."""
    out = machine.apply(Open(0, len(seconds)), 0.0)
    depth = (len(seconds) - 1).bit_length()
    for one in out:
        assert isinstance(one, Grant)
        for subtree in one.lease.subtrees:
            leaf = subtree - (1 << depth)
            machine.apply(Receipt(one.key, INCARNATION, one.lease.id, leaf, seconds[one.key]), 0.0)
            machine.apply(answer(one.key, one.lease.id, subtree), 0.0)
    assert not machine.is_open


# ---- a step ------------------------------------------------------------------------------------------


def test_a_step_of_two_nodes_from_open_to_complete() -> None:
    machine = machine_with("a", "b")
    assert states(machine) == {"a": "ready", "b": "ready"}
    assert machine.apply(Open(0, 4), 0.0) == [grant("a", 1, 2), grant("b", 2, 3)]
    assert states(machine) == {"a": "computing", "b": "computing"}
    assert machine.apply(answer("b", 2, 3), 0.1) == [Take("b", 2, 3, (), (2, 3))]
    assert machine.held() == [3]
    assert states(machine)["b"] == "standby"
    assert machine.apply(answer("a", 1, 2), 0.1) == [Take("a", 1, 2, (), (0, 1)), Complete(0)]
    assert machine.held() == [1]
    assert machine.open_leases() == {}
    assert (machine.counts.applied, machine.counts.leases, machine.counts.reissued) == (4, 2, 0)


def test_one_of_one_leaf() -> None:
    machine = machine_with("a")
    assert machine.apply(Open(0, 1), 0.0) == [grant("a", 1, 1)]
    assert machine.apply(answer("a", 1, 1), 0.0) == [Take("a", 1, 1, (), (0,)), Complete(0)]


def test_absent_leaves_are_complete_from_the_start() -> None:
    machine = machine_with("a")
    assert machine.apply(Open(0, 5), 0.0) == [grant("a", 1, 1)]
    assert machine.apply(answer("a", 1, 12), 0.0) == [Take("a", 1, 12, (), (4,))]
    assert machine.held() == [3]
    assert machine.apply(answer("a", 1, 2), 0.0) == [Take("a", 1, 2, (), (0, 1, 2, 3)), Complete(0)]


def test_nodes_beyond_the_leaves_stand_by() -> None:
    machine = machine_with("a", "b", "c")
    assert machine.apply(Open(0, 2), 0.0) == [grant("a", 1, 2), grant("b", 2, 3)]
    assert states(machine)["c"] == "standby"


def test_shares_follow_measured_speed_fastest_first() -> None:
    machine = machine_with("slow", "fast")
    warm(machine, {"slow": 0.03, "fast": 0.01})
    out = machine.apply(Open(1, 8), 1.0)
    assert out == [
        grant("fast", 3, 2, 6, step=1, at=1.0, until=3.0),
        grant("slow", 4, 7, step=1, at=1.0, until=3.0),
    ]


def test_a_manual_node_gets_one_leaf_a_lease() -> None:
    machine = machine_with("loop", manual=True)
    assert machine.apply(Open(0, 2), 0.0) == [grant("loop", 1, 2)]
    assert machine.apply(answer("loop", 1, 2), 0.0) == [Take("loop", 1, 2, (), (0,)), grant("loop", 2, 3)]


def test_a_step_without_nodes_waits_for_one() -> None:
    machine = machine_with()
    assert machine.apply(Open(0, 4), 0.0) == []
    assert machine.apply(Join("a"), 5.0) == [grant("a", 1, 1, at=5.0, until=35.0)]


def test_an_open_step_that_is_replaced_ends_its_leases() -> None:
    machine = machine_with("a")
    machine.apply(Open(4, 2), 0.0)
    assert machine.apply(Open(5, 2), 0.0) == [Cut("a", 1, ()), grant("a", 2, 1, step=5)]


@pytest.mark.parametrize("leaves", [0, -1, (1 << 20) + 1])
def test_a_step_needs_leaves(leaves: int) -> None:
    with pytest.raises(UsageError, match=f"asks for {leaves}"):
        machine_with().apply(Open(0, leaves), 0.0)


def test_steps_do_not_go_back() -> None:
    machine = machine_with()
    machine.apply(Open(7, 1), 0.0)
    with pytest.raises(UsageError, match="step 6 cannot open after step 7"):
        machine.apply(Open(6, 1), 0.0)


# ---- answers -----------------------------------------------------------------------------------------


def test_a_whole_answer_replaces_the_parts_it_holds() -> None:
    machine = machine_with("a")
    machine.apply(Open(0, 4), 0.0)
    machine.apply(answer("a", 1, 4), 0.0)
    assert machine.apply(answer("a", 1, 2), 0.0) == [Take("a", 1, 2, (4,), (1,))]
    assert machine.apply(answer("a", 1, 1), 0.0) == [Take("a", 1, 1, (2,), (2, 3)), Complete(0)]
    assert machine.counts.applied == 4


@pytest.mark.parametrize(
    ("subtree", "digest", "verdict"), [(2, 9, "equal"), (2, 8, "differs"), (4, 9, "unknown")]
)
def test_what_is_covered_already_is_compared(subtree: int, digest: int, verdict: str) -> None:
    machine = machine_with("a")
    machine.apply(Open(0, 4), 0.0)
    machine.apply(answer("a", 1, 2), 0.0)
    assert machine.apply(answer("a", 1, subtree, digest=digest), 0.0) == [Duplicate("a", subtree, verdict)]
    assert machine.counts.duplicates == 1
    assert machine.counts.applied == 2


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (Answer("a", 2, 0, 1, 2, 9), "incarnation 2 of the coordinator, and incarnation 3"),
        (Answer("a", 4, 0, 1, 2, 9), "incarnation 4"),
        (answer("a", 2, 3), "lease 2 belongs to another node"),
        (answer("a", 7, 2), "lease 7 was never granted; the newest is 2"),
        (answer("a", 0, 2), "lease 0"),
        (answer("a", -5, 2), "lease -5"),
        (answer("a", 1, 1), "subtree 1 has leaves that lease 1 was not granted"),
        (answer("a", 1, 3), "subtree 3 has leaves"),
        (answer("a", 1, 0), "no subtree 0: its numbers end at 7"),
        (answer("a", 1, -1), "no subtree -1"),
        (answer("a", 1, 8), "no subtree 8"),
        (answer("a", 1, 2, step=1), "is of step 0, and the answer says step 1"),
        (answer("nobody", 1, 2), "has not joined"),
        (Receipt("a", INCARNATION, 1, 2, 0.1), "leaf 2 is not part of lease 1"),
        (Receipt("a", INCARNATION, 1, -1, 0.1), "leaf -1 is not part"),
        (Receipt("a", INCARNATION, 1, 0, float("nan")), "cannot have taken nan seconds"),
        (Receipt("a", INCARNATION, 1, 0, -1.0), "cannot have taken -1.0 seconds"),
        (HandBack("a", 2), "belongs to another node"),
        (Alive("nobody"), "has not joined"),
    ],
)
def test_refusals_say_why_and_change_nothing(event: Answer, words: str) -> None:
    machine = machine_with("a", "b")
    machine.apply(Open(0, 4), 0.0)
    before = machine.open_leases(), machine.covered(), machine.nodes()
    assert words in refusal(machine.apply(event, 0.1))
    assert (machine.open_leases(), machine.covered(), machine.nodes()) == before
    assert machine.counts.refused == 1


def test_an_answer_after_its_step_is_late_and_normal() -> None:
    machine = machine_with("a")
    machine.apply(Open(0, 2), 0.0)
    machine.apply(answer("a", 1, 1), 0.0)
    machine.apply(Open(1, 2), 0.0)
    assert "lease 1 is late: step 1 is open" in refusal(machine.apply(answer("a", 1, 1), 0.0))
    assert (machine.counts.late, machine.counts.refused) == (1, 0)


# ---- coming and going --------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [Leave("b", "killed"), Ban("b", "rude")])
def test_a_survivor_gets_the_leaves_of_the_dead_in_the_same_call(event: Leave | Ban) -> None:
    machine = machine_with("a", "b")
    machine.apply(Open(0, 4), 0.0)
    machine.apply(answer("a", 1, 2), 0.1)
    assert machine.apply(event, 0.2) == [grant("a", 3, 3, at=0.2, until=30.2)]
    assert machine.counts.reissued == 2
    assert "has not joined" in refusal(machine.apply(answer("b", 2, 3), 0.3))


def test_a_busy_survivor_gets_them_when_it_is_done() -> None:
    machine = machine_with("a", "b")
    machine.apply(Open(0, 4), 0.0)
    assert machine.apply(Leave("b"), 0.0) == []
    assert machine.apply(answer("a", 1, 2), 0.0) == [Take("a", 1, 2, (), (0, 1)), grant("a", 3, 3)]


def test_what_was_covered_before_a_node_left_stays() -> None:
    machine = machine_with("a", "b")
    machine.apply(Open(0, 8), 0.0)
    machine.apply(answer("b", 2, 6), 0.0)
    machine.apply(Leave("b"), 0.0)
    assert machine.apply(answer("a", 1, 2), 0.0) == [Take("a", 1, 2, (), (0, 1, 2, 3)), grant("a", 3, 7)]


def test_a_newer_connection_fences_the_older() -> None:
    machine = machine_with("a")
    machine.apply(Open(0, 2), 0.0)
    assert machine.apply(Join("a"), 1.0) == [grant("a", 2, 1, at=1.0, until=31.0)]
    assert "lease 1 was ended" in refusal(machine.apply(answer("a", 1, 1), 1.0))
    assert len(machine.nodes()) == 1


def test_a_banned_node_may_not_come_back() -> None:
    machine = machine_with("a")
    machine.apply(Ban("a", "it lied"), 0.0)
    assert refusal(machine.apply(Join("a"), 0.0)) == "this node was banned: it lied"
    assert machine.nodes() == []


def test_a_draining_node_hands_back_and_gets_no_more() -> None:
    machine = machine_with("a", "b")
    machine.apply(Open(0, 4), 0.0)
    assert machine.apply(Drain("a"), 0.0) == [Cut("a", 1, ())]
    assert states(machine)["a"] == "draining"
    assert machine.apply(answer("b", 2, 3), 0.0) == [Take("b", 2, 3, (), (2, 3)), grant("b", 3, 2)]
    assert "lease 1 was ended" in refusal(machine.apply(answer("a", 1, 2), 0.0))


def test_a_node_that_hands_back_rests_a_moment() -> None:
    machine = machine_with("a")
    machine.apply(Open(0, 2), 0.0)
    assert machine.apply(HandBack("a", 1, "busy"), 1.0) == []
    assert machine.next_deadline() == 2.0
    assert machine.apply(Tick(), 1.9) == []
    assert machine.apply(Tick(), 2.0) == [grant("a", 2, 1, at=2.0, until=32.0)]


# ---- slow, overdue, late joiners ---------------------------------------------------------------------


def test_an_overdue_lease_is_leased_to_others_as_well_and_the_first_answer_wins() -> None:
    machine = machine_with("a", "b")
    machine.apply(Open(0, 2), 0.0)
    machine.apply(answer("b", 2, 3), 0.0)
    assert machine.next_deadline() == 30.0
    assert machine.apply(Tick(), 30.0) == [grant("b", 3, 2, at=30.0, until=60.0)]
    assert machine.apply(answer("a", 1, 2), 31.0) == [
        Take("a", 1, 2, (), (0,)),
        Cut("b", 3, ()),
        Complete(0),
    ]
    assert machine.apply(answer("b", 3, 2), 31.1) == [Duplicate("b", 2, "equal")]


def test_copies_are_bounded_until_they_are_overdue_themselves() -> None:
    machine = machine_with("a", "b", "c")
    machine.apply(Open(0, 1), 0.0)
    assert machine.apply(Tick(), 30.0) == [grant("b", 2, 1, at=30.0, until=60.0)]
    assert machine.apply(Tick(), 31.0) == []
    assert machine.apply(Tick(), 60.0) == [grant("c", 3, 1, at=60.0, until=90.0)]


def test_the_first_receipt_tightens_deadlines_given_in_the_dark() -> None:
    machine = machine_with("a", "b")
    machine.apply(Open(0, 4), 0.0)
    machine.apply(Receipt("a", INCARNATION, 1, 0, 0.5), 0.5)
    deadline = machine.next_deadline()
    assert deadline is not None
    assert deadline <= 0.5 + 3.0 * 2 * 0.5


def test_a_slow_link_is_no_reason_to_lease_again() -> None:
    """Half a second of computing, two on the way: such leases are late for nobody, and not worth a copy."""
    machine = machine_with("a", "b")
    for step in range(3):
        now = 10.0 * step
        machine.apply(Open(step, 2), now)
        first, second = sorted(machine.open_leases())
        heard: list[Instruction] = []
        heard += machine.apply(Receipt("a", INCARNATION, first, 0, 0.5), now + 2.5)
        heard += machine.apply(answer("a", first, 2, step=step), now + 2.5)
        for later in (3.0, 4.0, 5.0):
            heard += machine.apply(Tick(), now + later)
        assert not any(isinstance(one, Grant) for one in heard)
        machine.apply(Receipt("b", INCARNATION, second, 1, 0.5), now + 5.0)
        assert Complete(step) in machine.apply(answer("b", second, 3, step=step), now + 5.0)


def test_two_silent_overdue_leases_suspend_until_a_sign_of_life() -> None:
    machine = machine_with("a", "b")
    for step, now in ((0, 0.0), (1, 100.0)):
        out = machine.apply(Open(step, 2), now)
        lease = next(one.lease for one in out if isinstance(one, Grant) and one.key == "b")
        machine.apply(answer("b", lease.id, lease.subtrees[0], step=step), now)
        copy = machine.apply(Tick(), now + 50.0)[0]
        assert isinstance(copy, Grant)
        machine.apply(answer("b", copy.lease.id, copy.lease.subtrees[0], step=step), now + 50.0)
    assert states(machine)["a"] == "suspended"
    out = machine.apply(Open(2, 2), 200.0)
    assert [one.key for one in out if isinstance(one, Grant)] == ["b"]
    machine.apply(Alive("a"), 201.0)
    assert states(machine)["a"] == "standby"


def test_a_late_joiner_relieves_the_lease_that_would_end_last() -> None:
    machine = machine_with("a")
    warm(machine, {"a": 1.0})
    machine.apply(Open(1, 8), 10.0)
    machine.apply(Receipt("a", INCARNATION, 2, 0, 1.0), 11.0)
    out = machine.apply(Join("b"), 11.0)
    # Leaf 1 is in hand and stays; 2..7 are cut where both end at second 4 and the tree has a joint.
    assert out == [Cut("a", 2, (2,)), grant("b", 3, 3, step=1, at=11.0, until=11.0 + 3.0 * 4)]
    assert machine.open_leases() == {2: ("a", (0, 1, 2, 3)), 3: ("b", (4, 5, 6, 7))}
    assert machine.counts.reissued == 4


def test_a_cut_may_race_with_the_answer_to_what_was_cut() -> None:
    machine = machine_with("a")
    warm(machine, {"a": 1.0})
    machine.apply(Open(1, 8), 10.0)
    machine.apply(Join("b"), 10.0)
    assert sorted(key for key, _ in machine.open_leases().values()) == ["a", "b"]
    out = machine.apply(answer("a", 2, 1, step=1), 18.0)
    assert out == [Take("a", 2, 1, (), tuple(range(8))), Cut("b", 3, ()), Complete(1)]


def test_no_cut_where_it_gains_nothing() -> None:
    machine = machine_with("a")
    warm(machine, {"a": 0.001})
    machine.apply(Open(1, 8), 10.0)
    assert machine.apply(Join("b"), 10.0) == []


def test_the_only_leaf_of_a_much_slower_node_is_copied() -> None:
    machine = machine_with("slow", "fast")
    warm(machine, {"slow": 5.0, "fast": 1.0})
    out = machine.apply(Open(1, 7), 10.0)
    assert out == [
        grant("fast", 3, 2, 6, step=1, at=10.0, until=28.0),
        grant("slow", 4, 7, step=1, at=10.0, until=25.0),
    ]
    machine.apply(answer("fast", 3, 2, step=1), 11.0)
    assert machine.apply(answer("fast", 3, 6, step=1), 11.0) == [
        Take("fast", 3, 6, (), (4, 5)),
        grant("fast", 5, 7, step=1, at=11.0, until=14.0),
    ]


def test_the_machine_refuses_more_nodes_than_it_can_keep() -> None:
    machine = machine_with(*(f"n{number}" for number in range(4096)))
    assert "4096 are the most" in refusal(machine.apply(Join("one more"), 0.0))
