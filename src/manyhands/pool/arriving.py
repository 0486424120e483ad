"""A partial sum as it arrives: shape and presence checked, its bits witnessed, then the machine is asked.

Nothing here decides whether it counts: the lease machine answers with a Take, a Duplicate or a Refuse.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from manyhands.errors import ProtocolError
from manyhands.fleet import messages as m
from manyhands.fleet.events import Answer, NonFinite
from manyhands.fleet.tree import depth_of, is_inside, span
from manyhands.pool.sums import StepSum
from manyhands.training.gradients import GradientLayout, Partial, witness
from manyhands.wire.transfer import Body


class Arrival(NamedTuple):
    """One delivered sum, in a buffer of the step's."""

    partial: Partial
    message: m.Delivered


def receive(layout: GradientLayout, sums: StepSum, message: m.Delivered, body: Body) -> Arrival:
    """Copy a delivered body into a sum's buffer. ProtocolError where it cannot be one of this run's."""
    if body.num_bytes != layout.layout.num_bytes:
        raise ProtocolError(
            f"a partial sum of {body.num_bytes} bytes where this run's have {layout.layout.num_bytes}"
        )
    present = int.from_bytes(message.present, "little")
    if present > layout.everyone:
        raise ProtocolError(f"a partial sum claims more than the model's {len(layout.parameters)} parameters")
    buffer = sums.buffer()
    body.copy_to(buffer.bytes)
    return Arrival(Partial(buffer, present), message)


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
