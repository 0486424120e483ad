"""A plan made into steps: every argument a slot, every call one ``take`` away from its arguments.

::

    slots    inputs | results, lists, constants
    step     values[slot] = call(*take(values)); then empty the slots that nothing reads again

A constant argument lies in a slot as a tensor does, so that ``take`` is one ``operator.itemgetter`` in C whatever
an operator's arguments are. Keyword arguments are never tensors and are bound beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import torch

from manyhands.programs.format import Graph, Ref
from manyhands.programs.plan import Call, Cost, Plan

Take = Callable[[list[Any]], Sequence[Any]]
Step = tuple[Callable[..., Any], Take, int, tuple[int, ...]]
"""What is called, where its arguments lie, where its result goes, and which slots end with it."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """A graph ready to run on batches of one set of shapes.

    `rest` is what the slots after the inputs begin as; `results` are the slots of the loss, if there is one, the
    outputs and the mutations.
    """

    cost: Cost
    rest: tuple[Any, ...]
    steps: tuple[Step, ...]
    results: tuple[int, ...]


def assemble(plan: Plan, graph: Graph, device: torch.device) -> Assembly:
    """The steps of `plan`, with new tensors made on `device`."""
    ends = ([] if graph.loss is None else [graph.loss]) + [
        *graph.outputs,
        *(mutation.value for mutation in graph.mutations),
    ]
    assembler = _Assembler(len(graph.inputs), device)
    for call in plan.calls:
        assembler.add(call)
    results = tuple(assembler.slot_of(ref) for ref in ends)
    return Assembly(plan.cost, tuple(assembler.rest), assembler.finished(set(results)), results)


def take(slots: Sequence[int]) -> Take:
    """What reads `slots` out of a list, as a sequence whatever their number."""
    if len(slots) == 1:
        return itemgetter(slice(slots[0], slots[0] + 1))
    return itemgetter(*slots) if slots else itemgetter(slice(0, 0))


@dataclass(frozen=True, slots=True)
class _Draft:
    """A step whose last uses are not known yet."""

    call: Callable[..., Any]
    reads: tuple[int, ...]
    slot: int


class _Assembler:
    """Slots and steps so far."""

    def __init__(self, num_inputs: int, device: torch.device) -> None:
        self.rest: list[Any] = []
        self._num_inputs = num_inputs
        self._device = device
        self._drafts: list[_Draft] = []
        self._slots = {(value, None): value for value in range(num_inputs)}
        self._slots_of_elements: dict[tuple[int, int], int] = {}

    def add(self, call: Call) -> None:
        kwargs = {**call.kwargs, "device": self._device} if call.row.needs_device else dict(call.kwargs)
        bound = partial(call.row.call, **kwargs) if kwargs else call.row.call
        reads = tuple(self._argument(argument) for argument in call.args)
        self._slots[call.value, None] = self._step(bound, reads)

    def slot_of(self, ref: Ref) -> int:
        """Where the value lies; an element of several gets a slot, and a step that fills it, when first asked for."""
        whole = self._slots[ref.value, None]
        if ref.element is None:
            return whole
        key = (ref.value, ref.element)
        if key not in self._slots_of_elements:
            self._slots_of_elements[key] = self._step(itemgetter(ref.element), (whole,))
        return self._slots_of_elements[key]

    def finished(self, kept: set[int]) -> tuple[Step, ...]:
        """The steps, each with the result slots that nothing after it reads and `kept` does not hold."""
        made = {draft.slot for draft in self._drafts}
        last = {slot: at for at, draft in enumerate(self._drafts) for slot in (draft.slot, *draft.reads)}
        done: list[list[int]] = [[] for _ in self._drafts]
        for slot, at in last.items():
            if slot in made and slot not in kept:
                done[at].append(slot)
        return tuple(
            (draft.call, take(draft.reads), draft.slot, tuple(ended))
            for draft, ended in zip(self._drafts, done, strict=True)
        )

    def _argument(self, argument: Any) -> int:
        if isinstance(argument, Ref):
            return self.slot_of(argument)
        if isinstance(argument, list) and any(isinstance(item, Ref) for item in argument):
            return self._step(_listed, tuple(self._argument(item) for item in argument))
        return self._new(argument)

    def _step(self, call: Callable[..., Any], reads: tuple[int, ...]) -> int:
        slot = self._new(None)
        self._drafts.append(_Draft(call, reads, slot))
        return slot

    def _new(self, value: Any) -> int:
        self.rest.append(value)
        return self._num_inputs + len(self.rest) - 1


def _listed(*items: Any) -> list[Any]:
    return list(items)
