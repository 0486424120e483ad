"""From a model to stages on workers: have the layers measured where they might run, then cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from manyhands.errors import UsageError
from manyhands.pipeline import messages as m
from manyhands.pipeline.costs import estimate
from manyhands.pipeline.cutting import SAMPLES, cut
from manyhands.pipeline.driver import Driver
from manyhands.pipeline.measure import costs, measured_by
from manyhands.pipeline.members import Member
from manyhands.pipeline.placement import Placement
from manyhands.pipeline.placing import Stock
from manyhands.pipeline.stagecosts import Cost
from manyhands.training.step import PRECISIONS, Precision

Tied = Literal["exact", "fast"]


@dataclass(frozen=True)
class Options:
    """What a BossMan was given besides its workers and its model."""

    cuts: Sequence[int] | None = None
    replicas: int = 1
    weights: str | Path | None = None
    checkpoint_dir: str | Path | None = None
    snapshot_every: int = 10
    log: str | None = None
    precision: Precision = "fp32"
    recompute: bool = False
    tied: Tied = "exact"

    def check(self) -> None:
        """UsageError for a value that there is not."""
        if self.replicas < 1:
            raise UsageError(f"replicas={self.replicas}: there is one pipeline at least")
        if self.snapshot_every < 1:
            raise UsageError(f"snapshot_every={self.snapshot_every}: it counts steps, from 1")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision={self.precision!r}: there are {', '.join(PRECISIONS)}")
        if self.tied not in ("exact", "fast"):
            raise UsageError(f'tied={self.tied!r}: there are "exact" and "fast"')


def counted(stock: Stock, members: Sequence[Member], options: Options) -> Placement:
    """A placement by counted operations, before anything has run."""
    return cut(
        stock.graph,
        estimate(stock.graph, stock.built, SAMPLES, len(members)),
        members,
        options.cuts,
        options.replicas,
    )


async def measured(
    driver: Driver, stock: Stock, members: Sequence[Member], options: Options, stages_per_worker: int = 1
) -> Placement:
    """The placement by what each worker measures. Whatever they held before is forgotten."""
    by_member = None
    if options.cuts is None and (len(members) > options.replicas or stages_per_worker > 1):
        by_member = await _survey(driver, stock, members)
    return cut(
        stock.graph,
        by_member or estimate(stock.graph, stock.built, SAMPLES, len(members)),
        members,
        options.cuts,
        options.replicas,
        stages_per_worker,
    )


async def _survey(driver: Driver, stock: Stock, members: Sequence[Member]) -> list[Cost] | None:
    """One cost a layer; None where a layer could not be measured everywhere."""
    layers = range(len(stock.graph.layers))

    def ask(generation: int, number: int) -> m.Measure:
        return m.Measure(generation, number, stock.graph, SAMPLES, stock.settings.threads)

    outcome = await driver.survey(ask, stock.recipes(layers), [member.number for member in members])
    if outcome is None:
        return None
    told = [measured_by(outcome.numbers[member.number], len(layers)) for member in members]
    whole = [one for one in told if one is not None]
    return costs(stock.built, list(zip(*whole, strict=True))) if len(whole) == len(told) else None
