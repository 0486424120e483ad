"""What a loader says that it made, held against what it was asked for. Pure."""

from __future__ import annotations

from typing import Any

from manyhands.errors import ProtocolError
from manyhands.split.jobs import Fault, Made, Work
from manyhands.split.messages import Batch
from manyhands.split.narrow import check_widths


def checked(work: Work, batch: Batch, tree: Any) -> Made:
    """The batch of `work`. ProtocolError where it holds other samples, or is none.

    A loader is believed in what its samples hold, and not in which ones it was asked for.
    """
    faults = tuple(Fault(bad.index, bad.error) for bad in batch.faults)
    bad = {fault.index for fault in faults}
    expected = tuple(index for index in work.indices if index not in bad)
    if batch.indices != expected:
        raise ProtocolError(
            f"a loader sent other samples than batch {work.sequence} of epoch {work.epoch} asks for: is its dataset "
            "another one?"
        )
    if (tree is None) != (not expected):
        told = "none" if tree is None else "a batch"
        raise ProtocolError(f"a loader says that it sent {len(expected)} samples, and sent {told}")
    check_widths(tree, batch.widths)
    return Made(work, tree, batch.indices, faults, batch.widths)
