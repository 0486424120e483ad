"""What a stage takes on a machine: seconds of a step, and bytes; from what each layer and each edge takes. Pure.

Edges are counted at their consumers, so that what one stage takes does not depend on where the others are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from manyhands.pipeline.graph import Graph

INFINITE: Final = float("inf")


@dataclass(frozen=True)
class Cost:
    """What one layer takes. `seconds` are of one micro-batch forward and backward, one number a machine."""

    seconds: tuple[float, ...]
    weight_bytes: int
    """Of its parameters."""
    trained_bytes: int
    """Of those that take gradients: a gradient each, and what the optimizer keeps."""
    buffer_bytes: int
    activation_bytes: int
    """What one micro-batch keeps from its forward to its backward pass."""


@dataclass(frozen=True)
class Machine:
    """A worker that a stage may be put on."""

    name: str
    free_bytes: int


@dataclass(frozen=True)
class Load:
    """What the run asks of every stage. `held[s]` is how many micro-batches stage s holds at most (`simulator`)."""

    samples: int
    """In a micro-batch."""
    held: tuple[int, ...]
    optimizer_states: int
    """Tensors that the optimizer keeps for each parameter: none for SGD, one with momentum, two for Adam."""
    bytes_per_second: float
    """Between two machines, encrypted."""


@dataclass(frozen=True)
class Stage:
    """A contiguous part of the model on one machine."""

    machine: Machine
    layers: range
    seconds: float
    incoming_bytes: int
    """From other stages and the boss, in one micro-batch; skips included."""
    needed_bytes: int

    @property
    def fits(self) -> bool:
        """Whether its machine has the memory."""
        return self.needed_bytes <= self.machine.free_bytes


class StageCosts:
    """What layers [start, stop) take as a stage on machine `number`, from sums made once."""

    def __init__(self, graph: Graph, costs: Sequence[Cost], machines: Sequence[Machine], load: Load) -> None:
        self._machines = machines
        self._load = load
        self._seconds = [_sums([cost.seconds[number] for cost in costs]) for number in range(len(machines))]
        self._state = _sums(
            [
                cost.weight_bytes + cost.buffer_bytes + cost.trained_bytes * (1 + load.optimizer_states)
                for cost in costs
            ]
        )
        self._activations = _sums([cost.activation_bytes for cost in costs])
        self._edges = [
            (edge, edge.bytes_per_sample * (load.samples if edge.batched else 1)) for edge in graph.edges
        ]
        self._incoming: dict[tuple[int, int], tuple[int, int]] = {}

    def seconds_if_fits(self, number: int, start: int, stop: int) -> float:
        """Infinite where the machine has not the memory."""
        fits = self._needed(number, start, stop) <= self._machines[number].free_bytes
        return self._time(number, start, stop) if fits else INFINITE

    def fullness(self, number: int, start: int, stop: int) -> float:
        """The share of its memory that the stage would take; above 1 it does not fit."""
        return self._needed(number, start, stop) / max(self._machines[number].free_bytes, 1)

    def stage(self, number: int, start: int, stop: int) -> Stage:
        """All of it."""
        return Stage(
            self._machines[number],
            range(start, stop),
            self._time(number, start, stop),
            self._coming(start, stop)[0],
            self._needed(number, start, stop),
        )

    def _time(self, number: int, start: int, stop: int) -> float:
        seconds = self._seconds[number]
        moved = sum(self._coming(start, stop))
        return seconds[stop] - seconds[start] + moved / self._load.bytes_per_second

    def _needed(self, number: int, start: int, stop: int) -> int:
        kept = self._activations[stop] - self._activations[start] + self._coming(start, stop)[0]
        return int(self._state[stop] - self._state[start] + self._load.held[number] * kept)

    def _coming(self, start: int, stop: int) -> tuple[int, int]:
        """Bytes of a micro-batch that come in, and that go back as gradients."""
        if (start, stop) not in self._incoming:
            taken = [
                (edge, num_bytes)
                for edge, num_bytes in self._edges
                if edge.producer < start and any(start <= layer < stop for layer in edge.consumers)
            ]
            back = sum(num_bytes for edge, num_bytes in taken if edge.has_gradient)
            self._incoming[start, stop] = (sum(num_bytes for _, num_bytes in taken), back)
        return self._incoming[start, stop]


def _sums(values: Sequence[float]) -> list[float]:
    """Sums of the first 0, 1, 2, ... values."""
    return list(accumulate(values, initial=0))
