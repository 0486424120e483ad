"""A model, its loss and a few batches to a program: the coordinator's half of nodes without code.

::

    batches ──> what may vary ──┐
    model, loss ──> eager run ──> trace ──> lower ──> graph "train"  ┐
                └─> eager run ──> trace ──> lower ──> graph "eval"   ┴─> Program + tensors

The mode is baked into a graph, so there are two. The model is left as it was found. What comes out is not
trusted before :mod:`~manyhands.programs.proof` has run it beside the model. Knows nothing of training or networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast, get_args

import torch
from torch import Tensor, nn

from manyhands.errors import CaptureFailed, ProgramRefused
from manyhands.programs import constants
from manyhands.programs.examples import Examples
from manyhands.programs.format import VERSION, DtypeName, Graphs, Input, Program, TensorRow
from manyhands.programs.helpers import Answers, asking
from manyhands.programs.lowering import lower
from manyhands.programs.tracing import WAY_OUT, LossOf, OutputOf, Root, Trace, original_name, trace
from manyhands.programs.undisturbed import mode, undisturbed
from manyhands.tensors import bytes_of, dtypes

_DTYPES: Final = frozenset(get_args(DtypeName))


@dataclass(frozen=True)
class Captured:
    """A program and the tensors that its rows name: the model's own, not copies; parameters, then buffers."""

    program: Program
    tensors: Mapping[str, Tensor]


def capture(
    model: nn.Module,
    loss_of: LossOf | None,
    batches: Sequence[Any],
    *,
    output_of: OutputOf | None = None,
    others: Mapping[str, nn.Module] | None = None,
) -> Captured:
    """The program that computes ``loss_of(model, batch)``, for batches like these.

    Give a batch of every size the run has: the number of samples may always vary, another dimension where it
    differs between `batches`. `output_of` picks what the eval graph returns from the model's output (default:
    all of it, but caches). `others` are modules beside the model that the loss uses; their tensors stand
    under ``name.``. With None for `loss_of` the model is a layer: each batch is a tuple of its inputs, and both
    graphs give its outputs and no loss. Under autocast, capture under the same autocast. Eager forwards are run,
    two a batch; the model, its buffers, modes and torch's generators are as before afterwards.

    CaptureFailed names the line of the model that a program cannot hold, and the way out.
    """
    others = {} if others is None else others
    examples = Examples.of(batches)
    root = Root(model, others, loss_of, output_of, examples.structure)
    tables = _Tables(root, examples)
    graphs = []
    with undisturbed(model, *others.values()):
        for training in (True, False):
            with mode(training, model, *others.values()):
                answers = _answers(root, examples)
                traced = trace(root, examples.largest, examples.dynamic, answers)
            examples.check(traced.exported)
            graphs.append(lower(traced, tables.inputs(traced)))
    try:
        rows, data = constants.pack(tables.constants)
    except ProgramRefused as refusal:
        raise CaptureFailed(f"{refusal}, {WAY_OUT}") from refusal
    program = Program(
        VERSION,
        tuple(tables.parameters),
        tuple(tables.buffers),
        rows,
        examples.row(),
        Graphs(*graphs),
        data,
    )
    return Captured(program, tables.tensors)


def _answers(root: Root, examples: Examples) -> Answers:
    """What torch's helpers say about the model, the same for every batch."""
    first: Answers | None = None
    for leaves in examples.leaves:
        with asking() as answers:
            root(*[leaf.clone() for leaf in leaves])  # forward may write to them
        if first is not None and answers != first:
            raise CaptureFailed(
                f"{answers[0][0] if answers else first[0][0]} answers differently for different batches, so the "
                f"model decides by data: pass is_causal=... yourself, {WAY_OUT}"
            )
        first = answers
    return first or []


class _Tables:
    """The rows of a program, and which of them each placeholder of a trace is."""

    def __init__(self, root: Root, examples: Examples) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._places: dict[str, Input] = {}
        self.parameters = list(self._rows("parameter", root.named_parameters(remove_duplicate=False)))
        self.buffers = list(self._rows("buffer", root.named_buffers(remove_duplicate=False)))
        self.constants: list[Tensor] = []
        self._constants: dict[Any, int] = {}
        self._num_leaves = len(examples.dynamic)

    def inputs(self, traced: Trace) -> dict[str, Input]:
        """What each placeholder of `traced` is, in the placeholders' order."""
        leaves = [name for name in traced.exported.graph_signature.user_inputs if isinstance(name, str)]
        known = {name: self._places[original] for name, original in traced.originals.items()}
        known |= {name: self._constant(value) for name, value in traced.constants.items()}
        known |= {name: Input("batch", index) for index, name in enumerate(leaves)}
        return {
            node.name: known[node.name] for node in traced.exported.graph.nodes if node.op == "placeholder"
        }

    def _rows(self, kind: Any, named: Iterator[tuple[str, Tensor]]) -> Iterator[TensorRow]:
        names: dict[Tensor, list[str]] = {}
        for name, tensor in named:
            names.setdefault(tensor, []).append(original_name(name))
        for index, (tensor, (first, *aliases)) in enumerate(names.items()):
            self.tensors[first] = tensor
            self._places |= dict.fromkeys((first, *aliases), Input(kind, index))
            yield TensorRow(
                first, _dtype(tensor, first), tuple(tensor.shape), tensor.requires_grad, tuple(aliases)
            )

    def _constant(self, value: Any) -> Input:
        """A constant once, however often the model makes it."""
        if not isinstance(value, Tensor):
            raise CaptureFailed(f"the model holds a {type(value).__name__} that forward uses: {WAY_OUT}")
        plain = value.detach().cpu().contiguous()
        _dtype(plain, "a tensor that forward makes")
        key = (plain.dtype, plain.shape, bytes(bytes_of(plain)))
        if key not in self._constants:
            self._constants[key] = len(self.constants)
            self.constants.append(plain)
        return Input("constant", self._constants[key])


def _dtype(tensor: Tensor, name: str) -> DtypeName:
    word = dtypes.NAMES.get(tensor.dtype, str(tensor.dtype))
    if word not in _DTYPES or tensor.layout is not torch.strided:
        raise CaptureFailed(f"{name} is {tensor.layout} of {tensor.dtype}, which no program holds: {WAY_OUT}")
    return cast(DtypeName, word)
