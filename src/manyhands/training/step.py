"""One leaf of a step: the only place where a model meets a batch.

Every mode and the single-process reference call :func:`leaf_gradient`; a mode changes only where the batch
comes from and where the gradient goes. Before it, the generators are set from the leaf's own seed and the
buffers from the step, so that a leaf has the same bits wherever and whenever it is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from manyhands.errors import UsageError
from manyhands.training.batch import Batch, to_device
from manyhands.training.objective import Objective
from manyhands.training.seeds import OWNER, derive, seed_generators
from manyhands.training.state import ModelState

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Leaf:
    """One micro-batch: which one it is, what it weighs, and what its loss is scaled by (fp16 only)."""

    step: int
    number: int
    weight: float
    scale: float = 1.0


class LeafGradient(NamedTuple):
    """Mean gradients of one leaf, in ``trainable`` order; None where the loss did not reach a parameter."""

    loss: float
    gradients: list[Tensor | None]


def leaf_seed(run_seed: int, step: int, leaf: int) -> int:
    """What the generators are set from before a leaf."""
    return derive(run_seed, "leaf", step, leaf)


def check_precision(precision: str) -> None:
    """UsageError for anything but the three words."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision={precision!r} is not one of {', '.join(map(repr, PRECISIONS))}")


def leaf_gradient(
    state: ModelState,
    objective: Objective,
    batch: Batch,
    leaf: Leaf,
    *,
    run_seed: int,
    precision: Precision = "fp32",
) -> LeafGradient:
    """Forward and backward of one leaf.

    The gradients are of the mean loss times ``leaf.scale``; they are the caller's to weigh and sum. A leaf of
    weight 0 (every target ignored) runs forward, for its buffers, and has no gradients. Parameters' ``.grad``
    are None after.
    """
    device = next(iter(state.trainable.values())).device
    if not state.model.training:
        state.model.train()
    parameters = list(state.trainable.values())
    for parameter in parameters:
        parameter.grad = None
    with OWNER:
        seed_generators(leaf_seed(run_seed, leaf.step, leaf.number))
        with autocast(device, precision):
            loss = objective.loss(state.model, to_device(batch, device))
        if leaf.weight == 0.0:
            return LeafGradient(0.0, [None] * len(parameters))
        if not loss.requires_grad:  # no parameter had a part in it
            return LeafGradient(float(loss), [None] * len(parameters))
        (loss * leaf.scale if leaf.scale != 1.0 else loss).backward()  # type: ignore[no-untyped-call]
    gradients = [_dense(parameter) for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return LeafGradient(float(loss.detach()), gradients)


def _dense(parameter: torch.nn.Parameter) -> Tensor | None:
    gradient = parameter.grad
    if gradient is not None and gradient.layout is not torch.strided:
        raise UsageError(
            "a parameter has a sparse gradient, which is not summed exactly: use sparse=False in nn.Embedding"
        )
    return gradient


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The mixed-precision context of a run, or none for fp32."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode without gradients; each module's mode comes back as it was, a frozen one's too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training
