"""What rank 0 hears of another rank, and what it remembers of a lease that it has given it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from manyhands.fleet import messages as m
from manyhands.wire.transfer import Body

if TYPE_CHECKING:
    from manyhands.pool.lending.group.rank import Rank


class Asks(NamedTuple):
    """A rank is loaded, and asks to be let in."""

    rank: Rank


class Said(NamedTuple):
    """What a rank says, with the body where it announced one."""

    rank: Rank
    message: m.FromNode
    body: Body | None


class Gone(NamedTuple):
    """A rank's process has ended; nothing comes after it."""

    rank: Rank
    sentence: str


Event = Asks | Said | Gone


@dataclass
class Part:
    """A subtree that a rank has in hand, and which of its leaves (a bit each) are not answered for."""

    granted: m.Granted
    left: int
    kept: tuple[int, ...] = field(default=())

    @property
    def subtree(self) -> int:
        """The subtree's heap number."""
        return self.granted.subtrees[0]
