"""What a run will compute, as arithmetic: epochs into steps, steps into leaves. The file to read first.

::

    dataset order of an epoch     [ 7 2 9 4 | 0 5 1 8 | 3 6 ]        permuted by (seed, epoch)
    global batch of a step          step 0    step 1    step 2        batch_size samples
    leaves of a step              [7 2][9 4] [0 5][1 8] [3 6]        m = ceil(batch_size / micro_batches) samples

m is the same all run; a short last batch has fewer leaves, not thinner ones. No clock, no network, no
tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from manyhands.errors import UsageError
from manyhands.fleet.tree import MAX_LEAVES
from manyhands.settings import checks
from manyhands.training.seeds import epoch_order


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step: the dataset indices of each leaf."""

    step: int
    epoch: int
    leaves: tuple[tuple[int, ...], ...]

    @property
    def num_samples(self) -> int:
        """Samples in the step's global batch."""
        return sum(len(leaf) for leaf in self.leaves)


@dataclass(frozen=True)
class RunPlan:
    """The whole run's shape; equal plans train on equal batches."""

    num_samples: int
    batch_size: int
    micro_batches: int
    epochs: int
    max_steps: int | None = None
    shuffle: bool = True
    drop_last: bool = False
    seed: int = 0
    join_tail: bool = False

    @property
    def leaf_samples(self) -> int:
        """m, the samples of every leaf but perhaps a step's last."""
        return -(-self.batch_size // self.micro_batches)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        planned = self.epochs * self.steps_per_epoch
        return planned if self.max_steps is None else min(planned, self.max_steps)

    @property
    def samples_expected(self) -> int:
        """Samples that the run applies, each once per epoch, where none is quarantined."""
        epochs, steps = divmod(self.num_steps, self.steps_per_epoch)
        per_epoch = min(self.num_samples, self.steps_per_epoch * self.batch_size)
        return epochs * per_epoch + min(steps * self.batch_size, per_epoch)

    def epoch_of(self, step: int) -> int:
        """The epoch (from 0) that `step` belongs to."""
        return step // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` is the last of its epoch or of the run."""
        return (step + 1) % self.steps_per_epoch == 0 or step + 1 == self.num_steps

    def order(self, epoch: int) -> list[int]:
        """The dataset indices of an epoch, in training order."""
        return epoch_order(self.seed, epoch, self.num_samples, shuffle=self.shuffle)

    def step(self, step: int, order: Sequence[int], without: Collection[int] = ()) -> StepPlan:
        """The leaves of `step`, given its epoch's order; quarantined indices are left out before the cut."""
        start = (step % self.steps_per_epoch) * self.batch_size
        indices = [index for index in order[start : start + self.batch_size] if index not in without]
        return StepPlan(step, self.epoch_of(step), self.cut(indices))

    def cut(self, indices: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """A global batch's leaves. With `join_tail`, a last leaf of one sample joins its neighbour."""
        size = self.leaf_samples
        leaves = [tuple(indices[at : at + size]) for at in range(0, len(indices), size)]
        if self.join_tail and len(leaves) > 1 and len(leaves[-1]) == 1:
            leaves[-2:] = [leaves[-2] + leaves[-1]]
        return tuple(leaves)


def check_plan(plan: RunPlan) -> None:
    """UsageError naming the argument that makes a run impossible."""
    if plan.num_samples < 1:
        raise UsageError("the dataset is empty (len 0): there is nothing to train on")
    for name in ("batch_size", "micro_batches", "epochs"):
        checks.whole(name, getattr(plan, name), 1)
    if plan.max_steps is not None:
        checks.whole("max_steps", plan.max_steps, 1)
    checks.whole("micro_batches", plan.micro_batches, 1, MAX_LEAVES)
    if plan.micro_batches > plan.batch_size:
        raise UsageError(
            f"micro_batches={plan.micro_batches} is more than batch_size={plan.batch_size}: a micro-batch "
            "holds at "
            "least one sample. Lower micro_batches or raise batch_size"
        )
    if plan.steps_per_epoch == 0:
        raise UsageError(
            f"drop_last=True leaves no step: {plan.num_samples} samples do not fill one batch of "
            f"{plan.batch_size}"
        )
