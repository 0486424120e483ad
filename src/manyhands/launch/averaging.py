"""DDP for devices that Gloo and NCCL do not know (MPS): gradients are averaged on the CPU, after each backward.

::

    backward ──▶ gradients on the device ──▶ one flat CPU tensor a dtype ──all-reduce──▶ back, divided

Nothing overlaps with backward, unlike DDP. A parameter that got no gradient on one rank counts as zero there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


class StagedAverage(nn.Module):
    """A module whose gradients are, after each backward, the mean over all ranks. The module is `.module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._is_queued = False
        self._is_syncing = True
        _send_from_main([*module.parameters(), *module.buffers()])
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._on_gradient)  # type: ignore[no-untyped-call]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The module's own."""
        return self.module(*inputs, **named)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Only accumulate, as DDP's `no_sync`; the next backward outside averages all."""
        before, self._is_syncing = self._is_syncing, False
        try:
            yield
        finally:
            self._is_syncing = before

    def _on_gradient(self, _: Tensor) -> None:
        """The first gradient of a backward: be called when it has ended."""
        if self._is_syncing and not self._is_queued:
            self._is_queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._average)

    @torch.no_grad()
    def _average(self) -> None:
        self._is_queued = False
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        for same in _by_dtype(trained):
            for parameter in same:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in same if parameter.grad is not None]
            flat = _flatten_dense_tensors([gradient.cpu() for gradient in gradients])  # type: ignore[no-untyped-call]
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            means = _unflatten_dense_tensors(flat, gradients)  # type: ignore[no-untyped-call]
            for gradient, mean in zip(gradients, means, strict=True):
                gradient.copy_(mean)


def _by_dtype(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_dtype.setdefault(parameter.dtype, []).append(parameter)
    return list(by_dtype.values())


@torch.no_grad()
def _send_from_main(tensors: list[Tensor]) -> None:
    """All ranks begin with the tensors of rank 0."""
    for tensor in tensors:
        staged = tensor.detach().cpu().contiguous()
        dist.broadcast(staged, 0)
        tensor.copy_(staged)
