"""What a boss computes with its model: forward, backward, step, and all three as one command.

Each wish becomes a `Command`, and the deployment's `Driver` has it done. Coroutines of the crew's event loop;
`boss` and `plain` call them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from manyhands.errors import RunFailed, UsageError
from manyhands.observe.metrics import open_log
from manyhands.pipeline import messages as m
from manyhands.pipeline.commands import Pass
from manyhands.pipeline.deployment import Deployment
from manyhands.pipeline.graph import MAIN_INPUT
from manyhands.pipeline.post import Name
from manyhands.pipeline.stage.micro_batches import factors, parts
from manyhands.pipeline.stage.updates import decide, total_norm
from manyhands.training.criteria import describe
from manyhands.training.objective import Objective

_MOST_KEPT: Final = 64
"""How many commands may be kept of forwards that had no backward before a snapshot is taken instead."""


class Run:
    """The training of one deployed model."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._standing = deployment.standing
        self._log = open_log(deployment.options.log)

    # ---- a step by hand ----

    async def forward(
        self, x: Tensor, extra: Mapping[str, Tensor], *, retains: bool, micro_batches: int = 1
    ) -> tuple[Tensor, int]:
        """The prediction, and the number of the pass that `backward` goes back through.

        Each replica takes a part of the batch, as far as it has samples for all.
        """
        inputs = _inputs(x, extra)
        micro_batches = max(micro_batches, min(self._deployment.options.replicas, len(x) if x.ndim else 1))
        driver = await self._deployment.ready(inputs)
        if retains and self._standing.forward is not None and len(driver.log) > _MOST_KEPT:
            self._standing.forward = None
            await self._deployment.snapshot()
        command = Pass(
            driver.next_number(),
            self._standing.next_pass(),
            "forward",
            inputs,
            micro_batches=micro_batches,
            factors=(1.0,) * micro_batches,
            scale=self._standing.scale.value,
            retains=retains,
        )
        outcome = await driver.do(command)
        self._standing.forward = command if retains else None
        edge = driver.placement.graph.prediction
        pieces = [outcome.values[Name("value", edge, at, m.BOSS)] for at in range(micro_batches)]
        return pieces[0] if micro_batches == 1 else torch.cat(pieces), command.pass_number

    async def backward(self, gradient: Tensor, pass_number: int | None = None) -> None:
        """Send the prediction's gradient back through the last forward, which is pass `pass_number` if given."""
        driver = self._deployment.driver
        last = self._standing.forward
        if last is None:
            raise UsageError("there is no forward to go back through: call forward first, with gradients on")
        if pass_number not in (None, last.pass_number):
            raise UsageError(
                "this prediction is not the last one: workers keep what the last forward needs, so go back through "
                "each prediction before the next forward"
            )
        await driver.do(
            Pass(
                driver.next_number(),
                last.pass_number,
                "backward",
                gradient=gradient.detach() * last.scale if last.scale != 1.0 else gradient.detach(),
                micro_batches=last.micro_batches,
                factors=last.factors,
                scale=last.scale,
            )
        )
        self._standing.forward, self._standing.has_gradients = None, True

    async def step(self) -> None:
        """One step of every stage's optimizer; the gradients are forgotten."""
        scale = self._standing.scale
        self._standing.check_optimizer()
        skips = scale.is_used and decide(await self._norms(), (), max_norm=None, skips_non_finite=True).skips
        await self._deployment.order("skip" if skips else "step", float(self._standing.updates))
        self._standing.has_gradients = False
        if skips:
            scale.overflowed()
        else:
            scale.committed()
        await self._updated()

    async def clear(self) -> None:
        """Free what workers keep of forwards that had no backward."""
        self._standing.forward = None
        await self._deployment.order("clear")

    # ---- a step as one command ----

    async def train(
        self,
        x: Tensor,
        targets: Any,
        loss_fn: Any,
        micro_batches: int,
        schedule: str,
        extra: Mapping[str, Tensor],
    ) -> float:
        """Forward, loss, backward and step over one batch; the mean loss."""
        self._standing.check_optimizer()
        loss = describe(loss_fn)
        if loss is None or "loss" not in json.loads(loss):
            numbers = await self._train_with(loss_fn, x, targets, micro_batches, extra)
        else:
            numbers = await self._train_there(loss, x, targets, loss_fn, micro_batches, schedule, extra)
        self._log.write(self._standing.updates, numbers)
        return numbers["loss"]

    async def _train_there(
        self,
        loss: str,
        x: Tensor,
        targets: Any,
        loss_fn: nn.Module,
        micro_batches: int,
        schedule: str,
        extra: Mapping[str, Tensor],
    ) -> dict[str, float]:
        """All of it on the workers, with a loss of torch.nn, which `loss` describes."""
        inputs = _inputs(x, extra)
        driver = await self._deployment.ready(inputs)
        counts = factors(Objective(loss_fn), parts(targets, micro_batches))
        await self._deployment.suit(schedule)
        standing = self._standing
        command = Pass(
            driver.next_number(),
            standing.next_pass(),
            "train",
            inputs,
            targets,
            loss=loss,
            criterion={name: one.detach() for name, one in loss_fn.named_buffers()},
            micro_batches=micro_batches,
            factors=counts,
            scale=standing.scale.value,
            schedule=schedule,
            # In fp16 all stages must know first whether every gradient is finite.
            update=None if standing.scale.is_used else standing.updates,
        )
        outcome = await driver.do(command)
        mean = outcome.loss()
        if mean is None:
            raise RunFailed("no worker told the loss of this step: the last stage should have")
        standing.forward, standing.has_gradients = None, command.update is None
        if command.update is None:
            await self.step()
        else:
            await self._updated()
        return {"loss": mean, "idle_share": outcome.idle_share()}

    async def _train_with(
        self, loss_fn: Any, x: Tensor, targets: Any, micro_batches: int, extra: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """The same with a loss that is code of the user's: it is taken here, over the whole batch."""
        prediction, number = await self.forward(x, extra, retains=True, micro_batches=micro_batches)
        with torch.enable_grad():
            prediction.requires_grad_()
            loss = loss_fn(prediction, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise UsageError(f"the loss must be one number, and loss_fn gave {loss!r:.80}")
        (gradient,) = torch.autograd.grad(loss, prediction)
        await self.backward(gradient, number)
        await self.step()
        return {"loss": float(loss.detach())}

    async def _updated(self) -> None:
        self._standing.updates += 1
        if self._standing.updates % self._deployment.options.snapshot_every == 0:
            await self._deployment.checkpoint()

    # ---- between backward and step ----

    async def set_rate(self, lr: float) -> None:
        """The learning rate from the next step on."""
        await self._deployment.order("rate", lr)

    async def zero(self) -> None:
        """Forget all gradients; workers are asked only where there are some."""
        if self._standing.has_gradients:
            await self._deployment.order("zero")
            self._standing.has_gradients = False

    async def clip(self, max_norm: float) -> float:
        """Scale all gradients by the norm over the whole model; the norm before."""
        order = list(dict.fromkeys(name for layer in self._deployment.stock.parameters for name in layer))
        norms = await self._norms()
        decision = decide(norms, order, max_norm=max_norm, skips_non_finite=self._standing.scale.is_used)
        if decision.coefficient is not None:
            await self._deployment.order("scale", decision.coefficient)
        return total_norm(norms, order)

    async def _norms(self) -> dict[str, float]:
        """The norm of each gradient; not finite where one is not."""
        outcome = await self._deployment.order("norms")
        return {name: norm for numbers in outcome.numbers.values() for name, norm in numbers.items()}


def _inputs(x: Tensor, extra: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch's edges by name."""
    return {MAIN_INPUT: x.detach(), **{name: one.detach() for name, one in extra.items()}}
