"""A model's state, by original names, and what of it moves.

Three cuts through the same names::

    everything     parameters + buffers            once, when a node joins; and in checkpoints
    moving         trainable parameters + buffers  after each step, coordinator to node
                   that training mutates
    contribution   gradients + mutated buffers     per partial sum, node to coordinator (gradients.py)

Tied weights are one parameter and appear once, under the first name, as ``named_parameters`` gives them. A
criterion with parameters or buffers is part of the state under ``criterion.``. Knows nothing of networks or
files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from manyhands.errors import UsageError
from manyhands.tensors.layout import Layout, TensorSpec
from manyhands.tensors.memory import bytes_of

CRITERION = "criterion."


class ModelState:
    """A model (and its criterion, where that is a module) seen as named tensors.

    Holds the caller's own modules: writing here is seen there.
    """

    def __init__(self, model: nn.Module, criterion: Any = None) -> None:
        self.model = model
        self.criterion = criterion if isinstance(criterion, nn.Module) else None
        self.parameters: dict[str, nn.Parameter] = dict(self._named(nn.Module.named_parameters))
        self.buffers: dict[str, Tensor] = dict(self._named(nn.Module.named_buffers))
        self.trainable: dict[str, nn.Parameter] = {
            n: p for n, p in self.parameters.items() if p.requires_grad
        }
        """The parameters that receive gradients, in ``parameters()`` order."""

    def _named(self, of: Any) -> Iterator[tuple[str, Any]]:
        yield from of(self.model)
        if self.criterion is not None:
            yield from ((CRITERION + name, tensor) for name, tensor in of(self.criterion))

    def tensors(self) -> dict[str, Tensor]:
        """Everything: parameters, then buffers."""
        return {**self.parameters, **self.buffers}

    def layout(self, names: Iterable[str] | None = None) -> Layout:
        """Where each of `names` (default: everything) lies in one body."""
        tensors = self.tensors()
        chosen = tensors if names is None else {name: tensors[name] for name in names}
        return Layout.of(chosen.items())

    def moving(self, mutated: Iterable[str]) -> list[str]:
        """The names that change from step to step: trainable parameters and the `mutated` buffers."""
        return [*self.trainable, *mutated]

    def write(self, layout: Layout, body: Tensor) -> None:
        """Copy the tensors of `body` (uint8, laid out as `layout`) into the model."""
        tensors = self.tensors()
        with torch.no_grad():
            for spec, view in zip(layout.specs, layout.views(body), strict=True):
                tensors[spec.name].copy_(view)

    def read(self, layout: Layout, body: Tensor) -> None:
        """Copy the model's tensors of `layout` into `body` (uint8)."""
        tensors = self.tensors()
        with torch.no_grad():
            for spec, view in zip(layout.specs, layout.views(body), strict=True):
                view.copy_(tensors[spec.name])

    def named_once(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Every tensor under its first name, detached, and the further names of tied ones: {other: kept}."""
        tensors = self.tensors()
        first = {id(tensor): name for name, tensor in tensors.items()}
        all_names = [
            *self.model.named_parameters(remove_duplicate=False),
            *self.model.named_buffers(remove_duplicate=False),
        ]
        tied = {
            name: first[id(tensor)]
            for name, tensor in all_names
            if name not in tensors and id(tensor) in first
        }
        return {name: tensor.detach() for name, tensor in tensors.items()}, tied

    def check_trainable(self) -> None:
        """UsageError where nothing could be trained."""
        if not self.trainable:
            raise UsageError("the model has no parameter with requires_grad=True: there is nothing to train")


def check_tensors(mine: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """UsageError naming the first tensor in which a checkpoint is of another model."""
    odd = sorted(set(mine) ^ set(saved))
    if odd:
        where = "the checkpoint" if odd[0] in saved else "the model"
        raise UsageError(f"the checkpoint is of another model: {odd[0]} is only in {where}")
    for name, tensor in mine.items():
        here, there = (tuple(t.shape) for t in (tensor, saved[name]))
        if here != there or tensor.dtype != saved[name].dtype:
            raise UsageError(
                f"the checkpoint is of another model: {name} is {tensor.dtype} {here} here and "
                f"{saved[name].dtype} {there} there"
            )


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over names and raw bytes of a model's parameters and buffers, sorted by name (hex)."""
    return named_sha256({**dict(model.named_parameters()), **dict(model.named_buffers())})


def named_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names (UTF-8) and the contiguous raw bytes of `tensors`, sorted by name (hex)."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        raw = tensors[name].detach().to("cpu").contiguous().reshape(-1)
        if raw.numel():
            digest.update(bytes_of(raw))
    return digest.hexdigest()


def describe(state: ModelState) -> list[TensorSpec]:
    """Names, dtypes and shapes of everything, for comparing two machines' models."""
    return list(state.layout().specs)
