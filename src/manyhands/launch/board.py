"""What the machines of a launch tell one another while it runs: an entry each, on a board in the store of node 0.

::

    agent ── tell ──▶ own entry ──┐  1 twice a second a thread writes the entry, with one beat more,
          ◀─ entries ─ a copy  ◀──┘  2 and reads the entries of all machines
          ◀─ lost ──── a sentence     3 whose beat has stopped is lost; and so is node 0 where the thread gets no answer

A store behind a cut cable does not answer, not even with an error: whoever asks waits until TCP gives up, a quarter
of an hour. So only this thread asks, and everybody else looks at what it has brought.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

from torch._C._distributed_c10d import Store
from torch.distributed import DistError

from manyhands.clock import Clock
from manyhands.observe.silence import Silence

TURN_SECONDS = 0.5
_WAIT_SECONDS = 0.05
_CLOSE_SECONDS = 1.0


@dataclass(frozen=True)
class Entry:
    """What one machine says of itself.

    `round` counts the starts of its ranks, `swept` (node 0) those for which the store was cleaned; `ended` are its
    ranks, once all have ended well; `failure` what has ended it; `has_left` whether it needs nobody any more.
    """

    node_rank: int
    host: str
    beat: int = 0
    round: int = 0
    swept: int = 0
    ended: Sequence[int] = ()
    failure: dict[str, Any] | None = None
    has_left: bool = False

    @property
    def name(self) -> str:
        """For a person."""
        return f"node {self.node_rank} ({self.host})"


class Board:
    """The board as one machine sees it, from `start` to `close`; `store` is used by nobody else meanwhile.

    A machine without a sign for `limit_seconds` is lost.
    """

    def __init__(self, store: Store, own: Entry, num_nodes: int, limit_seconds: float, clock: Clock) -> None:
        self._store = store
        self._own = own
        self._keys = [f"board/{rank}" for rank in range(num_nodes)]
        self._limit_seconds = limit_seconds
        self._clock = clock
        self._turns = 0
        self._entries: tuple[Entry, ...] = ()
        self._written: Entry | None = None
        self._silences = [Silence() for _ in self._keys]
        self._own_silence = Silence()
        self._is_gone = False
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="manyhands-board", daemon=True)

    def start(self) -> None:
        """Write and read once, and go on doing so. DistError where node 0 is gone."""
        self._turn()
        self._thread.start()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Those of all machines, as of the last turn."""
        return self._entries

    @property
    def others(self) -> list[Entry]:
        """Those of the other machines."""
        return [entry for entry in self._entries if entry.node_rank != self._own.node_rank]

    def tell(self, **changes: Any) -> None:
        """Change the own entry; others read it soon."""
        self._own = replace(self._own, **changes)
        self._wake.set()

    # ---- how it ended ----

    @property
    def is_over(self) -> bool:
        """Whether another machine has failed, or is lost."""
        return self.failure() is not None or self.lost() is not None

    def failure(self) -> dict[str, Any] | None:
        """What another machine says has ended it."""
        return next((entry.failure for entry in self.others if entry.failure is not None), None)

    def lost(self) -> str | None:
        """Step 3: why no end is to be waited for, naming the machine; None while all are heard. To be asked often."""
        if self._is_gone:
            return f"the launcher on {self._entries[0].name} is gone"
        if self._own_silence.look(self._turns, self._clock.monotonic()) > self._limit_seconds:
            return self._silent(self._entries[0])
        for entry in self.others:
            if entry.has_left and not entry.ended and entry.failure is None:
                return f"the launcher on {entry.name} was stopped"
            if not entry.has_left and self._silences[entry.node_rank].seconds > self._limit_seconds:
                return self._silent(entry)
        return None

    @property
    def is_gone(self) -> bool:
        """Whether the launcher of node 0 has closed the connection."""
        return self._is_gone

    def ended(self) -> list[tuple[str, int]]:
        """(host, rank) of the ranks on other machines where all have ended well."""
        return [(entry.host, rank) for entry in self.others for rank in entry.ended]

    def quiet(self, seconds: float) -> list[Entry]:
        """The other machines without a sign for so long; node 0 where it does not answer."""
        if self._is_gone or self._own_silence.seconds >= seconds:
            return [self._entries[0]]
        return [entry for entry in self.others if self._silences[entry.node_rank].seconds >= seconds]

    # ---- waiting ----

    def wait_until(self, is_done: Callable[[], bool], limit_seconds: float = inf) -> None:
        """Return when that is so, when another machine has failed or is lost, or after the limit."""
        deadline = self._clock.monotonic() + limit_seconds
        while not is_done() and not self.is_over and self._clock.monotonic() < deadline:
            self._wake.set()
            self._clock.sleep(_WAIT_SECONDS)

    def wait_ended(self, ranks: Sequence[int]) -> None:
        """The `ranks` here have ended well: return when all machines' have, or when one has failed or is lost."""
        self.tell(ended=list(ranks))
        self.wait_until(lambda: all(entry.ended for entry in self.others))

    def wait_failure(self, limit_seconds: float) -> dict[str, Any] | None:
        """The failure of another machine, for one that knows only that a peer is gone; None after the limit."""
        self.wait_until(lambda: False, limit_seconds)
        return self.failure()

    def leave(self, limit_seconds: float) -> None:
        """Say that all was heard. Node 0, which holds the store, waits for the others, but no longer than this."""
        self.tell(has_left=True)
        deadline = self._clock.monotonic() + limit_seconds
        while not self._may_go() and not self._is_gone and self._clock.monotonic() < deadline:
            self._wake.set()
            self._clock.sleep(_WAIT_SECONDS)

    def _may_go(self) -> bool:
        if self._own.node_rank == 0:
            return all(entry.has_left for entry in self.others)
        return self._written is self._own

    def close(self) -> None:
        """Write that this machine has left, and end. Safe to call twice."""
        self.tell(has_left=True)
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)  # behind a cut cable it never ends: it is left behind

    def _silent(self, entry: Entry) -> str:
        return (
            f"{entry.name} has been silent for {self._limit_seconds:g} s (network.timeout): it has stopped, or the "
            "network between is cut"
        )

    def _run(self) -> None:
        is_closing = False
        while not is_closing:
            self._wake.wait(TURN_SECONDS)
            self._wake.clear()
            is_closing = self._closing.is_set()
            try:
                self._turn()
            except DistError:
                self._is_gone = True
                return

    def _turn(self) -> None:
        """Steps 1 and 2, and the silences for 3."""
        own = self._own
        self._store.set(self._keys[own.node_rank], json.dumps(asdict(replace(own, beat=self._turns))))
        texts = self._store.multi_get(self._keys)
        now = self._clock.monotonic()
        self._entries = tuple(Entry(**json.loads(text)) for text in texts)
        for entry, silence in zip(self._entries, self._silences, strict=True):
            silence.look(entry.beat, now)
        self._written = own
        self._turns += 1
