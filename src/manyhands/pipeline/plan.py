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
from itertools import pairwise

from manyhands.errors import UsageError
from manyhands.observe.rates import format_bytes
from manyhands.pipeline.graph import Graph
from manyhands.pipeline.stagecosts import INFINITE, Cost, Load, Machine, Stage, StageCosts

CostOf = Callable[[int, int, int], float]
"""``(machine, start, stop) -> cost`` of layers [start, stop) on one machine."""


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
    of = StageCosts(graph, costs, machines, load)

    def cut_at(chosen: Sequence[int]) -> Partition:
        bounds = pairwise((0, *chosen, len(costs)))
        return Partition(tuple(of.stage(number, start, stop) for number, (start, stop) in enumerate(bounds)))

    if cuts is not None:
        return _fitting(cut_at(_checked(cuts, len(costs), len(machines))), "these cuts do not fit")
    best = _best(len(costs), len(machines), of.seconds_if_fits)
    if best is not None:
        return cut_at(best)
    nearest = _best(len(costs), len(machines), of.fullness)
    assert nearest is not None  # fullness is finite everywhere
    return _fitting(cut_at(nearest), "no cut of this model fits")


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


def _best(num_layers: int, num_stages: int, cost: CostOf) -> tuple[int, ...] | None:
    """The cuts whose most costly stage costs least; None where every cut has a stage of infinite cost.

    best(k, stop): the first `stop` layers on the first k stages. Exact, in O(stages · layers²).
    """
    best = [cost(0, 0, stop) if stop else INFINITE for stop in range(num_layers + 1)]
    choices: list[list[int]] = []
    for number in range(1, num_stages):
        previous, best, choice = best, [INFINITE] * (num_layers + 1), [0] * (num_layers + 1)
        for stop in range(number + 1, num_layers + 1):
            for start in range(number, stop):
                if previous[start] < best[stop]:
                    worst = max(previous[start], cost(number, start, stop))
                    if worst < best[stop]:
                        best[stop], choice[stop] = worst, start
        choices.append(choice)
    if best[num_layers] == INFINITE:
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
