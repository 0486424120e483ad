"""A partial sum as it arrives: shape and presence checked, its bits witnessed, then the machine is asked.

Nothing here decides whether it counts: the lease machine answers with a Take, a Duplicate or a Refuse.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from manyhands.errors import ProtocolError
from manyhands.fleet import messages as m
from manyhands.fleet.events import Answer, NonFinite
from manyhands.fleet.tree import depth_of, is_inside, level_of, span
from manyhands.pool.sums import StepSum
from manyhands.training.gradients import GradientLayout, Partial, SumBuffer, witness
from manyhands.training.packing import SumPacking
from manyhands.wire.transfer import Body


class Arrival(NamedTuple):
    """One delivered sum, in a buffer of the step's."""

    partial: Partial
    message: m.Delivered


def receive(
    layout: GradientLayout, sums: StepSum, message: m.Delivered, body: Body, packing: SumPacking | None
) -> Arrival:
    """Bring a delivered body into a sum's buffer, unpacked, where it is not there yet. ProtocolError where it cannot
    be one of this run's.
    """
    if message.packed and packing is None:
        raise ProtocolError("a partial sum came as int8, and this run's travel as fp32")
    num_bytes = packing.num_bytes if message.packed and packing is not None else layout.layout.num_bytes
    if body.num_bytes != num_bytes:
        raise ProtocolError(f"a partial sum of {body.num_bytes} bytes where this run's have {num_bytes}")
    present = int.from_bytes(message.present, "little")
    if present > layout.everyone:
        raise ProtocolError(f"a partial sum claims more than the model's {len(layout.parameters)} parameters")
    if isinstance(body.place, SumBuffer):
        return Arrival(Partial(body.place, present), message)
    buffer = sums.buffer()
    if message.packed and packing is not None:
        body.copy_to(packing.bytes)
        packing.unpack(buffer.body)
    else:
        body.copy_to(buffer.bytes)
    return Arrival(Partial(buffer, present), message)


def misfit(message: m.Delivered, unit_level: int | None) -> str | None:
    """Why a sum of the open step does not come as its units do, as a sentence; None where it does."""
    level = level_of(message.subtree)
    if unit_level is None:
        return "it came as int8, and the sums of this step travel as fp32" if message.packed else None
    if level < unit_level:
        return (
            f"subtree {message.subtree} is larger than a unit, which is rounded before it is added to others"
        )
    if (level == unit_level) != message.packed:
        there, here = ("int8", "fp32") if message.packed else ("fp32", "int8")
        return f"subtree {message.subtree} came as {there} and travels as {here} in this step"
    return None


def event_of(
    arrival: Arrival, key: str, body: Body, num_leaves: int, *, compares: bool
) -> Answer | NonFinite:
    """What to tell the lease machine. `compares`: the digest will be held against another node's."""
    message = arrival.message
    number, leaf = witness(arrival.partial), _only_leaf(message.subtree, num_leaves)
    if number is None and leaf is not None:
        return NonFinite(key, message.incarnation, message.lease, leaf, digest_of(body))
    # Finite leaves whose sum overflows are nobody's fault: such a sum is taken, and fails at the root.
    digest = digest_of(body) if compares or number is None else number
    return Answer(key, message.incarnation, message.step, message.lease, message.subtree, digest)


def _only_leaf(subtree: int, num_leaves: int) -> int | None:
    """The leaf of a subtree that has one only; None for a sum of several, or of another step's tree."""
    depth = depth_of(num_leaves)
    if not is_inside(subtree, depth):
        return None
    leaves = [leaf for leaf in span(subtree, depth)[:2] if leaf < num_leaves]
    return leaves[0] if len(leaves) == 1 else None


def digest_of(body: Body) -> int:
    """What stands for a partial sum's bits: a crc32 over its chunks."""
    digest = 0
    for _, chunk in body.chunks:
        digest = zlib.crc32(chunk, digest)
    return digest
