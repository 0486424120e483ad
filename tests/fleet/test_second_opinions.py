"""Non-finite leaves and audited leases: who is asked, who is believed, who is benched."""

from __future__ import annotations

from manyhands.fleet.events import (
    Answer,
    Audit,
    Bench,
    Complete,
    Cut,
    Duplicate,
    Grant,
    Instruction,
    Join,
    Leave,
    NonFinite,
    Open,
    Refuse,
    SkipStep,
    Stop,
    Take,
    Verified,
)
from manyhands.fleet.leases import LeaseMachine
from manyhands.fleet.opinions import is_sampled
from manyhands.fleet.policy import Policy


def machine_with(*nodes: tuple[str, str, str], **policy: object) -> LeaseMachine:
    """Nodes are (key, numeric class, invite)."""
    machine = LeaseMachine(1, Policy(**policy))  # type: ignore[arg-type]
    for key, numeric_class, invite in nodes:
        machine.apply(Join(key, numeric_class=numeric_class, invite_id=invite), 0.0)
    return machine


def answer(key: str, lease: int, subtree: int, digest: int = 9) -> Answer:
    return Answer(key, 1, 0, lease, subtree, digest)


def given(out: list[Instruction]) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(one.key, one.lease.id, one.lease.subtrees) for one in out if isinstance(one, Grant)]


def benched(out: list[Instruction]) -> list[str]:
    return [one.key for one in out if isinstance(one, Bench)]


# ---- non-finite leaves -------------------------------------------------------------------------------


def test_a_non_finite_leaf_is_asked_of_another_node_of_the_class() -> None:
    machine = machine_with(("a", "avx2", ""), ("other", "avx512", ""), ("b", "avx2", ""))
    machine.apply(Open(0, 1), 0.0)
    out = machine.apply(NonFinite("a", 1, 1, 0, 666), 0.0)
    assert out[0] == Cut("a", 1, ())
    assert given(out) == [("b", 2, (1,))]


def test_the_rest_of_the_lease_goes_on_in_parts() -> None:
    machine = machine_with(("a", "x", ""), ("b", "x", ""))
    machine.apply(Open(0, 8), 0.0)
    assert machine.apply(NonFinite("a", 1, 1, 1, 666), 0.0) == [Cut("a", 1, (8, 5))]
    assert machine.waiting() == [1]
    out = machine.apply(answer("b", 2, 3), 0.0)
    assert given(out) == [("b", 3, (9,))]


def test_the_same_again_stops_the_run() -> None:
    machine = machine_with(("a", "x", ""), ("b", "x", ""))
    machine.apply(Open(0, 1), 0.0)
    machine.apply(NonFinite("a", 1, 1, 0, 666), 0.0)
    out = machine.apply(NonFinite("b", 1, 2, 0, 666), 0.0)
    assert [type(one) for one in out] == [Cut, Stop]
    assert "leaf 0 of step 0 is not finite, computed 2 times, first by a, last by b" in out[1].reason
    assert not machine.is_open
    assert isinstance(machine.apply(answer("a", 1, 1), 0.0)[0], Refuse)


def test_the_same_again_may_skip_the_step_instead() -> None:
    machine = machine_with(("a", "x", ""), on_nonfinite="skip_step")
    machine.apply(Open(0, 1), 0.0)
    out = machine.apply(NonFinite("a", 1, 1, 0, 666), 0.0)
    assert given(out) == [("a", 2, (1,))], "the only node is asked twice"
    out = machine.apply(NonFinite("a", 1, 2, 0, 666), 0.0)
    assert isinstance(out[-1], SkipStep)
    assert given(machine.apply(Open(1, 1), 0.0)) == [("a", 3, (1,))]


def test_a_replayed_report_is_not_a_second_voice() -> None:
    machine = machine_with(("a", "x", ""), ("b", "x", ""))
    machine.apply(Open(0, 2), 0.0)
    machine.apply(NonFinite("a", 1, 1, 0, 666), 0.0)
    assert machine.apply(NonFinite("a", 1, 1, 0, 666), 0.0) == [Duplicate("a", 2, "unknown")]
    assert machine.is_open


def test_a_finite_answer_benches_the_first_node_for_good() -> None:
    machine = machine_with(("a", "x", ""), ("b", "x", ""))
    machine.apply(Open(0, 1), 0.0)
    machine.apply(NonFinite("a", 1, 1, 0, 666), 0.0)
    out = machine.apply(answer("b", 2, 1), 0.0)
    assert benched(out) == ["a"]
    assert out[1:] == [Take("b", 2, 1, (), (0,)), Complete(0)]
    assert machine.nodes()[0].state == "benched"
    assert "non-finite" in machine.nodes()[0].reason
    assert [key for key, _, _ in given(machine.apply(Open(1, 4), 0.0))] == ["b"]
    machine.apply(Leave("a"), 0.0)
    machine.apply(Join("a", numeric_class="x"), 0.0)
    assert next(view.state for view in machine.nodes() if view.key == "a") == "benched"


def test_another_class_does_not_convict() -> None:
    machine = machine_with(("a", "x", ""), ("b", "y", ""))
    machine.apply(Open(0, 2), 0.0)
    out = machine.apply(NonFinite("a", 1, 1, 0, 666), 0.0)
    assert given(out) == [("a", 3, (2,))], "no peer of the class is here, so it is asked again itself"
    machine.apply(Leave("a"), 0.0)
    out = machine.apply(answer("b", 2, 3), 0.0)
    assert given(out) == [("b", 4, (2,))]
    out = machine.apply(answer("b", 4, 2), 0.0)
    assert benched(out) == []
    assert isinstance(out[-1], Complete)


def test_two_kinds_of_non_finite_bits_are_settled_by_a_third_node() -> None:
    machine = machine_with(("a", "x", ""), ("b", "x", ""), ("c", "x", ""))
    machine.apply(Open(0, 1), 0.0)
    machine.apply(NonFinite("a", 1, 1, 0, 1), 0.0)
    out = machine.apply(NonFinite("b", 1, 2, 0, 2), 0.0)
    assert benched(out) == []
    assert given(out) == [("c", 3, (1,))]
    out = machine.apply(NonFinite("c", 1, 3, 0, 2), 0.0)
    assert benched(out) == ["a"]
    assert isinstance(out[-1], Stop)


def test_a_second_opinion_survives_its_node() -> None:
    machine = machine_with(("a", "x", ""), ("b", "x", ""), ("c", "x", ""))
    machine.apply(Open(0, 1), 0.0)
    machine.apply(NonFinite("a", 1, 1, 0, 666), 0.0)
    assert given(machine.apply(Leave("b"), 1.0)) == [("c", 3, (1,))]


# ---- audits ------------------------------------------------------------------------------------------

THREE = (("a", "x", "one"), ("same", "x", "one"), ("b", "x", "two"))


def test_an_audited_subtree_is_taken_from_the_second_of_two_equal_answers() -> None:
    machine = machine_with(*THREE, verify=1.0)
    machine.apply(Open(0, 1), 0.0)
    out = machine.apply(answer("a", 1, 1), 0.0)
    assert isinstance(out[0], Audit)
    assert given(out) == [("b", 2, (1,))], "a node of another invite is asked"
    assert machine.counts.applied == 0
    assert machine.apply(answer("b", 2, 1), 0.0) == [
        Verified(1, ("a", "b"), "invites"),
        Take("b", 2, 1, (), (0,)),
        Complete(0),
    ]


def test_a_replay_is_not_a_second_answer() -> None:
    machine = machine_with(*THREE, verify=1.0)
    machine.apply(Open(0, 1), 0.0)
    machine.apply(answer("a", 1, 1), 0.0)
    assert machine.apply(answer("a", 1, 1), 0.0) == [Duplicate("a", 1, "unknown")]


def test_one_invite_is_second_best_and_said() -> None:
    machine = machine_with(*THREE[:2], verify=1.0)
    machine.apply(Open(0, 1), 0.0)
    machine.apply(answer("a", 1, 1), 0.0)
    assert machine.apply(answer("same", 2, 1), 0.0)[0] == Verified(1, ("a", "same"), "keys")


def test_alone_in_its_class_is_taken_and_said() -> None:
    machine = machine_with(("a", "x", "one"), ("b", "y", "two"), verify=1.0)
    machine.apply(Open(0, 1), 0.0)
    assert machine.apply(answer("a", 1, 1), 0.0)[0] == Verified(1, ("a",), "alone")


def test_a_third_node_settles_a_difference_and_the_odd_one_is_benched() -> None:
    machine = machine_with(("liar", "x", "one"), ("b", "x", "two"), ("c", "x", "three"), verify=1.0)
    machine.apply(Open(0, 1), 0.0)
    machine.apply(answer("liar", 1, 1, digest=13), 0.0)
    out = machine.apply(answer("b", 2, 1), 0.0)
    assert isinstance(out[0], Audit)
    assert given(out) == [("c", 3, (1,))]
    out = machine.apply(answer("c", 3, 1), 0.0)
    assert out[0] == Verified(1, ("b", "c"), "invites")
    assert benched(out) == ["liar"]
    assert out[-2:] == [Take("c", 3, 1, (), (0,)), Complete(0)]


def test_an_audit_goes_on_when_the_second_node_leaves() -> None:
    machine = machine_with(*THREE, verify=1.0)
    machine.apply(Open(0, 1), 0.0)
    machine.apply(answer("a", 1, 1), 0.0)
    assert given(machine.apply(Leave("b"), 1.0)) == [("same", 3, (1,))]


def test_a_manual_node_is_no_second_voice_for_more_than_a_leaf() -> None:
    """It was waited for and never asked, and the other node was asked for ever."""
    machine = machine_with(("a", "x", "one"), verify=1.0)
    machine.apply(Open(0, 4), 0.0)
    machine.apply(Join("loop", numeric_class="x", invite_id="two", manual=True), 0.0)
    assert machine.apply(answer("a", 1, 1), 0.0)[0] == Verified(1, ("a",), "alone")


def test_samples_are_the_same_in_every_replay_and_as_many_as_asked() -> None:
    drawn = [is_sampled(7, step, lease, 0.25) for step in range(20) for lease in range(200)]
    assert drawn == [is_sampled(7, step, lease, 0.25) for step in range(20) for lease in range(200)]
    assert 850 < sum(drawn) < 1150
    assert not is_sampled(7, 1, 1, 0.0)
    assert all(is_sampled(7, 1, lease, 1.0) for lease in range(100))


def test_a_step_opened_again_with_an_audit_needs_two_answers_for_every_sum() -> None:
    machine = machine_with(("a", "x", ""), ("b", "x", ""), ("c", "x", ""))
    machine.apply(Open(0, 2), 0.0)
    machine.apply(answer("a", 1, 2, digest=7), 0.0)
    out = machine.apply(Open(0, 2, audit=True), 0.0)
    first = {key: (lease, subtrees) for key, lease, subtrees in given(out)}
    assert machine.covered() == [], "what was covered of the step is forgotten"
    assert isinstance(machine.apply(answer("a", 1, 2, digest=7), 0.0)[0], Refuse), "and its answers are stale"
    takes: list[Take] = []
    waiting, wrong = dict(first), set[str]()
    while machine.is_open:
        key, (lease, subtrees) = waiting.popitem()
        said = machine.apply(answer(key, lease, subtrees[0], digest=66 if key == "b" else 9), 0.0)
        takes += [one for one in said if isinstance(one, Take)]
        wrong |= set(benched(said))
        waiting |= {key: (lease, subtrees) for key, lease, subtrees in given(said)}
    assert [take.credits for take in sorted(takes, key=lambda take: take.subtree)] == [(0,), (1,)]
    assert wrong <= {"b"}, "two that agree are believed"
