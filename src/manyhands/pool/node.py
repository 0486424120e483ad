"""``TrainingNode``: lends this process and its model to a coordinator.

``train()`` works until the run ends, and comes back by itself when the coordinator does. ``connect``,
``get_batch``, ``send_gradients`` and ``close`` are the same work by hand, for a loop of the caller's own.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from manyhands.clock import Clock, SystemClock
from manyhands.errors import BadSample, ManyhandsError, RunFailed, Unreachable, UsageError
from manyhands.fleet import messages as m
from manyhands.fleet import tree
from manyhands.fleet.dialling import DEFAULT_ADDRESS, Dialler, Dials, Streams
from manyhands.fleet.signals import Signals
from manyhands.fleet.uplink import Stream, Uplink
from manyhands.observe.rates import format_duration
from manyhands.observe.waiting import Waiting, tell
from manyhands.pool.byhand import by_name, in_order
from manyhands.pool.engagement import Engagement, Offer
from manyhands.pool.lane import Batches, Keep
from manyhands.pool.meter import LeaseMeter
from manyhands.pool.program import memory_bytes
from manyhands.pool.work import LeafBroken, LeafReady, Output, SumReady
from manyhands.release import __version__
from manyhands.settings import load
from manyhands.tensors.memory import keep_freed_memory
from manyhands.training.device import pick_device
from manyhands.wire.backoff import delays

logger = logging.getLogger(__name__)

LossCallback = Callable[[float, int], Any]
NetworkCallback = Callable[..., Any]


class TrainingNode:
    """One node of a pool.

    ``server_address`` is ``(host, port)`` or ``"host:port"``; one given in code beats the invite's.
    ``device=None`` is CUDA, MPS or CPU, in this order. ``criterion=None`` takes the coordinator's.
    ``optimizer_class`` and its arguments act where nodes step locally, and are only named in a synchronous
    run. ``invite`` is an ``mh://`` line or ``@file``.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        server_address: tuple[str, int] | str = DEFAULT_ADDRESS,
        secure: bool = True,
        collect_metrics: bool = False,
        compress_gradients: bool = False,
        device: str | torch.device | None = None,
        criterion: Any = None,
        optimizer_class: type[torch.optim.Optimizer] | None = None,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        *,
        invite: str | None = None,
        dataset: Any = None,
        name: str | None = None,
    ) -> None:
        self.model = model
        self._collect_metrics = collect_metrics
        self._compress = compress_gradients
        self._device = device
        self._criterion = criterion
        self._optimizer = (optimizer_class, optimizer_kwargs)
        self._dataset = dataset
        self._name = name or socket.gethostname()
        self._clock: Clock = SystemClock()
        self._stopping = threading.Event()
        self._trainer: threading.Thread | None = None
        self._dialler: Dials = Dialler(server_address, invite, secure=secure)
        self._connection: Streams | None = None
        self._uplink: Uplink | None = None
        self._engagement: Engagement | None = None
        self._leases: dict[int, m.Granted] = {}
        self._meter = LeaseMeter(self._clock)

    # ---- the whole job ----

    def train(
        self, loss_callback: LossCallback | None = None, network_callback: NetworkCallback | None = None
    ) -> None:
        """Compute leases until the run ends.

        ``loss_callback(loss, batch_id)`` after each micro-batch; ``network_callback(sent_bytes=,
        received_bytes=, comp_time=, net_time=, original_size=, compressed_size=)`` after each lease, in bytes
        and seconds. A lost coordinator is dialled again for as long as the patience of the settings; then
        Unreachable. Refused says why this node may not take part.
        """
        threads = torch.get_num_threads()
        self._stopping.clear()
        self._trainer = threading.current_thread()
        try:
            self._say_what_does_not_act()
            with Signals(self.stop, "handing back what is leased") as signals:
                self._train(loss_callback, network_callback)
            signals.end()
        finally:
            torch.set_num_threads(threads)
            self._trainer = None
            self.close()

    def _train(self, loss_callback: LossCallback | None, network_callback: NetworkCallback | None) -> None:
        """Join, serve, and join again, until the run is over or this node is stopped."""
        waiting, has_joined = Waiting(self._clock), False
        waits = delays(random.Random(os.getpid()))
        while not self._stopping.is_set():
            try:
                self._connect(manual=False)
                waits, has_joined = delays(random.Random(os.getpid())), True
                waiting.over()
                self._say_joined()
                if self._serve(loss_callback, network_callback):
                    return
            except Unreachable as error:
                if not self._stopping.is_set():
                    self._wait_or_give_up(error, waiting, next(waits), has_joined=has_joined)
            except ManyhandsError:
                if not self._stopping.is_set():  # a goodbye may overtake a sum that was about to be sent
                    raise
            finally:
                self._disconnect()

    def _say_joined(self) -> None:
        welcome = getattr(self._engagement, "welcome", None)
        if isinstance(welcome, m.Welcome):
            tell(f"joined {welcome.run} as {self._name}")

    def stop(self) -> None:
        """Let `train` end: the leaf in hand is dropped, the lease goes to another node. From any thread, at once."""
        self._stopping.set()
        uplink = self._uplink
        if uplink is not None:
            with suppress(ManyhandsError):  # a stream that has ended meanwhile needs no goodbye
                uplink.leave("it was stopped")

    def _wait_or_give_up(
        self, error: Unreachable, waiting: Waiting, seconds: float, *, has_joined: bool
    ) -> None:
        network = load().network
        limit = network.patience_hours * 3600.0
        if not has_joined and network.wait_timeout is not None:
            limit = network.wait_timeout
        away = waiting.seconds
        if away + seconds > limit:
            raise Unreachable(
                f"the coordinator has been away for {format_duration(away)}: {error}"
            ) from error
        waiting.say(
            f"waiting for the coordinator ({error}): start it there; trying again for {format_duration(limit - away)}"
        )
        self._stopping.wait(seconds)

    def _serve(self, loss_callback: LossCallback | None, network_callback: NetworkCallback | None) -> bool:
        """Lease after lease; True when the run is over, False when the coordinator asks to come back."""
        engagement = self._require_engagement()
        while True:
            granted = engagement.next_lease()
            if isinstance(granted, m.Finished):
                return self._ended(granted)
            try:
                self._compute(engagement, granted, loss_callback)
            except Unreachable:
                if engagement.over is None:
                    raise
                return self._ended(engagement.over)  # it ended while this node was computing
            except (
                BadSample
            ) as error:  # the coordinator decides: quarantine, stop, or this copy is not the run's
                logger.warning("%s", error)
                self._require_uplink().send(engagement.hand_back(granted, error))
            except BaseException as error:
                self._hand_back(granted, error)
                raise
            if network_callback is not None:
                network_callback(**self._meter.lap(self._require_uplink()))

    def _compute(
        self, engagement: Engagement, granted: m.Granted, loss_callback: LossCallback | None
    ) -> None:
        uplink, per_step = self._require_uplink(), engagement.welcome.micro_batches
        outputs = self._outputs(
            engagement,
            granted,
            lambda leaf: engagement.batch(granted.step, leaf),
            lambda: () if self._stopping.is_set() else engagement.trim_of(granted.lease),
        )
        told: set[int] = set()
        for output in outputs:
            if isinstance(output, LeafReady):
                uplink.send(m.Computed(granted.lease, granted.incarnation, output.done))
                done = [output.done]
            elif isinstance(output, SumReady):
                sent_bytes = engagement.deliver(granted, output)
                self._meter.delivered(output.partial.buffer.body.numel(), sent_bytes)
                done = [leaf for leaf in output.leaves if leaf.leaf not in told]
            else:
                uplink.send(_not_finite(granted, output))
                continue
            for leaf in done:
                told.add(leaf.leaf)
                self._meter.computed(leaf.seconds)
                if loss_callback is not None and leaf.loss is not None:
                    loss_callback(leaf.loss, granted.step * per_step + leaf.leaf)

    def _outputs(
        self, engagement: Engagement, granted: m.Granted, batches: Batches, keep: Keep
    ) -> Iterator[Output]:
        """What comes of a lease; a node of several processes shares it among them."""
        return engagement.lane.run(granted, batches, keep)

    def _hand_back(self, granted: m.Granted, error: BaseException) -> None:
        """Another node can have the lease at once; the error is this node's own."""
        try:
            back = self._require_engagement().hand_back(granted, error)
            self._require_uplink().send(back, m.Leaving(back.reason))
            self._require_uplink().finish()
        except ManyhandsError:
            logger.debug("the stream has ended; the coordinator takes the lease back by itself")

    def _ended(self, finished: m.Finished) -> bool:
        if finished.retry:
            logger.info("the coordinator asks to come back: %s", finished.reason)
            self._clock.sleep(0.2)
            return False
        if not finished.ok:
            raise RunFailed(f"the run ended: {finished.reason}")
        return True

    # ---- by hand ----

    def connect(self) -> TrainingNode:
        """Join the run for a loop of the caller's own; returns self."""
        try:
            self._say_what_does_not_act()
            self._connect(manual=True)
        except BaseException:
            self.close()
            raise
        return self

    def get_batch(self) -> Any:
        """Lease one micro-batch; the current weights are in ``model`` when it returns. None at the end of the
        run.

        A dict with ``batch_id`` and the item's keys (``inputs`` and ``targets`` for tuples); with
        ``collect_metrics``, a pair of it and a dict of figures.
        """
        engagement = self._require_engagement()
        self._meter.start()
        while (
            self._leases
        ):  # a node holds one lease: what the loop skipped goes to another node, or comes again
            _, skipped = self._leases.popitem()
            self._require_uplink().send(m.HandedBack(skipped.lease, "the node's own loop asked for another"))
        granted = engagement.next_lease()
        if isinstance(granted, m.Finished):
            if not granted.ok:
                raise RunFailed(f"the run ended: {granted.reason}")
            return (None, self._meter.lap(self._require_uplink())) if self._collect_metrics else None
        leaf = tree.span(granted.subtrees[0], granted.depth).start
        batch_id = granted.step * engagement.welcome.micro_batches + leaf
        self._leases[batch_id] = granted
        engagement.lane.begin_leaf(granted.step, leaf)
        batch = {"batch_id": batch_id, **by_name(engagement.batch(granted.step, leaf))}
        return (batch, self._meter.lap(self._require_uplink())) if self._collect_metrics else batch

    def send_gradients(
        self, gradients: Sequence[Tensor | None] | Mapping[str, Tensor | None], batch_id: int
    ) -> Any:
        """Deliver the mean gradients of a leased micro-batch.

        A list in ``parameters()`` order (None where there is none) or a dict by name. UsageError for a batch
        that is not leased, or for other names or shapes. Returns figures with ``collect_metrics``, else None.
        """
        engagement = self._require_engagement()
        granted = self._leases.get(batch_id)
        if granted is None:
            raise UsageError(
                f"batch {batch_id} is not leased to this node: it was sent before, or get_batch gave "
                "another id"
            )
        ordered = in_order(gradients, dict(engagement.lane.state.parameters))
        del self._leases[batch_id]  # only now: after a UsageError the caller may try again
        leaf, weight = granted.weights[0]
        partial = engagement.lane.sum_of(ordered, weight)
        seconds = self._meter.seconds_since_start()
        self._meter.computed(seconds)
        done = m.LeafDone(leaf, None, seconds)
        sent_bytes = engagement.deliver(granted, SumReady(granted.subtrees[0], partial, [done]))
        self._meter.delivered(partial.buffer.body.numel(), sent_bytes)
        return self._meter.lap(self._require_uplink()) if self._collect_metrics else None

    def close(self) -> None:
        """Leave the run; a lease that is held goes to another node. From another thread, ends `train`."""
        if self._trainer is not None and self._trainer is not threading.current_thread():
            self.stop()
            return
        if self._uplink is not None and not self._uplink.lost.is_set():
            with suppress(ManyhandsError):  # a stream that has ended meanwhile needs no goodbye
                self._uplink.send(m.Leaving("the node's own loop closed"))
                self._uplink.finish()  # what was sent before still goes out
        self._leases.clear()
        self._disconnect()
        self._dialler.release()

    # ---- connection ----

    def _say_what_does_not_act(self) -> None:
        if self._optimizer[0] is not None:
            logger.warning(
                "optimizer_class acts where nodes step locally; this run's optimizer is the coordinator's"
            )

    def _connect(self, *, manual: bool) -> None:
        if self.model is None and manual:
            raise UsageError("a loop of your own computes with its own model: give TrainingNode(model=...)")
        keep_freed_memory()
        device = pick_device(self._device)
        if self.model is not None:
            self.model.to(device)
        if isinstance(self._criterion, nn.Module):
            self._criterion.to(device)
        offer = Offer(
            self.model,
            self._criterion,
            self._dataset,
            device,
            self._name,
            __version__,
            manual,
            self._compress,
        )
        self._connection = self._dialler.dial()
        limit = _body_limit(self.model)
        self._uplink = Uplink(self._open_stream(self._connection), max_body_bytes=limit)
        self._engagement = Engagement(offer, self._uplink)
        self._engagement.greet()
        self._meter.start()

    def _open_stream(self, connection: Streams) -> Stream:
        """The stream to the coordinator; a test's node puts one that fails on purpose in its place."""
        return connection.stream()

    def _disconnect(self) -> None:
        if self._engagement is not None and hasattr(self._engagement, "lane"):
            self._engagement.lane.moving.detach()
        if self._uplink is not None:
            self._uplink.close()
        if self._connection is not None:
            self._connection.close()
        self._engagement = self._uplink = self._connection = None

    def _require_engagement(self) -> Engagement:
        if self._engagement is None:
            raise UsageError("this node is not connected: call connect() first")
        return self._engagement

    def _require_uplink(self) -> Uplink:
        assert self._uplink is not None
        return self._uplink


def _not_finite(granted: m.Granted, broken: LeafBroken) -> m.NotFinite:
    return m.NotFinite(granted.lease, granted.incarnation, broken.leaf, broken.digest, broken.where)


def _body_limit(model: nn.Module | None) -> int:
    """No body from a coordinator is larger than the whole model, or a batch of 256 MiB; of a model that is only
    coming, than an eighth of this machine's memory.
    """
    if model is None:
        return max(memory_bytes() // 8, 1 << 28)
    tensors = [*model.parameters(), *model.buffers()]
    return max(sum(t.numel() * t.element_size() + 64 for t in tensors) + (1 << 16), 1 << 28)
