"""A program as one layer of a model: tensors in, tensors out, in both modes, and no loss.

A layer is captured as a model is, with None for its loss; the batch is then the tuple of its inputs.
"""

from __future__ import annotations

from torch import Tensor

from manyhands.errors import UsageError
from manyhands.programs.module import ProgramModule


class ProgramLayer(ProgramModule):
    """The layer that a program without a loss is; see :class:`ProgramModule`."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Its outputs in the mode it is in, flat. UsageError where `inputs` are not what the program takes."""
        if len(inputs) != len(self._program.batch.leaves):
            raise UsageError(
                f"the layer takes {len(self._program.batch.leaves)} tensors, and got {len(inputs)}"
            )
        self._check(inputs)
        return self._run_over(inputs).outputs
