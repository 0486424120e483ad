"""What runs on a cluster's machine: the agent of a lent machine, in a process that an engine placed and watches.

The invite arrives as an argument of `lend`, not of the constructor, so no engine keeps it to start this again; it
is in no command line and no environment. Knows no engine: `rayjoin` makes an actor of it. Loads no torch.
"""

from __future__ import annotations

import logging
import sys
import threading
from dataclasses import asdict

from manyhands.clock import SystemClock
from manyhands.clusters.plan import Wish
from manyhands.fleet.dialling import DEFAULT_ADDRESS, Dialler
from manyhands.observe.waiting import tell
from manyhands.pool.lending.agent import Agent
from manyhands.pool.lending.given import Given
from manyhands.pool.lending.lanes import Lending
from manyhands.pool.lending.words import Ending, ending_of


class Lender:
    """One node; `lend` blocks while the other methods are called beside it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._agent: Agent | None = None
        self._given = Given()
        self._is_stopped = False

    def lend(self, line: str, wish: Wish) -> tuple[str | None, str]:
        """Lend until the run ends: the name of the error that ended it (None: none did), and its sentence."""
        logging.basicConfig(stream=sys.stderr, level=logging.INFO if wish.verbose else logging.WARNING)
        agent = Agent(
            Lending(wish.name, wish.device, None, wish.verbose, wish.num_ranks),
            lambda: Dialler(DEFAULT_ADDRESS, line, secure=True),
            wish.patience_seconds,
            clock=SystemClock(),
            show=self._show,
            say=tell,
        )
        with self._lock:
            self._agent = agent
            if self._is_stopped:
                return None, ""
        try:
            self._show(agent.run())
        except Exception as error:  # noqa: BLE001 - the process's edge: whoever placed it says what it was
            ending = ending_of(error)
        else:
            ending = Ending()
        return ending.error, ending.text

    def given(self) -> dict[str, float]:
        """What was given so far, as numbers by name."""
        return asdict(self._given)

    def stop(self) -> None:
        """Hand back what is leased; `lend` returns."""
        with self._lock:
            self._is_stopped = True
            if self._agent is not None:
                self._agent.stop()

    def _show(self, given: Given) -> None:
        self._given = given
