"""A node's side of one connection: greeting, probe, then one lease after another.

Turns the uplink's inbox into leases with everything they need (weights, batches) in place. What is done with
a lease, by :class:`~manyhands.pool.lane.Lane` or by a loop of the user's, is the caller's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manyhands.errors import BadSample, Mismatch, ProtocolError, Refused
from manyhands.fleet import messages as m
from manyhands.fleet.tree import level_of
from manyhands.fleet.uplink import Lost, Uplink
from manyhands.pool.data import Source
from manyhands.pool.lane import Lane, LaneSpec
from manyhands.pool.program import ProgramObjective, machine_limits, receive_program
from manyhands.pool.work import SumReady
from manyhands.tensors import frame
from manyhands.tensors.memory import bytes_of
from manyhands.training import criteria, numerics
from manyhands.training.batch import Batch
from manyhands.training.buffers import Fold
from manyhands.training.objective import Objective
from manyhands.training.packing import StatePacking, SumPacking
from manyhands.training.state import ModelState
from manyhands.wire.transfer import Body

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offer:
    """What a node brings: its model (and data), its name and its device."""

    model: torch.nn.Module | None
    criterion: Any
    dataset: Any
    device: torch.device
    name: str
    release: str
    manual: bool = False
    wants_compression: bool = False


@dataclass(frozen=True)
class Proof:
    """What this node was asked at the door, and what it answered: whoever computes with it must answer the same."""

    probe: m.Probe
    batches: tuple[Batch, ...]
    digest: str


class _OverError(Exception):
    """The run ended while this node was at the door."""


class Engagement:
    """One node, one connection, one run."""

    def __init__(self, offer: Offer, uplink: Uplink) -> None:
        self._offer = offer
        self._uplink = uplink
        self._trims: dict[int, tuple[int, ...]] = {}
        self._batches: dict[tuple[int, int], Batch] = {}
        self._source: Source | None = None
        self._over: m.Finished | None = None
        self._version = -1
        self._sum_packing: SumPacking | None = None
        self._state_packing: StatePacking | None = None
        self.welcome: m.Welcome
        self.lane: Lane
        self.program: Tensor | None = None
        """The bytes of the program that came; None: the node brought a model."""
        self.proof: Proof

    def _urgent(self, message: m.FromCoordinator) -> None:
        """On the reader's thread: note a trim at once, for the lease that is being computed."""
        if isinstance(message, m.Trimmed):
            self._trims[message.lease] = message.keep
        elif isinstance(message, m.Finished):
            self._over = message

    # ---- greeting ----

    def greet(self) -> None:
        """Hello, the whole state, the probe. Mismatch and Refused say why it ends here.

        A run that ends meanwhile is what `next_lease` returns.
        """
        self._uplink.start(self._urgent)
        offer = self._offer
        rows: list[m.TensorRow] | None = None
        trainable: list[str] = []
        if offer.model is not None:
            state = ModelState(offer.model)
            rows = [(s.name, str(s.dtype).removeprefix("torch."), s.shape) for s in state.layout().specs]
            trainable = list(state.trainable)
        self._uplink.send(
            m.Hello(
                m.PROTOCOL,
                offer.release,
                offer.name,
                str(offer.device),
                os.cpu_count() or 1,
                offer.manual,
                rows,
                trainable,
                criteria.describe(offer.criterion),
                len(offer.dataset) if offer.dataset is not None else None,
                offer.wants_compression,
            )
        )
        try:
            self._settle_in()
        except _OverError:
            logger.info("the run ended while this node joined it")

    def _settle_in(self) -> None:
        self.welcome = self._expect(m.Welcome)[0]
        self._settle(self.welcome)
        _, body = self._expect(m.Everything)
        everything = self.lane.state.layout()
        if body.num_bytes != everything.num_bytes:
            raise ProtocolError(
                f"the whole state has {body.num_bytes} bytes where this model has {everything.num_bytes}"
            )
        self._probe()
        self.lane.state.write(everything, body.to_tensor())
        self.lane.moving.attach()
        self.lane.state_arrived()

    def _settle(self, welcome: m.Welcome) -> None:
        offer = self._offer
        for note in welcome.notes:
            logger.warning("%s", note)
        if welcome.threads <= (os.cpu_count() or 1) and offer.device.type == "cpu":
            torch.set_num_threads(welcome.threads)
        if welcome.data == "local":
            if offer.dataset is None:
                raise Mismatch(
                    'this run reads its data on the nodes (data="local"): give TrainingNode dataset=...'
                )
            self._source = Source(offer.dataset, None, welcome.seed)
        state, objective = self._model(welcome)
        folds = {name: Fold(fold) for name, fold in welcome.folds.items()}
        missing = set(folds) - set(state.buffers)
        if missing:
            raise ProtocolError(
                f"the run mutates buffers that this model does not have: {', '.join(sorted(missing))}"
            )
        self.lane = Lane(state, objective, LaneSpec(welcome.seed, welcome.precision, folds))

    def _model(self, welcome: m.Welcome) -> tuple[ModelState, Objective]:
        """What this node computes with: the model it brought, or the run's program."""
        offer = self._offer
        if offer.model is None:
            _, body = self._expect(m.Program)
            self.program = body.to_tensor()
            program = receive_program(bytes_of(self.program), machine_limits(), offer.device)
            return ModelState(program), ProgramObjective()
        criterion = criteria.settle(welcome.criterion, offer.criterion)
        if isinstance(criterion, torch.nn.Module):
            criterion.to(offer.device)
        return ModelState(offer.model, criterion), Objective(criterion)

    def _probe(self) -> None:
        probe = self._expect(m.Probe)[0]
        batches = [(self._take_batch(probe.step, leaf), weight) for leaf, weight in enumerate(probe.weights)]
        digest = numerics.probe(
            self.lane.state,
            self.lane.objective,
            self.lane.gradients,
            batches,
            seed=probe.seed,
            precision=self.welcome.precision,
        )
        self.proof = Proof(probe, tuple(batch for batch, _ in batches), digest)
        self._uplink.send(m.Probed(numerics.fingerprint(self._offer.device), digest))

    def _expect(self, kind: type[Any]) -> tuple[Any, Any]:
        while True:
            item = self._next()
            if isinstance(item[0], kind):
                return item
            if isinstance(item[0], m.Finished):
                raise _OverError
            if self._keep(*item) is not None:
                raise ProtocolError(
                    f"the coordinator sent {type(item[0]).__name__} where {kind.__name__} comes"
                )

    # ---- leases ----

    def next_lease(self) -> m.Granted | m.Finished:
        """Wait for the next lease, or the end; state and batches that come before it are put in place."""
        while True:
            if self._over is not None:
                return self._over
            message = self._keep(*self._next())
            if isinstance(message, m.Finished):
                return message
            if isinstance(message, m.Granted) and self._trims.get(message.lease) != ():
                self._forget_before(message.step)
                return message

    @property
    def over(self) -> m.Finished | None:
        """How the run ended, once the coordinator has said so."""
        return self._over

    def batch(self, step: int, leaf: int) -> Batch:
        """The data of a leased leaf; it came before the lease."""
        return self._take_batch(step, leaf)

    def trim_of(self, lease: int) -> Sequence[int] | None:
        """What is left of a lease that is being computed; None: all of it."""
        over = self._over is not None or self._uplink.lost.is_set()
        return () if over else self._trims.get(lease)

    def deliver(self, granted: m.Granted, ready: SumReady) -> int:
        """Send a partial sum and take its body back; the bytes that it travels as."""
        partial = ready.partial
        body = self._pack(granted, ready)
        present = partial.present.to_bytes((len(self.lane.gradients.parameters) + 7) // 8, "little")
        self._uplink.deliver(
            lambda transfer: m.Delivered(
                granted.lease,
                granted.incarnation,
                granted.step,
                ready.subtree,
                transfer,
                len(body),
                present,
                ready.leaves,
                body is not partial.buffer.bytes,
            ),
            body,
        )
        self.lane.give_back(partial.buffer)
        return len(body)

    def _pack(self, granted: m.Granted, ready: SumReady) -> memoryview:
        """What is sent of a partial sum: of a unit's, its int8."""
        if level_of(ready.subtree) != granted.unit_level:
            return ready.partial.buffer.bytes
        if self._sum_packing is None:
            self._sum_packing = SumPacking(self.lane.gradients, self.welcome.seed)
        self._sum_packing.pack(ready.partial, granted.step, ready.subtree - (1 << granted.unit_level))
        return self._sum_packing.bytes

    def hand_back(self, granted: m.Granted, error: BaseException) -> m.HandedBack:
        """What to say of a lease that cannot be computed here, and at which leaf and dataset item it failed."""
        reason = f"{type(error).__name__}: {error}"[:500]
        index = error.index if isinstance(error, BadSample) else None
        return m.HandedBack(granted.lease, reason, self.lane.computing, index)

    # ---- the inbox ----

    def _next(self) -> tuple[m.FromCoordinator, Body | None]:
        item = self._uplink.next()
        if isinstance(item, Lost):
            raise item.error
        return item

    def _keep(self, message: m.FromCoordinator, body: Body | None) -> m.FromCoordinator | None:
        """Put what belongs to later leases in its place; returns what is the caller's."""
        if isinstance(message, m.State) and body is not None:
            self._take_state(message, body)
        elif isinstance(message, m.Batch) and body is not None:
            self._batches[message.step, message.leaf] = frame.decode(body.to_tensor())
        elif isinstance(message, m.SmallBatch):
            self._batches[message.step, message.leaf] = frame.decode(message.frame)
        elif isinstance(message, m.Indices):
            self._load_later(message)
        elif isinstance(message, m.Told):
            self._told(message)
        elif not isinstance(message, m.Trimmed):
            return message
        return None

    def _take_state(self, message: m.State, body: Body) -> None:
        """The weights of the next step: whole, or the change from those that are held."""
        moving = self.lane.moving
        if message.packed and self._state_packing is None:
            self._state_packing = StatePacking(moving)
        packing = self._state_packing if message.packed else None
        num_bytes = moving.layout.num_bytes if packing is None else packing.num_bytes
        if body.num_bytes != num_bytes:
            raise ProtocolError(f"a state of {body.num_bytes} bytes where this model's has {num_bytes}")
        if packing is None:
            body.copy_to(moving.bytes)
        elif self._version != message.version - 1:
            raise ProtocolError(
                f"the change to version {message.version} of the weights came, and this node holds {self._version}"
            )
        else:
            packing.apply(body.to_tensor(), moving.body)
        self._version = message.version
        self.lane.state_arrived()

    def _load_later(self, message: m.Indices) -> None:
        if self._source is None:
            raise ProtocolError("the coordinator sent indices, and this node was given no dataset")
        self._batches[message.step, message.leaf] = (self._source, message)

    def _told(self, message: m.Told) -> None:
        logger.warning("the coordinator says: %s", message.text)
        if message.benched:
            raise Refused(message.text)

    def _take_batch(self, step: int, leaf: int) -> Batch:
        batch = self._batches.get((step, leaf))
        if batch is None:
            raise ProtocolError(f"leaf {leaf} of step {step} was leased without its data")
        if isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[1], m.Indices):
            source, where = batch
            return source.load(where.epoch, where.indices)
        return batch

    def _forget_before(self, step: int) -> None:
        for key in [key for key in self._batches if key[0] < step]:
            del self._batches[key]
        for lease in list(self._trims)[:-16]:
            del self._trims[lease]
