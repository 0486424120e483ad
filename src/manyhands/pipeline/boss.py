"""``BossMan``: one model over several workers, as users hold it.

Everything here is awaited but the constructor, `gather_dependencies`, `get_model_stats` and `plain`; the work
itself is done by `deployment` and `run`, whose coroutines live in the crew's own thread, so that `plain` can wait for
them too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manyhands.errors import UsageError
from manyhands.pipeline.bossline import DEFAULT_PORT
from manyhands.pipeline.crew import Crew
from manyhands.pipeline.deployment import Deployment
from manyhands.pipeline.localworkers import LocalWorkers
from manyhands.pipeline.plain import Plain
from manyhands.pipeline.planning import Options, Tied
from manyhands.pipeline.run import Run
from manyhands.settings import load
from manyhands.training.step import Precision
from manyhands.wire import read_invite


class BossMan:
    """Drives a model that lies on `workers`.

    `model` is a layer list, an ``nn.Sequential`` or any fx-traceable module (also on the meta device, with
    ``weights="dir"`` of safetensors). ``cuts=[3, 7]`` puts layers 0-2, 3-6 and 7- on three workers; None cuts by
    measured time and memory. The state of every stage comes here each `snapshot_every` steps; a worker that is lost
    is replaced by a spare, or its layers go to the others, and the steps since are computed again with the same
    bits. Constructing stores; `distribute_model` sends.

    ``replicas=2`` makes two whole pipelines of the workers, each of which takes half of the micro-batches; their
    gradients are added up after the last weight pass, and BatchNorm's buffers are the first one's after each step.
    `precision` is "fp32", "bf16" or "fp16" (autocast on every stage; fp16 with a loss scale). ``recompute=True`` keeps
    inputs instead of activations and computes them again in the backward. ``tied="fast"`` sends a shared parameter's
    gradient once a step and not once a micro-batch, for at most 1e-6 of difference.
    """

    def __init__(
        self,
        workers: Crew,
        model: Any,
        *,
        cuts: Sequence[int] | None = None,
        replicas: int = 1,
        weights: str | Path | None = None,
        checkpoint_dir: str | Path | None = None,
        snapshot_every: int = 10,
        log: str | None = None,
        precision: Precision = "fp32",
        recompute: bool = False,
        tied: Tied = "exact",
    ) -> None:
        self._crew = workers
        options = Options(
            cuts, replicas, weights, checkpoint_dir, snapshot_every, log, precision, recompute, tied
        )
        options.check()
        self._deployment = Deployment(workers, model, options)
        self._run = Run(self._deployment)

    @staticmethod
    async def setup_host(
        num_workers: int,
        *,
        host: str | None = None,
        port: int | None = None,
        invite: str | None = None,
        timeout: float | None = None,
        local: bool = False,
    ) -> Crew:
        """Listen, print the line to paste on each worker's machine, and wait until `num_workers` are here.

        `host` is the address to listen on (None: all interfaces), `port` is MODEL_PORT or 1024, and 0 picks a free
        one. `invite` is a line of this boss that the workers hold already; None makes a new one. ``local=True`` starts
        the workers here, as processes of this machine. Unreachable after `timeout` seconds (None: the setting
        network.wait_timeout, by default for ever).
        """
        settings = load()
        if num_workers < 1:
            raise UsageError(f"num_workers={num_workers}: a pipeline needs at least one")
        if port is None:
            port = DEFAULT_PORT if settings.model.port is None else settings.model.port
        seconds = settings.network.wait_timeout if timeout is None else timeout
        crew = Crew(
            num_workers,
            "127.0.0.1" if local and host is None else host,
            port,
            read_invite(invite) if invite else None,
        )
        await asyncio.to_thread(crew.open)
        try:
            if local:
                processes = LocalWorkers()
                crew.at_close(processes.close)
                processes.start(crew.invite, [None] * num_workers)
            else:
                line = f"manyhands worker {crew.invite}"
                print(f"Paste this on each worker's machine:\n\n    {line}\n", flush=True)  # noqa: T201
            await asyncio.to_thread(crew.wait, num_workers, seconds)
        except BaseException:
            await asyncio.to_thread(crew.close)
            raise
        return crew

    # ---- setting up ----

    async def distribute_model(self) -> None:
        """Cut the model and build each part on its worker. A module whose shapes only a batch tells waits for one."""
        await self._crew.run(self._deployment.distribute())

    async def send_optimizer(
        self, optimizer: type[torch.optim.Optimizer], options: Mapping[str, Any]
    ) -> None:
        """Give every worker this optimizer of torch.optim for its own parameters."""
        await self._crew.run(self._deployment.set_optimizer(optimizer, options))

    def gather_dependencies(self) -> dict[str, list[int]]:
        """The edges that pass over at least one cut: their names, with the stages that take them.

        A module is cut when its first batch has told the shapes; until then there are none.
        """
        return self._crew.call(self._deployment.dependencies())

    # ---- a step by hand ----

    async def forward(self, x: Tensor, extra: Mapping[str, Tensor] | None = None) -> Tensor:
        """The prediction: a leaf that collects ``.grad`` where gradients are on. `extra` holds named further inputs."""
        retains = torch.is_grad_enabled()
        prediction, _ = await self._crew.run(self._run.forward(x, extra or {}, retains=retains))
        return prediction.requires_grad_(retains and prediction.is_floating_point())

    async def backward(self, gradient: Tensor | None) -> None:
        """Send the gradient of the last prediction back through every stage."""
        if gradient is None:
            raise UsageError(
                "gradient is None: call loss.backward() first, then boss.backward(prediction.grad)"
            )
        await self._crew.run(self._run.backward(gradient))

    async def optim_step(self) -> None:
        """Step every stage's optimizer, and forget the gradients."""
        await self._crew.run(self._run.step())

    async def train_batch(
        self,
        x: Tensor,
        y: Any,
        loss_fn: Any,
        *,
        micro_batches: int = 8,
        schedule: str = "1f1b",
        extra: Mapping[str, Tensor] | None = None,
    ) -> float:
        """Forward, loss, backward and step over one batch, cut into micro-batches; the mean loss."""
        return await self._crew.run(self._run.train(x, y, loss_fn, micro_batches, schedule, extra or {}))

    def plain(self) -> Plain:
        """The model as a module for a plain training loop: ``loss.backward()`` drives the workers."""
        return Plain(self._crew, self._deployment, self._run)

    # ---- around it ----

    async def model_train(self) -> None:
        """Train mode: dropout draws, BatchNorm counts."""
        await self._crew.run(self._deployment.set_mode(training=True))

    async def model_eval(self) -> None:
        """Evaluation mode."""
        await self._crew.run(self._deployment.set_mode(training=False))

    async def set_lr(self, lr: float) -> None:
        """The learning rate of every stage, from the next step on."""
        await self._crew.run(self._run.set_rate(lr))

    async def clip_grad_norm_(self, max_norm: float) -> float:
        """Scale all gradients so that their norm, over the whole model, is at most `max_norm`; the norm before."""
        return await self._crew.run(self._run.clip(max_norm))

    async def state_dict(self) -> dict[str, Tensor]:
        """All parameters and buffers by their original names, on the CPU."""
        return await self._crew.run(self._deployment.state_dict())

    async def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put these weights onto the workers. UsageError naming what is missing, unknown or of another shape."""
        await self._crew.run(self._deployment.load_state_dict(state))

    async def save(self, path: str | Path) -> Path:
        """Write a checkpoint under `path`: weights, optimizer state and where the run stands; its folder."""
        return await self._crew.run(self._deployment.save(Path(path)))

    async def resume(self, path: str | Path) -> None:
        """Go on from the newest whole checkpoint under `path`, on however many workers there are now."""
        await self._crew.run(self._deployment.resume(Path(path)))

    async def node_mem_clear(self) -> None:
        """Free what workers keep of forwards that had no backward, and the caches of their devices."""
        await self._crew.run(self._run.clear())

    async def get_worker_mem_stats(self) -> list[dict[str, Any]]:
        """One row a worker: its name, device, layers, bytes of its stages, and free memory."""
        return await self._crew.run(self._deployment.memory())

    def get_model_stats(self) -> list[dict[str, Any]]:
        """One row a layer: its name, worker, number of parameters, what it takes and makes."""
        return self._crew.call(self._deployment.layers())

    async def close(self) -> None:
        """Let the workers go."""
        await asyncio.to_thread(self._crew.close)
