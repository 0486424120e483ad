"""The model on its device, and what one batch does to it: the plain loop of a single process.

zero, forward, loss, backward, clip, step. No learning-rate scheduler, clipping, normalisation or noise but what was
asked for: over the same batches a run has the bits of that loop written by hand.
"""

from __future__ import annotations

import inspect
import logging
import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from manyhands.errors import NonFinite, UsageError
from manyhands.split.jobs import Made
from manyhands.split.narrow import widen
from manyhands.split.training.gradients import first_nonfinite, gradients_of
from manyhands.split.training.losses import Judged, judge
from manyhands.split.training.scores import Hits, hits_of
from manyhands.split.training.setup import Setup
from manyhands.training.batch import Batch, forward, size_of, targets_of, to_device
from manyhands.training.objective import IGNORE_INDEX
from manyhands.training.optimizer import build_optimizer, build_scheduler
from manyhands.training.scale import LossScale
from manyhands.training.seeds import OWNER
from manyhands.training.state import ModelState, check_tensors
from manyhands.training.step import autocast, evaluating

logger = logging.getLogger(__name__)


class Learner:
    """A setup's model on `device`, with its optimizer once `prepare` was called."""

    def __init__(self, setup: Setup, device: torch.device) -> None:
        self.setup = setup
        self.device = device
        self.steps = 0
        """Optimizer steps taken."""
        self.scale = LossScale.of(setup.precision)
        self.is_whole = True
        """False where an optimizer raised in the middle of its step: the weights are then of no step."""
        self._is_placed = self._is_prepared = False
        self._buffers: list[Tensor] = []
        self._buffers_before: list[Tensor] = []

    # ---- before the first batch ----

    def place(self) -> None:
        """Move model and criterion to the device, once: all that validation and inference need."""
        if self._is_placed:
            return
        self._is_placed = True
        self.setup.model.to(self.device)
        if isinstance(self.setup.criterion, nn.Module):
            self.setup.criterion.to(self.device)
        self.state = ModelState(self.setup.model, self.setup.criterion)
        if self.setup.compile is not False:  # in place: the names that forward declares stay readable
            backend = "inductor" if self.setup.compile is True else self.setup.compile
            self.setup.model.compile(backend=backend)

    def prepare(self) -> None:
        """Place the model, and build what training needs besides, once. UsageError where nothing can be trained."""
        self.place()
        if self._is_prepared:
            return
        self.state.check_trainable()
        given = self.setup.optimizer
        self.optimizer = build_optimizer(
            given if given is not None else lambda p: self.setup.default_optimizer(list(p)), self.state
        )
        self.scheduler = build_scheduler(self.setup.scheduler, self.optimizer)
        self._buffers = [b for b in self.state.buffers.values() if b.is_floating_point() or b.numel() == 1]
        self._buffers_before = [buffer.detach().clone() for buffer in self._buffers]
        self._is_prepared = True

    # ---- one batch ----

    def receive(self, made: Made) -> Batch:
        """A batch as it came, on the device and with its own dtypes again."""
        return widen(to_device(made.batch, self.device), made.widths)

    def step(self, batch: Batch, where: str) -> tuple[float, float]:
        """Train on one batch; its mean loss and its weight in the epoch's mean.

        Parameters, buffers and optimizer are as before where this raises: NonFinite for a loss or a gradient that is
        not finite (`where` says of which batch), UsageError for a loss that does not fit the output, whatever the
        model raises. An fp16 gradient that overflowed costs its step, and halves the scale of the next one.
        """
        model = self.setup.model
        if not model.training:
            model.train()
        self.optimizer.zero_grad(set_to_none=True)
        try:
            _copy(self._buffers, self._buffers_before)
            loss = self._backward(batch, where)
        except Exception:
            self.optimizer.zero_grad(set_to_none=True)
            _copy(self._buffers_before, self._buffers)  # running statistics have seen the batch already
            raise
        self.is_whole = False
        self._update()
        self.is_whole = True
        return loss, self._weight(batch)

    def _backward(self, batch: Batch, where: str) -> float:
        """The batch's gradients into the parameters; its mean loss."""
        with OWNER:  # a loader's workers in this process seed the generators too
            with autocast(self.device, self.setup.precision):
                judged = judge(self.setup, self.setup.model, batch)
            if not judged.loss.requires_grad:
                raise UsageError("the loss does not depend on any parameter that requires a gradient")
            scaled = judged.loss * self.scale.value if self.scale.is_used else judged.loss
            scaled.backward()  # type: ignore[no-untyped-call]
        loss = float(judged.loss.detach())
        if not math.isfinite(loss):
            raise NonFinite(self._nonfinite(f"the loss of {where} is {loss}"))
        # At a scale of 1 it is no overflow of ours any more.
        odd = first_nonfinite(gradients_of(self.state.trainable)) if self.scale.value == 1.0 else None
        if odd is not None:
            raise NonFinite(
                self._nonfinite(f"the gradient of {odd} at {where} is not finite (its loss is {loss:g})")
            )
        return loss

    def _update(self) -> None:
        if self.scale.is_used and not self._unscale(gradients_of(self.state.trainable)):
            return
        if self.setup.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(self.state.trainable.values()), self.setup.clip_norm)
        self.optimizer.step()
        self.scale.committed()
        self.steps += 1
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()

    def _unscale(self, gradients: dict[str, Tensor]) -> bool:
        """Divide fp16 gradients by the scale; False where one overflowed, and the step is left out."""
        torch._foreach_mul_(list(gradients.values()), 1.0 / self.scale.value)
        odd = first_nonfinite(gradients)
        if odd is None:
            return True
        self.scale.overflowed()
        said = "left out step %d: the fp16 gradient of %s is not finite; the loss scale is %g now"
        logger.info(said, self.steps, odd, self.scale.value)
        return False

    def _nonfinite(self, what: str) -> str:
        rate = self.optimizer.param_groups[0]["lr"]
        return (
            f"{what} after {self.steps} steps at learning rate {float(rate):.3g}; the weights are those before it. "
            "Look at these samples for NaN or huge values, and in the model for roots, logarithms and divisions near "
            "0; else lower the learning rate, or set clip_norm=1.0"
        )

    def epoch_over(self, loss: float) -> None:
        """Tell a scheduler that follows a measured loss (``ReduceLROnPlateau``)."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss)

    def score(self, batch: Batch) -> tuple[int, float, float, Hits | None]:
        """Samples, mean loss, weight and hits of a batch, in eval mode and without a trace in the model."""
        with evaluating(self.setup.model), autocast(self.device, self.setup.precision):
            judged: Judged = judge(self.setup, self.setup.model, batch)
        ignored = getattr(self.setup.criterion, "ignore_index", IGNORE_INDEX)
        try:
            hits = None if judged.output is None else hits_of(judged.output, targets_of(batch), ignored)
        except UsageError:  # a loss of the user's own may need no targets
            hits = None
        return size_of(batch), float(judged.loss), self._weight(batch), hits

    def output(self, batch: Batch) -> Any:
        """What the model returns for a batch, in eval mode; the batch may have come without targets."""
        model = self.setup.model
        with evaluating(model), autocast(self.device, self.setup.precision):
            if isinstance(batch, tuple) and len(batch) == _num_required(model):
                return model(*batch)
            return forward(model, batch)

    def _weight(self, batch: Batch) -> float:
        if self.setup.compute_loss is not None:
            return float(size_of(batch))
        return self.setup.objective.weigh(batch)

    # ---- what a checkpoint holds ----

    def extras(self) -> dict[str, Any]:
        """Everything but the weights that decides the next bits: optimizer, scheduler, scale, generators."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scale": self.scale.to_plain(),
            "steps": self.steps,
            "generators": _generators(self.device),
        }

    def restore(self, tensors: dict[str, Tensor], extras: dict[str, Any]) -> None:
        """Back from a checkpoint; UsageError where it is of another model."""
        mine = self.state.tensors()
        check_tensors(mine, tensors)
        with torch.no_grad():
            for name, value in tensors.items():
                mine[name].copy_(value)
        self.optimizer.load_state_dict(extras["optimizer"])
        if self.scheduler is not None and extras["scheduler"] is not None:
            self.scheduler.load_state_dict(extras["scheduler"])
        self.scale.load(extras["scale"])
        self.steps = int(extras["steps"])
        _set_generators(self.device, extras["generators"])


def _copy(source: list[Tensor], to: list[Tensor]) -> None:
    if source:
        with torch.no_grad():
            torch._foreach_copy_(to, source)


def _num_required(model: nn.Module) -> int:
    """How many inputs ``forward`` cannot do without."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return sum(p.kind in kinds and p.default is p.empty for p in parameters)


def _generators(device: torch.device) -> dict[str, Any]:
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": random.getstate(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_generators(device: torch.device, state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    random.setstate(state["python"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
