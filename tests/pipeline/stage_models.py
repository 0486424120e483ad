"""Small models for the stage engine: layers with named edges, written by hand, and both sides over equal weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from manyhands.pipeline.graph import BATCH, MAIN_INPUT, Edge, Graph, Layer
from manyhands.pipeline.schedules.operations import Schedule
from manyhands.pipeline.schedules.table import schedule_of
from manyhands.pipeline.stage.engine import StageSettings
from manyhands.pipeline.stage.local import LocalPipeline
from manyhands.pipeline.stage.reference import OneProcess

WIDTH = 12


class Spec(NamedTuple):
    """One layer of a test's model."""

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Numbered(nn.Module):
    """A layer whose parameters are called ``3.weight``, as those of a model's third layer are."""

    def __init__(self, number: int, module: nn.Module) -> None:
        super().__init__()
        self.add_module(str(number), module)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        (module,) = self.children()
        return module(*inputs)


class Mix(nn.Module):
    """Takes any number of inputs so that each one's gradient is another number, and bounded, however many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, *skips: Tensor) -> Tensor:
        out = torch.tanh(self.linear(x))
        for at, skip in enumerate(skips):
            out = out * torch.sigmoid(skip + 0.3 * at) + 0.7 * torch.sin(skip)
        return out


class Masked(nn.Module):
    """A linear layer of which a boolean mask, the same for each sample or not, takes columns away."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear(x).masked_fill(mask, 0.0) + 0.1 * x


class Model(NamedTuple):
    graph: Graph
    layers: list[nn.Module]

    def pipeline(self, bounds: Sequence[int], settings: StageSettings | None = None) -> LocalPipeline:
        return LocalPipeline.build(self.graph, copy.deepcopy(self.layers), bounds, settings)

    def one_process(self, run_seed: int = 0, autocast: torch.dtype | None = None) -> OneProcess:
        reference = OneProcess(self.graph, copy.deepcopy(self.layers), run_seed=run_seed, autocast=autocast)
        reference.tie()
        return reference


def model_of(
    specs: Sequence[Spec],
    *,
    without_gradient: Sequence[str] = (),
    ties: tuple[tuple[str, ...], ...] = (),
    whole: Sequence[str] = (),
) -> Model:
    """The model of `specs`; names that nobody makes come with the batch, in one piece where they are `whole`."""
    layers = tuple(Layer(at, str(at), spec.inputs, spec.outputs) for at, spec in enumerate(specs))
    producers = {name: layer.index for layer in layers for name in layer.outputs}
    names = dict.fromkeys(name for layer in layers for name in (*layer.inputs, *layer.outputs))
    edges = tuple(
        Edge(
            name,
            producers.get(name, BATCH),
            tuple(layer.index for layer in layers for taken in layer.inputs if taken == name),
            (WIDTH,),
            "float32",
            has_gradient=name in producers and name not in without_gradient,
            batched=name not in whole,
        )
        for name in names
    )
    graph = Graph(layers, edges, layers[-1].outputs[0], ties)
    return Model(graph, [Numbered(at, spec.module) for at, spec in enumerate(specs)])


def chain(modules: Sequence[nn.Module]) -> Model:
    """A plain chain of layers."""
    edges = [MAIN_INPUT, *(str(at) for at in range(len(modules)))]
    return model_of([Spec(one, (edges[at],), (edges[at + 1],)) for at, one in enumerate(modules)])


def skips() -> Model:
    """Edge "a" has four consumers, "b" three; "c" is taken twice by one layer. Many terms meet at each."""
    return model_of(
        [
            Spec(Mix(), (MAIN_INPUT,), ("a",)),
            Spec(Mix(), ("a",), ("b",)),
            Spec(Mix(), ("b", "a"), ("c",)),
            Spec(Mix(), ("c", "a", "c"), ("d",)),
            Spec(Mix(), ("d", "b"), ("e",)),
            Spec(Mix(), ("e", "a"), ("f",)),
            Spec(Mix(), ("f", "b", "c"), ("g",)),
            Spec(Mix(), ("g", "a"), ("h",)),
        ]
    )


def masked() -> Model:
    """A mask taken by layers 0, 2 and 4, and one for all samples by layer 3; a skip from 0 to 1, 2 and 4."""
    return model_of(
        [
            Spec(Masked(), (MAIN_INPUT, "mask"), ("a",)),
            Spec(Mix(), ("a", "a"), ("b",)),
            Spec(Masked(), ("b", "mask"), ("c",)),
            Spec(Masked(), ("c", "columns"), ("d",)),
            Spec(Masked(), ("d", "mask"), ("e",)),
            Spec(Mix(), ("e", "a"), ("f",)),
        ],
        whole=["columns"],
    )


def cuts(num_layers: int, num_stages: int) -> Iterator[tuple[int, ...]]:
    """Every way to cut so many layers into so many stages."""
    for inner in combinations(range(1, num_layers), num_stages - 1):
        yield (0, *inner, num_layers)


def schedule(name: str, num_stages: int, num_micro_batches: int) -> Schedule:
    """A schedule for so many stages, whoever holds them."""
    if name == "interleaved":
        return schedule_of(name, num_stages // 2, num_micro_batches)
    return schedule_of(name, num_stages, num_micro_batches)


def assert_same_bits(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(mine[name], tensor), f"{name} differs by {(mine[name] - tensor).abs().max():.3g}"
