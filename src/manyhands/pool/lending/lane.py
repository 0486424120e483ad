"""One lane of a lent machine, as the agent sees it: a compute child, a key, a stream, and patience with all three.

::

    spawn ──▶ (torch is loaded meanwhile) dial ──▶ OPENED ──▶ relay ... stream lost ──▶ dial again, the child stays
                                                      │
    the run computes with fewer instructions than this machine has ──▶ goodbye ──▶ spawn again, held to them
    child died ──▶ goodbye to the coordinator ──▶ spawn again after a while; the third time with one run: Refused
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from manyhands.clock import Clock
from manyhands.errors import ManyhandsError, ProtocolError, Refused, Unreachable
from manyhands.fleet import messages as m
from manyhands.fleet.dialling import Dialler
from manyhands.observe.rates import format_duration
from manyhands.observe.text import clean_line
from manyhands.observe.waiting import Waiting
from manyhands.pool.lending import words
from manyhands.pool.lending.channel import HungUp
from manyhands.pool.lending.deaths import Deaths
from manyhands.pool.lending.given import Given
from manyhands.pool.lending.process import ComputeProcess
from manyhands.pool.lending.relay import Relay
from manyhands.pool.lending.watchdog import Watchdog
from manyhands.pool.lending.words import Ending, Kind, Note, Order, Pulse, Ready
from manyhands.settings import load
from manyhands.settings.instructions import pins
from manyhands.wire.backoff import delays
from manyhands.wire.dialer import Connection

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heard:
    """What a lane learns that others want to know: its child's devices, the run that it joined, its end."""

    ready: Callable[[Ready], None]
    welcomed: Callable[[m.Welcome], None]
    over: Callable[[], None]


class Lane:
    """One compute child and its stream, on a thread of its own from `start` to `join`."""

    def __init__(
        self, order: Order, dialler: Dialler, patience_seconds: float, heard: Heard, clock: Clock
    ) -> None:
        self._order = order
        self._dialler = dialler
        self._patience_seconds = patience_seconds
        self._heard = heard
        self._clock = clock
        self._thread = threading.Thread(target=self._run, name=f"manyhands-{order.name}", daemon=True)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._child: ComputeProcess | None = None
        self._relay: Relay | None = None
        self._waiting = Waiting(clock)
        self._waits = delays(random.Random(os.getpid()))
        self._has_joined = False
        self._capability: str | None = None
        self._pins: dict[str, str] = {}
        self._is_held = False
        self._run_name: str | None = None
        self._watchdog = Watchdog()
        self._fed = 0
        self._before = Given()
        self._pulse = Pulse(0, 0, 0.0, 0.0, 0.0)
        self._bytes = (0, 0)
        self._is_over = False
        self.error: BaseException | None = None

    # ---- from the agent's main thread ----

    def start(self) -> None:
        """Begin: spawn and dial."""
        self._thread.start()

    def stop(self) -> None:
        """Hand back what is leased, and end; returns when the coordinator knows, or after a few seconds."""
        self._stopping.set()
        with self._lock:
            relay, child = self._relay, self._child
        if relay is not None:
            relay.leave("its owner stopped it")
        if child is not None:
            child.kill()

    def join(self, timeout_seconds: float) -> None:
        """Wait until nothing of it is left; one that still dials somebody is left behind."""
        self._thread.join(timeout_seconds)

    @property
    def is_over(self) -> bool:
        """Whether it ended; `error` says how."""
        return self._is_over

    def tick(self, now: float) -> None:
        """Look after the child; once a second."""
        with self._lock:
            relay, child = self._relay, self._child
        if relay is not None and relay.num_passed != self._fed:
            self._fed = relay.num_passed
            self._watchdog.fed()
        if child is None:
            return
        reason = self._watchdog.tick(now, is_stopped=child.is_stopped)
        if reason is not None:
            child.kill(reason)

    def pause(self, is_paused: bool) -> None:
        """Stop the child where it is, or let it go on; leases that wait meanwhile go to other machines."""
        with self._lock:
            child = self._child
        if child is not None:
            child.pause(is_paused)

    @property
    def given(self) -> Given:
        """What this lane has given so far."""
        relay, pulse = self._relay, self._pulse
        now = (0, 0) if relay is None else (relay.sent_bytes, relay.received_bytes)
        sent, received = self._bytes
        own = Given(pulse.leaves, pulse.samples, pulse.seconds, sent + now[0], received + now[1])
        return self._before + own

    # ---- the lane's own thread ----

    def _run(self) -> None:
        deaths, waits = Deaths(), delays(random.Random(os.getpid()))
        try:
            while not self._stopping.is_set():
                try:
                    self._live()
                except HungUp:
                    if self._is_held:
                        self._is_held = False
                        self._leave("its compute process starts again with the run's instructions")
                    elif not self._stopping.is_set():
                        logger.warning("%s: %s", self._order.name, deaths.count(self._run_name, self._died()))
                        self._stopping.wait(next(waits))
                else:
                    return
                finally:
                    self._bury()
        except BaseException as error:  # noqa: BLE001 - the thread's edge: the main thread raises it
            self.error = error
        finally:
            self._dialler.release()
            self._is_over = True
            self._heard.over()

    def _live(self) -> None:
        """One child, from its start to its outcome. HungUp where it dies."""
        child = ComputeProcess(self._order, self._pins)
        self._watchdog = Watchdog()
        child.start()
        with self._lock:
            self._child = child
        connection: Connection | None = None
        try:
            connection = self._dial()  # while the child loads torch
            while connection is not None:
                kind, body = child.channel.receive()
                if kind is Kind.DIAL:
                    connection = self._open(child, connection)
                elif kind is Kind.OUTCOME:
                    self._end(words.unpack(body, Ending))
                    return
                else:
                    self._take(kind, body)
        finally:
            if connection is not None:
                connection.close()

    def _open(self, child: ComputeProcess, connection: Connection) -> Connection | None:
        """A stream for the child, over a connection that may have to be dialled first; None when stopped."""
        if self._relay is not None:
            self._close_relay()
            self._stopping.wait(next(self._waits))
        current: Connection | None = connection
        while current is not None:
            relay = Relay(current, child.channel, self._welcomed)
            try:
                relay.start()
            except Unreachable:
                current = self._dial()
                continue
            except HungUp:
                current.close()
                raise
            self._watchdog.opened()
            with self._lock:
                self._relay, self._fed = relay, 0
            return current
        return None

    def _take(self, kind: Kind, body: bytes) -> None:
        relay = self._relay
        if kind is Kind.READY:
            ready = words.unpack(body, Ready)
            self._capability = self._capability or ready.capability  # the first child's: nothing held it yet
            self._heard.ready(ready)
        elif kind is Kind.PULSE:
            self._pulse = words.unpack(body, Pulse)
            self._watchdog.pulse(self._pulse)
        elif kind is Kind.NOTE:
            note = words.unpack(body, Note)
            logger.log(note.level, "%s: %s", self._order.name, clean_line(note.text, max=2000))
        elif relay is None:
            raise ProtocolError(f"the compute process sent {kind.name} before it had a stream")
        elif kind is Kind.MESSAGE:
            relay.send(body)
        elif kind is Kind.FINISH:
            relay.finish()
        else:
            relay.close()

    def _end(self, ending: Ending) -> None:
        if ending.error == "MemoryError":
            raise Refused(
                f"this machine has not the memory that the run's program needs: {clean_line(ending.text)}"
            )
        if ending.error is not None:
            raise words.error_of(ending)

    # ---- the coordinator ----

    def _dial(self) -> Connection | None:
        """A connection, for as long as patience lasts; None when stopped."""
        while not self._stopping.is_set():
            try:
                return self._dialler.dial()
            except Unreachable as error:
                self._wait_or_give_up(error)
        return None

    def _wait_or_give_up(self, error: Unreachable) -> None:
        limit = self._patience_seconds
        wait_timeout = load().network.wait_timeout
        if not self._has_joined and wait_timeout is not None:
            limit = wait_timeout
        away, seconds = self._waiting.seconds, next(self._waits)
        if away + seconds > limit:
            raise Unreachable(
                f"the coordinator has been away for {format_duration(away)}: {error}"
            ) from error
        self._waiting.say(
            f"waiting for the coordinator ({error}): start it there; trying again for {format_duration(limit - away)}"
        )
        self._stopping.wait(seconds)

    def _welcomed(self, welcome: m.Welcome) -> None:
        """On the relay's thread: the coordinator let this node in."""
        self._run_name, self._has_joined = welcome.run, True
        self._hold(welcome)
        self._waiting.over()
        self._waits = delays(random.Random(os.getpid()))
        self._heard.welcomed(welcome)

    def _hold(self, welcome: m.Welcome) -> None:
        """Start the child again where it would compute with other instructions than the run does."""
        assert self._capability is not None  # a child is ready before it asks for a stream
        wanted = pins(welcome.instructions, self._capability)
        if wanted != self._pins and self._child is not None:
            level = welcome.instructions.get("ATEN_CPU_CAPABILITY", "other")
            logger.warning(
                "computing with the run's instructions (%s), for the same bits: starting again", level
            )
            self._pins, self._is_held = wanted, True
            self._child.kill("it starts again with the run's instructions")

    # ---- ends ----

    def _died(self) -> str:
        assert self._child is not None
        sentence = self._child.sentence()
        self._leave(sentence)
        return sentence

    def _leave(self, reason: str) -> None:
        """Tell the coordinator, where there is one, in the child's place."""
        if self._relay is not None:
            self._relay.leave(reason)

    def _close_relay(self) -> None:
        with self._lock:
            relay, self._relay = self._relay, None
        if relay is not None:
            relay.close()
            self._bytes = self._bytes[0] + relay.sent_bytes, self._bytes[1] + relay.received_bytes

    def _bury(self) -> None:
        """Leave nothing of the child and its stream; what they gave stays counted."""
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.kill()
        self._close_relay()
        self._before, self._pulse, self._bytes = self.given, Pulse(0, 0, 0.0, 0.0, 0.0), (0, 0)
        if child is not None:
            with suppress(ManyhandsError):
                child.close()
