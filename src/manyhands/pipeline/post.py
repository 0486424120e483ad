"""What a worker sends and what arrives for it: commands in order, values by name, whoever brings them.

Values may come before the command that needs them, and before the placement that they belong to; they are kept
until they are asked for. Those of an older placement are dropped. Used by the one thread that computes.
"""

from __future__ import annotations

import queue
from collections import deque
from typing import Any, NamedTuple

from torch import Tensor

from manyhands.errors import ManyhandsError, ProtocolError, Unreachable
from manyhands.fleet.channels import Dialled, Lost
from manyhands.pipeline import messages as m
from manyhands.pipeline.neighbours import Neighbours

Item = tuple[int, Any, Any]
"""Who sent it (`BOSS` or a member), the message, its tensors."""
_MAX_EARLY = 1 << 16
"""How many values may wait for their command; a step has micro-batches x edges of them."""


class Name(NamedTuple):
    """Which value: what kind, of which edge and micro-batch, for which stage of this worker."""

    kind: str
    edge: str
    micro_batch: int
    stage: int


class Aborted(ManyhandsError):
    """The placement is given up while this worker waits for one of its values. Never leaves the worker."""


class BossLost(Exception):
    """The boss's stream is over, and `error` says why: nothing more is to be done for it. Never leaves the worker."""

    def __init__(self, error: ManyhandsError) -> None:
        super().__init__(str(error))
        self.error = error


class Post:
    """The worker's streams, as the computing thread sees them."""

    def __init__(
        self, boss: Dialled[m.FromBoss], neighbours: Neighbours, inbox: queue.SimpleQueue[Item]
    ) -> None:
        self.boss = boss
        self.neighbours = neighbours
        self.generation = 0
        self.member = m.BOSS
        self._inbox = inbox
        self._values: dict[tuple[int, Name], Any] = {}
        self._commands: deque[tuple[m.FromBoss, Any]] = deque()
        self._aborted = -1

    def begin(self, generation: int) -> None:
        """From now on this placement counts; what belongs to older ones is dropped."""
        self.generation = generation
        self._values = {key: tree for key, tree in self._values.items() if key[0] >= generation}

    def command(self) -> tuple[m.FromBoss, Any]:
        """The next command of the boss, waiting for it. BossLost where its stream ends first."""
        while not self._commands:
            self._take(*self._inbox.get())
        return self._commands.popleft()

    def value(self, name: Name) -> Any:
        """The tensors of a value, waiting for them; each once.

        Aborted where the placement is given up, BossLost where the boss is gone.
        """
        key = (self.generation, name)
        while key not in self._values:
            if self._aborted >= self.generation:
                raise Aborted("another placement follows")
            self._take(*self._inbox.get())
        return self._values.pop(key)

    def keep(self, name: Name, tree: Any) -> None:
        """Put a value in as if it had come."""
        self._values[self.generation, name] = tree

    def send(self, member: int, name: Name, tree: Any) -> None:
        """Send a value to another worker, directly or through the boss, or to the boss; to itself: keep it."""
        if member == self.member:
            self.keep(name, tree)
            return
        value = m.Value(self.generation, member, *name)
        channel = self.neighbours.get(member)
        if channel is not None:
            try:
                channel.send(value, tree)
            except Unreachable:
                return  # its end is delivered too, and the boss hears of it then
        else:
            self.boss.send(value, tree)

    def _take(self, member: int, message: Any, tree: Any) -> None:
        if isinstance(message, m.Value):
            if message.generation >= self.generation:
                self._keep(message, tree)
        elif member != m.BOSS:
            if isinstance(message, Lost):
                self.boss.send(m.Unlinked(self.generation, member, str(message.error)[:1000]))
        elif isinstance(message, Lost):
            raise BossLost(message.error)
        elif isinstance(message, m.Abort):
            self._aborted = max(self._aborted, message.generation)
        else:
            self._commands.append((message, tree))

    def _keep(self, value: m.Value, tree: Any) -> None:
        if len(self._values) >= _MAX_EARLY:
            raise ProtocolError(f"{len(self._values)} values wait here that nobody asks for")
        name = Name(value.kind, value.edge, value.micro_batch, value.stage)
        self._values[value.generation, name] = tree


def tensors_by_name(tree: Any) -> dict[str, Tensor]:
    """What came, as tensors by name. ProtocolError where it is something else."""
    if not isinstance(tree, dict) or not all(isinstance(one, Tensor) for one in tree.values()):
        raise ProtocolError("tensors by name were announced, and something else came")
    return tree
