"""What the lease machine is told and what it answers: plain values, so that a run's log replays.

Times are seconds of the shell's clock and come beside an event, never inside it. `key` names a node (the
hash of its public key), `subtree` is a heap number (see :mod:`manyhands.fleet.tree`), `digest` stands for
the bits of a partial sum. Nothing here knows a socket, a tensor or a policy.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class _Value(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Frozen, comparable, and tagged with its class name when a log is written."""


class Lease(_Value, frozen=True, gc=False, tag=True):
    """Leave to compute some subtrees of a step, until `deadline`. (incarnation, id) is its fence."""

    id: int
    incarnation: int
    step: int
    key: str
    subtrees: tuple[int, ...]
    granted_at: float
    deadline: float


# ---- events ----------------------------------------------------------------------------------------


class Join(_Value, frozen=True, gc=False, tag=True):
    """A node is connected and admitted. A key that joins again fences its older connection.

    A `manual` node (a loop of the user's own) gets one leaf a lease.
    """

    key: str
    name: str = ""
    numeric_class: str = ""
    invite_id: str = ""
    manual: bool = False


class Leave(_Value, frozen=True, gc=False, tag=True):
    """A node's stream ended."""

    key: str
    reason: str = ""


class Drain(_Value, frozen=True, gc=False, tag=True):
    """A node wants to go: its lease is handed back now, and it gets no more."""

    key: str


class Alive(_Value, frozen=True, gc=False, tag=True):
    """A node was heard of; a suspended one is ready again."""

    key: str


class Open(_Value, frozen=True, gc=False, tag=True):
    """A step of `leaves` leaves begins, and is leased at once.

    The same step may open again: what was covered of it is forgotten. `delivery_seconds` is what one delivered
    subtree costs, as measured by the shell. With `audit`, every sum needs two equal answers. No larger subtree is
    leased than those at `level` (0: the root).
    """

    step: int
    leaves: int
    delivery_seconds: float = 0.0
    audit: bool = False
    level: int = 0


class Receipt(_Value, frozen=True, gc=False, tag=True):
    """A leaf is computed on its node, and not delivered yet."""

    key: str
    incarnation: int
    lease: int
    leaf: int
    seconds: float


class Answer(_Value, frozen=True, gc=False, tag=True):
    """A whole partial sum arrived; the shell has checked its shape, crc and finiteness."""

    key: str
    incarnation: int
    step: int
    lease: int
    subtree: int
    digest: int


class HandBack(_Value, frozen=True, gc=False, tag=True):
    """A node gives a lease back; it rests a moment, so that others get the leaves."""

    key: str
    lease: int
    reason: str = ""


class NonFinite(_Value, frozen=True, gc=False, tag=True):
    """A leaf's gradient or loss is NaN or infinite; `digest` stands for those bits.

    Its node answers no subtree that holds the leaf any more, even if a cut already under way names one.
    """

    key: str
    incarnation: int
    lease: int
    leaf: int
    digest: int


class Ban(_Value, frozen=True, gc=False, tag=True):
    """The owner throws a node out, and it may not join again."""

    key: str
    reason: str = ""


class Tick(_Value, frozen=True, gc=False, tag=True):
    """Time passed: a deadline may be over."""


Event = Join | Leave | Drain | Alive | Open | Receipt | Answer | HandBack | NonFinite | Ban | Tick

# ---- instructions ----------------------------------------------------------------------------------


class Grant(_Value, frozen=True, gc=False, tag=True):
    """Send this lease to its node."""

    key: str
    lease: Lease


class Cut(_Value, frozen=True, gc=False, tag=True):
    """Tell a node to go on with these subtrees of its lease only; () ends the lease.

    The node's answers may be on their way already: what lies within the original grant is still welcome.
    """

    key: str
    lease_id: int
    keep: tuple[int, ...]


class Take(_Value, frozen=True, gc=False, tag=True):
    """Store this partial sum, then merge siblings upward.

    First drop the sums named in `replaces`: they lie inside this one. `credits` are the leaves covered
    for the first time, for the ledger: each leaf of a step appears in one `Take` only.
    """

    key: str
    lease_id: int
    subtree: int
    replaces: tuple[int, ...]
    credits: tuple[int, ...]


class Duplicate(_Value, frozen=True, gc=False, tag=True):
    """All leaves of this answer are covered: drop it. `verdict` compares it with the one taken."""

    key: str
    subtree: int
    verdict: Literal["equal", "differs", "unknown"]


class Audit(_Value, frozen=True, gc=False, tag=True):
    """The answer's digest is noted, its tensors may go: another node is asked for the same subtree."""

    key: str
    lease_id: int
    subtree: int
    reason: str


class Verified(_Value, frozen=True, gc=False, tag=True):
    """An audited subtree is settled by these nodes' equal answers; a `Take` of the last one follows.

    "invites": they came by different invites. "keys": by one invite, there being no other. "alone": no
    second node of the numeric class is here.
    """

    subtree: int
    keys: tuple[str, ...]
    verdict: Literal["invites", "keys", "alone"]


class Refuse(_Value, frozen=True, gc=False, tag=True):
    """Nothing changed; tell the node why, in one sentence."""

    key: str
    reason: str


class Bench(_Value, frozen=True, gc=False, tag=True):
    """A node's numbers were shown wrong; it gets no more leases, and is told why."""

    key: str
    reason: str


class Complete(_Value, frozen=True, gc=False, tag=True):
    """Every leaf of the step is covered, and the root is merged."""

    step: int


class SkipStep(_Value, frozen=True, gc=False, tag=True):
    """The step is given up without an update; its partial sums may go."""

    step: int
    reason: str


class Stop(_Value, frozen=True, gc=False, tag=True):
    """The run cannot go on."""

    reason: str


Instruction = Grant | Cut | Take | Duplicate | Audit | Verified | Refuse | Bench | Complete | SkipStep | Stop
