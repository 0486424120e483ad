"""A node that was let in, as the coordinator's shell keeps it: its stream, and what it has been sent."""

from __future__ import annotations

from dataclasses import dataclass, field

from manyhands.fleet.session import Session
from manyhands.wire.admission import Peer


@dataclass
class Member:
    """One connected node."""

    peer: Peer
    session: Session
    name: str
    device: str
    numeric_class: str
    manual: bool
    holds_version: int = -1
    holds_leaves: set[tuple[int, int]] = field(default_factory=set)
    """(step, leaf) of the data that it was sent, some of it ahead and in vain."""
    leased_leaves: set[tuple[int, int]] = field(default_factory=set)
    """(step, leaf) that it was leased."""
    samples: int = 0
    computing_seconds: float = 0.0
    refused: int = 0

    def forget_before(self, step: int) -> None:
        """Leaves of past steps are not held any more."""
        self.holds_leaves = {key for key in self.holds_leaves if key[0] >= step}
        self.leased_leaves = {key for key in self.leased_leaves if key[0] >= step}
