"""Who may come in: the pure decision behind the gate.

It sees one row of the table and one moment, and answers with a sentence or with silence. It knows no
database, certificate or socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

NEW_LINE = "ask for a new line (`manyhands invite` on the coordinator prints one)"


class Role(StrEnum):
    """What a peer is here for; each message lists the roles that may send it."""

    NODE = "node"
    LOADER = "loader"
    TRAINER = "trainer"
    WORKER = "worker"
    OBSERVER = "observer"
    OWNER = "owner"


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer that was let in: the id of its key, its role, and the invite that vouched for it."""

    key_id: str
    role: Role
    invite_id: str


@dataclass(frozen=True, slots=True)
class InviteRow:
    """What the coordinator remembers of an invite; never its secret. Times are seconds since 1970."""

    invite_id: str
    role: Role
    uses_left: int
    created: float
    expires: float
    revoked: bool


def standing(invite: InviteRow | None, is_banned: bool) -> str | None:
    """Why a peer that was let in before may not stay, as one sentence; None where it may."""
    if invite is None:
        return f"this invite is not one of this run's: {NEW_LINE}"
    if invite.revoked:
        return f"this invite was revoked: {NEW_LINE}"
    if is_banned:
        return "this node was removed from the run by its owner"
    return None


def may_enter(invite: InviteRow | None, is_banned: bool, is_known: bool, now: float) -> str | None:
    """Why a peer at the door may not come in; None where it may.

    A known key comes back through an invite that is used up or expired: only a new one needs a use.
    """
    reason = standing(invite, is_banned)
    if reason is not None or is_known or invite is None:
        return reason
    if now >= invite.expires:
        hours = (now - invite.expires) / 3600
        return f"this invite expired {hours:.1f} hours ago: {NEW_LINE}"
    if invite.uses_left <= 0:
        return f"this invite is used up, each of its uses went to another node: {NEW_LINE}"
    return None
