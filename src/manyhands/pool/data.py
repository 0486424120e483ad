"""From a dataset to leaves ready to lease: fetched, collated, weighed, framed, ahead of the steps that need
them.

Each item is fetched under generators seeded by (run seed, epoch, index), so random augmentation is the same
whoever fetches it and whenever. A bad item stops the run with its index, or is quarantined: its step is cut
anew without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.utils.data import TensorDataset

from manyhands.errors import BadSample, UsageError
from manyhands.pool.plan import RunPlan, StepPlan
from manyhands.tensors import frame
from manyhands.training.batch import Batch, collate
from manyhands.training.objective import Objective
from manyhands.training.seeds import derive, generators

AHEAD_STEPS = 3
"""How many steps are prepared before they are needed."""

CollateFn = Callable[[list[Any]], Batch]


@dataclass(frozen=True)
class LeafData:
    """One leaf, ready to lease; ``frame`` is None where nodes hold the dataset themselves."""

    indices: tuple[int, ...]
    weight: float
    frame: bytes | None


@dataclass(frozen=True)
class StepData:
    """One step, ready to open, and the indices found bad while loading it, with the reason."""

    plan: StepPlan
    leaves: tuple[LeafData, ...]
    quarantined: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """How to load one leaf's batch, on the coordinator or on a node that holds the dataset."""

    dataset: Any
    collate_fn: CollateFn | None
    seed: int

    def load(self, epoch: int, indices: Sequence[int]) -> Batch:
        """The collated batch; BadSample names the item that raised."""
        if isinstance(self.dataset, TensorDataset):
            items = [self.dataset[index] for index in indices]  # draws no random numbers
        else:
            items = [self._item(epoch, index) for index in indices]
        with generators(derive(self.seed, "collate", epoch, indices[0])):
            return collate(items, self.collate_fn)

    def _item(self, epoch: int, index: int) -> Any:
        with generators(derive(self.seed, "item", epoch, index)):
            try:
                return self.dataset[index]
            except Exception as error:  # the user's code: anything may come out of it
                raise BadSample(
                    f"dataset[{index}] raised {type(error).__name__}: {error}. Fix the item, or give "
                    'on_bad_sample="quarantine" to go on without it',
                    index,
                ) from error


def dataset_length(dataset: Any) -> int:
    """The number of samples of a map-style dataset; UsageError for anything else."""
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise UsageError(
            f"{type(dataset).__name__} has no __getitem__ and __len__: a pool leases samples by index and "
            "credits each "
            "exactly once, which an iterable dataset cannot promise. Wrap it in a map-style Dataset"
        )
    return len(dataset)


class Feeder:
    """Prepares steps in order on a thread of its own."""

    def __init__(
        self,
        plan: RunPlan,
        source: Source,
        objective: Objective,
        *,
        ship: bool = True,
        on_bad_sample: Literal["stop", "quarantine"] = "stop",
        quarantined: set[int] | None = None,
    ) -> None:
        self._plan = plan
        self._source = source
        self._objective = objective
        self._ship = ship
        self._quarantine = on_bad_sample == "quarantine"
        self.quarantined = set(quarantined or ())
        self._order: tuple[int, list[int]] = (-1, [])
        self._pending: dict[int, Future[StepData]] = {}
        self._thread: ThreadPoolExecutor | None = None

    def start(self) -> None:
        """Begin to work ahead when the first step is asked for."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="manyhands-feeder")

    def step(self, step: int) -> Future[StepData]:
        """The data of `step`, perhaps not ready yet; the steps behind it are begun."""
        assert self._thread is not None, "start() comes first"
        for number in range(step, min(step + AHEAD_STEPS, self._plan.num_steps)):
            if number not in self._pending:
                self._pending[number] = self._thread.submit(self.load, number)
        for old in [number for number in self._pending if number < step - 1]:
            del self._pending[old]
        return self._pending[step]

    def close(self) -> None:
        """End the thread; an item that is being fetched is waited for."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def load(self, step: int) -> StepData:
        """Prepare one step now, on the calling thread."""
        epoch = self._plan.epoch_of(step)
        if self._order[0] != epoch:
            self._order = (epoch, self._plan.order(epoch))
        found: dict[int, str] = {}
        while True:
            cut = self._plan.step(step, self._order[1], self.quarantined)
            try:
                return StepData(cut, tuple(self._leaf(epoch, indices) for indices in cut.leaves), found)
            except BadSample as error:
                if not self._quarantine:
                    raise
                self.quarantined.add(error.index)
                found[error.index] = str(error.__cause__)

    def _leaf(self, epoch: int, indices: tuple[int, ...]) -> LeafData:
        if not self._ship and self._objective.counts_samples:
            return LeafData(indices, 1.0 if self._objective.is_sum else float(len(indices)), None)
        batch = self._source.load(epoch, indices)
        weight = self._objective.weigh(batch)
        return LeafData(indices, weight, frame.encode(batch).to_bytes() if self._ship else None)
