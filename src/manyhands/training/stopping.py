"""When to stop early: a validation that no longer improves, and the weights that did best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from manyhands.errors import UsageError
from manyhands.settings import checks

_DEFAULTS: dict[str, Any] = {"monitor": "val_loss", "patience": 5, "min_delta": 0.001, "restore_best": True}


def early_stopping(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The rule with its defaults filled in; UsageError for an unknown key."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise UsageError(f"early_stopping={given!r} must be a dict with some of {', '.join(_DEFAULTS)}")
    unknown = set(given) - set(_DEFAULTS)
    if unknown:
        raise UsageError(f"early_stopping has no {sorted(unknown)[0]!r}; it has {', '.join(_DEFAULTS)}")
    if given.get("monitor", "val_loss") not in ("val_loss", "val_accuracy"):
        raise UsageError(f"early_stopping monitors val_loss or val_accuracy, not {given['monitor']!r}")
    rule = {**_DEFAULTS, **given}
    checks.whole("early_stopping's patience", rule["patience"], 1)
    checks.number("early_stopping's min_delta", rule["min_delta"], 0.0)
    return rule


@dataclass
class EarlyStopping:
    """Stops when the monitored value has not improved for `patience` validations; remembers the best weights."""

    monitor: str = "val_loss"
    patience: int = 5
    min_delta: float = 0.001
    restore_best: bool = True
    best: float | None = None
    waited: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)

    def update(self, loss: float, accuracy: float | None, model: nn.Module) -> bool:
        """Take one validation; True when the run should stop."""
        value = loss if self.monitor == "val_loss" else -(accuracy or 0.0)
        is_better = not math.isnan(value) and (self.best is None or value < self.best - self.min_delta)
        if is_better:
            self.best, self.waited = value, 0
            if self.restore_best:
                self.best_state = {name: t.detach().clone() for name, t in model.state_dict().items()}
            return False
        self.waited += 1
        return self.waited >= self.patience

    def to_plain(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: tensors and plain values."""
        return {"best": self.best, "waited": self.waited, "best_state": self.best_state}

    def load(self, plain: Mapping[str, Any]) -> None:
        """Back from a checkpoint."""
        self.best, self.waited, self.best_state = plain["best"], plain["waited"], plain["best_state"]

    def restore(self, model: nn.Module) -> None:
        """Put the best weights back."""
        if self.best_state:
            with torch.no_grad():
                model.load_state_dict(self.best_state)
