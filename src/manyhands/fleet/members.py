"""Coming, going and being sent away: what each does to the leases a node holds.

Whoever goes, its uncovered leaves are free at once and free nodes get them in the same call. This module
judges no answer and knows no clock.
"""

from __future__ import annotations

from manyhands.fleet.board import OpenLease
from manyhands.fleet.events import Alive, Ban, Bench, Drain, Instruction, Join, Leave, Refuse
from manyhands.fleet.granting import Granter
from manyhands.fleet.roster import Node


class Members:
    """The roster's side of the machine."""

    def __init__(self, granter: Granter) -> None:
        self._granter = granter
        self._roster = granter.roster

    def join(self, event: Join, now: float, out: list[Instruction]) -> None:
        """Enter a node; the same key again ends the older connection and its lease."""
        reason = self._roster.refusal(event)
        if reason is not None:
            self.refuse(event.key, reason, out)
            return
        old = self._roster.nodes.get(event.key)
        if old is not None:
            self._forget(old)
        node = self._roster.add(event)
        if old is not None:
            node.seconds_per_leaf, node.leaves_done = old.seconds_per_leaf, old.leaves_done
        self._granter.fill(now, out)

    def leave(self, event: Leave, now: float, out: list[Instruction]) -> None:
        """Drop a node; a key that is not here is nothing to speak of."""
        node = self._roster.nodes.get(event.key)
        if node is not None:
            self._forget(node)
            self._granter.fill(now, out)

    def _forget(self, node: Node) -> None:
        if node.lease is not None:
            self.release(node.lease, None)
        self._roster.remove(node)

    def release(self, lease: OpenLease, out: list[Instruction] | None) -> None:
        """End a lease for good and free its leaves; with `out`, its node is told."""
        self._granter.revoke(lease, out)

    def drain(self, event: Drain, now: float, out: list[Instruction]) -> None:
        """Take back a node's lease, and give it none any more."""
        node = self.known(event.key, out)
        if node is not None:
            node.draining = True
            if node.lease is not None:
                self.release(node.lease, out)
            self._granter.fill(now, out)

    def ban(self, event: Ban, now: float, out: list[Instruction]) -> None:
        """Drop a node and let it in no more."""
        self._roster.ban(event.key, event.reason)
        self.leave(Leave(event.key, event.reason), now, out)

    def bench(self, key: str, reason: str, out: list[Instruction]) -> None:
        """Give a node whose numbers were wrong no more leases; the sums taken from it before stay."""
        node = self._roster.nodes.get(key)
        if node is None or node.benched:
            return
        self._roster.bench(node, reason)
        out.append(Bench(key, reason))
        if node.lease is not None:
            self.release(node.lease, out)
        for opinion in self._granter.board.opinions.values():
            if opinion.kind == "verify":
                opinion.voices = [voice for voice in opinion.voices if voice.key != key]

    def alive(self, event: Alive, now: float, out: list[Instruction]) -> None:
        """Note a sign of life."""
        node = self.known(event.key, out)
        if node is not None:
            self.heard(node, now, out)

    def heard(self, node: Node, now: float, out: list[Instruction]) -> None:
        """End a suspension: this node spoke."""
        was_suspended = node.suspended
        node.strikes = 0
        if was_suspended:
            self._granter.fill(now, out)

    def known(self, key: str, out: list[Instruction]) -> Node | None:
        """The connected node of this key; else refuses and returns None."""
        node = self._roster.nodes.get(key)
        if node is None:
            self.refuse(key, "this node has not joined the run, or its connection ended; join again", out)
        return node

    def refuse(self, key: str, reason: str, out: list[Instruction]) -> None:
        """Count and answer a refusal."""
        self._granter.counts.refused += 1
        out.append(Refuse(key, reason))
