"""A stage's layers as segments: all in one where a backward is one pass, cut behind each layer
that has weights where it is two.

Pure but for the modules, which it only carries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from manyhands.pipeline.graph import Layer
from manyhands.pipeline.recipes.build import BuiltLayer
from manyhands.pipeline.stage.drawing import may_draw
from manyhands.pipeline.stage.routing import TARGET, Routes
from manyhands.pipeline.stage.segments import LOSS, BoundLayer, Segment


def bind(layers: Sequence[Layer], modules: Sequence[nn.Module]) -> tuple[BoundLayer, ...]:
    """Each layer with its module."""
    return tuple(
        BoundLayer(layer, module, _callee(module), may_draw(module))
        for layer, module in zip(layers, modules, strict=True)
    )


def _callee(module: nn.Module) -> Callable[..., Any]:
    """What computes a layer: of one that is a torch layer and nothing more, that one, which saves 3 µs a call."""
    return (module.only if isinstance(module, BuiltLayer) else None) or module


def cut_stage(bound: Sequence[BoundLayer], routes: Routes, *, is_split: bool) -> tuple[Segment, ...]:
    """The segments of a stage in the order of its forward; the loss is behind the last one's layers."""
    runs = _runs(bound) if is_split else [list(bound)]
    if not runs[-1] and not routes.has_loss:
        runs.pop()
    segments: list[Segment] = []
    for at, run in enumerate(runs):
        behind = [one for later in runs[at + 1 :] for one in later]
        segments.append(_segment(run, behind, routes, takes_loss=routes.has_loss and at == len(runs) - 1))
    return tuple(segments)


def _runs(bound: Sequence[BoundLayer]) -> list[list[BoundLayer]]:
    """Layers up to and with the next one that has weights, which a weight pass reaches at once from its end; the
    last run has none, and may be empty.
    """
    runs: list[list[BoundLayer]] = [[]]
    for one in bound:
        runs[-1].append(one)
        if _has_weights(one):
            runs.append([])
    return runs


def _has_weights(bound: BoundLayer) -> bool:
    return any(parameter.requires_grad for parameter in bound.module.parameters())


def _segment(
    run: Sequence[BoundLayer], behind: Sequence[BoundLayer], routes: Routes, *, takes_loss: bool
) -> Segment:
    made = [name for one in run for name in one.layer.outputs]
    taken = [name for one in run for name in one.layer.inputs]
    taken += [routes.prediction, TARGET] if takes_loss else []
    inputs = tuple(dict.fromkeys(name for name in taken if name not in made))
    wanted = {name for one in behind for name in one.layer.inputs} | set(routes.values_out)
    with_gradient = routes.with_gradient | {routes.prediction}
    wanted |= {routes.prediction} if routes.has_loss and not takes_loss else set()
    return Segment(
        layers=tuple(run),
        inputs=inputs,
        with_gradient=tuple(name for name in inputs if name in with_gradient),
        outputs=(*(name for name in made if name in wanted), *((LOSS,) if takes_loss else ())),
        prediction=routes.prediction,
        has_weights=any(map(_has_weights, run)),
    )
