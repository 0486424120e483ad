"""Whose word counts: each message about a lease is held against its fence before anything changes.

The fence is (incarnation, lease id). A message passes if its incarnation runs now, its lease is one of this
step's, belongs to the node that speaks and was not ended by a departure, and if the leaves it speaks of lie
inside what the lease was *first* granted: a cut may be under way. Everyone else hears why not.
"""

from __future__ import annotations

from manyhands.fleet.board import OpenLease
from manyhands.fleet.events import Answer, HandBack, Instruction, NonFinite, Receipt, Refuse
from manyhands.fleet.granting import Granter
from manyhands.fleet.members import Members
from manyhands.fleet.roster import Node
from manyhands.fleet.tree import mask


class Fences:
    """Lets messages pass, or refuses them with a reason."""

    def __init__(self, granter: Granter, members: Members) -> None:
        self._granter = granter
        self._members = members

    def refusal(self, incarnation: int) -> str | None:
        """Why this incarnation's leases do not count here, or None."""
        if incarnation == self._granter.incarnation:
            return None
        return (
            f"this lease is of incarnation {incarnation} of the coordinator, and incarnation "
            f"{self._granter.incarnation} runs now; ask for a new lease"
        )

    def admit(
        self, event: Answer | Receipt | NonFinite | HandBack, out: list[Instruction]
    ) -> tuple[Node, OpenLease] | None:
        """The event's node and lease if it may speak for it; else refuses and returns None."""
        node = self._members.known(event.key, out)
        if node is None:
            return None
        lease = self._granter.board.leases.get(event.lease)
        reason = None if isinstance(event, HandBack) else self.refusal(event.incarnation)
        if reason is None and lease is not None:
            if lease.key == event.key:
                return node, lease
            reason = f"lease {event.lease} belongs to another node; a node answers its own leases only"
        self._refuse_stale(event.key, event.lease, reason, out)
        return None

    def _refuse_stale(self, key: str, lease_id: int, reason: str | None, out: list[Instruction]) -> None:
        """Refuse with this reason, or with why a lease is not known (any more)."""
        first, board = self._granter.board.first_lease, self._granter.board
        if reason is not None:
            self._members.refuse(key, reason, out)
        elif 0 < lease_id < first:
            self._granter.counts.late += 1
            out.append(
                Refuse(
                    key, f"lease {lease_id} is late: step {board.step} is open, its leases start at {first}"
                )
            )
        elif lease_id < self._granter.next_id:
            self._members.refuse(key, f"lease {lease_id} was ended when its node left or gave it back", out)
        else:
            newest = self._granter.next_id - 1
            self._members.refuse(key, f"lease {lease_id} was never granted; the newest is {newest}", out)

    def leaves_of(self, event: Answer, lease: OpenLease, out: list[Instruction]) -> int:
        """The present leaves that a fenced answer brings; refuses and returns 0 if it must not."""
        board = self._granter.board
        if board.skipped:
            reason = f"step {board.step} was given up; drop its sums"
        elif event.step != board.step:
            reason = f"lease {lease.id} is of step {board.step}, and the answer says step {event.step}"
        elif not 1 <= event.subtree < 2 << board.depth:
            last = (2 << board.depth) - 1
            reason = f"step {board.step} has no subtree {event.subtree}: its numbers end at {last}"
        else:
            leaves = mask(event.subtree, board.depth) & board.full
            if leaves and not leaves & ~lease.granted:
                return leaves
            reason = f"subtree {event.subtree} has leaves that lease {lease.id} was not granted"
        self._members.refuse(event.key, reason, out)
        return 0

    def has_leaf(self, lease: OpenLease, leaf: int, out: list[Instruction]) -> bool:
        """Whether a lease was granted with this leaf; else refuses."""
        if 0 <= leaf < self._granter.board.num_leaves and lease.granted >> leaf & 1:
            return True
        self._members.refuse(lease.key, f"leaf {leaf} is not part of lease {lease.id}", out)
        return False
