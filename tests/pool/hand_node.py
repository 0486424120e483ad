"""A node made by hand on the real wire: joins and computes honestly, and answers as it likes."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import nn

from manyhands.fleet import messages as m
from manyhands.fleet.uplink import Item, Lost, Uplink
from manyhands.pool.engagement import Engagement, Offer
from manyhands.pool.server import CentralServer
from manyhands.pool.work import SumReady
from manyhands.tensors.memory import bytes_of
from manyhands.wire import NodeKey, dial
from manyhands.wire.envelope import pack
from manyhands.wire.invite import Invite


class HandNode:
    """Joined when made."""

    def __init__(self, server: CentralServer, model: nn.Module, name: str = "hand") -> None:
        self._connection = dial(Invite.parse(server.invite), key=NodeKey.temporary())
        self.stream = self._connection.stream()
        self.uplink = Uplink(self.stream, max_body_bytes=1 << 24)
        self.engagement = Engagement(Offer(model, None, None, torch.device("cpu"), name, "0"), self.uplink)
        self._transfers = 1000

    def __enter__(self) -> HandNode:
        try:
            self.engagement.greet()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.uplink.close()
        self._connection.close()

    def lease(self) -> m.Granted:
        """The next lease, with its weights and batches in place."""
        granted = self.engagement.next_lease()
        assert isinstance(granted, m.Granted)
        return granted

    def compute(self, granted: m.Granted, *subtrees: int) -> list[SumReady]:
        """The sums of a lease, or of these subtrees of it."""
        part = msgspec.structs.replace(granted, subtrees=subtrees or granted.subtrees)
        lane = self.engagement.lane
        outputs = list(lane.run(part, lambda leaf: self.engagement.batch(part.step, leaf), lambda: None))
        return [output for output in outputs if isinstance(output, SumReady)]

    def deliver(self, granted: m.Granted, ready: SumReady, **changes: Any) -> None:
        """Send a sum; `changes` are fields of its `Delivered` that say something else."""
        body = bytes_of(ready.partial.buffer.body)
        self.uplink.deliver(lambda number: self.message(granted, ready, transfer=number, **changes), body)

    def message(self, granted: m.Granted, ready: SumReady, **changes: Any) -> m.Delivered:
        """What announces a sum; its transfer's number is new unless given."""
        self._transfers += 1
        honest = m.Delivered(
            granted.lease,
            granted.incarnation,
            granted.step,
            ready.subtree,
            self._transfers,
            ready.partial.buffer.body.numel(),
            ready.partial.present.to_bytes(1, "little"),
            ready.leaves,
        )
        return msgspec.structs.replace(honest, **changes)

    def send(self, control: Any, transfer: int, offset: int, payload: bytes) -> None:
        """One envelope, with the bytes of a transfer where they do not belong."""
        said = b"" if control is None else m.encode(control)
        self.stream.send(pack(said, transfer=transfer, offset=offset, payload=payload))

    def hear(self, kind: type[Any], accept: Callable[[Any], bool] = lambda message: True) -> Any:
        """The next message of a kind; what comes before it is dropped."""
        while True:
            item = self._next()
            assert not isinstance(item, Lost), f"waiting for {kind.__name__}: {item.error}"
            if isinstance(item[0], kind) and accept(item[0]):
                return item[0]

    def end(self) -> BaseException:
        """How the coordinator ends the stream."""
        while True:
            item = self._next()
            if isinstance(item, Lost):
                return item.error

    def _next(self) -> Item:
        try:
            return self.uplink.next()
        except queue.Empty:
            raise AssertionError("the coordinator said nothing for 20 s") from None
