"""A worker process: batches asked for on a pipe, made, and put into shared memory.

Messages are MessagePack both ways; the user's dataset came with the process. Ctrl-C is not for it: the loader that
started it ends it when it has drained.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from manyhands.errors import ManyhandsError
from manyhands.split.jobs import Phase, Width, Work
from manyhands.split.making.assembler import Assembler, told
from manyhands.split.making.slots import Slot
from manyhands.split.recipe import Recipe, only_seeded
from manyhands.tensors.frame import Schema
from manyhands.tensors.memory import keep_freed_memory
from manyhands.tensors.nest import flatten
from manyhands.training.workers import begin_worker


class Line(Protocol):
    """One end of a pipe of whole messages."""

    def send_bytes(self, buf: bytes) -> None:
        """Send one message."""
        ...

    def recv_bytes(self) -> bytes:
        """The next message; EOFError where the other side is gone."""
        ...


class Descriptor(Protocol):
    """A descriptor on its way into another process."""

    def detach(self) -> int:
        """The descriptor, in the process that it was meant for."""
        ...


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """Make this batch, into that slot."""

    ticket: int
    slot: int
    work: Work


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What came of it: the batch lies in its slot as `schema` says, or there is none."""

    ticket: int
    schema: Schema | None = None
    indices: tuple[int, ...] = ()
    faults: tuple[tuple[int, str], ...] = ()
    widths: tuple[Width | None, ...] = ()
    error: str | None = None
    """Why no batch can be made of these samples: a UsageError's text."""


READY = b""
"""The first message of a worker: it has its dataset."""


def serve(line: Line, descriptors: Sequence[Descriptor], recipes: Mapping[Phase, Recipe]) -> None:
    """Make batches until the loader hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin_worker()
    keep_freed_memory()
    slots = [Slot(descriptor.detach()) for descriptor in descriptors]
    assembler = Assembler(recipes, only_seeded)
    decode = msgspec.msgpack.Decoder(Ask).decode
    try:
        line.send_bytes(READY)
        while True:
            ask = decode(line.recv_bytes())
            line.send_bytes(msgspec.msgpack.encode(answer(assembler, ask, slots[ask.slot])))
    except (EOFError, OSError):
        return


def answer(assembler: Assembler, ask: Ask, slot: Slot) -> Answer:
    """Make one batch and put it into `slot`."""
    try:
        made = assembler.make(ask.work)
        if not made.indices:
            return Answer(ask.ticket, faults=_plain(made.faults))
        structure, tensors = flatten(made.batch)
        schema = Schema(structure, slot.put(tensors))
    except ManyhandsError as error:
        return Answer(ask.ticket, error=str(error))
    except Exception as error:  # noqa: BLE001 - the process's edge: whatever it is, the loader must hear of it
        return Answer(ask.ticket, error=f"batch {ask.work.sequence} could not be made: {told(error)}")
    return Answer(ask.ticket, schema, made.indices, _plain(made.faults), made.widths)


def _plain(faults: Sequence[Any]) -> tuple[tuple[int, str], ...]:
    return tuple((fault.index, fault.error) for fault in faults)
