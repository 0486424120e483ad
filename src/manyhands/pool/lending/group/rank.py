"""Rank 0's handle on another rank: a compute child that takes rank 0 for its coordinator.

Says what a coordinator says (fleet/messages.py) and hears what a node says, each body in chunks; what is heard
comes as events, in order, on a queue that all ranks share. Decides nothing. One process a handle: whoever
replaces a rank that died is another one::

    LOADING ── asks ──▶ greet: Welcome, Program, Everything, Probe ── Probed ──▶ hold, lease, trim ... ── gone
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch

from manyhands.errors import ProtocolError
from manyhands.fleet import messages as m
from manyhands.fleet import tree
from manyhands.observe.silence import Silence
from manyhands.observe.text import clean_line
from manyhands.pool.engagement import Engagement
from manyhands.pool.lane import Batches
from manyhands.pool.lending import words
from manyhands.pool.lending.channel import HungUp, Stuck
from manyhands.pool.lending.group.events import Asks, Event, Gone, Part, Said
from manyhands.pool.lending.process import ComputeProcess
from manyhands.pool.lending.words import Ending, Kind, Note, Order, Pulse, pack
from manyhands.tensors import frame
from manyhands.tensors.memory import bytes_of
from manyhands.training.batch import Batch
from manyhands.wire import envelope
from manyhands.wire.transfer import Body, Incoming, chunks

logger = logging.getLogger(__name__)

_MOST_OPEN = 64
SEND_SECONDS = 10
"""How long rank 0 waits for a rank to take what it is sent."""


class Rank:
    """One other process of the group, from `start` to `close`; all but `start` may find it gone, and say nothing."""

    def __init__(self, number: int, order: Order, most_bytes: int, events: queue.SimpleQueue[Event]) -> None:
        self.number = number
        self.is_greeted = False
        """Whether it was let into this run."""
        self.is_ready = False
        """Whether it has proved its arithmetic in this run."""
        self.is_late = False
        """Whether its part was taken from it for want of a word, and it has not said since that it is free."""
        self.parts: dict[int, Part] = {}
        """What it has in hand, by lease."""
        self._process = ComputeProcess(order, parent=Path.cwd(), patience_seconds=SEND_SECONDS)
        self._incoming = Incoming(max_open=_MOST_OPEN, max_open_bytes=most_bytes)
        self._announced: dict[int, m.Delivered] = {}
        self._events = events
        self._transfers = itertools.count(1)
        self._leases = itertools.count(1)
        self._version = -1
        self._num_heard = 0
        self._silence = Silence()
        self._reader = threading.Thread(target=self._read, name=f"manyhands-rank-{number}", daemon=True)

    def start(self) -> None:
        """Spawn it, on a thread that lasts."""
        self._process.start()
        self._reader.start()

    def close(self) -> None:
        """End it at once, and leave nothing of it."""
        self._process.kill()
        self._reader.join()
        self._process.close()

    # ---- what a coordinator says ----

    def greet(self, engagement: Engagement) -> None:
        """Let it in, with what this node was let in with; it answers with a proof."""
        assert engagement.program is not None  # a lent machine brings no model
        state, proof = engagement.lane.state, engagement.proof
        layout = state.layout()
        everything = layout.allocate()
        engagement.lane.state_bytes()
        state.read(layout, everything)
        self.is_greeted, self.is_ready, self._version = True, False, -1
        with self._unless_gone():
            self._process.channel.send(Kind.OPENED)
            self._say(msgspec.structs.replace(engagement.welcome, notes=[]))
            self._send(m.Program, bytes_of(engagement.program))
            self._send(m.Everything, bytes_of(everything))
            for leaf, batch in enumerate(proof.batches):
                self._send_batch(proof.probe.step, leaf, batch)
            self._say(proof.probe)

    def hold(self, version: int, state: memoryview) -> None:
        """Give it the weights of a step, unless it has them."""
        if version != self._version:
            self._version = version
            with self._unless_gone():
                self._send(lambda transfer, size: m.State(version, transfer, size), state)

    def lease(self, granted: m.Granted, batches: Batches) -> None:
        """Let it compute the one subtree of `granted`, which has no number yet."""
        granted = msgspec.structs.replace(granted, lease=next(self._leases))
        leaves = [leaf for leaf, _ in granted.weights]
        self.parts[granted.lease] = Part(granted, sum(1 << leaf for leaf in leaves), granted.subtrees)
        self._silence = Silence()
        with self._unless_gone():
            for leaf in leaves:
                self._send_batch(granted.step, leaf, batches(leaf))
            self._say(granted)

    def trim(self, lease: int, kept: tuple[int, ...]) -> None:
        """Let it go on with `kept` only; none ends that part."""
        part = self.parts[lease]
        if kept == part.kept:
            return
        depth = part.granted.depth
        part.kept, part.left = kept, part.left & sum(tree.mask(heap, depth) for heap in kept)
        if not part.left:
            del self.parts[lease]
        with self._unless_gone():
            self._say(m.Trimmed(lease, kept))

    def silent_seconds(self, now: float) -> float:
        """How long it has said nothing about what it has in hand; to be asked while that is waited for."""
        return self._silence.look(self._num_heard, now)

    def take_back(self) -> list[int]:
        """Take all that it has in hand from it, since it is late: the leaves that it has not answered for."""
        self.is_late = True
        leaves = [leaf for part in self.parts.values() for leaf in tree.bits(part.left)]
        for lease in list(self.parts):
            self.trim(lease, ())
        return leaves

    def answered(self, lease: int, leaves: int) -> None:
        """These leaves of a part (a bit each) are answered for."""
        part = self.parts[lease]
        part.left &= ~leaves
        if not part.left:
            del self.parts[lease]

    def come_back(self) -> None:
        """The run has ended for now: whatever it has in hand is nobody's, and it asks again."""
        self.is_greeted = self.is_ready = False
        self.parts.clear()
        with self._unless_gone():
            self._say(m.Finished("the group's stream has ended", ok=True, retry=True))

    @contextmanager
    def _unless_gone(self) -> Iterator[None]:
        """Its reader tells of its end; one that takes nothing is ended."""
        try:
            yield
        except Stuck:
            self._process.kill(f"it took nothing for {SEND_SECONDS} s")
        except HungUp:
            return

    def _say(self, *messages: m.FromCoordinator) -> None:
        self._process.channel.send(Kind.MESSAGE, envelope.pack(m.encode(*messages)))

    def _send(self, message: Callable[[int, int], m.FromCoordinator], body: memoryview) -> None:
        transfer = next(self._transfers)
        control = m.encode(message(transfer, len(body)))
        if not len(body):
            self._process.channel.send(Kind.MESSAGE, envelope.pack(control))
        for offset, payload in chunks(body):
            packed = envelope.pack(
                b"" if offset else control, transfer=transfer, offset=offset, payload=payload
            )
            self._process.channel.send(Kind.MESSAGE, packed)

    def _send_batch(self, step: int, leaf: int, batch: Batch) -> None:
        body = frame.encode(batch).to_bytes()
        if len(body) <= m.SMALL_BYTES:
            self._say(m.SmallBatch(step, leaf, body))
        else:
            self._send(lambda transfer, size: m.Batch(step, leaf, transfer, size), memoryview(body))

    # ---- what a node says: on the reader's thread ----

    def _read(self) -> None:
        sentence: str | None = None
        try:
            while sentence is None:
                kind, body = self._process.channel.receive()
                if kind is Kind.OUTCOME:
                    sentence = clean_line(words.unpack(body, Ending).text, max=2000) or "it ended by itself"
                else:
                    self._take(kind, body)
        except HungUp:
            sentence = self._process.sentence()
        except ProtocolError as error:
            sentence = str(error)
        self._process.kill()
        self._events.put(Gone(self, sentence))

    def _take(self, kind: Kind, body: bytes) -> None:
        if kind is Kind.DIAL:
            self._events.put(Asks(self))
        elif kind is Kind.MESSAGE:
            self._num_heard += 1
            self._hear(body)
        elif kind is Kind.PULSE:
            self.is_late = self.is_late and words.unpack(body, Pulse).busy_seconds > 0
        elif kind is Kind.CLOSE:  # whoever still reads there hears of the end
            self._process.channel.send(Kind.ENDED, pack(Ending()))
        elif kind is Kind.NOTE:
            note = words.unpack(body, Note)
            logger.log(note.level, "rank %d: %s", self.number, note.text)

    def _hear(self, data: bytes) -> None:
        message = envelope.unpack(data)
        for said in m.decode_from_node(message.control) if message.control else ():
            if isinstance(said, m.Delivered):
                self._announced[said.transfer] = said
                self._whole(self._incoming.announce(said.transfer, said.num_bytes))
            else:
                self._events.put(Said(self, said, None))
        if message.transfer:
            self._whole(self._incoming.feed(message.transfer, message.offset, message.payload))

    def _whole(self, body: Body | None) -> None:
        if body is not None:
            self._events.put(Said(self, self._announced.pop(body.transfer), body))


def rank_device(number: int, first: torch.device) -> str:
    """The device of a rank where rank 0 computes on `first`: its own GPU, or the same processors."""
    return f"cuda:{number}" if first.type == "cuda" else str(first)
