"""Batches on their way to a CUDA device: copied on a stream of their own, the next one while this one is used.

::

    host (pinned)  batch n+1 ──copy stream──► device      beside the computation with batch n
    computing stream waits for the copy of n, not for that of n+1

The host's memory must stay as it is until a copy has finished, so it is held here until then. The tensors that come
out have their own dtypes again: what travelled narrow is widened on the device.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from manyhands.split.jobs import Made
from manyhands.split.narrow import widen
from manyhands.training.batch import to_device


class Staging:
    """Copies for one device; used by one thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._begun: dict[int, tuple[Made, torch.cuda.Event]] = {}
        self._held: deque[tuple[torch.cuda.Event, Made]] = deque()

    def begin(self, serial: int, made: Made) -> None:
        """Start the copy of batch `serial`; nothing is done where it was started before."""
        if serial in self._begun or made.batch is None:
            return
        with torch.cuda.stream(self._stream):
            batch = widen(to_device(made.batch, self._device), made.widths)
            copied = self._stream.record_event()
        self._held.append((copied, made))
        self._begun[serial] = dataclasses.replace(made, batch=batch, widths=()), copied

    def take(self, serial: int, made: Made) -> Made:
        """Batch `serial` on the device, for the current stream."""
        self._let_go()
        if made.batch is None:
            return made
        self.begin(serial, made)
        staged, copied = self._begun.pop(serial)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(copied)
        _record(staged.batch, computing)
        return staged

    def forget(self) -> None:
        """Batches that were begun will not be taken."""
        self._begun.clear()

    def _let_go(self) -> None:
        while self._held and self._held[0][0].query():  # type: ignore[no-untyped-call]
            self._held.popleft()


def _record(batch: Any, stream: torch.cuda.Stream) -> None:
    """Keep the allocator from giving a tensor's memory to the copying stream while the other one reads it."""
    if isinstance(batch, Tensor):
        batch.record_stream(stream)
    elif isinstance(batch, Mapping):
        for value in batch.values():
            _record(value, stream)
    elif isinstance(batch, tuple | list):
        for value in batch:
            _record(value, stream)
