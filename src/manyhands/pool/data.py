"""From a dataset to leaves ready to lease: fetched, collated, weighed, framed, ahead of the steps that need
them.

Each item is fetched under generators seeded by (run seed, epoch, index), so random augmentation is the same
whoever fetches it and whenever. A bad item stops the run with its index, or is quarantined: its step is cut
anew without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from manyhands.clock import Clock, SystemClock
from manyhands.errors import BadSample, UsageError
from manyhands.pool.loaders import Loaders
from manyhands.pool.plan import RunPlan, StepPlan
from manyhands.tensors import frame
from manyhands.training.batch import Batch, collate
from manyhands.training.objective import Objective
from manyhands.training.seeds import derive, generators

AHEAD_STEPS = 3
"""How many steps are prepared before they are needed, where ``queue_size`` leaves allow it."""

QUICK_SECONDS = 0.002
"""A step that loads faster than this is loaded on the event loop."""

GATHER_STEPS = 8
"""How many quick steps are gathered at a time: one call of torch costs as much as the rows of a small step."""

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

    @property
    def is_plain(self) -> bool:
        """Whether a batch is rows of tensors, which :meth:`rows` gives for many leaves at once."""
        return type(self.dataset) is TensorDataset and self.collate_fn is None

    def rows(self, indices: Sequence[int]) -> list[Tensor]:
        """What default_collate makes of these rows, without fetching them one by one; draws no numbers."""
        rows = torch.tensor(indices)
        return [tensor[rows] for tensor in self.dataset.tensors]

    def load(self, epoch: int, indices: Sequence[int]) -> Batch:
        """The collated batch; BadSample names the item that raised."""
        if self.is_plain:
            return self.rows(indices)
        items = [self._item(epoch, index) for index in indices]
        try:
            if self.collate_fn is None:  # default_collate draws no random numbers
                return collate(items)
            with generators(derive(self.seed, "collate", epoch, indices[0])):
                return collate(items, self.collate_fn)
        except Exception as error:  # the user's code and data
            raise UsageError(
                f"the samples {str(list(indices))[:200]} do not make one batch ({type(error).__name__}: "
                f"{str(error)[:300]}): give items of one shape, or a collate_fn that pads them"
            ) from error

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


@dataclass(frozen=True)
class LeafLoader:
    """How one leaf becomes what is leased; a plain value, so that worker processes can be given it."""

    source: Source
    objective: Objective
    ship: bool

    def __call__(self, epoch: int, indices: tuple[int, ...]) -> LeafData:
        """Load, weigh and frame; BadSample names the item that raised."""
        if not self.ship and self.objective.counts_samples:
            return LeafData(indices, 1.0 if self.objective.is_sum else float(len(indices)), None)
        batch = self.source.load(epoch, indices)
        weight = self.objective.weigh(batch)
        return LeafData(indices, weight, frame.encode(batch).to_bytes() if self.ship else None)

    @property
    def gathers(self) -> bool:
        """Whether :meth:`gather` may be called."""
        return self.ship and self.source.is_plain

    def gather(self, leaves: Sequence[tuple[int, ...]]) -> list[LeafData]:
        """As one call for each leaf would, from the rows of all of them fetched and counted at once."""
        if not leaves:
            return []
        whole = self.source.rows([index for leaf in leaves for index in leaf])
        by_row = self.objective.weigh_rows(whole)
        made, start = list[LeafData](), 0
        for leaf in leaves:
            stop = start + len(leaf)
            batch = [tensor[start:stop] for tensor in whole]
            weight = self.objective.weigh(batch) if by_row is None else float(sum(by_row[start:stop]))
            made.append(LeafData(leaf, weight, frame.encode(batch).to_bytes()))
            start = stop
        return made


def _done(data: StepData) -> Future[StepData]:
    future: Future[StepData] = Future()
    future.set_result(data)
    return future


class Feeder:
    """Prepares steps in order: on a thread of its own, or between two steps where that takes no time.

    A thread that fetches a small batch competes with the event loop for the interpreter and costs a fast step more
    than the fetching; a step that loads in no time is loaded on the loop, while nodes compute.
    """

    def __init__(
        self,
        plan: RunPlan,
        load: LeafLoader,
        *,
        on_bad_sample: Literal["stop", "quarantine"] = "stop",
        num_workers: int = 0,
        queue_size: int = 1000,
        clock: Clock | None = None,
    ) -> None:
        self._plan = plan
        self._load_leaf = load
        self._loaders = Loaders(load, num_workers) if num_workers else None
        self._room = max(1, queue_size // plan.micro_batches)
        self._ahead = min(AHEAD_STEPS, self._room)
        self._quarantine = on_bad_sample == "quarantine"
        self._clock = clock or SystemClock()
        self.quarantined: set[int] = set()
        self._order: tuple[int, list[int]] = (-1, [])
        self._pending: dict[int, Future[StepData]] = {}
        self._seconds = math.inf
        self._thread: ThreadPoolExecutor | None = None

    def start(self) -> None:
        """Begin to work ahead when the first step is asked for."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="manyhands-feeder")
        if self._loaders is not None:
            self._loaders.start()

    def step(self, step: int) -> Future[StepData]:
        """The data of `step`, perhaps not ready yet."""
        if step not in self._pending:
            assert self._thread is not None, "start() comes first"
            self._pending[step] = self._thread.submit(self.load, step)
        return self._pending[step]

    def look_ahead(self, step: int) -> None:
        """Prepare the steps behind `step`, and forget those before it. Call it while nodes compute."""
        for old in [number for number in self._pending if number < step]:
            del self._pending[old]
        quick = self._seconds < QUICK_SECONDS and self._loaders is None
        if quick and all(future.done() for future in self._pending.values()):
            if step + 1 < self._plan.num_steps and step + 1 not in self._pending:
                self._load_here(step + 1)
            return
        for number in range(step + 1, min(step + 1 + self._ahead, self._plan.num_steps)):
            self.step(number)

    def quarantine(self, step: int, index: int) -> None:
        """Leave an item out from `step` on; what was prepared of it and later steps is prepared anew."""
        self.quarantined.add(index)
        for prepared in [number for number in self._pending if number >= step]:
            del self._pending[prepared]

    def ready(self, step: int) -> StepData | None:
        """The data of `step` where it is prepared and whole; never waits."""
        future = self._pending.get(step)
        if future is None or not future.done() or future.cancelled() or future.exception() is not None:
            return None
        return future.result()

    def _load_here(self, step: int) -> None:
        if self._load_leaf.gathers:
            for number, data in enumerate(self._gather(step), step):
                self._pending[number] = _done(data)
            return
        self._pending[step] = future = Future[StepData]()
        try:
            future.set_result(self.load(step))
        except BadSample as error:
            future.set_exception(error)

    def _gather(self, step: int) -> list[StepData]:
        """`step` and some after it in its epoch, in what time one may take. Their rows lie in memory: none is bad."""
        started, plan = self._clock.monotonic(), self._plan
        epoch = plan.epoch_of(step)
        order, end = self._order_of(epoch), min(plan.num_steps, (epoch + 1) * plan.steps_per_epoch)
        quick = int(QUICK_SECONDS / max(self._seconds, 1e-9))
        stop = min(end, step + max(1, min(GATHER_STEPS, quick, self._room)))
        cuts = [plan.step(number, order, self.quarantined) for number in range(step, stop)]
        leaves = self._load_leaf.gather([leaf for cut in cuts for leaf in cut.leaves])
        made, start = list[StepData](), 0
        for cut in cuts:
            stop = start + len(cut.leaves)
            made.append(StepData(cut, tuple(leaves[start:stop])))
            start = stop
        self._seconds = (self._clock.monotonic() - started) / len(cuts)
        return made

    def close(self) -> None:
        """End the thread; an item that is being fetched is waited for."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        if self._loaders is not None:
            self._loaders.close()

    def load(self, step: int) -> StepData:
        """Prepare one step now, on the calling thread."""
        started = self._clock.monotonic()
        try:
            return self._load(step)
        finally:
            self._seconds = self._clock.monotonic() - started

    def _load(self, step: int) -> StepData:
        epoch = self._plan.epoch_of(step)
        order = self._order_of(epoch)
        found: dict[int, str] = {}
        while True:
            cut = self._plan.step(step, order, self.quarantined)
            try:
                return StepData(cut, tuple(self._leaves(epoch, cut)), found)
            except BadSample as error:
                if not self._quarantine:
                    raise
                self.quarantined.add(error.index)
                found[error.index] = str(error.__cause__)

    def _order_of(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            self._order = (epoch, self._plan.order(epoch))
        return self._order[1]

    def _leaves(self, epoch: int, cut: StepPlan) -> list[LeafData]:
        if self._loaders is not None:
            return self._loaders.map(epoch, cut.leaves)
        return [self._load_leaf(epoch, indices) for indices in cut.leaves]

    @property
    def note(self) -> str | None:
        """What the user must hear of how the data is loaded."""
        return self._loaders.note if self._loaders is not None else None
