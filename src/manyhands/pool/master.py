"""The coordinator's one copy of the weights, and what a finished step does to it.

The weights live in one aligned body of which the model's parameters are views (training/moving.py), so that
an optimizer step writes straight into what is sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from manyhands.errors import NonFinite
from manyhands.training.buffers import Fold
from manyhands.training.gradients import GradientLayout, Partial, first_non_finite, is_finite
from manyhands.training.moving import MovingState
from manyhands.training.optimizer import clip
from manyhands.training.state import ModelState


class Master:
    """Weights, optimizer and scheduler of a run."""

    def __init__(
        self,
        state: ModelState,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        folds: Mapping[str, Fold],
        clip_norm: float | None,
    ) -> None:
        self.state = state
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.clip_norm = clip_norm
        self.gradients = GradientLayout.of(state, folds)
        self.moving = MovingState(state, folds)

    def commit(self, root: Partial, divisor: float, num_leaves: int) -> float | None:
        """One optimizer step from the step's sum; returns the gradient's norm where clipping measures it.

        NonFinite, with nothing changed, where the sum overflowed although every part was finite.
        """
        self._check(root)
        views = dict(
            zip(
                (s.name for s in self.gradients.layout.specs),
                self.gradients.layout.views(root.body),
                strict=True,
            )
        )
        self._set_gradients(views, root, divisor)
        norm = clip([p.grad for p in self.state.trainable.values() if p.grad is not None], self.clip_norm)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        for parameter in self.state.trainable.values():
            parameter.grad = None
        self._set_buffers(views, num_leaves)
        self.moving.to_body()
        return norm

    def skip(self) -> None:
        """A step given up: the schedule goes on, the weights stay."""
        if self.scheduler is not None:
            self.scheduler.step()

    def _check(self, root: Partial) -> None:
        if not is_finite(self.gradients, root):
            raise NonFinite(
                f"the step's sum of {first_non_finite(self.gradients, root)} is not finite, although every "
                "partial sum was: "
                "gradients this large overflow fp32. Lower the learning rate, or set clip_norm"
            )

    def _set_gradients(self, views: Mapping[str, Tensor], root: Partial, divisor: float) -> None:
        trainable = self.state.trainable
        if divisor not in (0.0, 1.0):
            for region in self.gradients.regions:
                if region.fold is None:
                    region.of(root.body).div_(divisor)
        for index, name in enumerate(self.gradients.parameters):
            parameter = trainable[name]
            if root.present >> index & 1:
                parameter.grad = views[name].to(device=parameter.device, dtype=parameter.dtype)
            else:
                parameter.grad = None

    def _set_buffers(self, views: Mapping[str, Tensor], num_leaves: int) -> None:
        with torch.no_grad():
            for name, fold in self.gradients.folds.items():
                value = views[name].div_(num_leaves) if fold is Fold.MEAN else views[name]
                self.state.buffers[name].copy_(value)

    def optimizer_state(self) -> dict[str, Any]:
        """Optimizer and scheduler state, for a checkpoint."""
        scheduler = self.scheduler.state_dict() if self.scheduler is not None else None
        return {"optimizer": self.optimizer.state_dict(), "scheduler": scheduler}

    def load_optimizer_state(self, saved: Mapping[str, Any]) -> None:
        """Put a checkpoint's optimizer and scheduler state back."""
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scheduler is not None and saved.get("scheduler") is not None:
            self.scheduler.load_state_dict(saved["scheduler"])


def mean_loss(
    losses: Mapping[int, float | None], weights: Mapping[int, float], divisor: float
) -> float | None:
    """The step's loss: the weighted mean over its leaves; None where a custom loop told none."""
    total = 0.0
    for leaf, weight in weights.items():
        loss = losses.get(leaf)
        if loss is None:
            return None
        total += loss * weight
    mean = total / divisor if divisor else 0.0
    return mean if math.isfinite(mean) else None
