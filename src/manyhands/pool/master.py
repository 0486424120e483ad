"""The coordinator's one copy of the weights, and what a finished step does to it.

The weights live in one aligned body of which the model's parameters are views (training/moving.py), so that
an optimizer step writes straight into what is sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from manyhands.errors import NonFinite
from manyhands.pool.compression import Compression
from manyhands.training.buffers import Fold
from manyhands.training.gradients import GradientLayout, Partial, first_non_finite, witness
from manyhands.training.moving import MovingState
from manyhands.training.optimizer import clip, updates_apart
from manyhands.training.scale import LossScale
from manyhands.training.state import ModelState

PART_BYTES = 1 << 21
"""Parameters updated at a time: with gradient and momentum this fits a second-level cache."""


class Part(NamedTuple):
    """Some parameters, each with its place among a sum's views, and how many bytes of the moving body are final
    once they are updated.
    """

    parameters: list[tuple[nn.Parameter, int]]
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
        self.compression: Compression | None = None
        """What is sent as int8; None: everything is sent as it is."""
        index_of = {name: index for index, name in enumerate(self.gradients.parameters)}
        self._trainable = [(parameter, index_of[name]) for name, parameter in state.trainable.items()]
        self._apart: list[Part] = []

    def compress(self, run_seed: int, micro_batches: int) -> Compression:
        """From now on sums and weights travel as int8; nodes that hold the present weights can go on with them."""
        self.compression = Compression(self.gradients, self.moving, run_seed, micro_batches)
        return self.compression

    def _begin_to_tell(self) -> None:
        if self.compression is not None:
            self.compression.weights.begin()

    def told(self, final_bytes: int) -> int:
        """How much of what nodes are sent next is final, where `final_bytes` of the moving body are."""
        return final_bytes if self.compression is None else self.compression.weights.advance(final_bytes)

    def commit(self, root: Partial, divisor: float, num_leaves: int) -> Iterator[int]:
        """One optimizer step from the step's sum, part by part.

        Yields after each part how many bytes of ``moving.body`` are final: those can be sent while the rest is
        computed, and a part that fits the processor's cache is divided, updated and copied while it is there.
        NonFinite, with nothing changed, where the sum overflowed although every part of it was finite.
        """
        self._check(root)
        self._begin_to_tell()
        parts = self._parts()
        at_once = len(parts) == 1 or self.clip_norm is not None
        if at_once:
            self._divide_all(root, divisor)
        clipped = None if self.clip_norm is None else self._clipped(root)
        for part in parts:
            if not at_once:
                self._divide([root.buffer.views[index] for _, index in part.parameters], divisor)
            for parameter, index in part.parameters:
                parameter.grad = _gradient(parameter, index, root) if clipped is None else clipped[index]
            self.optimizer.step()
            for parameter, _ in part.parameters:
                parameter.grad = None
            yield part.final_bytes
        if self.scheduler is not None:
            self.scheduler.step()
        self._set_buffers(root, num_leaves)
        self.scale.committed()
        self.moving.to_body()
        yield self.moving.layout.num_bytes

    def _parts(self) -> list[Part]:
        """The trainable parameters in runs of a cache's size; one run where the optimizer must see them all."""
        if not self.moving.is_attached or not updates_apart(self.optimizer):
            return [Part(self._trainable, 0)]
        self._apart = self._apart or self._cut()
        return self._apart

    def _cut(self) -> list[Part]:
        parts, start, count = list[Part](), 0, len(self._trainable)
        offsets = [*self.moving.layout.offsets, self.moving.layout.num_bytes]  # parameters, then buffers
        for stop in range(1, count + 1):
            if offsets[stop] - offsets[start] >= PART_BYTES or stop == count:
                parts.append(Part(self._trainable[start:stop], offsets[stop]))
                start = stop
        return parts

    def _divide(self, values: list[Tensor], divisor: float) -> None:
        if divisor not in (0.0, 1.0) and values:
            torch._foreach_div_(values, divisor)

    def _divide_all(self, root: Partial, divisor: float) -> None:
        """Every gradient: whole regions where that leaves their padding zero."""
        regions = [values for region, values in root.buffer.regions if region.fold is None]
        self._divide(regions if divisor > 0 else root.buffer.views[: len(self._trainable)], divisor)

    def skip(self) -> None:
        """A step given up: the schedule goes on, the weights stay, an fp16 run's loss scale is halved."""
        self.scale.overflowed()
        if self.scheduler is not None:
            self.scheduler.step()
        self._begin_to_tell()
        self.told(self.moving.layout.num_bytes)

    def _check(self, root: Partial) -> None:
        if witness(root) is None:
            raise NonFinite(
                f"the step's sum of {first_non_finite(self.gradients, root)} is not finite, although every "
                "micro-batch was: "
                "gradients this large overflow fp32. Lower the learning rate, or set clip_norm"
            )

    def _clipped(self, root: Partial) -> dict[int, Tensor | None]:
        """Every gradient as its parameter will see it, clipped together: in `parameters()` order, as torch does."""
        gradients = {index: _gradient(parameter, index, root) for parameter, index in self._trainable}
        clip([gradient for gradient in gradients.values() if gradient is not None], self.clip_norm)
        return gradients

    def _set_buffers(self, root: Partial, num_leaves: int) -> None:
        if not self.gradients.folds:
            return
        views = dict(zip((s.name for s in self.gradients.layout.specs), root.buffer.views, strict=True))
        with torch.no_grad():
            for name, fold in self.gradients.folds.items():
                value = views[name].div_(num_leaves) if fold is Fold.MEAN else views[name]
                self.state.buffers[name].copy_(value)

    def optimizer_state(self) -> dict[str, Any]:
        """Optimizer and scheduler state, for a checkpoint."""
        scheduler = self.scheduler.state_dict() if self.scheduler is not None else None
        sent = self.compression.weights.state() if self.compression is not None else None
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": scheduler,
            "scale": self.scale.to_plain(),
            "sent": sent,
        }

    def load_optimizer_state(self, saved: Mapping[str, Any]) -> None:
        """Put a checkpoint's optimizer and scheduler state back."""
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scale.load(saved["scale"])
        if self.compression is not None and saved.get("sent") is not None:
            self.compression.weights.load(saved["sent"])
        if self.scheduler is not None and saved.get("scheduler") is not None:
            self.scheduler.load_state_dict(saved["scheduler"])


def _gradient(parameter: nn.Parameter, index: int, root: Partial) -> Tensor | None:
    """A parameter's gradient as its optimizer wants it: on its device, of its dtype."""
    if not root.present >> index & 1:
        return None
    gradient = root.buffer.views[index]
    if gradient.dtype == parameter.dtype and parameter.device.type == "cpu":
        return gradient
    return gradient.to(device=parameter.device, dtype=parameter.dtype)


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
