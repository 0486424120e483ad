"""A program as an ``nn.Module``: the same parameter and buffer names, the same modes, no code of the user's.

``train()`` and ``eval()`` choose the graph. Gradients come from autograd over the interpreted operators, which
are the ones that the eager model calls, in its order. Knows nothing of capture or of where the program came
from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manyhands.errors import ProgramRefused, UsageError
from manyhands.programs import autocast, constants
from manyhands.programs.format import Graph, Program, TensorRow
from manyhands.programs.interpreter import Interpreter, Ran
from manyhands.programs.plan import Limits
from manyhands.tensors import Structure, flatten
from manyhands.tensors.dtypes import DTYPES
from manyhands.tensors.structure import Seq, rebuild

Slots = list[tuple[nn.Module, str]]
"""Where tensors stand: the module that holds one, and its name in it."""


class ProgramModule(nn.Module):
    """The module that `program` is, over `tensors` by name.

    `program` comes from ``parser.parse``. A ``nn.Parameter`` among `tensors` is taken as it is, so that it is
    shared with whoever else holds it; any tensor is used in place, not copied. ProgramRefused where a tensor
    is missing, or has another dtype or shape than its row, or a name cannot be a module's.
    """

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], *, limits: Limits) -> None:
        super().__init__()
        self._program = program
        self._limits = limits
        self._constants = constants.tensors(program)
        self._interpreters: dict[tuple[str, torch.device], Interpreter] = {}
        self._form = _form(program.batch.structure)
        self._weights: Slots = []
        self._states: Slots = []
        # First all first names, then the others: so parameters() has the order that the model's had.
        for row in program.parameters:
            self._weights.append(self._place(row.name, _parameter(row, tensors)))
        for row in program.buffers:
            self._states.append(self._place(row.name, _given(row, tensors)))
        slots = [*self._weights, *self._states]
        for row, (holder, name) in zip((*program.parameters, *program.buffers), slots, strict=True):
            for alias in row.aliases:
                self._place(alias, getattr(holder, name))

    def forward(self, batch: Any) -> Any:
        """In train mode the loss, a scalar; in eval mode the model's outputs, as the model nests them.

        In-place changes of buffers are done, as the model does them. UsageError where `batch` is not of the
        program's form.
        """
        ran = self._run(batch)
        return self._loss(ran) if self.training else self._outputs(ran)

    def evaluate(self, batch: Any) -> tuple[Tensor, Any]:
        """The loss and the outputs, in eval mode whatever the mode is; without gradients."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                ran = self._run(batch)
            return self._loss(ran), self._outputs(ran)
        finally:
            self.train(was_training)

    def _run(self, batch: Any) -> Ran:
        return self._run_over(self._leaves(batch))

    def _run_over(self, leaves: Sequence[Tensor]) -> Ran:
        buffers = _tensors(self._states)
        ran = self._interpreter(leaves[0].device).run(_tensors(self._weights), buffers, leaves)
        if ran.mutations:
            with torch.no_grad():
                for mutation, value in zip(self._graph().mutations, ran.mutations, strict=True):
                    buffers[mutation.buffer].copy_(value)
        return ran

    def _graph(self) -> Graph:
        """The graph of the mode, which was just run."""
        graph = self._program.graphs.train if self.training else self._program.graphs.eval
        assert graph is not None
        return graph

    def _interpreter(self, device: torch.device) -> Interpreter:
        mode: Literal["train", "eval"] = "train" if self.training else "eval"
        found = self._interpreters.get((mode, device))
        if found is None:
            here = [constant.to(device) for constant in self._constants]
            found = Interpreter(self._program, mode, here, self._limits, device)
            self._interpreters[mode, device] = found
        return found

    def _leaves(self, batch: Any) -> list[Tensor]:
        structure, leaves = flatten(batch)
        if structure != self._program.batch.structure and _form(structure) != self._form:
            raise UsageError(
                "the batch has another form than the ones the program was captured from: the same keys, plain "
                "values and numbers of tensors are needed"
            )
        self._check(leaves)
        return leaves

    def _check(self, leaves: Sequence[Tensor]) -> None:
        for at, (leaf, row) in enumerate(zip(leaves, self._program.batch.leaves, strict=True)):
            is_of_kind = autocast.may_stand_for(leaf.dtype, DTYPES[row.dtype], leaf.device.type)
            if not is_of_kind or not _fits(leaf.shape, row.shape):
                raise UsageError(
                    f"tensor {at} of the batch is {leaf.dtype} {tuple(leaf.shape)}, and the program takes {row.dtype} "
                    f"{tuple('any' if size is None else size for size in row.shape)}"
                )

    def _loss(self, ran: Ran) -> Tensor:
        if ran.loss is None:
            raise UsageError("the program's graph of this mode gives no loss")
        return ran.loss

    def _outputs(self, ran: Ran) -> Any:
        return rebuild(self._graph().structure, ran.outputs)

    def _place(self, name: str, tensor: Tensor) -> tuple[nn.Module, str]:
        """Register `tensor` under its dotted name. Names were written elsewhere: torch refuses those that would
        hide an attribute of a module, and they are never set as attributes.
        """
        *path, last = name.split(".")
        at: nn.Module = self
        try:
            for part in path:
                if part not in at._modules:
                    at.add_module(part, nn.Module())
                at = at.get_submodule(part)
            if isinstance(tensor, nn.Parameter):
                at.register_parameter(last, tensor)
            else:
                at.register_buffer(last, tensor)
        except (KeyError, AttributeError, TypeError) as error:
            raise ProgramRefused(f"{name[:80]!r} is no name for a tensor of a module: {error}") from None
        return at, last


def _parameter(row: TensorRow, tensors: Mapping[str, Tensor]) -> nn.Parameter:
    tensor = _given(row, tensors)
    return (
        tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=row.requires_grad)
    )


def _given(row: TensorRow, tensors: Mapping[str, Tensor]) -> Tensor:
    tensor = tensors.get(row.name)
    if tensor is None or tensor.dtype is not DTYPES[row.dtype] or tuple(tensor.shape) != tuple(row.shape):
        came = "is missing" if tensor is None else f"is {tensor.dtype} {tuple(tensor.shape)}"
        raise ProgramRefused(f"{row.name[:80]!r} {came}; the program names {row.dtype} {tuple(row.shape)}")
    return tensor


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        allowed is None or size == allowed for size, allowed in zip(shape, wanted, strict=True)
    )


def _tensors(slots: Slots) -> list[Tensor]:
    return [getattr(module, name) for module, name in slots]


def _form(structure: Structure) -> Sequence[Any]:
    """The structure with lists as tuples: batches change between the two on their way."""
    return [Seq("tuple", node.length) if isinstance(node, Seq) else node for node in structure.nodes]
