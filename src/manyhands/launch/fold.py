"""Lines that several ranks print alike become one line. Pure; time is an argument.

::

    rank 0: "loading"      ─┐  held for a moment, in order of arrival
    rank 1: "loading"      ─┴▶ [0-1] loading
    rank 1: "loss 0.4"     ──▶ [1] loss 0.4

A rank's own lines never change their order. A line that every rank has printed waits for nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

HOLD_SECONDS = 0.15
_MOST_HELD = 1000


@dataclass
class _Held:
    text: str
    since: float
    ranks: list[int] = field(default_factory=list)


class Fold:
    """The lines of one stream (stdout or stderr) of a world of `world_size` ranks."""

    def __init__(self, world_size: int, hold_seconds: float = HOLD_SECONDS) -> None:
        self._world_size = world_size
        self._hold_seconds = hold_seconds
        self._held: deque[_Held] = deque()

    def add(self, rank: int, text: str, now: float) -> None:
        """A line of `rank` has come at `now` (seconds)."""
        for held in self._after(rank):
            if held.text == text:
                held.ranks.append(rank)
                return
        self._held.append(_Held(text, now, [rank]))

    def take(self, now: float) -> list[tuple[list[int], str]]:
        """The lines whose time has come, each with its ranks in ascending order."""
        taken = []
        while self._held and self._is_due(self._held[0], now):
            held = self._held.popleft()
            taken.append((sorted(held.ranks), held.text))
        return taken

    def flush(self) -> list[tuple[list[int], str]]:
        """All that is still held."""
        taken = [(sorted(held.ranks), held.text) for held in self._held]
        self._held.clear()
        return taken

    def _after(self, rank: int) -> Iterable[_Held]:
        """What came after the last line of `rank`: joining an earlier one would change its order."""
        for place in range(len(self._held) - 1, -1, -1):
            if rank in self._held[place].ranks:
                return list(self._held)[place + 1 :]
        return self._held

    def _is_due(self, held: _Held, now: float) -> bool:
        is_complete = len(held.ranks) >= self._world_size
        return is_complete or now - held.since >= self._hold_seconds or len(self._held) > _MOST_HELD


def name_ranks(ranks: Sequence[int]) -> str:
    """``0-3,7`` for ranks in ascending order."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def tag(ranks: Sequence[int], hosts: Mapping[int, str]) -> str:
    """``[0-1]``, or ``[alpha:0-1 beta:2]`` where `hosts` names the machine of each rank."""
    by_host: dict[str, list[int]] = {}
    for rank in ranks:
        by_host.setdefault(hosts.get(rank, ""), []).append(rank)
    return f"[{' '.join(f'{h}:{name_ranks(r)}' if h else name_ranks(r) for h, r in by_host.items())}]"
