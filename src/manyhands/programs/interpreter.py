"""Running a graph: a flat list of steps, each one call of an operator of the table.

Everything that can be settled before is: the dry run leaves only tensors open, numbers lie in slots of their
own, and a slot is emptied after its last use, as a local variable of an eager forward would be. What is left
of a step is ``values[slot] = call(*take(values))``, so a program costs what its operators cost.

Knows nothing of gradients, modules or networks; in-place operators write to the tensors given.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from manyhands.errors import ProgramRefused
from manyhands.programs import autocast
from manyhands.programs.assembly import Assembly, assemble, take
from manyhands.programs.dryrun import dry_run
from manyhands.programs.format import Graph, Program
from manyhands.programs.plan import Cost, Leaf, Limits
from manyhands.tensors.dtypes import DTYPES

MAX_PLANS: Final = 256
"""Of one graph; ragged batches have as many shapes as lengths."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What one forward gave: `loss` a scalar or None, the model's outputs, new values of mutated buffers."""

    loss: Tensor | None
    outputs: tuple[Tensor, ...]
    mutations: tuple[Tensor, ...]


class Interpreter:
    """One graph of a parsed program; each set of batch shapes is dry-run once, and its steps kept.

    `constants` are the program's, on `device`, where the graph runs and makes new tensors.
    """

    def __init__(
        self,
        program: Program,
        name: Literal["train", "eval"],
        constants: Sequence[Tensor],
        limits: Limits,
        device: torch.device | None = None,
    ) -> None:
        graph = program.graphs.train if name == "train" else program.graphs.eval
        if graph is None:
            raise ProgramRefused(f"the program has no {name} graph")
        self._program = program
        self._graph: Graph = graph
        self._constants = constants
        self._limits = limits
        self._device = torch.device("cpu") if device is None else device
        self._state = [
            (DTYPES[row.dtype], torch.Size(row.shape)) for row in (*program.parameters, *program.buffers)
        ]
        starts = {"parameter": 0, "buffer": len(program.parameters), "constant": len(self._state)}
        starts["batch"] = len(self._state) + len(program.constants)
        self._take_inputs = take([starts[one.kind] + one.index for one in graph.inputs])
        self._assemblies: dict[Hashable, Assembly] = {}

    def cost(self, leaves: Sequence[Leaf]) -> Cost:
        """What a forward over batch tensors of these dtypes and shapes takes; ProgramRefused if it may not run."""
        return self._assembly(tuple((dtype, torch.Size(shape)) for dtype, shape in leaves)).cost

    def run(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor], leaves: Sequence[Tensor]) -> Ran:
        """One forward. Tensors come in the order of the program's tables, on the interpreter's device.

        ProgramRefused where shapes or dtypes are not the program's; else what the operators raise.
        """
        state = [*parameters, *buffers]
        if [(tensor.dtype, tensor.shape) for tensor in state] != self._state:
            raise ProgramRefused(
                "the parameters or buffers are not of the dtypes and shapes the program names"
            )
        assembly = self._assembly(tuple([(leaf.dtype, leaf.shape) for leaf in leaves]))
        values = [*self._take_inputs([*state, *self._constants, *leaves]), *assembly.rest]
        for call, arguments, slot, done in assembly.steps:
            values[slot] = call(*arguments(values))
            for ended in done:
                values[ended] = None
        results = [values[slot] for slot in assembly.results]
        loss = None if self._graph.loss is None else results.pop(0)
        num_outputs = len(self._graph.outputs)
        return Ran(loss, tuple(results[:num_outputs]), tuple(results[num_outputs:]))

    def _assembly(self, leaves: tuple[Leaf, ...]) -> Assembly:
        kind = self._device.type
        key = (leaves, autocast.in_force(kind))
        if (assembly := self._assemblies.get(key)) is None:
            plan = dry_run(self._program, self._graph, leaves, self._limits, kind)
            assembly = assemble(plan, self._graph, self._device)
            if len(self._assemblies) >= MAX_PLANS:
                del self._assemblies[next(iter(self._assemblies))]
            self._assemblies[key] = assembly
        return assembly
