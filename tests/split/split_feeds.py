"""A feed without a network: batches of a dataset, made in this thread by the loaders' own recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from manyhands.split.jobs import Made, Phase
from manyhands.split.narrow import narrow
from manyhands.split.plan import Plan
from manyhands.split.recipe import Recipe
from manyhands.split.terms import Terms


class LocalFeed:
    """The batches of a job of these datasets."""

    def __init__(self, datasets: dict[Phase, Any], transfer_dtype: str | None = None, **terms: Any) -> None:
        self.terms = Terms(
            terms.pop("mode", "training"), {phase: len(data) for phase, data in datasets.items()}, **terms
        )
        self.plan = Plan(self.terms)
        self.recipes = {phase: Recipe(data, self.terms.seed) for phase, data in datasets.items()}
        self.transfer_dtype = transfer_dtype

    def batches(self, phase: Phase, epoch: int, start: int = 0) -> Iterator[Made]:
        recipe = self.recipes[phase]
        for work in self.plan.works(phase, epoch, start):
            samples = [recipe.sample(epoch, index) for index in work.indices]
            batch, widths = narrow(recipe.batch(epoch, work.indices[0], samples), self.transfer_dtype)
            yield Made(work, batch, work.indices, (), widths)

    def num_batches(self, phase: Phase) -> int:
        return self.plan.num_batches(phase)
