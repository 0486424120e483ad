"""A rank's part of every global batch. What a loader's own sampler gives is dealt out; nothing is lost or doubled.

::

    global batch of 10 on 4 ranks      0 1 2 │ 3 4 5 │ 6 7 │ 8 9
    weight of a rank's mean gradient     1.2     1.2    0.8   0.8      n · world size / 10

DDP averages the ranks' gradients as if all had computed as many samples. A weight on what each rank's model
puts out makes the average exactly the gradient of the global batch, whatever the world size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler

from manyhands.errors import UsageError
from manyhands.launch.group import Rank
from manyhands.training.batch import to_device
from manyhands.training.seeds import derive, generators, seed_generators


def part_of(batch: list[Any], rank: int, world_size: int) -> list[Any]:
    """The rank's contiguous part; sizes differ by one at most, and may be 0."""
    size, more = divmod(len(batch), world_size)
    start = rank * size + min(rank, more)
    return batch[start : start + size + (rank < more)]


class Share:
    """How much of the current global batch is this rank's; outside a loop all ranks weigh alike."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """No loop is going on."""
        self.num_samples: int | None = None
        self.weight = 1.0

    def take(self, num_samples: int, weight: float) -> None:
        """The batch that the script gets now."""
        self.num_samples, self.weight = num_samples, weight

    def scale(self, module: nn.Module, inputs: object, output: Any) -> None:
        """A forward hook: what flows back through `output` is weighed."""
        if self.weight != 1.0 and torch.is_grad_enabled():
            for tensor in _tensors(output):
                tensor.register_hook(partial(torch.mul, self.weight))  # type: ignore[no-untyped-call]


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.requires_grad:
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)


class _Parts(Sampler[list[Any]]):
    """The global batches of an epoch, each cut to this rank's part; remembers the weights in order."""

    def __init__(self, batches: Iterable[list[Any]], rank: Rank, seed: int, number: int) -> None:
        self._batches = batches
        self._rank = rank
        self._seed = seed
        self._number = number
        self.epoch = 0
        self.start = 0
        self.weights: deque[tuple[int, float]] = deque()

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[Any]]:
        self.weights.clear()
        for batch in self._global_batches()[self.start :]:
            part = part_of(batch, self._rank.rank, self._rank.world_size)
            self.weights.append((len(part), len(part) * self._rank.world_size / len(batch)))
            # A rank without a part computes a sample that weighs nothing: all ranks make the same steps.
            yield part or batch[:1]

    def _global_batches(self) -> list[list[Any]]:
        """As the loader's own sampler gives them, drawing the same numbers on all ranks."""
        seed = derive(self._seed, "order", self._number, self.epoch)
        for sampler in (self._batches, getattr(self._batches, "sampler", None)):
            if isinstance(generator := getattr(sampler, "generator", None), torch.Generator):
                generator.manual_seed(seed)
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(self.epoch)
        with generators(seed):
            return [list(batch) for batch in self._batches]


class SharedLoader(DataLoader[Any]):
    """A DataLoader that gives this rank's part of each global batch, on its device.

    Each pass is an epoch with an order of its own, and begins with generators seeded from (seed, epoch, rank), so
    a run that is resumed between two epochs draws the same numbers.
    """

    def __init__(
        self, loader: DataLoader[Any], rank: Rank, device: torch.device, share: Share, seed: int, number: int
    ) -> None:
        self._parts = _Parts(_batches_of(loader), rank, seed, number)
        self._seeded = (seed, number, rank.rank)
        self._device_of_rank = device
        self._share = share
        self._passed = 0
        self.global_batch_size = loader.batch_size
        super().__init__(
            loader.dataset,
            batch_sampler=self._parts,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """One epoch; a pass that is broken off counts as one."""
        seed, number, rank = self._seeded
        seed_generators(derive(seed, "epoch", number, self._parts.epoch, rank))
        self._passed = self._parts.start
        try:
            for batch in super().__iter__():
                self._passed += 1
                self._share.take(*self._parts.weights.popleft())
                yield to_device(batch, self._device_of_rank)
        finally:
            self._share.reset()
            self._parts.epoch += 1
            self._parts.start = self._passed = 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many global batches of it were given."""
        return {"epoch": self._parts.epoch, "batches": self._passed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on there, on any world size: the next pass leaves out the batches that were given."""
        self._parts.epoch, self._parts.start = state["epoch"], state["batches"]


def _batches_of(loader: DataLoader[Any]) -> Iterable[list[Any]]:
    """What yields the loader's global batches of indices; UsageError where it has no such thing."""
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        raise UsageError(
            "prepare() deals out a dataset by index, and this DataLoader has an IterableDataset or "
            "batch_size=None: give it a dataset with __getitem__, or split it yourself by session.rank and "
            "leave its loader out of prepare()"
        )
    batches: Iterable[list[Any]] = loader.batch_sampler
    return batches
