"""The way in: a layer list, ``nn.Sequential`` or any fx-traceable module to a graph, recipes and first weights.

What comes out is all that the rest of the mode knows of a model: no user's class is called after this, but to
give a layer its first weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from manyhands.errors import UsageError
from manyhands.pipeline.graph import MAIN_INPUT, Graph
from manyhands.pipeline.recipes.format import Recipe

LayerList = list[Any]
"""``[(class, kwargs, shape | [shapes] | (shape, dtype)), ...]``"""


@dataclass(frozen=True)
class Example:
    """One batch to read a module by: values are not looked at, shapes and dtypes are.

    The first dimension of `x` is the batch's. An extra whose first dimension is as long is a sample's, too; any
    other is the same for all samples.
    """

    x: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """A model as the pipeline knows it. `recipes` are one a layer of `graph`."""

    graph: Graph
    recipes: tuple[Recipe, ...]
    weights_of: Callable[[int], Mapping[str, Tensor]]
    """What the tensors of a layer begin as, by their names in the model; not copies.

    A name is missing where the layer is to start as torch starts it (a layer list) or where its weights come from
    files (a module on the meta device). Made when asked for, so that no machine need hold the whole model.
    """


def needs_example(model: Any) -> bool:
    """Whether `read` needs a batch: a module does not say the shapes it takes."""
    return isinstance(model, nn.Module)


def read(model: Any, example: Example | None = None) -> Reading:
    """`model` as layers and edges. A module is left as it was found.

    UsageError says what is wrong and where: shapes that do not chain, a name that is produced twice or only after
    it is consumed, a module that cannot be traced. A name that no layer produces comes in with the batch, see
    `check_extras`.
    """
    # Each reader is imported when it is needed: tracing takes torch.export, which takes seconds to load.
    if isinstance(model, nn.Module):
        from manyhands.pipeline.models.traced import read_module

        if example is None:
            raise UsageError(
                "a module says no shapes: give one batch with it, read(model, Example(x, extra))"
            )
        if isinstance(model, nn.Sequential) and not len(model):
            raise UsageError("this nn.Sequential holds no layer, so there is nothing to place")
        return read_module(model, example)
    if isinstance(model, list | tuple) and len(model):
        from manyhands.pipeline.models.layer_list import read_layers

        return read_layers(list(model))
    raise UsageError(
        f"a model is a list of layers (class, kwargs, shape), an nn.Sequential or another module, not {model!r:.80}"
    )


def check_extras(graph: Graph, names: Mapping[str, Any]) -> None:
    """UsageError where a batch's extras are not those that layers take: which, and who takes it."""
    wanted = {edge.name: edge for edge in graph.edges if edge.producer < 0 and edge.name != MAIN_INPUT}
    for name, edge in wanted.items():
        if name not in names:
            taker = graph.layers[edge.consumers[0]]
            raise UsageError(
                f"layer {taker.index} ({taker.name}) takes {name!r}, which no layer before it makes and which the "
                f"batch does not bring: pass it by name with the batch, {{{name!r}: tensor}}, or add it to the "
                "out_variables of an earlier layer"
            )
    if unknown := sorted(set(names) - set(wanted)):
        raise UsageError(
            f"the batch brings {unknown[0]!r}, which no layer takes; they take {', '.join(wanted) or 'none'}"
        )
