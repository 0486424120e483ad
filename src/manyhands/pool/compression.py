"""What a run with compression="int8" sends, from the coordinator's side.

::

    node ── unit's sum as int8 ──▶ coordinator            no residual is kept on a node: it would make the bits
    node ── part of a unit, fp32 ─▶ rounded when complete    depend on who computed what
    node ◀─ change of the weights as int8 ── coordinator  what rounding leaves is in the next change

Rules are in training/quantize.py, bodies in training/packing.py; this knows steps and units.
"""

from __future__ import annotations

from manyhands.fleet import tree
from manyhands.pool.sums import Settle
from manyhands.training.gradients import GradientLayout, Partial
from manyhands.training.moving import MovingState
from manyhands.training.packing import SentWeights, SumPacking
from manyhands.training.quantize import num_units

INT8 = "int8"


class Compression:
    """One run's units, packings and the weights that its nodes hold: from now on those of the model."""

    def __init__(
        self, gradients: GradientLayout, moving: MovingState, run_seed: int, micro_batches: int
    ) -> None:
        self.units = num_units(micro_batches)
        self.sums = SumPacking(gradients, run_seed)
        self.weights = SentWeights(moving)

    def unit_level(self, num_leaves: int) -> int:
        """Where units stand in the tree of a step: a short last step may have leaves for units."""
        return min(tree.level_of(self.units), tree.depth_of(num_leaves))

    def settle(self, step: int) -> Settle:
        """For the sums of a step: round a unit's fp32 sum as its node would have."""

        def settle(partial: Partial, unit: int) -> None:
            self.sums.pack(partial, step, unit)
            self.sums.unpack(partial.buffer.body)

        return settle
