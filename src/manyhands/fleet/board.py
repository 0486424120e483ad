"""One step's books: which leaves are covered, leased or free, and which partial sums are merged.

Leaves are bit masks, so that each question is a few operations on integers, however many leaves there
are. Kept at all times::

    unleased = present & ~covered & ~waiting & ~(what any open lease keeps)
    held     = the shell's sums: the covered leaves as subtrees, siblings merged upward

This module knows no node, speed, deadline or policy; it never refuses, its caller has checked.
"""

from __future__ import annotations

from manyhands.fleet.opinions import Opinion
from manyhands.fleet.tree import cover_mask, depth_of, is_absent, is_ancestor, lowered


class OpenLease:
    """A lease of the open step. `granted` never changes; `keep` shrinks by cuts and answers.

    `computing` counts the seconds that its node says it computed; `ends_at` is an estimate; a `pinned`
    lease is never cut into other subtrees, its sums are compared.
    """

    __slots__ = (
        "computing", "deadline", "ends_at", "granted", "granted_at", "id", "keep", "key", "overdue", "pinned",
        "received",
    )  # fmt: skip

    def __init__(
        self, lease_id: int, key: str, leaves: int, now: float, deadline: float, ends_at: float
    ) -> None:
        self.id = lease_id
        self.key = key
        self.granted = leaves
        self.keep = leaves
        self.received = 0
        self.granted_at = now
        self.computing = 0.0
        self.deadline = deadline
        self.ends_at = ends_at
        self.overdue = False
        self.pinned = False


class Board:
    """The books of one step of `num_leaves` leaves."""

    __slots__ = (
        "any_overdue", "audit", "covered", "delivery_seconds", "depth", "digests", "ever", "first_lease", "full",
        "held", "leases", "level", "num_leaves", "open", "opinions", "shared", "skipped", "step", "unleased",
        "waiting",
    )  # fmt: skip

    def __init__(
        self,
        step: int,
        num_leaves: int,
        delivery_seconds: float,
        first_lease: int,
        *,
        audit: bool = False,
        level: int = 0,
    ) -> None:
        self.step = step
        self.num_leaves = num_leaves
        self.delivery_seconds = delivery_seconds
        self.first_lease = first_lease
        self.audit = audit
        self.level = level
        self.depth = depth_of(num_leaves)
        self.full = (1 << num_leaves) - 1
        self.covered = 0
        self.unleased = self.full
        self.ever = 0
        # Leaves that more than one lease may hold; only these need a look at the other leases.
        self.shared = 0
        # Leaves that stand in `opinions`: never free for all, each is asked of a chosen node.
        self.waiting = 0
        self.opinions: dict[int, Opinion] = {}
        self.held: set[int] = set()
        self.digests: dict[int, int] = {}
        self.open: dict[int, OpenLease] = {}
        # Open leases and finished ones: an answer of a finished lease is compared, not refused.
        self.leases: dict[int, OpenLease] = {}
        self.any_overdue = False
        self.skipped = False

    @property
    def is_open(self) -> bool:
        """Whether leaves of this step are still to be covered."""
        return self.covered != self.full and not self.skipped

    def enter(self, lease: OpenLease) -> None:
        """Enter a new lease; its leaves may be leased already."""
        leaves = lease.keep
        self.shared |= leaves & ~self.unleased
        self.unleased &= ~leaves
        self.ever |= leaves
        self.open[lease.id] = self.leases[lease.id] = lease

    def revoke(self, lease: OpenLease) -> None:
        """End a lease whose answers are no longer welcome; its leaves are free again."""
        self.open.pop(lease.id, None)
        self.leases.pop(lease.id, None)
        for opinion in self.opinions.values():
            if opinion.holder == lease.id:
                opinion.holder = None
        self.free(lease.keep)

    def free(self, leaves: int) -> None:
        """Make leaves free that no open lease keeps and nobody has covered."""
        leaves &= ~self.covered & ~self.waiting
        if leaves & self.shared:
            for other in self.open.values():
                leaves &= ~other.keep
        self.unleased |= leaves

    def remaining(self, lease: OpenLease) -> int:
        """The leaves that are still wanted of this lease."""
        return lease.keep & ~self.covered

    def subtrees(self, leaves: int) -> tuple[int, ...]:
        """These leaves as maximal aligned subtrees."""
        return self.lowered(cover_mask(leaves, self.depth, self.num_leaves))

    def lowered(self, subtrees: tuple[int, ...]) -> tuple[int, ...]:
        """The same leaves in subtrees that may be leased whole."""
        return lowered(subtrees, self.level, self.depth, self.num_leaves) if self.level else subtrees

    def take(self, subtree: int, leaves: int, digest: int) -> tuple[tuple[int, ...], int]:
        """Cover a subtree that is not wholly covered yet.

        Returns the held sums that lie inside it and are replaced, and the mask of leaves covered now.
        """
        fresh = leaves & ~self.covered
        replaced: tuple[int, ...] = ()
        if fresh != leaves:
            replaced = tuple(sorted(held for held in self.held if is_ancestor(subtree, held)))
            self.held.difference_update(replaced)
        self.covered |= leaves
        self.unleased &= ~leaves
        self.digests[subtree] = digest
        self._merge(subtree)
        return replaced, fresh

    def _merge(self, subtree: int) -> None:
        held = self.held
        while subtree > 1:
            beside = subtree ^ 1
            if beside in held:
                held.remove(beside)
            elif not is_absent(beside, self.depth, self.num_leaves):
                break
            subtree >>= 1
        held.add(subtree)

    def wait_for(self, opinion: Opinion) -> None:
        """Set leaves aside until this opinion is settled."""
        self.opinions[opinion.subtree] = opinion
        self.waiting |= opinion.leaves
        self.unleased &= ~opinion.leaves

    def settle(self, opinion: Opinion) -> None:
        """End the waiting for an opinion; leaves that nobody keeps are free again."""
        del self.opinions[opinion.subtree]
        self.waiting &= ~opinion.leaves
        self.shared |= opinion.leaves
        self.free(opinion.leaves)
