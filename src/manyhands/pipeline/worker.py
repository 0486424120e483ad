"""The role of a worker: dial the boss, hold the stages that it gives, and compute what it asks for.

::

    boss ────── stream ─────┐
    worker 1 ── stream ─────┤ inbox ──► this thread: one message after the other, computing in between
    worker 2 ── stream ─────┘

Streams are read by threads of their own; whatever arrives meets in one inbox, and one thread computes. What a
command does with its stages is `holding`'s; this file only connects, waits and comes back.
"""

from __future__ import annotations

import os
import queue
import random
import threading
from typing import Any

import torch

from manyhands.clock import Clock
from manyhands.errors import Unreachable
from manyhands.fleet.channels import Dialled, Lost
from manyhands.fleet.parcels import Parcels
from manyhands.fleet.signals import Signals
from manyhands.observe.rates import format_duration
from manyhands.observe.waiting import Waiting
from manyhands.pipeline import messages as m
from manyhands.pipeline.bossline import BossLine
from manyhands.pipeline.holding import Holding
from manyhands.pipeline.memory import free_memory_bytes
from manyhands.pipeline.neighbours import Neighbours
from manyhands.pipeline.post import BossLost, Item, Post
from manyhands.release import __version__
from manyhands.training.device import pick_device
from manyhands.wire.address import local_addresses
from manyhands.wire.backoff import delays

_STOP = "the worker was stopped"


class Worker:
    """One worker, until its boss lets it go. ``say`` takes a line for whoever started it."""

    def __init__(
        self,
        line: BossLine,
        device: str | None,
        name: str,
        *,
        patience_seconds: float,
        clock: Clock,
        say: Any,
    ) -> None:
        self._line = line
        self._device = device
        self._name = name
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._say = say
        self._stopping = threading.Event()
        self._inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()

    def run(self) -> None:
        """Serve until the boss ends it well. Unreachable after the patience, Refused where it says no."""
        device = pick_device(self._device)
        with Signals(self.stop, "leaving the boss") as signals:
            self._serve_and_return(device)
        signals.end()

    def stop(self) -> None:
        """Leave; from any thread or a signal's handler, at once."""
        self._stopping.set()
        self._inbox.put((m.BOSS, Lost(Unreachable(_STOP)), None))

    def _serve_and_return(self, device: torch.device) -> None:
        waiting, waits = Waiting(self._clock), delays(random.Random(os.getpid()))
        while not self._stopping.is_set():
            try:
                if self._serve(device, waiting):
                    return
            except Unreachable as error:
                if self._stopping.is_set():
                    return
                if waiting.seconds >= self._patience_seconds:
                    raise
                patience = format_duration(self._patience_seconds - waiting.seconds)
                waiting.say(f"{error}; trying again for {patience}")
                self._stopping.wait(next(waits))

    def _serve(self, device: torch.device, waiting: Waiting) -> bool:
        """One connection, from the dial to its end; whether the boss ended it well."""
        inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._inbox = inbox
        neighbours = Neighbours(
            lambda member, message, tree: inbox.put((member, message, tree)), self._clock, self._line.key()
        )
        with self._line.dial() as connection:
            waiting.over()
            boss: Dialled[m.FromBoss] = Dialled(
                connection.stream(),
                Parcels(m.FromBoss),
                lambda message, tree: inbox.put((m.BOSS, message, tree)),
            )
            neighbours.start()
            try:
                boss.start()
                boss.send(self._hello(device, neighbours.invite))
                self._say(f"joined the boss at {connection.where}: computing on {device}")
                return self._obey(Holding(device, Post(boss, neighbours, inbox), self._clock))
            except BossLost as lost:
                raise lost.error from None
            finally:
                neighbours.close()
                boss.close()

    def _hello(self, device: torch.device, invite: str) -> m.Hello:
        memory = free_memory_bytes(device)
        return m.Hello(
            m.PROTOCOL,
            __version__,
            self._name,
            os.getpid(),
            str(device),
            memory,
            invite,
            local_addresses()[:16],
        )

    def _obey(self, holding: Holding) -> bool:
        """Do what the boss says, one command after the other, until it says farewell or its stream ends."""
        while True:
            command, tree = holding.post.command()
            if isinstance(command, m.Farewell):
                return True
            holding.obey(command, tree)
