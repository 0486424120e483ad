"""What a placement is made of: recipes, first weights, the newest snapshot. The boss's whole knowledge of a model.

::

    Assign (recipes) ─► Optimize ─► train / eval ─► Restore .. Restore (last)     to each member, in this order

Nothing here waits or sends; `driver` does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from manyhands.errors import StorageError, UsageError
from manyhands.pipeline import messages as m
from manyhands.pipeline import snapshots
from manyhands.pipeline.commands import Command, Parcel
from manyhands.pipeline.graph import Graph
from manyhands.pipeline.models import Reading
from manyhands.pipeline.outcome import Outcome
from manyhands.pipeline.placement import Placement
from manyhands.pipeline.recipes import build, encode
from manyhands.pipeline.stage.routing import shared_parameters
from manyhands.pipeline.stage.weights import StageState


class Stock:
    """One model, and what its stages were when they were last brought home.

    `weights` is a folder of safetensors files for a module that was read on the meta device.
    """

    def __init__(self, reading: Reading, settings: m.Settings, weights: Path | None = None) -> None:
        self.graph: Graph = reading.graph
        self.state: StageState | None = None
        self.standing: Sequence[Command] = ()
        """The commands whose effect is no part of a state: the optimizer, train or eval."""
        self._reading = reading
        self.settings = settings
        self._files = _Files(weights) if weights is not None else None
        self._recipes = [encode(recipe) for recipe in reading.recipes]
        with torch.device("meta"):
            built = [build(recipe) for recipe in reading.recipes]
        self.built = built
        """The layers on the meta device: names and shapes without memory."""
        self.parameters: list[list[str]] = [[name for name, _ in layer.named_parameters()] for layer in built]
        """The names of each layer's parameters."""
        self.names: list[frozenset[str]] = [
            frozenset((*names, *(name for name, _ in layer.named_buffers())))
            for names, layer in zip(self.parameters, built, strict=True)
        ]
        """Parameters and buffers."""
        self._shapes = {
            name: tuple(one.shape)
            for layer in built
            for name, one in (*layer.named_parameters(), *layer.named_buffers())
        }
        self.num_parameters = [sum(one.numel() for _, one in layer.named_parameters()) for layer in built]
        self._ordered = [[*dict(one.named_parameters()), *dict(one.named_buffers())] for one in built]
        self._shared = shared_parameters(self.graph, self.parameters)
        self.aliases = {alias: one.name for one in self._shared for alias in one.aliases}
        """Further names of shared parameters, and the one that they stand under."""
        self._begun: dict[int, dict[str, Tensor]] = {}
        """What each layer of a live module began with; its user may go on with the module."""

    def take(self, state: StageState, standing: Sequence[Command] | None = None) -> None:
        """What every placement starts from, from now on."""
        self.state = state
        self._begun.clear()
        if standing is not None:
            self.standing = standing

    def with_weights(self, state: StageState, weights: Mapping[str, Tensor]) -> StageState:
        """`state` with these parameters and buffers. UsageError naming what is unknown, missing or of another shape."""
        known = set(self.named(state))
        if unknown := sorted(set(weights) - known):
            raise UsageError(f"the state has {unknown[0]!r}, which this model has not")
        if missing := sorted(known - set(weights)):
            raise UsageError(f"the state lacks {missing[0]!r}")
        changed = replace(
            state,
            parameters={name: weights[name].detach().cpu() for name in state.parameters},
            buffers={name: weights[name].detach().cpu() for name in state.buffers},
        )
        self.check(changed)
        return changed

    def check(self, state: StageState) -> None:
        """UsageError where `state` is of another model."""
        held = {**state.parameters, **state.buffers}
        for name, shape in self._shapes.items():
            if name in self.aliases:
                continue
            if name not in held:
                raise UsageError(f"the state is of another model: it has no {name}")
            if tuple(held[name].shape) != shape:
                raise UsageError(
                    f"{name} is {shape} in this model, and the state's is {tuple(held[name].shape)}"
                )

    def named(self, state: StageState) -> dict[str, Tensor]:
        """The model's `state_dict`: original names, in the order of the layers, tied ones under each name."""
        held = {**state.parameters, **state.buffers}
        for one in self._shared:
            held |= dict.fromkeys(one.aliases, held[one.name])
        order = [name for layer in self._ordered for name in layer]
        return {name: held[name] for name in dict.fromkeys(order)}

    def parcels(self, placement: Placement, generation: int, number: int) -> dict[int, list[Parcel]]:
        """What every member of `placement` is sent to hold its stages; command `number` is answered by each."""
        return {
            member: list(self._for_member(member, placement, generation, number))
            for member in placement.members
        }

    def recipes(self, layers: Iterable[int]) -> dict[str, Tensor]:
        """The recipes of these layers, as they travel."""
        return {
            str(layer): torch.frombuffer(bytearray(self._recipes[layer]), dtype=torch.uint8)
            for layer in layers
        }

    def _for_member(
        self, member: int, placement: Placement, generation: int, number: int
    ) -> Iterator[Parcel]:
        layers = placement.layers_held_by(member)
        shared = [(one.name, list(one.aliases), list(one.layers)) for one in self._shared]
        assign = m.Assign(
            generation,
            0,
            self.graph,
            list(placement.bounds),
            list(placement.owners),
            shared,
            self.settings,
        )
        yield assign, self.recipes(layers)
        for command in self.standing:
            yield from command.parcels_for(placement, generation).get(member, [])
        yield from self._state(layers, generation, number)

    def _state(self, layers: Sequence[int], generation: int, number: int) -> Iterator[Parcel]:
        if self.state is None:
            for layer in layers:
                begun = self._first_weights(layer)
                if begun:
                    # A stage knows a shared parameter by its first name only.
                    called = {self.aliases.get(name, name): one for name, one in begun.items()}
                    part = {"parameters": called, "buffers": {}, "optimizer": {}}
                    yield m.Restore(generation, number, is_last=False), part
            yield (
                m.Restore(generation, number, is_last=True),
                {"parameters": {}, "buffers": {}, "optimizer": {}},
            )
            return
        names = self._called(layers).union(*(self.names[layer] for layer in layers))
        parts = list(snapshots.parts(self.state, names))
        for at, part in enumerate(parts):
            is_last = at == len(parts) - 1
            yield m.Restore(generation, number, is_last, self.state.step, self.state.lr), part

    def _called(self, layers: Sequence[int]) -> set[str]:
        """The names under which shared parameters of these layers stand in a state."""
        return {one.name for one in self._shared if set(one.layers) & set(layers)}

    def _first_weights(self, layer: int) -> Mapping[str, Tensor]:
        if self._files is not None:
            others = {one.name: one.aliases for one in self._shared}
            return self._files.read({self.aliases.get(name, name) for name in self.names[layer]}, others)
        if layer not in self._begun:
            weights = self._reading.weights_of(layer)
            self._begun[layer] = {name: one.detach().to("cpu", copy=True) for name, one in weights.items()}
        return self._begun[layer]


def merged(outcome: Outcome) -> StageState:
    """The state of the whole model, of every member's answer."""
    parts: dict[int, list[Any]] = {}
    for name, part in sorted(outcome.values.items(), key=lambda item: item[0].micro_batch):
        if name.kind == "state":
            parts.setdefault(name.stage, []).append(part)
    return StageState.merged(
        snapshots.joined(parts[member], int(numbers["step"]), numbers.get("lr"))
        for member, numbers in outcome.numbers.items()
        if member in parts
    )


class _Files:
    """A folder of safetensors shards, read a few tensors at a time."""

    def __init__(self, folder: Path) -> None:
        self._where: dict[str, Path] = {}
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
        if not files:
            raise UsageError(f"weights: {folder} holds no .safetensors file")
        for path in files:
            try:
                with safe_open(path, framework="pt") as file:
                    self._where |= dict.fromkeys(file.keys(), path)
            except (SafetensorError, OSError) as error:
                raise StorageError(f"weights: {path} cannot be read: {error}", str(path)) from None

    def read(self, names: Collection[str], others: Mapping[str, Sequence[str]]) -> Mapping[str, Tensor]:
        """The tensors of these names; a shared one may stand under any of its `others`.

        UsageError naming one that no file has.
        """
        called = {name: self._called(name, others.get(name, ())) for name in names}
        found: dict[str, Tensor] = {}
        for path in {self._where[there] for there in called.values()}:
            with safe_open(path, framework="pt") as file:
                found |= {
                    name: file.get_tensor(there)
                    for name, there in called.items()
                    if self._where[there] == path
                }
        return found

    def _called(self, name: str, others: Sequence[str]) -> str:
        for one in (name, *others):
            if one in self._where:
                return one
        raise UsageError(f"weights: no file has {name}; there are {len(self._where)} tensors in them")
