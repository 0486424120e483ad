"""What flows between layers, found by running them on the meta device with two batch sizes.

A dimension that grows with the batch is the batch's; what stays the same is the same for all samples. No tensor
of the model is looked at or held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from manyhands.errors import UsageError
from manyhands.pipeline.graph import Edge
from manyhands.pipeline.recipes.build import tensors_of
from manyhands.tensors import dtypes

BATCH_SIZES: Final = (2, 3)
"""Two, so that it shows what depends on them; not one, which batch normalisation refuses."""


@dataclass(frozen=True)
class Flow:
    """One value twice: as it is with the first and with the second batch size, on the meta device."""

    low: Tensor
    high: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        yield self.low
        yield self.high

    @staticmethod
    def of_batch(shape: Sequence[int], dtype: torch.dtype) -> Flow:
        """What comes in with the batch, `shape` a sample."""
        low, high = (torch.empty((size, *shape), dtype=dtype, device="meta") for size in BATCH_SIZES)
        return Flow(low, high)

    @staticmethod
    def of_all(shape: Sequence[int], dtype: torch.dtype) -> Flow:
        """What is the same for all samples."""
        whole = torch.empty(tuple(shape), dtype=dtype, device="meta")
        return Flow(whole, whole.clone())

    @property
    def batched(self) -> bool:
        """Whether it grows with the batch."""
        return self.low.shape != self.high.shape

    @property
    def has_gradient(self) -> bool:
        """Whether something before it takes a gradient."""
        return self.low.requires_grad

    def leaf(self) -> Flow:
        """The same as a consumer on another machine sees it: without history."""
        return Flow(*(one.detach().requires_grad_(one.requires_grad) for one in self))

    def check(self, what: str) -> None:
        """UsageError where micro-batches of it cannot be put together along the first dimension."""
        low, high = self.low.shape, self.high.shape
        if len(low) and low[0] * BATCH_SIZES[1] == high[0] * BATCH_SIZES[0] and low[1:] == high[1:]:
            return
        raise UsageError(
            f"{what} is {tuple(low)} for {BATCH_SIZES[0]} samples and {tuple(high)} for {BATCH_SIZES[1]}: its first "
            "dimension must be the batch's, and no other may grow with it"
        )

    def edge(self, name: str, producer: int, consumers: Iterable[int]) -> Edge:
        """The edge that carries it."""
        sizes, grown = (
            tuple(self.low.shape),
            [
                dim
                for dim, (one, other) in enumerate(zip(self.low.shape, self.high.shape, strict=True))
                if one != other
            ],
        )
        grows = None
        if grown and grown[0] == 0 and sizes[0] == BATCH_SIZES[0]:
            sizes = sizes[1:]
        elif grown:
            grows = grown[0]
            sizes = tuple(size // BATCH_SIZES[0] if dim == grows else size for dim, size in enumerate(sizes))
        return Edge(
            name,
            producer,
            tuple(consumers),
            sizes,
            dtypes.NAMES[self.low.dtype],
            self.has_gradient,
            self.batched,
            grows,
        )

    def __str__(self) -> str:
        sizes = (
            "batch" if dim == 0 and self.batched else str(size) for dim, size in enumerate(self.low.shape)
        )
        return f"{dtypes.NAMES[self.low.dtype]} ({', '.join(sizes)})"


def run(module: nn.Module, inputs: Sequence[Flow]) -> list[Flow]:
    """The tensors that `module`, on the meta device, makes of `inputs`; raises what it raises."""
    leaves = [one.leaf() for one in inputs]
    lows, highs = (tensors_of(module(*(getattr(leaf, side) for leaf in leaves))) for side in ("low", "high"))
    return [Flow(low, high) for low, high in zip(lows, highs, strict=True)]
