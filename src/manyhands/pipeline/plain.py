"""The pipeline as a module for a plain training loop: autograd itself asks the workers for the backward.

::

    prediction = net(x)        a forward through the workers, and a node in the caller's graph
    loss.backward()            autograd reaches the node, which sends the gradient back through the workers
    opt.step()                 every stage's own optimizer

Synchronous: each call waits in the caller's thread while the crew's thread drives.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manyhands.errors import UsageError
from manyhands.pipeline.crew import Crew
from manyhands.pipeline.deployment import Deployment
from manyhands.pipeline.run import Run


class Plain:
    """A model on workers, called like a module: ``net(x, mask=mask)``.

    Extras are given by name. Between a prediction and its ``backward()`` there may be no other forward with
    gradients on, since workers keep what the last one needs.
    """

    def __init__(self, crew: Crew, deployment: Deployment, run: Run) -> None:
        self._crew = crew
        self._deployment = deployment
        self._run = run
        self._anchor = nn.Parameter(torch.zeros(()))
        """What makes predictions part of a graph; nothing ever changes it."""

    def __call__(self, x: Tensor, **extra: Tensor) -> Tensor:
        """The prediction. UsageError where an input wants a gradient: none comes back from the workers."""
        if wanting := [name for name, one in {"x": x, **extra}.items() if one.requires_grad]:
            raise UsageError(
                f"{wanting[0]} requires a gradient, and workers send none for what comes in with the batch: detach it"
            )
        if not torch.is_grad_enabled():
            return self._crew.call(self._run.forward(x, extra, retains=False))[0]
        prediction: Tensor = _Through.apply(self._anchor, self._crew, self._run, x, extra)  # type: ignore[no-untyped-call]
        return prediction

    def optimizer(self, kind: type[Optimizer], **options: Any) -> RemoteOptimizer:
        """Every stage's optimizer, as one that LR schedulers take: ``net.optimizer(torch.optim.AdamW, lr=3e-4)``."""
        self._crew.call(self._deployment.set_optimizer(kind, options))
        return RemoteOptimizer(self._crew, self._run, kind, options)

    def train(self, mode: bool = True) -> Plain:
        """Train mode, or evaluation mode."""
        self._crew.call(self._deployment.set_mode(training=mode))
        return self

    def eval(self) -> Plain:
        """Evaluation mode."""
        return self.train(False)

    def clip_grad_norm_(self, max_norm: float) -> float:
        """Scale all gradients so that their norm over the whole model is at most `max_norm`; the norm before."""
        return self._crew.call(self._run.clip(max_norm))

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self._crew.call(self._run.zero())

    def state_dict(self) -> dict[str, Tensor]:
        """All parameters and buffers by their original names, on the CPU."""
        return self._crew.call(self._deployment.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put these weights onto the workers."""
        self._crew.call(self._deployment.load_state_dict(state))

    def save(self, path: str | Path) -> Path:
        """Write a checkpoint under `path`; its folder."""
        return self._crew.call(self._deployment.save(Path(path)))

    def resume(self, path: str | Path) -> None:
        """Go on from the newest whole checkpoint under `path`."""
        self._crew.call(self._deployment.resume(Path(path)))


class _Through(torch.autograd.Function):
    """A forward and a backward through the workers, as one node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, crew: Crew, run: Run, x: Tensor, extra: Mapping[str, Tensor]
    ) -> Tensor:
        """The prediction."""
        prediction, number = crew.call(run.forward(x, extra, retains=True))
        ctx.crew, ctx.run, ctx.number = crew, run, number
        return prediction

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        """The gradient goes to the workers; for the batch there is none."""
        ctx.crew.call(ctx.run.backward(gradient, ctx.number))
        return (None,) * 5


class RemoteOptimizer(Optimizer):
    """The optimizers of all stages behind torch's own face: one group, whose `lr` is sent where it has changed."""

    def __init__(self, crew: Crew, run: Run, kind: type[Optimizer], options: Mapping[str, Any]) -> None:
        signature = inspect.signature(kind).parameters
        defaults = {name: one.default for name, one in signature.items() if name != "params"}
        super().__init__([nn.Parameter(torch.zeros(()))], {**defaults, **options})
        self._crew = crew
        self._run = run
        self._sent = self._options()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every stage; gradients are dropped with it.

        UsageError for a closure, or where a scheduler changed another option than `lr`.
        """
        if closure is not None:
            raise UsageError("workers step once: an optimizer with a closure cannot run on them")
        options = self._options()
        changed = [name for name in options if options[name] != self._sent[name]]
        if other := [name for name in changed if name != "lr"]:
            raise UsageError(
                f"{other[0]} of the optimizer was changed to {options[other[0]]}: workers follow `lr` only (OneCycleLR "
                "and CyclicLR take cycle_momentum=False)"
            )
        if changed:
            self._crew.call(self._run.set_rate(float(options["lr"])))
            self._sent = options
        self._crew.call(self._run.step())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        self._crew.call(self._run.zero())

    def _options(self) -> dict[str, Any]:
        return {name: one for name, one in self.param_groups[0].items() if name in self.defaults}
