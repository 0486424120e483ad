"""The coordinator's one copy of the weights, and what a finished step does to it.

The weights live in one aligned body of which the model's parameters are views (training/moving.py), so that
an optimizer step writes straight into what is sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from manyhands.errors import NonFinite
from manyhands.training.buffers import Fold
from manyhands.training.gradients import GradientLayout, Partial, first_non_finite, witness
from manyhands.training.moving import MovingState
from manyhands.training.optimizer import clip, updates_apart
from manyhands.training.scale import LossScale
from manyhands.training.state import ModelState

PART_BYTES = 1 << 21
"""Parameters updated at a time: with gradient and momentum this fits a second-level cache."""


class Part(NamedTuple):
    """Some parameters, and how many bytes of the moving body are final once they are updated."""

    names: list[str]
    final_bytes: int


class Master:
    """Weights, optimizer and scheduler of a run."""

    def __init__(
        self,
        state: ModelState,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        folds: Mapping[str, Fold],
        clip_norm: float | None,
        scale: LossScale,
    ) -> None:
        self.state = state
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.clip_norm = clip_norm
        self.scale = scale
        self.gradients = GradientLayout.of(state, folds)
        self.moving = MovingState(state, folds)
        self._index = {name: index for index, name in enumerate(self.gradients.parameters)}

    def commit(self, root: Partial, divisor: float, num_leaves: int) -> Iterator[int]:
        """One optimizer step from the step's sum, part by part.

        Yields after each part how many bytes of ``moving.body`` are final: those can be sent while the rest is
        computed, and a part that fits the processor's cache is divided, updated and copied while it is there.
        NonFinite, with nothing changed, where the sum overflowed although every part of it was finite.
        """
        self._check(root)
        views = dict(zip((s.name for s in self.gradients.layout.specs), root.buffer.views, strict=True))
        clipped = None if self.clip_norm is None else self._clipped(views, root, divisor)
        for part in self._parts():
            if clipped is None:
                self._divide([views[name] for name in part.names], divisor)
            for name in part.names:
                gradient = self._gradient(name, views, root) if clipped is None else clipped[name]
                self.state.parameters[name].grad = gradient
            self.optimizer.step()
            for name in part.names:
                self.state.parameters[name].grad = None
            yield part.final_bytes
        if self.scheduler is not None:
            self.scheduler.step()
        self._set_buffers(views, num_leaves)
        self.scale.committed()
        self.moving.to_body()
        yield self.moving.layout.num_bytes

    def _parts(self) -> list[Part]:
        """The trainable parameters in runs of a cache's size; one run where the optimizer must see them all."""
        names = list(self.state.trainable)
        if not self.moving.is_attached or not updates_apart(self.optimizer):
            return [Part(names, 0)]
        parts, start = [], 0
        ends = dict(
            zip((s.name for s in self.moving.layout.specs), self.moving.layout.offsets[1:], strict=False)
        )
        for at, name in enumerate(names):
            end = ends.get(name, self.moving.layout.num_bytes)
            begun = self.moving.layout.offsets[start]
            if end - begun >= PART_BYTES or at == len(names) - 1:
                parts.append(Part(names[start : at + 1], end))
                start = at + 1
        return parts

    def _divide(self, values: list[Tensor], divisor: float) -> None:
        if divisor not in (0.0, 1.0) and values:
            torch._foreach_div_(values, divisor)

    def skip(self) -> None:
        """A step given up: the schedule goes on, the weights stay, an fp16 run's loss scale is halved."""
        self.scale.overflowed()
        if self.scheduler is not None:
            self.scheduler.step()

    def _check(self, root: Partial) -> None:
        if witness(root) is None:
            raise NonFinite(
                f"the step's sum of {first_non_finite(self.gradients, root)} is not finite, although every "
                "micro-batch was: "
                "gradients this large overflow fp32. Lower the learning rate, or set clip_norm"
            )

    def _gradient(self, name: str, views: Mapping[str, Tensor], root: Partial) -> Tensor | None:
        if not root.present >> self._index[name] & 1:
            return None
        parameter = self.state.parameters[name]
        return views[name].to(device=parameter.device, dtype=parameter.dtype)

    def _clipped(
        self, views: Mapping[str, Tensor], root: Partial, divisor: float
    ) -> dict[str, Tensor | None]:
        """Every gradient as its parameter will see it, clipped together: in `parameters()` order, as torch does."""
        self._divide([views[name] for name in self.gradients.parameters], divisor)
        gradients = {name: self._gradient(name, views, root) for name in self.state.trainable}
        clip([gradient for gradient in gradients.values() if gradient is not None], self.clip_norm)
        return gradients

    def _set_buffers(self, views: Mapping[str, Tensor], num_leaves: int) -> None:
        with torch.no_grad():
            for name, fold in self.gradients.folds.items():
                value = views[name].div_(num_leaves) if fold is Fold.MEAN else views[name]
                self.state.buffers[name].copy_(value)

    def optimizer_state(self) -> dict[str, Any]:
        """Optimizer and scheduler state, for a checkpoint."""
        scheduler = self.scheduler.state_dict() if self.scheduler is not None else None
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": scheduler,
            "scale": self.scale.to_plain(),
        }

    def load_optimizer_state(self, saved: Mapping[str, Any]) -> None:
        """Put a checkpoint's optimizer and scheduler state back."""
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scale.load(saved["scale"])
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
