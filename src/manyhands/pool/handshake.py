"""The door of a pool: a node's hello, held against the run's own model; then the probe of its arithmetic.

::

    Hello ──▶ same protocol? same tensors? same criterion? data where it must be? ──▶ Welcome, Everything, Probe
    Probed ─▶ its numeric class; one class only under "strict"                    ──▶ a Member

Each refusal names the first thing that differs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import torch

from manyhands.errors import Mismatch, ProtocolError, Unreachable
from manyhands.fleet import messages as m
from manyhands.fleet.session import Bulk, Session
from manyhands.observe.text import clean_name
from manyhands.pool.job import PROBE_STEP, Job
from manyhands.pool.member import Member
from manyhands.pool.shipping import Shipper
from manyhands.pool.tally import Tally
from manyhands.settings.instructions import announced
from manyhands.tensors.layout import Layout, WireSpec
from manyhands.tensors.memory import bytes_of
from manyhands.training import criteria, numerics
from manyhands.training.state import ModelState
from manyhands.wire.admission import Peer
from manyhands.wire.transfer import Body

PROBE_SECONDS = 900.0
"""How long a node may take to receive the whole state and compute the probe's leaves: a big model, a slow link."""

Said = tuple[m.FromNode, Body | None]


@dataclass
class Door:
    """Lets nodes into one incarnation of a run."""

    job: Job
    run: str
    incarnation: int
    transfers: Callable[[], int]
    step: Callable[[], int]
    tally: Tally
    hello_seconds: float
    shipper: Shipper
    model_lock: asyncio.Lock
    compress: Callable[[], str]
    """The run is asked for int8; what the node is told."""
    _everything_at: tuple[int, Bulk] | None = None

    async def admit(self, peer: Peer, session: Session, said: AsyncIterator[Said]) -> Member:
        """The node behind `session`, ready for leases. Mismatch says why it is not let in."""
        try:
            hello = await asyncio.wait_for(_next(said), self.hello_seconds)
        except TimeoutError:
            raise Unreachable(f"no hello within {self.hello_seconds:g} s") from None
        if not isinstance(hello, m.Hello):
            raise ProtocolError(f"a node's first message is Hello, not {type(hello).__name__}")
        self._check(hello)
        program = [] if hello.model is not None else [await self._program()]
        session.post(self._welcome(hello), *program, self._everything(), *self._probe())
        try:
            probed = await asyncio.wait_for(_next(said), PROBE_SECONDS)
        except TimeoutError:
            raise Unreachable(f"no answer to the probe within {PROBE_SECONDS:g} s") from None
        if not isinstance(probed, m.Probed):
            raise ProtocolError(f"a node answers the probe before {type(probed).__name__}")
        numeric_class = clean_name(numerics.class_name(dict(probed.facts), probed.digest))
        self._check_class(numeric_class, dict(probed.facts))
        classes = set(self.tally.numeric_classes) or {self.job.own_class}
        if numeric_class not in classes:
            session.post(
                m.Told(
                    f"this machine computes other bits ({numeric_class}) than those of the run so far "
                    f"({', '.join(sorted(classes))}); it is welcome, and the report will name both"
                )
            )
        return Member(
            peer,
            session,
            clean_name(hello.name) or peer.key_id[:8],
            clean_name(hello.device),
            numeric_class,
            hello.manual,
        )

    def _check(self, hello: m.Hello) -> None:
        job = self.job
        if hello.protocol != m.PROTOCOL:
            older = "this node" if hello.protocol < m.PROTOCOL else "the coordinator"
            raise Mismatch(
                f"the coordinator speaks protocol {m.PROTOCOL} and this node {hello.protocol} (release "
                f"{hello.release}): "
                f"upgrade {older}"
            )
        if hello.model is None:
            if job.options.data == "local":
                raise Mismatch(
                    'a node without code has no dataset, and this run reads its data on the nodes (data="local"): '
                    "start TrainingNode(model=..., dataset=...) there"
                )
            return
        self._check_model(hello, hello.model)

    def _check_model(self, hello: m.Hello, model: list[m.TensorRow]) -> None:
        job = self.job
        bare = ModelState(job.state.model)
        theirs = Layout.from_wire([WireSpec(*row) for row in model], max_bytes=1 << 40)
        difference = bare.layout().first_difference(theirs)
        if difference is not None:
            raise Mismatch(
                f"the node's model is not the run's (here: coordinator, there: node): {difference}"
            )
        odd = sorted(set(hello.trainable) ^ set(bare.trainable))
        if odd:
            raise Mismatch(f"{odd[0]} has another requires_grad on the node than on the coordinator")
        if hello.criterion is not None and hello.criterion != criteria.describe(job.objective.criterion):
            raise Mismatch(
                f"the node's criterion is {hello.criterion}, the run's "
                f"{criteria.describe(job.objective.criterion)}: "
                "give both the same, or the node none"
            )
        if job.options.data == "local" and hello.dataset_length != job.plan.num_samples:
            whose = (
                "has none" if hello.dataset_length is None else f"has one of {hello.dataset_length} samples"
            )
            raise Mismatch(
                f"the run's dataset has {job.plan.num_samples} samples and the node {whose}: with "
                'data="local" every node gives TrainingNode(dataset=...) the same dataset'
            )

    async def _program(self) -> Bulk:
        """The run's program; nobody else uses the model while it is captured."""
        async with self.model_lock:
            data = self.shipper.program()
        transfer = self.transfers()
        return Bulk.of(m.Program(transfer, len(data)), transfer, data)

    def _welcome(self, hello: m.Hello) -> m.Welcome:
        job = self.job
        notes = list(job.notes)
        if hello.wants_compression:
            notes.append(self.compress())
        return m.Welcome(
            self.run,
            self.incarnation,
            job.options.seed,
            job.options.precision,
            torch.get_num_threads(),
            announced(torch.backends.cpu.get_cpu_capability()),
            {name: fold.value for name, fold in job.master.gradients.folds.items()},
            criteria.describe(job.objective.criterion),
            job.options.data,
            job.plan.num_samples,
            job.plan.num_steps,
            job.plan.micro_batches,
            notes,
        )

    def _everything(self) -> Bulk:
        """The whole state as it is now; packed once for all who join while a step is open."""
        step = self.step()
        if self._everything_at is None or self._everything_at[0] != step:
            layout = self.job.state.layout()
            body = layout.allocate()
            self.job.state.read(layout, body)
            compression = self.job.master.compression
            if compression is not None:
                told = compression.weights.tensors()
                for spec, view in zip(layout.specs, layout.views(body), strict=True):
                    if spec.name in told:
                        view.copy_(told[spec.name])
            transfer = self.transfers()
            bulk = Bulk.of(m.Everything(transfer, layout.num_bytes), transfer, bytes_of(body))
            self._everything_at = step, bulk
        return self._everything_at[1]

    def forget(self) -> None:
        """The weights change: nobody needs what was packed of them."""
        self._everything_at = None

    def _probe(self) -> list[Bulk | m.SmallBatch | m.Indices | m.Probe]:
        items: list[Bulk | m.SmallBatch | m.Indices | m.Probe] = []
        for number, leaf in enumerate(self.job.probe):
            if self.job.options.data == "local":
                items.append(m.Indices(PROBE_STEP, number, 0, list(leaf.indices)))
            elif len(leaf.frame) <= m.SMALL_BYTES:
                items.append(m.SmallBatch(PROBE_STEP, number, leaf.frame))
            else:
                transfer = self.transfers()
                items.append(
                    Bulk.of(m.Batch(PROBE_STEP, number, transfer, len(leaf.frame)), transfer, leaf.frame)
                )
        items.append(m.Probe(self.job.probe_seed, PROBE_STEP, [leaf.weight for leaf in self.job.probe]))
        return items

    def _check_class(self, numeric_class: str, facts: dict[str, str]) -> None:
        if self.job.options.numerics != "strict":
            return
        if self.tally.strict_class is None:
            self.tally.strict_class = numeric_class
        elif numeric_class != self.tally.strict_class:
            raise Mismatch(
                f"this machine computes other bits than the run's ({numeric_class} here, "
                f"{self.tally.strict_class} in the run: "
                f"{', '.join(f'{k}={v}' for k, v in sorted(facts.items()))}), and the run is "
                'numerics="strict"'
            )


async def _next(said: AsyncIterator[Said]) -> m.FromNode:
    async for message, _ in said:
        return message
    raise Unreachable("the node left at the door")
