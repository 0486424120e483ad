"""Giving leases: what a free node gets next, and what happens to leases that are slow or overdue.

In this order: leaves that wait for a second opinion, free leaves, leaves of overdue leases (a second copy,
first answer wins), the tail of the lease that would end last (it is cut), or a copy of its only leaf if
its node is much slower. All arithmetic on speeds is in :mod:`manyhands.fleet.plan`. This module does not
judge answers; it knows no event, tensor or clock.
"""

from __future__ import annotations

from manyhands.fleet import opinions, plan
from manyhands.fleet.board import OpenLease
from manyhands.fleet.desk import Desk
from manyhands.fleet.events import Instruction
from manyhands.fleet.policy import NEVER
from manyhands.fleet.policy import Counts as Counts
from manyhands.fleet.policy import Policy as Policy
from manyhands.fleet.roster import Node
from manyhands.fleet.tree import bits, cover, run_mask, runs

# A leaf is copied without being overdue only for a node at least this much faster.
_MUCH_FASTER = 2.0


class Granter(Desk):
    """The desk, and the choice of what to write."""

    def fill(self, now: float, out: list[Instruction]) -> None:
        """Give every free node what there is for it."""
        board = self.board
        if not self.roster.idle or not board.is_open:
            return
        if board.opinions:
            self._ask_opinions(now, out)
        if board.unleased:
            self._hand_out(board.unleased, self._free(now), now, out)
        if board.any_overdue:
            self._copy_overdue(now, out)
        if self.latest_end - now > self.policy.min_gain_seconds:
            self._relieve(now, out)

    def _free(self, now: float) -> list[Node]:
        """The nodes that can have a lease now, fastest first."""
        free = [node for node in self.roster.idle.values() if node.is_free(now)]
        if len(free) > 1:
            unknown = self.roster.mean_seconds() or 1.0
            free.sort(key=lambda node: (node.seconds_per_leaf or unknown, node.order))
        return free

    def _hand_out(self, leaves: int, free: list[Node], now: float, out: list[Instruction]) -> None:
        """Share these leaves among the free nodes; those of a loop of the user's own, and those whose speed is
        measured anew, get one each, behind the others'.
        """
        looping = [node for node in free if not (node.manual or node.on_trial)]
        manual = [node for node in free if node.manual or node.on_trial]
        count = leaves.bit_count()
        spare = max(0, count - len(looping))
        singles = manual[: spare if looping else count]
        count -= len(singles)
        chain = runs(leaves)
        if looping and count:
            self._hand_out_runs(chain, count, looping, now, out)
        if singles:
            start = count if looping else 0
            for node, leaf in zip(singles, bits(leaves)[start : start + len(singles)], strict=True):
                self.grant(node, 1 << leaf, now, out)

    def _hand_out_runs(
        self,
        chain: list[range],
        count: int,
        nodes: list[Node],
        now: float,
        out: list[Instruction],
    ) -> None:
        """Share the first `count` leaves of a chain of runs in proportion to speed."""
        board = self.board
        unknown = self.roster.mean_seconds() or 1.0
        seconds = [node.seconds_per_leaf or unknown for node in nodes]
        if len(chain) == 1:
            shares = plan.share(count, seconds, board.delivery_seconds, chain[0].start)
            for node, own in zip(nodes, shares, strict=True):
                if own:
                    subtrees = cover(own, board.depth, board.num_leaves)
                    self.grant(node, run_mask(own), now, out, subtrees)
            return
        leaves = [leaf for run in chain for leaf in run]
        for node, own in zip(nodes, plan.share(count, seconds, board.delivery_seconds), strict=True):
            if own:
                self.grant(node, sum(1 << leaf for leaf in leaves[own.start : own.stop]), now, out)

    def sweep(self, now: float, out: list[Instruction]) -> None:
        """Mark what is overdue, and find the next moment to look."""
        board = self.board
        self.soonest = NEVER
        for lease in board.open.values():
            if lease.overdue:
                continue
            if now < lease.deadline:
                self.soonest = min(self.soonest, lease.deadline)
                continue
            lease.overdue = board.any_overdue = True
            self.roster.nodes[lease.key].strikes += 1
            for opinion in board.opinions.values():
                if opinion.holder == lease.id:
                    opinion.holder = None
        for node in self.roster.idle.values():
            if now < node.rests_until:
                self.soonest = min(self.soonest, node.rests_until)
        self.fill(now, out)

    def _copy_overdue(self, now: float, out: list[Instruction]) -> None:
        """Lease the leaves of overdue leases once more, as far as fresh copies are allowed."""
        board = self.board
        late, fresh = 0, [0] * (self.policy.max_copies - 1)
        for lease in board.open.values():
            if lease.overdue:
                late |= 0 if lease.pinned else board.remaining(lease)
                continue
            carry = lease.keep
            for level, held in enumerate(fresh):
                fresh[level], carry = held | carry, held & carry
        late &= ~board.waiting & ~(fresh[-1] if fresh else board.full)
        if late:
            self._hand_out(late, self._free(now), now, out)

    def _relieve(self, now: float, out: list[Instruction]) -> None:
        """Let free nodes help the leases that would end last, one after the other."""
        board = self.board
        for helper in self._free(now):
            busy = [lease for lease in board.open.values() if not (lease.overdue or lease.pinned)]
            busy.sort(key=lambda lease: (-lease.ends_at, lease.id))
            self.latest_end = busy[0].ends_at if busy else -NEVER
            if not any(self._help(helper, lease, now, out) for lease in busy):
                return

    def _help(self, helper: Node, lease: OpenLease, now: float, out: list[Instruction]) -> bool:
        """Cut this lease for the helper, or copy its last leaf; False if neither is worth it."""
        board = self.board
        policy = self.policy
        if lease.ends_at - now <= policy.min_gain_seconds:
            return False
        mean = self.roster.mean_seconds() or 1.0
        slow = self.roster.nodes[lease.key].seconds_per_leaf or mean
        quick = helper.seconds_per_leaf or mean
        left = bits(board.remaining(lease) & ~lease.received & ~board.waiting)
        current = max(0.0, lease.ends_at - max(0, len(left) - 1) * slow - now)
        delivery = max(board.delivery_seconds, helper.travel_seconds or 0.0)
        if len(left) > 1:
            count, gain = plan.relief(left[1:], current, slow, quick, delivery)
            count = min(count, 1) if helper.manual else count
            if count == 0 or gain < policy.min_gain_seconds:
                return False
            tail = sum(1 << leaf for leaf in left[-count:])
            self.trim(lease, lease.keep & ~tail, out)
            lease.ends_at -= count * slow
            self.grant(helper, tail, now, out)
            return True
        worth = current - quick - delivery >= policy.min_gain_seconds and slow >= _MUCH_FASTER * quick
        if not worth or not left or (1 << left[0]) & board.shared or policy.max_copies < 2:
            return False
        self.grant(helper, 1 << left[0], now, out)
        return True

    def _ask_opinions(self, now: float, out: list[Instruction]) -> None:
        """Lease the subtrees that wait for another voice to the nodes that should give it."""
        board = self.board
        for opinion in list(board.opinions.values()):
            if opinion.holder is not None:
                continue
            free = self._free(now)
            if not free:
                return
            wanted = {node.key for node in opinions.candidates(opinion, self.able(opinion))}
            asked = next((node for node in free if node.key in wanted), None)
            if asked is not None:
                lease = self.grant(asked, opinion.leaves, now, out, (opinion.subtree,))
                lease.pinned, opinion.holder = True, lease.id

    def able(self, opinion: opinions.Opinion) -> list[Node]:
        """The nodes that could give another voice: they serve, and their lease is not overdue."""
        nodes = [n for n in self.roster.serving() if n.lease is None or not n.lease.overdue]
        single = opinion.leaves.bit_count() == 1
        return [node for node in nodes if single or not node.manual]
