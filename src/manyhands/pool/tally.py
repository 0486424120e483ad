"""What a run has done so far: the numbers of the report and of ``status``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Tally:
    """Counts of committed work; saved in each checkpoint, so that they survive with the weights.

    ``epoch_loss`` is the sum over the running epoch's samples so far; ``strict_class`` the numeric class that a
    ``numerics="strict"`` run was begun with.
    """

    samples_applied: int = 0
    skipped: int = 0
    leases: int = 0
    reissued: int = 0
    refused: int = 0
    seconds: float = 0.0
    final_loss: float | None = None
    epoch_loss: float = 0.0
    epoch_samples: int = 0
    strict_class: str | None = None
    stopped_early: bool = False
    nodes_seen: set[str] = field(default_factory=set)
    numeric_classes: dict[str, int] = field(default_factory=dict)
    history: dict[str, list[Any]] = field(
        default_factory=lambda: {"epochs": [], "train_loss": [], "val_loss": [], "val_accuracy": []}
    )

    def credit(self, numeric_class: str, samples: int) -> None:
        """Samples of a committed leaf, by the class that computed it."""
        self.numeric_classes[numeric_class] = self.numeric_classes.get(numeric_class, 0) + samples

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "nodes_seen": sorted(self.nodes_seen)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Tally:
        """Back from a manifest."""
        return cls(**{**plain, "nodes_seen": set(plain["nodes_seen"])})


@dataclass(frozen=True)
class Report:
    """What ``CentralServer.start`` returns.

    ``samples_applied`` counts each sample once an epoch; ``history`` has a value an epoch;
    ``numeric_classes`` gives the samples computed by each; ``bit_exact`` is whether one class computed them
    all; ``seconds`` is of all incarnations.
    """

    steps: int
    epochs: int
    samples_applied: int
    samples_expected: int
    final_loss: float | None
    history: dict[str, list[Any]]
    nodes_seen: int
    leases: int
    reissued: int
    refused: int
    skipped: int
    numeric_classes: dict[str, int]
    bit_exact: bool
    seconds: float
    weights_sha256: str
