"""How a batch is parted into micro-batches, and what each one's loss counts for.

A micro-batch's loss is a mean over its own samples or targets; the batch's is the mean over all. Each is therefore
multiplied by its share, and the gradients add up to the batch's. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from manyhands.errors import UsageError
from manyhands.training.objective import Objective


def parts(value: Tensor, num_micro_batches: int, *, batched: bool = True) -> tuple[Tensor, ...]:
    """`value` (batch, ...) as views of nearly equal length; what is not `batched` goes whole to each.

    Lengths differ by one at most, the longer ones first. UsageError for more micro-batches than samples.
    """
    if not batched:
        return (value,) * num_micro_batches
    num_samples = value.shape[0] if value.ndim else 0
    if not 1 <= num_micro_batches <= num_samples:
        raise UsageError(
            f"a batch of {num_samples} samples cannot be parted into {num_micro_batches} micro-batches: give a "
            f"number from 1 to {num_samples}"
        )
    return value.tensor_split(num_micro_batches)


def share(value: Tensor, num_micro_batches: int, span: range) -> Tensor:
    """The samples of the micro-batches in `span`, as a view: parted into as many, they are those of the whole."""
    lengths = [len(part) for part in parts(value, num_micro_batches)]
    return value.narrow(0, sum(lengths[: span.start]), sum(lengths[span.start : span.stop]))


def factors(objective: Objective, targets: Sequence[Tensor]) -> tuple[float, ...]:
    """What each micro-batch's loss is multiplied by, from the targets of each; 1 throughout for sums.

    Zero where every target of a micro-batch is ignored: its loss is a mean over nothing.
    """
    if objective.is_sum:
        return (1.0,) * len(targets)
    weights = [objective.weigh((target,)) for target in targets]
    total = sum(weights)
    return tuple(weight / total if total else 0.0 for weight in weights)
