"""Second opinions: when one node's word is not enough, whom to ask next and when to believe.

Two occasions, one rule. A leaf came out non-finite: is it the data and the model, or the machine? A lease
was drawn for an audit (`verify=r`): does another machine get the same bits? Bits can only be compared
within a numeric class, so a node of the first one's class is asked; for audits one that came by another
invite, since all nodes of one invite may be one person's. Pure: knows no lease book, tensor or time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

import msgspec

Kind = Literal["nonfinite", "verify"]
Verdict = Literal["invites", "keys", "alone"]


class Peer(Protocol):
    """What choosing needs to know of a node."""

    key: str
    invite_id: str
    numeric_class: str


P = TypeVar("P", bound=Peer)


class Voice(msgspec.Struct, frozen=True):
    """One node's word about a subtree's bits."""

    key: str
    invite_id: str
    numeric_class: str
    digest: int


class Opinion:
    """A subtree that waits for more voices; `holder` is the lease that is to bring the next one."""

    __slots__ = ("holder", "kind", "leaves", "subtree", "voices")

    def __init__(self, subtree: int, leaves: int, kind: Kind, holder: int | None = None) -> None:
        self.subtree = subtree
        self.leaves = leaves
        self.kind = kind
        self.voices: list[Voice] = []
        self.holder = holder


def voice_of(node: Peer, digest: int) -> Voice:
    """A node's word."""
    return Voice(node.key, node.invite_id, node.numeric_class, digest)


def is_sampled(seed: int, step: int, lease: int, rate: float) -> bool:
    """Whether a lease is drawn for an audit: a share `rate` of all, the same ones in every replay."""
    if rate <= 0.0:
        return False
    drawn = hashlib.blake2b(f"{seed}:{step}:{lease}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "big") < rate * 2.0**64


def candidates(opinion: Opinion, nodes: Sequence[P]) -> list[P]:
    """The best of `nodes` to ask next: one of them should get the subtree, however long that takes."""
    if not opinion.voices:
        return list(nodes)
    peers = _unheard_peers(opinion, nodes)
    if opinion.kind == "verify":
        invites = {voice.invite_id for voice in opinion.voices}
        peers = [peer for peer in peers if peer.invite_id not in invites] or peers
    heard = {voice.key for voice in opinion.voices}
    return peers or [node for node in nodes if node.key in heard] or list(nodes)


def verdict(opinion: Opinion, voice: Voice, nodes: Sequence[Peer]) -> Verdict | None:
    """Whether this new voice settles an audit, and how strongly; None: ask another node."""
    others = [old for old in opinion.voices if old.key != voice.key]
    equal = [old for old in others if old.digest == voice.digest]
    if any(old.invite_id != voice.invite_id for old in equal):
        return "invites"
    if equal:
        return "keys"
    unheard = [peer for peer in _unheard_peers(opinion, nodes, voice) if peer.key != voice.key]
    repeated = voice in opinion.voices
    return "alone" if not unheard and (repeated or not others) else None


def confirms_non_finite(earlier: Sequence[Voice], voice: Voice) -> bool:
    """Whether a leaf is non-finite for sure: the same bits twice, or no way to tell by another voice.

    Bits of other classes cannot be compared. Three voices that all differ are enough to give up on: by then
    it is the safe thing to do, whoever is wrong.
    """
    return len(earlier) >= 2 or any(
        old.digest == voice.digest or old.numeric_class != voice.numeric_class for old in earlier
    )


def contradicted(earlier: Sequence[Voice], voice: Voice) -> list[Voice]:
    """The voices that this one and an equal one of another node show to be wrong."""
    if not any(old.key != voice.key and old.digest == voice.digest for old in earlier):
        return []
    return [old for old in earlier if old.digest != voice.digest and old.numeric_class == voice.numeric_class]


def _unheard_peers(opinion: Opinion, nodes: Sequence[P], new: Voice | None = None) -> list[P]:
    """Nodes of the first voice's class that have not spoken yet."""
    heard = {voice.key for voice in opinion.voices}
    first = opinion.voices[0] if opinion.voices else new
    return [n for n in nodes if n.key not in heard and first and n.numeric_class == first.numeric_class]
