"""How far a training run is: the position in the order of batches, the open epoch's sums, and the history.

Plain data that a checkpoint's manifest holds. The trainer owns the order, so the position is all that a resumed run
needs to ask loaders for the rest of an epoch, whoever they are and however many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

History = dict[str, list[Any]]


def empty_history() -> History:
    """Lists by name: one entry an epoch, the validation's only where there is one."""
    return {"train_loss": [], "val_loss": [], "val_accuracy": [], "epochs": []}


@dataclass
class Record:
    """What was trained so far."""

    epoch: int = 0
    """The epoch that is open, from 0."""
    sequence: int = 0
    """Its first batch that was not trained on."""
    loss_sum: float = 0.0
    """Of the open epoch: each batch's mean loss times its weight."""
    weight: float = 0.0
    samples: int = 0
    """Trained on in all epochs."""
    history: History = field(default_factory=empty_history)
    stopped_early: bool = False

    def trained(self, sequence: int, samples: int, loss: float, weight: float) -> None:
        """Count a batch of the open epoch."""
        self.sequence = sequence + 1
        self.samples += samples
        self.loss_sum += loss * weight
        self.weight += weight

    @property
    def loss(self) -> float | None:
        """The open epoch's mean loss so far; None before its first batch."""
        return self.loss_sum / self.weight if self.weight else None

    def close_epoch(self, val_loss: float | None, val_accuracy: float | None) -> None:
        """Enter the open epoch into the history and open the next one."""
        self.history["epochs"].append(self.epoch)
        self.history["train_loss"].append(self.loss)
        if val_loss is not None:
            self.history["val_loss"].append(val_loss)
        if val_accuracy is not None:
            self.history["val_accuracy"].append(val_accuracy)
        self.epoch, self.sequence, self.loss_sum, self.weight = self.epoch + 1, 0, 0.0, 0.0

    def to_plain(self) -> dict[str, Any]:
        """As a manifest holds it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Record:
        """Back from a manifest."""
        return cls(**plain)
