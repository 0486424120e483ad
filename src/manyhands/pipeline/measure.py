"""How long a layer takes on this machine and what it keeps: the numbers that a cut is planned by.

A layer is run alone over numbers of its inputs' shapes; no data and no other layer is needed. Knows nothing of stages.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from manyhands.clock import Clock
from manyhands.errors import ManyhandsError
from manyhands.pipeline.graph import Edge, Graph
from manyhands.pipeline.memory import free_memory_bytes
from manyhands.pipeline.recipes import build, decode
from manyhands.pipeline.recipes.build import BuiltLayer
from manyhands.pipeline.stagecosts import Cost
from manyhands.programs.format import MAX_NODES
from manyhands.programs.plan import Limits
from manyhands.programs.undisturbed import undisturbed
from manyhands.tensors.dtypes import DTYPES

logger = logging.getLogger(__name__)
_LEAST_SECONDS: Final = 0.002
"""Runs are repeated until they take as long together: a small layer is over before a clock has ticked."""
_LEAST_RUNS: Final = 3
_MOST_RUNS: Final = 64


@dataclass(frozen=True)
class Measured:
    """One micro-batch through one layer, forward and backward."""

    seconds: float
    activation_bytes: int
    """What autograd keeps between the two passes, inputs included, the layer's own tensors aside.

    A tensor that one layer gives and the next takes may be counted by both: an estimate that errs on the safe side.
    """


def measure(
    layer: BuiltLayer, inputs: Sequence[Edge], samples: int, device: torch.device, clock: Clock
) -> Measured:
    """Run `layer`, which is on `device`, over `samples` samples; it is as before afterwards.

    The first run is not timed. Of the others the fastest counts: what disturbs a machine only ever adds time.
    """
    gradients = [parameter.grad for parameter in layer.parameters()]
    with undisturbed(layer):
        given = [_numbers(edge, samples, device) for edge in inputs]
        kept = _kept_bytes(layer, given)
        fastest = _fastest(lambda: _run(layer, given), device, clock)
    for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
        parameter.grad = gradient
    return Measured(fastest, kept)


def measure_all(
    graph: Graph, recipes: Mapping[str, Tensor], samples: int, device: torch.device, clock: Clock
) -> dict[str, float]:
    """Each layer of a model measured here, one after the other: ``{"3 seconds": ..., "3 bytes": ...}``.

    `recipes` are encoded, by the layer's number. A layer that cannot be run over numbers of no meaning, or does not
    fit, is left out: whoever plans has an estimate.
    """
    found: dict[str, float] = {}
    limits = Limits(bytes=free_memory_bytes(device), flops=1 << 62, nodes=MAX_NODES)
    for layer in graph.layers:
        inputs = [graph.edge(name) for name in layer.inputs]
        try:
            built = build(decode(recipes[str(layer.index)].numpy().tobytes()), limits).to(device)
            measured = measure(built, inputs, samples, device, clock)
        except (ManyhandsError, RuntimeError, ValueError, IndexError) as error:
            logger.info("layer %s was not measured: %s", layer.name, error)
            continue
        found[f"{layer.index} seconds"] = measured.seconds
        found[f"{layer.index} bytes"] = float(measured.activation_bytes)
    return found


def measured_by(numbers: Mapping[str, float], num_layers: int) -> list[Measured] | None:
    """What `measure_all` said, a layer each; None where one is missing."""
    try:
        return [
            Measured(numbers[f"{layer} seconds"], int(numbers[f"{layer} bytes"]))
            for layer in range(num_layers)
        ]
    except KeyError:
        return None


def costs(layers: Sequence[BuiltLayer], measured: Sequence[Sequence[Measured]]) -> list[Cost]:
    """What a plan is made of: `layers`, on the meta device or not, and for each what every machine measured."""
    return [
        Cost(
            tuple(one.seconds for one in by_machine),
            sum(parameter.nbytes for parameter in layer.parameters()),
            sum(parameter.nbytes for parameter in layer.parameters() if parameter.requires_grad),
            sum(buffer.nbytes for buffer in layer.buffers()),
            max(one.activation_bytes for one in by_machine),
        )
        for layer, by_machine in zip(layers, measured, strict=True)
    ]


def _numbers(edge: Edge, samples: int, device: torch.device) -> Tensor:
    shape, dtype = edge.sizes(samples), DTYPES[edge.dtype]
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.rand(shape, device=device).to(dtype).requires_grad_(edge.has_gradient)


def _run(layer: BuiltLayer, given: Sequence[Tensor]) -> None:
    made = [output for output in layer(*given) if output.requires_grad]
    if made:
        torch.autograd.backward(made, [torch.ones_like(output) for output in made])


def _fastest(run: Callable[[], None], device: torch.device, clock: Clock) -> float:
    fastest, total = float("inf"), 0.0
    for number in range(_MOST_RUNS):
        start = clock.monotonic()
        run()
        _finish(device)
        seconds = clock.monotonic() - start
        fastest, total = min(fastest, seconds), total + seconds
        if total >= _LEAST_SECONDS and number >= _LEAST_RUNS:
            break
    return fastest


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _kept_bytes(layer: BuiltLayer, given: Sequence[Tensor]) -> int:
    own = {tensor.untyped_storage().data_ptr() for tensor in (*layer.parameters(), *layer.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _run(layer, given)
    return sum(kept.values())
