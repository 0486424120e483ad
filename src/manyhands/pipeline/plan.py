"""Where to cut: contiguous stages, the slowest as fast as can be, each within its machine's memory.

::

    layers    0  1  2 │ 3  4  5  6 │ 7  8           cuts = (3, 7)
    machine       a   │     b      │  c             a step takes as long as its slowest stage
                 └──── skip ────────▲               counted where it comes in

A stage's time is that of its layers, and of what comes in from other stages and goes back as a gradient; since
each edge is counted at its consumer, stages are independent and dynamic programming finds the best cut exactly.
Pure: measured seconds and free bytes are numbers that the caller brings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

from manyhands.errors import UsageError
from manyhands.observe.rates import format_bytes
from manyhands.pipeline.graph import Graph

_INFINITE: Final = float("inf")

StageCost = Callable[[int, int, int], float]
"""``(machine, start, stop) -> cost`` of layers [start, stop) on one machine."""


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


@dataclass(frozen=True)
class Partition:
    """A cut model; stage s runs on `stages[s].machine`."""

    stages: tuple[Stage, ...]

    @property
    def cuts(self) -> tuple[int, ...]:
        """The first layer of each stage but the first."""
        return tuple(stage.layers.start for stage in self.stages[1:])

    @property
    def seconds(self) -> float:
        """Of the slowest stage: what each further micro-batch adds to a step."""
        return max(stage.seconds for stage in self.stages)

    def table(self) -> str:
        """One line a stage: for people."""
        rows = [("stage", "worker", "layers", "ms", "needs", "free", "")]
        for number, stage in enumerate(self.stages):
            first, last = stage.layers.start, stage.layers.stop - 1
            rows.append(
                (
                    str(number),
                    stage.machine.name,
                    str(first) if first == last else f"{first}-{last}",
                    f"{1000 * stage.seconds:.1f}",
                    format_bytes(stage.needed_bytes),
                    format_bytes(stage.machine.free_bytes),
                    "" if stage.fits else "too little memory",
                )
            )
        return _columns(rows)


def partition(
    graph: Graph,
    costs: Sequence[Cost],
    machines: Sequence[Machine],
    load: Load,
    cuts: Sequence[int] | None = None,
) -> Partition:
    """The cut of `graph` over `machines`, one stage each, in their order; `cuts` are the user's own, if any.

    `costs` are one a layer. UsageError where there are fewer layers than machines, `cuts` are not ascending
    indices of layers, or no cut fits into the memory (with the table of the one that comes nearest).
    """
    _check_numbers(len(costs), machines)
    judge = _Judge(graph, costs, machines, load)
    if cuts is not None:
        chosen = judge.partition(_checked(cuts, len(costs), len(machines)))
        return _fitting(chosen, "these cuts do not fit")
    best = _best(len(costs), len(machines), judge.seconds_if_fits)
    if best is not None:
        return judge.partition(best)
    nearest = _best(len(costs), len(machines), judge.fullness)
    assert nearest is not None  # fullness is finite everywhere
    return _fitting(judge.partition(nearest), "no cut of this model fits")


def _check_numbers(num_layers: int, machines: Sequence[Machine]) -> None:
    if not machines:
        raise UsageError("a model cannot be cut over no workers: start one with `manyhands worker`")
    if num_layers < len(machines):
        raise UsageError(
            f"the model has {num_layers} layers, and there are {len(machines)} workers: each gets one layer at least, "
            f"so use {num_layers} workers or fewer, or cut a large layer into several"
        )


def _checked(cuts: Sequence[int], num_layers: int, num_stages: int) -> tuple[int, ...]:
    whole = (0, *cuts, num_layers)
    if len(cuts) != num_stages - 1 or any(after <= before for before, after in pairwise(whole)):
        raise UsageError(
            f"cuts={list(cuts)} do not make {num_stages} stages of {num_layers} layers: {num_stages - 1} ascending "
            f"numbers from 1 to {num_layers - 1} are needed, each the first layer of a stage"
        )
    return tuple(cuts)


def _fitting(chosen: Partition, what: str) -> Partition:
    if all(stage.fits for stage in chosen.stages):
        return chosen
    raise UsageError(
        f"{what} into the workers' memory:\n{chosen.table()}\nAdd a worker, take smaller micro-batches, "
        'recompute activations, hold fewer of them (schedule="1f1b"), or use an optimizer with less state'
    )


class _Judge:
    """What a stage of layers [start, stop) on a machine takes, from sums made once."""

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
        return self._time(number, start, stop) if fits else _INFINITE

    def fullness(self, number: int, start: int, stop: int) -> float:
        """The share of its memory that the stage would take; above 1 it does not fit."""
        return self._needed(number, start, stop) / max(self._machines[number].free_bytes, 1)

    def partition(self, cuts: Sequence[int]) -> Partition:
        """The stages between `cuts`."""
        num_layers = len(self._state) - 1
        return Partition(
            tuple(
                Stage(
                    self._machines[number],
                    range(start, stop),
                    self._time(number, start, stop),
                    self._coming(start, stop)[0],
                    self._needed(number, start, stop),
                )
                for number, (start, stop) in enumerate(pairwise((0, *cuts, num_layers)))
            )
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


def _best(num_layers: int, num_stages: int, cost: StageCost) -> tuple[int, ...] | None:
    """The cuts whose most costly stage costs least; None where every cut has a stage of infinite cost.

    best(k, stop): the first `stop` layers on the first k stages. Exact, in O(stages · layers²).
    """
    best = [cost(0, 0, stop) if stop else _INFINITE for stop in range(num_layers + 1)]
    choices: list[list[int]] = []
    for number in range(1, num_stages):
        previous, best, choice = best, [_INFINITE] * (num_layers + 1), [0] * (num_layers + 1)
        for stop in range(number + 1, num_layers + 1):
            for start in range(number, stop):
                if previous[start] < best[stop]:
                    worst = max(previous[start], cost(number, start, stop))
                    if worst < best[stop]:
                        best[stop], choice[stop] = worst, start
        choices.append(choice)
    if best[num_layers] == _INFINITE:
        return None
    cuts: list[int] = []
    stop = num_layers
    for choice in reversed(choices):
        stop = choice[stop]
        cuts.append(stop)
    return tuple(reversed(cuts))


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """`rows` with their columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
