"""The compute child's work: an ordinary node, dialled through its agent.

``TrainingNode`` does everything; only where its stream comes from, and who waits for a coordinator, is other here.
The rest is what an agent wants to know: a pulse each second, the log's lines, and how it ended.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import torch

from manyhands.clock import Clock, SystemClock
from manyhands.errors import ManyhandsError, Unreachable
from manyhands.fleet import messages as m
from manyhands.fleet.dialling import Streams
from manyhands.fleet.uplink import Stream
from manyhands.observe.waiting import Waiting
from manyhands.pool.engagement import Engagement
from manyhands.pool.lane import Batches, Keep
from manyhands.pool.lending import limits, words
from manyhands.pool.lending.channel import Channel, HungUp
from manyhands.pool.lending.group.group import Group
from manyhands.pool.lending.words import Ending, Kind, Note, Order, Pulse, Ready, ending_of, pack
from manyhands.pool.node import LossCallback, TrainingNode
from manyhands.pool.work import Output
from manyhands.tensors.memory import keep_freed_memory
from manyhands.training.batch import size_of
from manyhands.training.device import pick_device
from manyhands.training.seeds import seed_generators

PULSE_SECONDS = 1.0


def compute(channel: Channel, order: Order) -> Ending:
    """Serve one run to its end; how it ended. HungUp where the agent is gone."""
    _send_log(channel, logging.INFO if order.verbose else logging.WARNING)
    try:
        device = pick_device(order.device)
        if device.type == "cpu":  # elsewhere a driver maps far more than it uses
            limits.limit_memory(order.memory_bytes)
        keep_freed_memory()  # looks a function up by name, so it too comes before any program
        seed_generators(0)  # numpy loads its generators when they are first used: before any program is here
        capability = torch.backends.cpu.get_cpu_capability()
        channel.send(Kind.READY, pack(Ready(str(device), torch.cuda.device_count(), capability)))
        clock = SystemClock()
        group = Group(order, device, clock)
        node = LentNode(channel, order.name, device, group, clock)
        threading.Thread(target=node.pulse, name="manyhands-pulse", daemon=True).start()
        try:
            group.start()
            node.train(node.count)
        finally:
            group.close()
            channel.send(Kind.PULSE, pack(node.figures()))
    except HungUp:
        raise
    except Exception as error:  # noqa: BLE001 - the process's edge: the agent says what it was
        return (
            Ending("MemoryError", str(error)[: words.MOST_CHARACTERS])
            if _is_memory(error)
            else ending_of(error)
        )
    return Ending()


def _is_memory(error: Exception) -> bool:
    """Whether an allocation failed; torch's allocator for processors raises a RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class LentNode(TrainingNode):
    """A node without code, whose coordinator is behind an agent; `group` are the ranks that compute with it."""

    def __init__(
        self, channel: Channel, name: str, device: torch.device, group: Group, clock: Clock | None = None
    ) -> None:
        super().__init__(None, device=device, name=name)
        self._dialler = AgentDialler(channel)
        self._channel = channel
        self._group = group
        self._time = clock or SystemClock()
        self._leaves = self._samples = 0
        self._seconds = self._slowest_seconds = 0.0
        self._busy_since: float | None = None

    def count(self, loss: float, batch_id: int) -> None:
        """After each leaf: one more, and so many samples."""
        now = self._time.monotonic()
        taken = now - (now if self._busy_since is None else self._busy_since)
        self._leaves, self._seconds = self._leaves + 1, self._seconds + taken
        self._slowest_seconds = max(self._slowest_seconds, taken)
        engagement = self._require_engagement()
        self._samples += size_of(engagement.batch(*divmod(batch_id, engagement.welcome.micro_batches)))
        self._busy_since = self._time.monotonic()

    def pulse(self) -> None:
        """Tell the agent each second what was done, and for how long the present work has gone on."""
        never = threading.Event()
        try:
            while not never.wait(PULSE_SECONDS):
                self._channel.send(Kind.PULSE, pack(self.figures()))
        except HungUp:
            return

    def figures(self) -> Pulse:
        """What was done so far."""
        since = self._busy_since
        busy_seconds = 0.0 if since is None else self._time.monotonic() - since
        return Pulse(self._leaves, self._samples, self._seconds, self._slowest_seconds, busy_seconds)

    def _connect(self, *, manual: bool) -> None:
        try:
            super()._connect(manual=manual)
            self._group.engage(self._require_engagement())
        finally:
            self._busy_since = None

    def _open_stream(self, connection: Streams) -> Stream:
        self._busy_since = self._time.monotonic()  # from here on: a program, the whole state, a probe
        return super()._open_stream(connection)

    def _compute(
        self, engagement: Engagement, granted: m.Granted, loss_callback: LossCallback | None
    ) -> None:
        self._busy_since = self._time.monotonic()
        try:
            super()._compute(engagement, granted, loss_callback)
        finally:
            self._busy_since = None

    def _outputs(
        self, engagement: Engagement, granted: m.Granted, batches: Batches, keep: Keep
    ) -> Iterator[Output]:
        if self._group.is_alone:
            return super()._outputs(engagement, granted, batches, keep)
        return self._group.run(granted, batches, keep)

    def _wait_or_give_up(
        self, error: Unreachable, waiting: Waiting, seconds: float, *, has_joined: bool
    ) -> None:
        """The agent has the patience."""


class AgentDialler:
    """Asks the agent for a stream."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def dial(self) -> AgentStream:
        """A stream that is open; what came of the one before it is passed over."""
        self._channel.send(Kind.DIAL)
        while self._channel.receive()[0] is not Kind.OPENED:
            continue
        return AgentStream(self._channel)

    def release(self) -> None:
        """The key is the agent's."""


class AgentStream:
    """One stream, at the end where messages are understood; its own connection at once."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._is_over = threading.Event()

    def stream(self) -> Stream:
        """A connection through an agent holds one stream."""
        return self

    def send(self, message: bytes) -> None:
        """Hand over one message; blocks while the agent does not keep up."""
        self._channel.send(Kind.MESSAGE, message)

    def receive(self) -> bytes | None:
        """The next message, None at the end; raises what ended the stream."""
        if self._is_over.is_set():
            return None
        kind, body = self._channel.receive()
        if kind is Kind.MESSAGE:
            return body
        self._is_over.set()
        ending = words.unpack(body, Ending)
        if ending.error is not None:
            raise words.error_of(ending)
        return None

    def finish(self) -> None:
        """Say no more."""
        self._channel.send(Kind.FINISH)

    def close(self) -> None:
        """End the stream; the agent answers with its end, which whoever still reads hears. Twice is fine."""
        if not self._is_over.is_set():
            self._channel.send(Kind.CLOSE)


class _Log(logging.Handler):
    """The log's lines, to the agent."""

    def __init__(self, channel: Channel, level: int) -> None:
        super().__init__(level)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)[: words.MOST_CHARACTERS]
            self._channel.send(Kind.NOTE, pack(Note(record.levelno, text)))
        except (HungUp, ManyhandsError):
            self.handleError(record)


def _send_log(channel: Channel, level: int) -> None:
    logger = logging.getLogger("manyhands")
    logger.setLevel(level)
    logger.addHandler(_Log(channel, level))
