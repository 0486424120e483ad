"""The moving part of a model's state as one flat body: what a step changes, and what travels after it.

On a CPU the model's tensors become views of the body, so that an optimizer step writes what is sent and a
received state is what is computed with, without another copy. Elsewhere the body is a mirror. The caller's
modules get storage of their own back with :meth:`detach`.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from manyhands.tensors.layout import Layout
from manyhands.tensors.memory import bytes_of
from manyhands.training.state import ModelState


class MovingState:
    """Trainable parameters and the `mutated` buffers of a model, in one aligned uint8 body."""

    def __init__(self, state: ModelState, mutated: Iterable[str]) -> None:
        self.state = state
        self.layout: Layout = state.layout(state.moving(mutated))
        self.body: Tensor = self.layout.allocate().zero_()
        self.bytes = bytes_of(self.body)
        self.is_attached = False
        """Whether the model's tensors are views of the body now."""

    def attach(self) -> None:
        """Make the model's tensors views of the body, with the values they have (dense CPU tensors only)."""
        self.state.read(self.layout, self.body)
        tensors = self.state.tensors()
        mine = [tensors[spec.name] for spec in self.layout.specs]
        self.is_attached = all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in mine)
        if self.is_attached:
            for tensor, view in zip(mine, self.layout.views(self.body), strict=True):
                tensor.data = view

    def detach(self) -> None:
        """Give the model's tensors storage of their own."""
        if self.is_attached:
            tensors = self.state.tensors()
            for spec in self.layout.specs:
                tensors[spec.name].data = tensors[spec.name].data.clone()
            self.is_attached = False

    def to_body(self) -> None:
        """After the model changed: bring the body up to date."""
        if not self.is_attached:
            self.state.read(self.layout, self.body)

    def to_model(self) -> None:
        """After the body changed: bring the model up to date."""
        if not self.is_attached:
            self.state.write(self.layout, self.body)
