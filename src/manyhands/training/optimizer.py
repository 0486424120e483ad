"""The optimizer's side of a step: from the root's sum to new weights.

The optimizer is the caller's own torch one, run once a step on the coordinator: its arithmetic is part of the
run's numbers (``fused`` differs from ``foreach`` in the last bit), so the manifest freezes its class and
options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from manyhands.errors import UsageError
from manyhands.training.state import ModelState

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


def build_optimizer(given: Optimizer | OptimizerFactory | None, state: ModelState) -> Optimizer:
    """The run's optimizer: as given, built by the callable, or Adam(1e-3).

    UsageError where it does not hold exactly trainable parameters of this model, or needs closures.
    """
    parameters = list(state.trainable.values())
    if given is None:
        optimizer: Any = torch.optim.Adam(parameters, lr=1e-3)
    elif isinstance(given, Optimizer):
        optimizer = given
    else:
        optimizer = given(parameters)
    if not isinstance(optimizer, Optimizer):
        raise UsageError(
            f"optimizer must be a torch Optimizer or a callable(params) that returns one, not {optimizer!r}"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError(
            "LBFGS calls a closure several times a step, which a pool cannot: use another optimizer"
        )
    _check_ownership(optimizer, state)
    return optimizer


def _check_ownership(optimizer: Optimizer, state: ModelState) -> None:
    ours = {id(p) for p in state.parameters.values()}
    strangers = sum(id(p) not in ours for group in optimizer.param_groups for p in group["params"])
    if strangers:
        raise UsageError(
            f"the optimizer holds {strangers} parameter(s) that are not the model's: build it over "
            "model.parameters() of the model you give, or pass a callable such as lambda params: "
            "AdamW(params)"
        )


def build_scheduler(given: SchedulerFactory | None, optimizer: Optimizer) -> LRScheduler | None:
    """The learning-rate scheduler, stepped once a step."""
    if given is None:
        return None
    scheduler = given(optimizer)
    if not hasattr(scheduler, "step") or not hasattr(scheduler, "state_dict"):
        raise UsageError(
            f"scheduler must be a callable(optimizer) that returns an LRScheduler, not {scheduler!r}"
        )
    return scheduler


def describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """Class and options, for the manifest: what must be the same for the same bits."""
    options = [
        {name: value for name, value in group.items() if name != "params" and not isinstance(value, Tensor)}
        for group in optimizer.param_groups
    ]
    return {"class": type(optimizer).__qualname__, "groups": options}


_APART = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
)


def updates_apart(optimizer: Optimizer) -> bool:
    """Whether stepping over some parameters and then over the others is one step over all, to the bit.

    So it is for torch's elementwise optimizers, which keep a step count per parameter and pass over those without a
    gradient; not for subclasses of theirs, nor where a hook counts the calls.
    """
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return type(optimizer) in _APART and not any(hooks)


def clip(gradients: Sequence[Tensor], max_norm: float | None) -> float | None:
    """Scale `gradients` in place so that their global 2-norm is at most `max_norm`; returns the norm before.

    As ``torch.nn.utils.clip_grad_norm_``: norms per tensor, then the norm of these.
    """
    if max_norm is None or not gradients:
        return None
    norm = torch.nn.utils.get_total_norm(list(gradients))
    coefficient = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    torch._foreach_mul_(list(gradients), coefficient)
    return float(norm)
