"""The desk that writes leases and ends them: numbers, deadlines, counts and cuts.

Who gets which leaves is decided above it, in :mod:`manyhands.fleet.granting`. Knows no event and no clock.
"""

from __future__ import annotations

from manyhands.fleet import opinions
from manyhands.fleet.board import Board, OpenLease
from manyhands.fleet.events import Cut, Grant, Instruction, Lease
from manyhands.fleet.policy import NEVER, Counts, Policy
from manyhands.fleet.roster import Node, Roster
from manyhands.fleet.tree import mask


class Desk:
    """Writes leases with rising numbers; `soonest` is when it wants to be asked again."""

    def __init__(self, incarnation: int, policy: Policy, roster: Roster, counts: Counts) -> None:
        self.incarnation = incarnation
        self.policy = policy
        self.roster = roster
        self.counts = counts
        self.board = Board(-1, 1, 0.0, 0)
        self.board.skipped = True
        self.next_id = 1
        self._first_travel = 0.0
        # Never later than the first open deadline; it may be early, which costs one look.
        self.soonest = NEVER
        # Never earlier than the last estimated end of an open lease.
        self.latest_end = -NEVER

    def grant(
        self,
        node: Node,
        leaves: int,
        now: float,
        out: list[Instruction],
        subtrees: tuple[int, ...] | None = None,
    ) -> OpenLease:
        """Lease these leaves to a free node."""
        board = self.board
        lease_id = self.next_id
        self.next_id += 1
        count = leaves.bit_count()
        deadline, ends_at = self._times(node, count, now)
        counts = self.counts
        counts.leases += 1
        counts.leased += count
        counts.reissued += (leaves & board.ever).bit_count()
        lease = OpenLease(lease_id, node.key, leaves, now, deadline, ends_at)
        board.enter(lease)
        self.roster.engage(node, lease, board.step)
        subtrees = board.lowered(subtrees) if subtrees else board.subtrees(leaves)
        value = Lease(lease_id, self.incarnation, board.step, node.key, subtrees, now, deadline)
        out.append(Grant(node.key, value))
        if (board.audit or self.policy.verify) and not leaves & (board.waiting | board.shared):
            self._draw_for_audit(lease, subtrees)
        return lease

    def _times(self, node: Node, count: int, now: float) -> tuple[float, float]:
        """A lease's deadline and its estimated end."""
        policy = self.policy
        seconds = node.seconds_per_leaf or self.roster.mean_seconds()
        if seconds is None:
            deadline, ends_at = now + policy.unknown_lease_seconds, now
        else:
            known = self.roster.mean_travel() if node.travel_seconds is None else node.travel_seconds
            expected = (self._first_travel if known is None else known) + count * seconds
            ends_at = now + expected
            deadline = now + max(policy.min_lease_seconds, policy.lease_factor * expected)
        self.soonest = min(self.soonest, deadline)
        self.latest_end = max(self.latest_end, ends_at)
        return deadline, ends_at

    def end(self, lease: OpenLease, out: list[Instruction] | None) -> None:
        """A lease has nothing left to bring; with `out`, its node is told to stop."""
        board = self.board
        board.open.pop(lease.id, None)
        node = self.roster.nodes.get(lease.key)
        if node is not None and node.lease is lease:
            self.roster.disengage(node)
        if out is not None:
            out.append(Cut(lease.key, lease.id, ()))

    def end_all(self, out: list[Instruction]) -> None:
        """Tell every node that still works on the step to stop."""
        for lease in list(self.board.open.values()):
            self.end(lease, out)

    def revoke(self, lease: OpenLease, out: list[Instruction] | None) -> None:
        """End a lease whose answers are stale from now on, and free its leaves."""
        board = self.board
        self.end(lease, out)
        board.revoke(lease)

    def trim(self, lease: OpenLease, keep: int, out: list[Instruction]) -> None:
        """Cut a lease down to these leaves."""
        board = self.board
        lease.keep = keep
        if board.remaining(lease):
            out.append(Cut(lease.key, lease.id, board.subtrees(board.remaining(lease))))
        else:
            self.end(lease, out)

    def measured(self, now: float, way_there: float) -> None:
        """The first leaf was timed: deadlines given in the dark can be tightened.

        ``way_there`` is what it took until it was computed; the way back is thought to take as long.
        """
        self._first_travel = 2.0 * way_there
        board = self.board
        for lease in board.open.values():
            node = self.roster.nodes[lease.key]
            deadline, lease.ends_at = self._times(node, board.remaining(lease).bit_count(), now)
            lease.deadline = min(lease.deadline, deadline)

    def _draw_for_audit(self, lease: OpenLease, subtrees: tuple[int, ...]) -> None:
        """Set a drawn lease's subtrees aside until a second node has answered each."""
        board = self.board
        policy = self.policy
        if not board.audit and not opinions.is_sampled(policy.seed, board.step, lease.id, policy.verify):
            return
        lease.pinned = True
        for subtree in subtrees:
            leaves = mask(subtree, board.depth) & board.full
            board.wait_for(opinions.Opinion(subtree, leaves, "verify", lease.id))
