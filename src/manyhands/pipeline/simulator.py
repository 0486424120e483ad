"""A schedule played through with given times: when each operation runs, how long all take, what is held.

::

    forward(s, i)          after forward(s-1, i)
    (input_)backward(s, i) after (input_)backward(s+1, i) and forward(s, i)
    weight_backward(s, i)  after input_backward(s, i)

and each worker runs its list in order, one operation at a time. Skips need nothing more: their stages lie between
these. An activation is held from its forward pass to the end of the backward pass that uses it last. Pure: seconds
are numbers that the caller brings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from manyhands.errors import UsageError
from manyhands.pipeline.schedules.operations import Kind, Operation, Schedule


@dataclass(frozen=True)
class Times:
    """Seconds of one micro-batch through one stage; `backward` is the whole of it, `weight` its later half.

    `transfer` is what it takes from one stage to the next, while which both may work.
    """

    forward: float = 1.0
    backward: float = 2.0
    weight: float = 1.0
    transfer: float = 0.0

    def of(self, kind: Kind) -> float:
        """Seconds of an operation."""
        if kind == "forward":
            return self.forward
        return {"backward": self.backward, "weight_backward": self.weight}.get(
            kind, self.backward - self.weight
        )


EQUAL: Final = Times()
"""A forward pass and each half of a backward pass take the same."""


@dataclass(frozen=True)
class Span:
    """When an operation ran, in seconds from the start of the step."""

    start: float
    end: float


@dataclass(frozen=True)
class Simulation:
    """What a schedule came to."""

    spans: Mapping[Operation, Span]
    workers: Schedule
    makespan: float
    """Seconds from the first operation's start to the last one's end."""
    peak_activations: tuple[int, ...]
    """For each worker, how many micro-batches' activations of a stage it held at most at once."""

    @property
    def bubble(self) -> float:
        """The share of all workers' time in which they waited, 0 to 1."""
        busy = sum(span.end - span.start for span in self.spans.values())
        return 1 - busy / (self.makespan * len(self.workers)) if self.makespan else 0.0


def simulate(schedule: Schedule, times: Mapping[int, Times] = MappingProxyType({})) -> Simulation:
    """Play `schedule`; `times` are by stage, `EQUAL` where a stage is not named.

    UsageError where an operation stands twice, or waits for one that never runs or for itself.
    """
    clock = _Clock(times, frozenset(_all(schedule)))
    if len(clock.known) != sum(map(len, schedule)):
        raise UsageError("a schedule runs one operation twice")
    at = [0] * len(schedule)
    while any(done < len(own) for done, own in zip(at, schedule, strict=True)):
        ran = False
        for worker, own in enumerate(schedule):
            while at[worker] < len(own) and clock.can_run(own[at[worker]]):
                clock.run(own[at[worker]], worker)
                at[worker] += 1
                ran = True
        if not ran:
            waiting = [own[done] for done, own in zip(at, schedule, strict=True) if done < len(own)]
            raise UsageError(
                f"a schedule that never ends: {', '.join(map(str, waiting))} wait for each other"
            )
    makespan = max((span.end for span in clock.spans.values()), default=0.0)
    return Simulation(clock.spans, schedule, makespan, tuple(_peak(own) for own in schedule))


@dataclass
class _Clock:
    """What has run so far, and until when each worker is busy."""

    times: Mapping[int, Times]
    known: frozenset[Operation]
    spans: dict[Operation, Span] = field(default_factory=dict)
    busy_until: dict[int, float] = field(default_factory=dict)

    def can_run(self, operation: Operation) -> bool:
        return all(one in self.spans for one in needs(operation, self.known))

    def run(self, operation: Operation, worker: int) -> None:
        start = self.busy_until.get(worker, 0.0)
        for one in needs(operation, self.known):
            delay = 0.0 if one.stage == operation.stage else self._times(one.stage).transfer
            start = max(start, self.spans[one].end + delay)
        end = start + self._times(operation.stage).of(operation.kind)
        self.spans[operation] = Span(start, end)
        self.busy_until[worker] = end

    def _times(self, stage: int) -> Times:
        return self.times.get(stage, EQUAL)


def needs(operation: Operation, known: frozenset[Operation]) -> Iterator[Operation]:
    """What must have run before `operation`, of the operations of its schedule."""
    stage, one = operation.stage, operation.micro_batch
    if operation.kind == "weight_backward":
        yield Operation("input_backward", stage, one)
    elif operation.kind == "forward":
        if stage:
            yield Operation("forward", stage - 1, one)
    else:
        yield Operation("forward", stage, one)
        later: tuple[Kind, Kind] = ("backward", "input_backward")
        yield from (after for kind in later if (after := Operation(kind, stage + 1, one)) in known)


def _all(schedule: Schedule) -> Iterator[Operation]:
    for own in schedule:
        yield from own


def _peak(own: tuple[Operation, ...]) -> int:
    held = most = 0
    for operation in own:
        if operation.kind == "forward":
            held += 1
            most = max(most, held)
        elif operation.kind != "input_backward":
            held -= 1
    return most
