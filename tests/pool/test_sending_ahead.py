"""What a node is sent ahead is the next step's part of what it was leased, and nothing that came to it in vain."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from manyhands.fleet import events as e
from manyhands.fleet import messages as m
from manyhands.fleet.session import Session
from manyhands.pool.data import LeafData, StepData
from manyhands.pool.member import Member
from manyhands.pool.plan import StepPlan
from manyhands.pool.sending import Sender
from manyhands.wire.admission import Peer, Role

JOB: Any = SimpleNamespace(master=SimpleNamespace(scale=SimpleNamespace(value=1.0)))


class Recording(Session):
    """A session without a link, which remembers what was posted."""

    def __init__(self) -> None:
        super().__init__(None, max_body_bytes=1)  # type: ignore[arg-type]
        self.batches: list[tuple[int, int]] = []

    def post(self, *items: Any) -> None:
        told = [getattr(item, "message", None) for item in items]
        self.batches += [(one.step, one.leaf) for one in told if isinstance(one, m.Batch)]


def data_of(step: int) -> StepData:
    leaves = tuple(LeafData((leaf,), 1.0, bytes(m.SMALL_BYTES + 1)) for leaf in range(2))
    return StepData(StepPlan(step, 0, ((0,), (1,))), leaves)


def member(key: str, sessions: dict[str, Recording]) -> Member:
    sessions[key] = Recording()
    return Member(Peer(key, Role.NODE, "i"), sessions[key], key, "cpu", "c", manual=False)


def test_a_batch_that_came_in_vain_does_not_come_again() -> None:
    sessions: dict[str, Recording] = {}
    members = {key: member(key, sessions) for key in "ab"}
    sender = Sender(JOB, members)
    halves = {"a": 2, "b": 3}  # the two leaves of a tree of depth 1
    for step in range(4):
        for key, one in members.items():
            one.holds_version = step
            one.forget_before(step)
            # The second step's leaves go the other way round: what was sent ahead of it was for the other node.
            subtree = halves[key] if step != 1 else 5 - halves[key]
            sender.grant(one, e.Lease(step, 1, step, key, (subtree,), 0.0, 1.0), data_of(step), None)
        sender.ahead(step, data_of(step + 1))
    for key, leaf in (("a", 0), ("b", 1)):
        other = 1 - leaf
        expected = [(0, leaf), (1, leaf), (1, other), (2, other), (2, leaf), (3, leaf), (4, leaf)]
        assert sessions[key].batches == expected
