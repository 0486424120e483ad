"""The proof that a program is the model: both run on the same batches from the same random state.

Bitwise: the loss, every gradient and every buffer in train mode, the loss and the outputs in eval mode. What a
trace silently gets wrong (a Python counter, a branch, a custom backward, random numbers of numpy) shows here,
on the coordinator, before any node has started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from manyhands.errors import CaptureFailed, ProgramRefused
from manyhands.programs.capture import Captured
from manyhands.programs.format import MAX_NODES, encode
from manyhands.programs.layers import ProgramLayer
from manyhands.programs.module import ProgramModule
from manyhands.programs.parser import parse
from manyhands.programs.plan import Limits
from manyhands.programs.tracing import WAY_OUT, LossOf, OutputOf, Root
from manyhands.programs.undisturbed import mode, undisturbed
from manyhands.tensors import flatten, unflatten

OWN: Final = Limits(bytes=1 << 60, flops=1 << 62, nodes=MAX_NODES)
"""On the coordinator the program is the owner's own: the model takes as much."""

Values = dict[str, Tensor | None]
"""What a run gave, by what it is called in a message."""


def prove(
    captured: Captured,
    model: nn.Module,
    loss_of: LossOf,
    batches: Sequence[Any],
    *,
    output_of: OutputOf | None = None,
    others: Mapping[str, nn.Module] | None = None,
) -> None:
    """Run the program's bytes beside `model` on `batches`, and once more on the first with a row added.

    The other arguments are those of ``capture``. Under autocast, prove under the same autocast. The model is
    as before afterwards. CaptureFailed names the first tensor whose bits differ.
    """
    others = {} if others is None else others
    trainable = {
        row.name: captured.tensors[row.name] for row in captured.program.parameters if row.requires_grad
    }
    states = {row.name: captured.tensors[row.name] for row in captured.program.buffers}
    try:
        program = ProgramModule(parse(encode(captured.program)), captured.tensors, limits=OWN)
        for seed, batch in enumerate([*batches, _grown(batches[0], captured)]):
            structure, leaves = flatten(batch)
            root = Root(model, others, loss_of, output_of, structure)
            for training in (True, False):
                with undisturbed(model, *others.values()), mode(training, model, *others.values()):
                    torch.manual_seed(seed)
                    loss, *outputs = root(*[leaf.clone() for leaf in leaves])
                    eager = _values(loss, outputs, trainable, states)
                with undisturbed(program), mode(training, program):
                    torch.manual_seed(seed)
                    loss, outputs = _ran(program, batch)
                    interpreted = _values(loss, outputs, trainable, states)
                _compare(eager, interpreted, "train" if training else "eval", leaves)
    except ProgramRefused as refusal:
        raise CaptureFailed(f"no node would run the model as a program: {refusal}; {WAY_OUT}") from refusal


def prove_layer(captured: Captured, layer: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """:func:`prove` for a layer, captured without a loss: its outputs, and every gradient that they give.

    A batch is the tuple of the layer's inputs. CaptureFailed names the first tensor whose bits differ.
    """
    trainable = {
        row.name: captured.tensors[row.name] for row in captured.program.parameters if row.requires_grad
    }
    states = {row.name: captured.tensors[row.name] for row in captured.program.buffers}
    try:
        program = ProgramLayer(parse(encode(captured.program), has_loss=False), captured.tensors, limits=OWN)
        for seed, batch in enumerate(batches):
            for training in (True, False):
                eager, interpreted = (
                    _layer_values(module, batch, training, seed, trainable, states)
                    for module in (layer, program)
                )
                _compare(eager, interpreted, "train" if training else "eval", batch)
    except ProgramRefused as refusal:
        raise CaptureFailed(f"no node would run the layer as a program: {refusal}; {WAY_OUT}") from refusal


def _layer_values(
    module: nn.Module,
    batch: Sequence[Tensor],
    training: bool,
    seed: int,
    trainable: Mapping[str, Tensor],
    states: Mapping[str, Tensor],
) -> Values:
    leaves = [leaf.clone().requires_grad_(training and leaf.is_floating_point()) for leaf in batch]
    with undisturbed(module), mode(training, module):
        torch.manual_seed(seed)
        outputs = module(*leaves)
        values: Values = {f"output {at}": output.detach() for at, output in enumerate(outputs)}
        made = [output for output in outputs if output.requires_grad]
        if made:
            weights = {f"input {at}": leaf for at, leaf in enumerate(leaves) if leaf.requires_grad}
            weights.update(trainable)
            # Not ones: a wrong sign or order of elements must show.
            wanted = [torch.linspace(-1, 1, one.numel(), dtype=one.dtype).view(one.shape) for one in made]
            gradients = torch.autograd.grad(made, list(weights.values()), wanted, allow_unused=True)
            values |= {f"the gradient of {name}": got for name, got in zip(weights, gradients, strict=True)}
        return values | {f"buffer {name}": state.detach().clone() for name, state in states.items()}


def _ran(program: ProgramModule, batch: Any) -> tuple[Tensor, list[Tensor]]:
    if program.training:
        return program(batch), []
    loss, outputs = program.evaluate(batch)
    return loss, flatten(outputs)[1]


def _values(
    loss: Tensor, outputs: Sequence[Tensor], trainable: Mapping[str, Tensor], states: Mapping[str, Tensor]
) -> Values:
    values: Values = {"the loss": loss.detach()}
    values |= {f"output {at}": output for at, output in enumerate(outputs)}
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
        values |= {f"the gradient of {name}": got for name, got in zip(trainable, gradients, strict=True)}
    return values | {f"buffer {name}": state.detach().clone() for name, state in states.items()}


def _compare(eager: Values, interpreted: Values, name: str, leaves: Sequence[Tensor]) -> None:
    for what in {**eager, **interpreted}:
        one, other = eager.get(what), interpreted.get(what)
        if not _same(one, other):
            raise CaptureFailed(
                f"the program is not the model: in {name} mode, for a batch of {tuple(leaves[0].shape)}, {what} "
                f"differs ({_difference(one, other)}). Forward does something that a trace cannot see (Python "
                "state, numpy or its random numbers, a branch on values or sizes, a backward of its own): remove "
                f"it, {WAY_OUT}"
            )


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Equal bits, shapes and dtypes; None only where both are."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _difference(one: Tensor | None, other: Tensor | None) -> str:
    if one is None or other is None:
        return (
            f"{'nothing' if one is None else 'a tensor'} against {'nothing' if other is None else 'a tensor'}"
        )
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{one.dtype} {tuple(one.shape)} against {other.dtype} {tuple(other.shape)}"
    return f"by up to {float((one.double() - other.double()).abs().max()):.3g}"


def _grown(batch: Any, captured: Captured) -> Any:
    """`batch` with its first row once more at the end: a size that capture has not seen."""
    structure, leaves = flatten(batch)
    rows = captured.program.batch.leaves
    return unflatten(
        structure,
        [
            torch.cat([leaf, leaf[:1]]) if row.shape and row.shape[0] is None else leaf
            for leaf, row in zip(leaves, rows, strict=True)
        ],
    )
