"""What each layer takes, before anything has run: counted operations and bytes, from shapes alone.

The layers are built on the meta device and run there, so a model that no machine could hold whole is counted in
milliseconds. Times are those of one ordinary core: where a cut goes depends on how they compare, not on how long
they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from manyhands.pipeline.graph import Edge, Graph
from manyhands.pipeline.stagecosts import Cost
from manyhands.tensors.dtypes import DTYPES

_FLOPS_PER_SECOND: Final = 2e10
_BYTES_PER_SECOND: Final = 5e9
_PASSES: Final = 3
"""A backward takes about twice its forward: the gradients of inputs and of weights."""


def estimate(graph: Graph, built: Sequence[nn.Module], samples: int, num_machines: int) -> list[Cost]:
    """One cost a layer for micro-batches of `samples`; `built` are the layers on the meta device."""
    edges = {edge.name: edge for edge in graph.edges}
    costs = []
    for layer, module in zip(graph.layers, built, strict=True):
        inputs = [_meta(edges[name], samples) for name in layer.inputs]
        made = sum(_bytes(edges[name], samples) for name in layer.outputs)
        moved = made + sum(_bytes(edges[name], samples) for name in layer.inputs)
        seconds = _PASSES * (_flops(module, inputs) / _FLOPS_PER_SECOND + moved / _BYTES_PER_SECOND)
        trained = (one for one in module.parameters() if one.requires_grad)
        costs.append(
            Cost(
                (seconds,) * num_machines,
                _size(module.parameters()),
                _size(trained),
                _size(module.buffers()),
                made,
            )
        )
    return costs


def _flops(module: nn.Module, inputs: Sequence[Tensor]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops())


def _meta(edge: Edge, samples: int) -> Tensor:
    return torch.empty(edge.sizes(samples), dtype=DTYPES[edge.dtype], device="meta")


def _bytes(edge: Edge, samples: int) -> int:
    return edge.bytes_per_sample * (samples if edge.batched else 1)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)
