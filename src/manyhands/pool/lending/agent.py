"""The agent of a lent machine: its lanes, its owner's signals, and a line now and then about what was given.

The first lane starts at once. How many more there are depends on what its child finds here and on the run's
threads, so they follow when it has joined. A lane that fails later costs its own work only; the first one's error
is the command's.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import reduce

from manyhands.clock import Clock
from manyhands.errors import UsageError
from manyhands.fleet import messages as m
from manyhands.fleet.dialling import Dialler
from manyhands.fleet.signals import Signals
from manyhands.observe.text import clean_line, clean_name
from manyhands.pool.lending import lanes
from manyhands.pool.lending.given import Given
from manyhands.pool.lending.idle import Idle
from manyhands.pool.lending.lane import Heard, Lane
from manyhands.pool.lending.lanes import Lending
from manyhands.pool.lending.limits import others_seconds
from manyhands.pool.lending.words import Order, Ready

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
_END_SECONDS = 5.0


class Agent:
    """Lends this machine to one coordinator. ``dialler`` makes one for each lane, since each has a key of its own.

    ``show`` is called each second with what was given so far, ``say`` with a sentence when something begins.
    """

    def __init__(
        self,
        lending: Lending,
        dialler: Callable[[], Dialler],
        patience_seconds: float,
        *,
        clock: Clock,
        show: Callable[[Given], None],
        say: Callable[[str], None],
    ) -> None:
        self._lending = lending
        self._dialler = dialler
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._show = show
        self._say = say
        self._lanes: list[Lane] = []
        self._ready: Ready | None = None
        self._welcome: m.Welcome | None = None
        self._is_grown = False
        self._idle = None if lending.quiet_seconds is None else Idle(lending.quiet_seconds)
        self._changed = threading.Event()
        self._stopping = threading.Event()

    def run(self) -> Given:
        """Lend until the run ends; what was given. Raises what ended the first lane.

        After a signal the leases are handed back, and it ends as the signal asks.
        """
        self._lending.check(len(_cpus()))
        if self._idle is not None and others_seconds() is None:
            raise UsageError(
                "--when-idle: this system does not tell what other programs take (no /proc/stat)"
            )
        with Signals(self.stop, "handing back what is leased") as signals:
            try:
                self._start_lane(self._lending.device if self._lending.device != lanes.ALL else None)
                while not self._is_over():
                    self._changed.wait(TICK_SECONDS)
                    self._changed.clear()
                    self._tick()
            finally:
                self._end()
        signals.end()
        if self._lanes[0].error is not None:
            raise self._lanes[0].error
        return self.given

    def stop(self) -> None:
        """Hand back what is leased and end; from any thread or a signal's handler, at once."""
        self._stopping.set()
        self._changed.set()

    @property
    def given(self) -> Given:
        """What all lanes have given so far."""
        return reduce(lambda total, lane: total + lane.given, self._lanes, Given())

    def _is_over(self) -> bool:
        """Stopped; or the first lane failed; or every lane has ended."""
        first = self._lanes[0]
        return (
            self._stopping.is_set()
            or (first.is_over and first.error is not None)
            or all(lane.is_over for lane in self._lanes)
        )

    def _tick(self) -> None:
        now = self._clock.monotonic()
        self._give_way(now)
        for lane in self._lanes:
            lane.tick(now)
        self._show(self.given)
        if self._ready is not None and self._welcome is not None and not self._is_grown:
            self._is_grown = True
            self._grow(self._ready, self._welcome)

    def _give_way(self, now: float) -> None:
        """Pause while the owner's programs need this machine, and go on by itself."""
        others = None if self._idle is None else others_seconds()
        if self._idle is None or others is None:
            return
        was_paused = self._idle.is_paused
        is_paused = self._idle.tick(now, others)
        if is_paused != was_paused:
            self._say(
                "going on" if was_paused else "other programs need this machine: paused until it is idle"
            )
        for lane in self._lanes:  # a child that was started meanwhile, too
            lane.pause(is_paused)

    def _grow(self, ready: Ready, welcome: m.Welcome) -> None:
        all_devices = lanes.devices(self._lending, ready.device, ready.num_cuda, welcome.threads)
        also = f", and {len(all_devices) - 1} lanes more" if len(all_devices) > 1 else ""
        self._say(f"joined run {clean_name(welcome.run)}: computing on {clean_name(all_devices[0])}{also}")
        for device in all_devices[1:]:
            self._start_lane(device)

    def _start_lane(self, device: str | None) -> None:
        name, cpus = self._lending.lane_name(len(self._lanes)), _cpus()
        lent = cpus[-self._lending.cpus :] if self._lending.cpus is not None else []
        verbose, num_ranks = self._lending.verbose, self._lending.num_ranks
        order = Order((0, 0, 0), name, device, tuple(lent), _free_memory_bytes(), verbose, num_ranks)
        heard = Heard(self._heard_ready, self._heard_welcome, self._changed.set)
        lane = Lane(order, self._dialler(), self._patience_seconds, heard, self._clock)
        self._lanes.append(lane)
        lane.start()

    def _heard_ready(self, ready: Ready) -> None:
        self._ready = self._ready or ready

    def _heard_welcome(self, welcome: m.Welcome) -> None:
        self._welcome = self._welcome or welcome
        self._changed.set()

    def _end(self) -> None:
        for lane in self._lanes:
            lane.stop()
        for lane in self._lanes:
            lane.join(_END_SECONDS)
        for lane in self._lanes[1:]:
            if lane.error is not None and not self._stopping.is_set():
                logger.warning("a lane ended: %s", clean_line(str(lane.error)))


def _cpus() -> list[int]:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _free_memory_bytes() -> int:
    """What a lane may allocate: all that the machine has; the program's own limits are finer."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
