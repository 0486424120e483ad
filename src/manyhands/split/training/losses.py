"""A batch to a loss and an output, and a sentence where the two do not fit.

torch broadcasts ``(B, 1)`` against ``(B,)`` to ``(B, B)`` and trains towards the mean of everything; here that is an
error, as it is a mistake each time.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from manyhands.errors import UsageError
from manyhands.split.training.setup import Setup
from manyhands.training.batch import Batch, forward, targets_of

_BROADCASTS = "Using a target size"
"""How torch's warning begins when an elementwise loss stretches one side."""


class Judged(NamedTuple):
    """A batch's loss with its graph, and what the model returned; None where the user's function kept it."""

    loss: Tensor
    output: Any


def judge(setup: Setup, model: nn.Module, batch: Batch) -> Judged:
    """Forward and loss of one batch on the device.

    UsageError where the loss is no scalar or does not fit the output, with both shapes; what the model itself raises
    passes as it is.
    """
    if setup.compute_loss is not None:
        given = setup.compute_loss(model, batch)
        loss, output = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        return Judged(_scalar(loss), output)
    output = forward(model, batch)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=_BROADCASTS)
        try:
            return Judged(setup.objective.loss_of(output, batch), output)
        except UsageError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError, UserWarning) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UsageError(_misfit(setup, output, batch, error)) from error


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(
            f"compute_loss must return a scalar tensor, or (scalar, output), and it returned {shape}"
        )
    return loss.reshape(())


def _misfit(setup: Setup, output: Any, batch: Batch, error: Exception) -> str:
    criterion = setup.criterion
    name = (
        getattr(criterion, "__name__", type(criterion).__name__) if criterion is not None else "cross-entropy"
    )
    targets = targets_of(batch)
    sides = f"the model returns {_side(output)} and the targets are {_side(targets)}"
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"the loss {name} does not fit: {sides}. {_advice(output, targets)} (torch: {first_line[:160]})"


def _side(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def _advice(output: Any, targets: Tensor) -> str:
    if isinstance(output, Tensor) and output.ndim == targets.ndim + 1 and targets.is_floating_point():
        if output.shape[-1] == 1:
            return "Return output.squeeze(-1) from the model, or make the targets (samples, 1)"
        return "For classes give whole numbers (int64) as targets; for regression criterion=nn.MSELoss()"
    if isinstance(output, Tensor) and output.ndim == targets.ndim and targets.shape[-1:] == (1,):
        return "Make the targets (samples,), with y.squeeze(-1)"
    if isinstance(output, Tensor) and output.ndim == 2 and not targets.is_floating_point():
        return f"Targets of {output.shape[1]} classes must be whole numbers from 0 to {output.shape[1] - 1}"
    return "Give a criterion for such outputs and targets, or compute_loss(model, batch)"
