"""The step that is being computed, and what the ledger will say of it. Pure: no I/O, no tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from manyhands.fleet.messages import LeafDone
from manyhands.pool.data import StepData
from manyhands.pool.plan import RunPlan
from manyhands.store.rows import Commit, Credit, Row


@dataclass
class OpenStep:
    """One step's data, and who brought which leaf first; a node that dies after it leaves its numeric class."""

    data: StepData
    losses: dict[int, float | None] = field(default_factory=dict)
    credits: list[tuple[int, str, int]] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)
    is_audited: bool = False
    unit_level: int | None = None
    """In a compressed step, where its units stand in the tree."""

    @property
    def num_leaves(self) -> int:
        """How many leaves the step has; 0 where every sample of it is quarantined."""
        return len(self.data.leaves)

    def weights(self) -> dict[int, float]:
        """What each leaf weighs in the step's mean."""
        return {leaf: item.weight for leaf, item in enumerate(self.data.leaves)}

    def credit(
        self, key: str, numeric_class: str, lease: int, leaves: Iterable[int], done: Iterable[LeafDone]
    ) -> None:
        """A node's answer covered these leaves first."""
        self.classes[key] = numeric_class
        losses = {item.leaf: item.loss for item in done}
        for leaf in leaves:
            self.losses[leaf] = losses.get(leaf, self.losses.get(leaf))
            self.credits.append((leaf, key, lease))

    def credited_to(self, leaves: Iterable[int]) -> set[str]:
        """The nodes whose answers cover these leaves."""
        wanted = set(leaves)
        return {key for leaf, key, _ in self.credits if leaf in wanted}

    def rows(self, plan: RunPlan, loss: float | None, weights_hash: str | None) -> list[Row]:
        """The ledger's rows once the step is committed."""
        step, rows = self.data.plan, list[Row]()
        starts = list(itertools.accumulate((len(leaf.indices) for leaf in self.data.leaves), initial=0))
        base = (step.step % plan.steps_per_epoch) * plan.batch_size
        for leaf, key, lease in self.credits:
            samples = len(self.data.leaves[leaf].indices)
            rows.append(Credit(step.step, step.epoch, leaf, key, lease, samples, base + starts[leaf]))
        rows.append(Commit(step.step, step.epoch, step.num_samples, loss, weights_hash))
        return rows
