"""When a node fails at a leaf: is it the node, or the data and the model?

A node's word is not enough to end a run or to leave a sample out. The coordinator has the data and the model, so
it tries the leaf itself, once, off the event loop and on a copy of the model.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

from manyhands.errors import BadSample, ManyhandsError, RunFailed
from manyhands.pool.data import StepData
from manyhands.pool.job import Job
from manyhands.tensors import frame
from manyhands.training.buffers import still_buffers
from manyhands.training.seeds import generators
from manyhands.training.state import ModelState
from manyhands.training.step import Leaf, leaf_gradient

logger = logging.getLogger(__name__)


class SecondTry:
    """Computes leaves that nodes failed at; each leaf of a step once."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._tried: set[tuple[int, int]] = set()

    def claim(self, step: int, leaf: int) -> bool:
        """Whether this leaf was not tried yet; it counts as tried from now on."""
        self._tried = {tried for tried in self._tried if tried[0] == step}
        is_new = (step, leaf) not in self._tried
        self._tried.add((step, leaf))
        return is_new

    def fault_of(self, data: StepData, leaf: int) -> ManyhandsError | None:
        """What is wrong with the data or the model; None where the leaf computes here.

        Blocks; the weights must not change meanwhile.
        """
        try:
            model, criterion = copy.deepcopy((self._job.state.model, self._job.state.criterion))
        except Exception:
            logger.exception(
                "the model cannot be copied, so the coordinator cannot try what a node failed at"
            )
            return None
        try:
            self._compute(data, leaf, ModelState(model, criterion))
        except BadSample as error:
            return error
        except Exception as error:  # noqa: BLE001 - the user's model and data: anything may come out of them
            samples = str(list(data.leaves[leaf].indices))[:200]
            return RunFailed(
                f"micro-batch {leaf} of step {data.plan.step} (samples {samples}) fails on the coordinator as it "
                f"did on a node: {type(error).__name__}: {str(error)[:500]}"
            )
        return None

    def _compute(self, data: StepData, leaf: int, state: ModelState) -> None:
        job, item = self._job, data.leaves[leaf]
        frames, indices = item.frame, item.indices
        batch = job.source.load(data.plan.epoch, indices) if frames is None else frame.decode(frames)
        objective = job.objective
        if state.criterion is not None:
            objective = replace(objective, criterion=state.criterion)
        still = still_buffers(state, job.master.gradients.folds)
        with generators(0):
            leaf_gradient(
                state,
                objective,
                batch,
                Leaf(data.plan.step, leaf, item.weight),
                run_seed=job.options.seed,
                precision=job.options.precision,
            )
        still.check()
