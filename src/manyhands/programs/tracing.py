"""One mode of a model to a graph of ATen operators, by ``torch.export``; failures in the user's own words.

The trace is non-strict: the model's Python runs once over tensors without values. What a program cannot hold
(a branch on values, ``.item()``, numpy) therefore fails in a line of the user's, and that line is what the
error names. Knows nothing of the program format.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from manyhands.errors import CaptureFailed, UsageError
from manyhands.programs.blame import line_of_error
from manyhands.programs.helpers import Answers, baked
from manyhands.programs.recurrent import open_lengths
from manyhands.tensors.nest import flatten
from manyhands.tensors.structure import Structure, rebuild

LossOf = Callable[[nn.Module, Any], Tensor]
OutputOf = Callable[[Any], Any]

WAY_OUT: Final = "or give every node the model, TrainingNode(model=...): then none is shipped"

_OTHERS: Final = "others"
_NOISY: Final = ("torch.fx.experimental.symbolic_shapes", "torch.export", "torch.fx")


@dataclass(frozen=True)
class Trace:
    """A traced mode: the exported graph, whose outputs are the loss, if it has one, then the output tree's tensors."""

    exported: ExportedProgram
    structure: Structure

    has_loss: bool

    @property
    def originals(self) -> Mapping[str, str]:
        """Placeholders of parameters and buffers, to the names these have in the model."""
        signature = self.exported.graph_signature
        inputs = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        return {placeholder: original_name(name) for placeholder, name in inputs.items()}

    @property
    def constants(self) -> Mapping[str, Any]:
        """Placeholders of tensors that the model made itself, to their values."""
        lifted = self.exported.graph_signature.inputs_to_lifted_tensor_constants
        return {placeholder: self.exported.constants[name] for placeholder, name in lifted.items()}


class Root(nn.Module):
    """The model and what its loss needs as one module over the tensors of a batch.

    ``forward(*leaves)`` gives ``(loss, *outputs)``; outputs are those of the model's last call, without the
    entries of a dict that are no trees of tensors (a cache). Without `loss_of` the model is a layer: it is
    called with the batch's items, and gives its outputs in both modes.
    """

    def __init__(
        self,
        model: nn.Module,
        others: Mapping[str, nn.Module],
        loss_of: LossOf | None,
        output_of: OutputOf | None,
        structure: Structure,
    ) -> None:
        super().__init__()
        self.model = model
        self.others = nn.ModuleDict(others)
        self._loss_of = loss_of
        self.has_loss = loss_of is not None
        self._output_of = output_of
        self._batch = structure
        self.structure = Structure((None,))

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        """The loss, a scalar; in eval mode the output tree's tensors after it, and `structure` is their tree."""
        if self._loss_of is None:
            self.structure, tensors = flatten(self.model(*rebuild(self._batch, leaves)), "output")
            return tuple(tensors)
        outputs: list[Any] = []
        hook = self.model.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            loss = self._loss_of(self.model, rebuild(self._batch, leaves))
        finally:
            hook.remove()
        if not self.model.training and outputs:
            self.structure, tensors = _shown(outputs[-1], self._output_of)
            return (loss, *tensors)
        return (loss,)


def original_name(name: str) -> str:
    """A name under :class:`Root` as the run knows it: ``model.a`` is ``a``, ``others.criterion.b`` is
    ``criterion.b``.
    """
    return name.removeprefix("model." if name.startswith("model.") else _OTHERS + ".")


def trace(root: Root, leaves: Sequence[Tensor], dynamic: Sequence[frozenset[int]], answers: Answers) -> Trace:
    """`root` in the mode it is in; `dynamic` are the dimensions of each leaf that may vary.

    CaptureFailed with the line of the model's code that a graph cannot hold.
    """
    shapes = tuple(dict.fromkeys(sorted(dims), Dim.AUTO) for dims in dynamic)
    try:
        with _quiet(), open_lengths(), baked(answers):
            exported = torch.export.export(
                root, tuple(leaves), dynamic_shapes={"leaves": shapes}, strict=False
            )
    except CaptureFailed:
        raise
    except Exception as error:
        raise CaptureFailed(_reason(error)) from error
    return Trace(exported, root.structure, root.has_loss)


def _shown(output: Any, output_of: OutputOf | None) -> tuple[Structure, list[Tensor]]:
    if output_of is not None:
        return flatten(output_of(output), "output")
    if isinstance(output, Mapping):
        output = {name: value for name, value in output.items() if _is_tree(value)}
    return flatten(output, "output")


def _is_tree(value: Any) -> bool:
    try:
        flatten(value)
    except UsageError:
        return False
    return True


def _reason(error: Exception) -> str:
    where = line_of_error(error)
    if isinstance(error, GuardOnDataDependentSymNode):
        return (
            f"the model decides by the values of a tensor{where}, and a program has no branches: use "
            f"torch.where or a mask there, {WAY_OUT}"
        )
    lines = [line for line in str(error).splitlines() if line.strip()] or ["no message"]
    said = f"{type(error).__name__}: {lines[0][:200].rstrip('.')}"
    return f"the model cannot be traced{where}: {said}. Write that line with torch operators on tensors, {WAY_OUT}"


@contextmanager
def _quiet() -> Iterator[None]:
    # What the exporter prints, logs and warns of is in the error, or put back by `undisturbed`; what forward
    # prints would be tensors without values.
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
