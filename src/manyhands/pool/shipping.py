"""The run's model as a program, for nodes without code: captured and proven when the first of them knocks.

A capture takes seconds and a run whose nodes all bring their model never needs one, so it waits for the first
that does not; the run pauses meanwhile. A model that cannot be captured is refused to such nodes only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from manyhands.errors import CaptureFailed, Mismatch
from manyhands.pool.job import Job
from manyhands.pool.program import without_text
from manyhands.tensors import frame
from manyhands.training.batch import Batch, to_device
from manyhands.training.seeds import generators
from manyhands.training.step import autocast

logger = logging.getLogger(__name__)

SAMPLED_STEPS = 4
"""Steps of the first epoch whose first leaf is looked at, to see which dimensions of a batch vary."""


class Shipper:
    """One run's program."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._program: bytes | None = None
        self._refusal: str | None = None

    def program(self) -> bytes:
        """The encoded program. Mismatch, with the line of the model at fault, where there can be none.

        Blocks for seconds the first time, and runs the model: nobody else may use it meanwhile.
        """
        if self._program is None and self._refusal is None:
            try:
                self._program = self._capture()
            except CaptureFailed as error:
                logger.warning("nodes without code cannot take part: %s", error)
                self._refusal = str(error)
        if self._program is None:
            raise Mismatch(f"this run's model cannot be sent as a program: {self._refusal}")
        return self._program

    def _capture(self) -> bytes:
        # Imported here: torch.export takes a second or two, and most runs never need it.
        from manyhands.programs.capture import capture
        from manyhands.programs.format import encode
        from manyhands.programs.proof import prove

        job = self._job
        criterion = job.state.criterion
        others = {} if criterion is None else {"criterion": criterion}
        device = next(iter(job.state.trainable.values())).device
        batches = [to_device(without_text(batch), device) for batch in self._batches()]

        def loss_of(module: nn.Module, batch: Any) -> Tensor:
            return job.objective.loss(module, batch)

        with generators(0), autocast(device, job.options.precision):
            captured = capture(job.state.model, loss_of, batches, others=others)
            prove(captured, job.state.model, loss_of, batches[:2], others=others)
        data = encode(captured.program)
        logger.info("the model is a program of %d bytes", len(data))
        return data

    def _batches(self) -> Sequence[Batch]:
        """The probe's leaves (every size there is) and some from along the first epoch."""
        job, plan = self._job, self._job.plan
        batches = [frame.decode(leaf.frame) for leaf in job.probe]
        order = plan.order(0)
        last = plan.steps_per_epoch - 1
        for step in sorted({last * part // (SAMPLED_STEPS - 1) for part in range(SAMPLED_STEPS)}):
            leaves = plan.step(step, order, job.feeder.quarantined).leaves
            if leaves:
                batches.append(job.source.load(0, leaves[0]))
        return batches
