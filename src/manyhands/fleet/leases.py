"""The lease machine: every decision about nodes, leases and answers, as a function of events and time.

    instructions = machine.apply(event, now)

It knows no asyncio, network, disk, thread, tensor, clock or chance: the same events at the same times give
the same instructions, so a log replays and a simulator can try a million failures. The shell (the service)
turns messages into events, carries out the instructions in order, and keeps the tensors.

What must hold, and is checked after every event of the simulator:

1. a leaf is credited once a step, to the first answer that covers it;
2. an answer counts only under its fence (incarnation, lease), from the lease's own node, inside what the
   lease was first granted, and as long as the lease was not ended by a departure;
3. a leaf of an open step is covered, leased, waiting for a second opinion, or free while no node is;
4. an overdue lease is not revoked: its leaves are leased to others as well, and the first answer wins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from manyhands.errors import UsageError
from manyhands.fleet.board import Board, OpenLease
from manyhands.fleet.events import (
    Alive,
    Answer,
    Ban,
    Complete,
    Drain,
    Duplicate,
    Event,
    HandBack,
    Instruction,
    Join,
    Leave,
    NonFinite,
    Open,
    Receipt,
    Take,
    Tick,
)
from manyhands.fleet.fences import Fences
from manyhands.fleet.granting import Granter
from manyhands.fleet.judging import Judge
from manyhands.fleet.members import Members
from manyhands.fleet.policy import NEVER, Counts, Policy
from manyhands.fleet.roster import NodeView, Roster
from manyhands.fleet.tree import MAX_LEAVES, bits

_Handler = Callable[[Any, float, list[Instruction]], None]


class LeaseMachine:
    """Roster and leases of one run, as one incarnation of its coordinator.

    `incarnation` must be greater than any before, and on disk before the first `apply`: answers to an
    earlier life's leases are told apart by it alone.
    """

    def __init__(self, incarnation: int, policy: Policy | None = None) -> None:
        self.incarnation = incarnation
        self.policy = policy or Policy()
        self.counts = Counts()
        self._roster = Roster()
        self._granter = Granter(incarnation, self.policy, self._roster, self.counts)
        self._members = Members(self._granter)
        self._fences = Fences(self._granter, self._members)
        self._judge = Judge(self._granter, self._members)
        self._measured = False
        self._handlers: dict[type, _Handler] = {
            Join: self._members.join,
            Leave: self._members.leave,
            Drain: self._members.drain,
            Alive: self._members.alive,
            Open: self._open,
            Receipt: self._receipt,
            Answer: self._answer,
            HandBack: self._hand_back,
            NonFinite: self._non_finite,
            Ban: self._members.ban,
            Tick: self._tick,
        }

    # ---- the outside ----

    def apply(self, event: Event, now: float) -> list[Instruction]:
        """What is to be done, in order. `now` never goes back; only `Open` raises (UsageError)."""
        out: list[Instruction] = []
        self._handlers[type(event)](event, now, out)
        if now >= self._granter.soonest:
            self._granter.sweep(now, out)
        return out

    def next_deadline(self) -> float | None:
        """When to send a `Tick` if nothing else happens; it may turn out to be early. O(1)."""
        soonest = self._granter.soonest
        return None if soonest == NEVER else soonest

    @property
    def step(self) -> int:
        """The newest step opened here, -1 before the first."""
        return self._granter.board.step

    @property
    def is_open(self) -> bool:
        """Whether leaves of the newest step are still to be covered."""
        return self._granter.board.is_open

    def covered(self) -> list[int]:
        """The covered leaves of the newest step."""
        return bits(self._granter.board.covered)

    def held(self) -> list[int]:
        """The subtrees whose sums the shell holds, merged upward."""
        return sorted(self._granter.board.held)

    def open_leases(self) -> dict[int, tuple[str, tuple[int, ...]]]:
        """By lease id: its node and the leaves it is still to bring."""
        board = self._granter.board
        return {lease.id: (lease.key, tuple(bits(board.remaining(lease)))) for lease in board.open.values()}

    def waiting(self) -> list[int]:
        """The leaves that wait for a second opinion, or for the node that should give it."""
        return bits(self._granter.board.waiting & ~self._granter.board.covered)

    def nodes(self) -> list[NodeView]:
        """The connected nodes, in the order they joined."""
        return [node.view(self._granter.board.is_open) for node in self._roster.nodes.values()]

    # ---- steps ----

    def _open(self, event: Open, now: float, out: list[Instruction]) -> None:
        if not 1 <= event.leaves <= MAX_LEAVES:
            raise UsageError(
                f"a step has 1 to {MAX_LEAVES} leaves, and step {event.step} asks for {event.leaves}"
            )
        if event.step < self._granter.board.step:
            raise UsageError(
                f"step {event.step} cannot open after step {self._granter.board.step} in one incarnation"
            )
        self._granter.end_all(out)
        self._granter.roster.step_ended(self._granter.board.step)
        self._granter.board = Board(
            event.step,
            event.leaves,
            event.delivery_seconds,
            self._granter.next_id,
            audit=event.audit,
            level=event.level,
        )
        self._granter.latest_end = -NEVER
        self._granter.fill(now, out)

    def _tick(self, event: Tick, now: float, out: list[Instruction]) -> None:
        """Nothing by itself: `apply` looks at the deadlines after every event."""

    # ---- work ----

    def _receipt(self, event: Receipt, now: float, out: list[Instruction]) -> None:
        found = self._fences.admit(event, out)
        if found is None:
            return
        node, lease = found
        if not self._fences.has_leaf(lease, event.leaf, out):
            return
        if not 0.0 <= event.seconds < NEVER:
            self._members.refuse(event.key, f"a leaf cannot have taken {event.seconds} seconds", out)
            return
        self._members.heard(node, now, out)
        if lease.received >> event.leaf & 1:
            return
        node.measure(event.seconds)
        granter, board = self._granter, self._granter.board
        lease.received |= 1 << event.leaf
        lease.computing += event.seconds
        left = (board.remaining(lease) & ~lease.received).bit_count()
        lease.ends_at = now + left * (node.seconds_per_leaf or 0.0)
        granter.latest_end = max(granter.latest_end, lease.ends_at)
        if not self._measured:
            self._measured = True
            granter.measured(now, max(0.0, now - lease.granted_at - event.seconds))
        granter.fill(now, out)

    def _hand_back(self, event: HandBack, now: float, out: list[Instruction]) -> None:
        found = self._fences.admit(event, out)
        if found is None:
            return
        node, lease = found
        node.strikes = 0
        node.rests_until = now + self.policy.rest_seconds
        self._granter.soonest = min(self._granter.soonest, node.rests_until)
        self._members.release(lease, None)
        self._granter.fill(now, out)

    def _answer(self, event: Answer, now: float, out: list[Instruction]) -> None:
        found = self._fences.admit(event, out)
        if found is None:
            return
        node, lease = found
        board = self._granter.board
        leaves = self._fences.leaves_of(event, lease, out)
        if not leaves:
            return
        if node.strikes:
            self._members.heard(node, now, out)
        if not leaves & ~board.covered:
            self._duplicate(event, out)
        elif leaves & board.waiting and not self._judge.admits(event, node, lease, leaves, out):
            self._granter.fill(now, out)
        else:
            self._take(event, lease, leaves, now, out)

    def _duplicate(self, event: Answer, out: list[Instruction]) -> None:
        self.counts.duplicates += 1
        taken = self._granter.board.digests.get(event.subtree)
        if taken is None:
            out.append(Duplicate(event.key, event.subtree, "unknown"))
        else:
            out.append(Duplicate(event.key, event.subtree, "equal" if taken == event.digest else "differs"))

    def _take(self, event: Answer, lease: OpenLease, leaves: int, now: float, out: list[Instruction]) -> None:
        """Cover leaves, tell whoever works on them too, and give the node something new."""
        board, granter = self._granter.board, self._granter
        replaced, fresh = board.take(event.subtree, leaves, event.digest)
        credited = self._credits(leaves, fresh)
        self.counts.applied += len(credited)
        out.append(Take(event.key, lease.id, event.subtree, replaced, credited))
        elsewhere = fresh & (board.shared | ~lease.keep)
        lease.keep &= ~leaves
        if not lease.keep and lease.id in board.open:
            granter.end(lease, None)
            self._measure(lease, now)
        if elsewhere:
            self._trim_others(elsewhere, out)
        if board.covered == board.full:
            self._complete(out)
        else:
            granter.fill(now, out)

    def _measure(self, lease: OpenLease, now: float) -> None:
        """A lease brought all that it had to: what it took beyond computing is known."""
        node = self._roster.nodes.get(lease.key)
        if node is not None and lease.received:
            node.measure_travel(max(0.0, now - lease.granted_at - lease.computing))

    def _credits(self, leaves: int, fresh: int) -> tuple[int, ...]:
        """The leaves to credit: those that no earlier answer covered."""
        return tuple(bits(fresh))

    def _trim_others(self, covered: int, out: list[Instruction]) -> None:
        """Take leaves that were just covered away from the leases that hold them too."""
        board = self._granter.board
        for other in list(board.open.values()):
            if other.keep & covered:
                self._granter.trim(other, other.keep & ~covered, out)

    def _complete(self, out: list[Instruction]) -> None:
        self.counts.steps += 1
        self._granter.end_all(out)
        out.append(Complete(self._granter.board.step))

    def _non_finite(self, event: NonFinite, now: float, out: list[Instruction]) -> None:
        found = self._fences.admit(event, out)
        if found is not None and self._fences.has_leaf(found[1], event.leaf, out):
            self._members.heard(found[0], now, out)
            self._judge.non_finite(event, *found, now, out)
