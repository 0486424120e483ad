"""The coordinator's shell: events from nodes into the lease machine, its instructions back out, step after
step.

::

    feeder ──▶ open step ──▶ Granted, State, Batch ──▶ nodes ──▶ Delivered ──▶ sums ──▶ Complete
                  ▲                                                                        │
                  └──────── journal, checkpoint, validation ◀── master.commit ◀────────────┘

Everything here runs on one event loop, so the machine, the sums and the weights need no locks. What is
decided is decided by the machine (fleet/leases.py); what is computed, by the master (pool/master.py).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

from manyhands.clock import Clock
from manyhands.errors import BadSample, ManyhandsError, NonFinite, ProtocolError, RunFailed
from manyhands.fleet import events as e
from manyhands.fleet import messages as m
from manyhands.fleet.granting import Policy
from manyhands.fleet.leases import LeaseMachine
from manyhands.pool import arriving
from manyhands.pool.arriving import Arrival
from manyhands.pool.data import StepData
from manyhands.pool.handshake import Door
from manyhands.pool.inquiry import Inquiry
from manyhands.pool.job import Job
from manyhands.pool.master import mean_loss
from manyhands.pool.member import Member
from manyhands.pool.openstep import OpenStep
from manyhands.pool.saving import Saver
from manyhands.pool.sending import Sender
from manyhands.pool.shipping import Shipper
from manyhands.pool.sums import StepSum
from manyhands.pool.tally import Tally
from manyhands.pool.visits import Visits
from manyhands.settings import load
from manyhands.store.rows import Quarantine, Refusal, Roster, Row
from manyhands.training.state import weights_sha256
from manyhands.wire.transfer import CHUNK_BYTES, Body, Place

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.05
HASH_EVERY_STEPS = 100
"""How often the ledger notes the weights' hash, so that two runs that differ can be bisected."""


class Coordinator:
    """One incarnation of a run."""

    def __init__(
        self, job: Job, saver: Saver, incarnation: int, step: int, tally: Tally, clock: Clock
    ) -> None:
        self.job = job
        self.saver = saver
        self.step = step
        self.tally = tally
        self.members: dict[str, Member] = {}
        self.loss: float | None = tally.final_loss
        options = job.options
        self.machine = LeaseMachine(
            incarnation,
            # An fp16 overflow is no fault: the step is skipped and the scale lowered.
            Policy(
                on_nonfinite="skip_step" if job.master.scale.is_used else options.on_nonfinite,
                verify=options.verify,
                seed=options.seed,
            ),
        )
        self.quarantined: set[int] = set(job.feeder.quarantined)
        self._before = replace(tally)
        self._clock = clock
        self._sums = StepSum(job.master.gradients)
        self._sender = Sender(job, self.members)
        self.model_lock = asyncio.Lock()
        """Held by whoever runs the model here: a validation, a capture, a second try."""
        self.inquiry = Inquiry(self)
        self._door = Door(
            job,
            saver.run,
            incarnation,
            self._sender.transfer,
            lambda: self.step,
            tally,
            load().network.timeout,
            Shipper(job),
            self.model_lock,
            self.compress_on_request,
        )
        self.visits = Visits(self, self._door, job.master.gradients.layout.num_bytes, clock)
        self._open: OpenStep | None = None
        self._arriving: Arrival | None = None
        self._settled = asyncio.Event()
        self._skip: str | None = None
        self._again = False
        self._failure: ManyhandsError | None = None
        self.is_torn = False
        """Whether the weights are between two steps: an update broke off, and they must not be saved."""

    # ---- steps ----

    async def next_step(self) -> StepData:
        """Lease the next step and return when its sum is complete. RunFailed where it cannot be."""
        audit = False
        while True:
            self._settled.clear()  # before the wait for data: a stop that comes meanwhile must be seen
            self._skip, self._again = None, False
            coming = self.job.feeder.step(self.step)
            data = coming.result() if coming.done() else await asyncio.wrap_future(coming)
            self._raise_failure()
            level = self._unit_level(len(data.leaves))
            self._open = OpenStep(data, is_audited=audit, unit_level=level)
            for index, why in data.quarantined.items():
                self._quarantine(index, why)
            if not data.leaves:
                return data
            compression = self.job.master.compression
            settle = compression.settle(self.step) if compression is not None else None
            self._sums.open(len(data.leaves), level or 0, settle)
            self._apply(e.Open(self.step, len(data.leaves), audit=audit, level=level or 0))
            await asyncio.sleep(0)  # what was granted goes out first
            self.job.feeder.look_ahead(self.step)
            ahead = self.job.feeder.ready(self.step + 1)
            if ahead is not None:
                self._sender.ahead(self.step, ahead)
            await self._settled.wait()
            self._raise_failure()
            if self.opened is not None:
                return data
            audit = audit or self._open.is_audited

    def _unit_level(self, num_leaves: int) -> int | None:
        compression = self.job.master.compression
        return compression.unit_level(num_leaves) if compression is not None and num_leaves else None

    def compress_on_request(self) -> str:
        """What a node that asks for int8 is told; the run changes over where nothing is committed yet."""
        if self.job.master.compression is not None:
            return "this run sends int8, as compress_gradients asks"
        is_untouched = self.machine.step < 0 or self.machine.is_open
        if self.step > 0 or not is_untouched:
            return (
                f"compress_gradients asks for int8, and this run has computed {max(self.step, 1)} steps with fp32 "
                "gradients: it goes on with them. Give CentralServer(compression='int8') for another run"
            )
        self.job.master.compress(self.job.options.seed, self.job.plan.micro_batches)
        if self._open is not None:
            self.once_more("a node asks for int8 gradients, and nothing is committed yet")
        return "this run sends int8 from its first step on, as compress_gradients asks"

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def once_more(self, reason: str) -> None:
        """Give the open step's sums up and lease it anew."""
        logger.warning("step %d is computed again: %s", self.step, reason)
        self._again = True
        self._settled.set()

    def leave_out(self, fault: BadSample) -> None:
        """Leave a sample of the open step out of this epoch, and lease the step anew."""
        self.job.feeder.quarantine(self.step, fault.index)
        self._sender.forget_from(self.step)
        self._quarantine(fault.index, str(fault.__cause__))
        self.once_more(f"sample {fault.index} is left out")

    @property
    def opened(self) -> OpenStep | None:
        """The step that is being computed; None while none is, or while it is given up."""
        return None if self._again else self._open

    async def commit(self, data: StepData) -> float | None:
        """Apply the complete sum (or skip the step); returns the step's loss."""
        opened = self._open
        assert opened is not None
        self._door.forget()
        if self._skip is not None or not data.leaves:
            self._skip_step(data)
            loss = None
        else:
            loss = await self._update(opened)
        self._open = None
        self.step += 1
        self.loss = loss if loss is not None else self.loss
        self.tally.final_loss = self.loss
        return loss

    async def _update(self, opened: OpenStep) -> float | None:
        """One optimizer step; None where its sum overflowed and the run skips such steps."""
        weights = opened.weights()
        divisor = 1.0 if self.job.objective.is_sum else sum(weights.values())
        root = self._sums.pop()
        try:
            push = self._sender.begin_push(self.step + 1)
            self.is_torn = True
            for final_bytes in self.job.master.commit(root, divisor, opened.num_leaves):
                told_bytes = self.job.master.told(final_bytes)
                if push is not None:
                    push.advance(told_bytes)
                    await asyncio.sleep(0)
            self.is_torn = False
            if push is not None:
                push.finish()
        except NonFinite as error:
            self.is_torn = False  # refused before anything was changed
            if self.machine.policy.on_nonfinite != "skip_step":
                raise
            self._skip = str(error)
            self._skip_step(opened.data)
            return None
        finally:
            self._sums.give_back(root.buffer)
        loss = mean_loss(opened.losses, weights, divisor)
        self._record(opened, loss)
        return loss

    def _skip_step(self, data: StepData) -> None:
        self.job.master.skip()
        self.tally.skipped += 1
        reason = self._skip or "every sample of the step is quarantined"
        logger.warning("step %d was skipped: %s", data.plan.step, reason)
        self.saver.journal.record([Refusal(f"step {data.plan.step} skipped: {reason}"[:500], "")])

    def _record(self, opened: OpenStep, loss: float | None) -> None:
        """Credit the step's leaves: who computed which samples, once."""
        step = opened.data.plan
        is_due = step.step % HASH_EVERY_STEPS == HASH_EVERY_STEPS - 1
        weights_hash = weights_sha256(self.job.state.model) if is_due else None
        self.saver.journal.record(opened.rows(self.job.plan, loss, weights_hash))
        for leaf, key, _ in opened.credits:
            samples, member = len(opened.data.leaves[leaf].indices), self.members.get(key)
            self.tally.credit(opened.classes[key], samples)
            if member is not None:
                member.samples += samples
        self.tally.samples_applied += step.num_samples

    def _quarantine(self, index: int, why: str) -> None:
        assert self._open is not None
        self.quarantined.add(index)
        self._note(Quarantine(self._open.data.plan.epoch, index, why[:500]))

    # ---- what the machine wants ----

    def _apply(self, event: e.Event) -> None:
        try:
            for instruction in self.machine.apply(event, self._clock.monotonic()):
                self._do(instruction)
        except Exception as error:
            # The machine has moved on and its shell has not: nothing after this would be exact.
            logger.exception("an instruction of the lease machine failed")
            self.fail(error if isinstance(error, RunFailed) else RunFailed(str(error) or repr(error)))

    def _note(self, row: Row) -> None:
        """Append to the journal; one that cannot be written ends the run, whoever was speaking."""
        try:
            self.saver.journal.record([row])
        except ManyhandsError as error:
            self.fail(error)

    def _do(self, instruction: e.Instruction) -> None:
        match instruction:
            case e.Grant(key, lease):
                member = self.members.get(key)
                if member is not None and self._open is not None:
                    member.refused = 0
                    self._sender.grant(member, lease, self._open.data, self._open.unit_level)
            case e.Cut(key, lease_id, keep):
                self._post(key, m.Trimmed(lease_id, keep))
            case e.Take(key, lease_id, subtree, replaces, leaves):
                assert self._arriving is not None
                assert self._open is not None
                partial, message = self._arriving
                self._arriving = None
                numeric_class = self.members[key].numeric_class  # it may be gone when the step is committed
                self._open.credit(key, numeric_class, lease_id, leaves, message.leaves)
                self._sums.take(subtree, partial, replaces, is_settled=message.packed)
            case e.Complete() | e.SkipStep():
                self._skip = instruction.reason if isinstance(instruction, e.SkipStep) else None
                self._settled.set()
            case e.Stop(reason):
                self.fail(NonFinite(reason))
            case e.Refuse(key, reason):
                self._refuse(key, reason)
            case e.Bench(key, reason):
                self.bench(key, reason)
            case e.Duplicate(key, subtree, verdict):
                if verdict == "differs":
                    self.inquiry.contradicted(key, subtree)
            case e.Audit() | e.Verified():
                logger.debug("%s", instruction)

    def _refuse(self, key: str, reason: str) -> None:
        self._note(Refusal(reason[:500], key))
        self._post(key, m.Told(reason))
        if key in self.members:
            self.members[key].refused += 1

    def bench(self, key: str, reason: str) -> None:
        """Send a node away for good."""
        self._note(Roster(key, self.name_of(key), "benched"))
        logger.warning("node %s is benched: %s", self.name_of(key), reason)
        self._post(key, m.Told(reason, benched=True))

    def _post(self, key: str, message: Any) -> None:
        member = self.members.get(key)
        if member is not None:
            member.session.post(message)

    def name_of(self, key: str) -> str:
        """A node's name, for a person."""
        member = self.members.get(key)
        return member.name if member is not None else key[:8]

    # ---- what nodes say ----

    def joined(self, member: Member) -> None:
        """A node was let in."""
        key = member.peer.key_id
        self.tally.nodes_seen.add(key)
        self._note(Roster(key, member.name, "joined"))
        self._apply(e.Join(key, member.name, member.numeric_class, member.peer.invite_id, member.manual))

    def left(self, member: Member) -> None:
        """A node's stream has ended."""
        self._note(Roster(member.peer.key_id, member.name, "left"))
        self._apply(e.Leave(member.peer.key_id, "its stream ended"))

    def hear(self, member: Member, message: m.FromNode, body: Body | None) -> bool:
        """One message; True when the node says goodbye."""
        key = member.peer.key_id
        match message:
            case m.Delivered() if body is not None:
                self._delivered(member, message, body)
            case m.Computed(lease, incarnation, done):
                member.computing_seconds += done.seconds
                self._apply(e.Receipt(key, incarnation, lease, done.leaf, done.seconds))
            case m.NotFinite(lease, incarnation, leaf, digest, where):
                logger.warning(
                    "node %s: leaf %d of step %d is not finite (%s)", member.name, leaf, self.step, where
                )
                self._apply(e.NonFinite(key, incarnation, lease, leaf, digest))
            case m.HandedBack():
                self._handed_back(member, message)
            case m.Leaving(reason):
                logger.info("node %s leaves: %s", member.name, reason)
                return True
            case _:
                raise ProtocolError(f"a node does not say {type(message).__name__} now")
        return False

    def place_for(self, key: str, message: m.Delivered) -> Place | None:
        """A buffer for a large sum of the open step, where the node holds the lease that it is of."""
        layout = self.job.master.gradients.layout
        if message.packed or message.step != self.step or message.num_bytes != layout.num_bytes:
            return None
        is_leased = self.machine.open_leases().get(message.lease, ("", ()))[0] == key
        return self._sums.buffer() if is_leased and message.num_bytes > CHUNK_BYTES else None

    def _delivered(self, member: Member, message: m.Delivered, body: Body) -> None:
        master, key, opened = self.job.master, member.peer.key_id, self._open
        if opened is not None and message.step == self.step:
            odd = arriving.misfit(message, opened.unit_level)
            if odd is not None:  # also of a lease from before the run changed over
                self._refuse(key, odd)
                return
        packing = master.compression.sums if master.compression is not None else None
        arrival = arriving.receive(master.gradients, self._sums, message, body, packing)
        for done in message.leaves[-1:]:
            member.computing_seconds += done.seconds
            self._apply(e.Receipt(key, message.incarnation, message.lease, done.leaf, done.seconds))
        compares = bool(self.job.options.verify) or (opened is not None and opened.is_audited)
        num_leaves = opened.num_leaves if opened is not None and opened.num_leaves else 1
        self._arriving = arrival
        self._apply(arriving.event_of(arrival, key, body, num_leaves, compares=compares))
        if self._arriving is not None:
            self._sums.give_back(self._arriving.partial.buffer)
            self._arriving = None

    def _handed_back(self, member: Member, message: m.HandedBack) -> None:
        key, opened, leaf = member.peer.key_id, self._open, message.leaf
        logger.warning("node %s handed a lease back: %s", member.name, message.reason)
        is_its_own = self.machine.open_leases().get(message.lease, ("", ()))[0] == key
        self._apply(e.HandBack(key, message.lease, message.reason))
        if leaf is not None and opened is not None and is_its_own and leaf < opened.num_leaves:
            self.inquiry.failed(member, message, leaf)

    # ---- time and ends ----

    async def tick(self) -> None:
        """Let deadlines pass."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            deadline = self.machine.next_deadline()
            if deadline is not None and self._clock.monotonic() >= deadline:
                self._apply(e.Tick())

    def count(self) -> None:
        """Bring the tally up to date with the lease machine's counts."""
        counts, tally = self.machine.counts, self.tally
        tally.leases = self._before.leases + counts.leases
        tally.reissued = self._before.reissued + counts.reissued
        tally.refused = self._before.refused + counts.refused

    def interrupt(self) -> None:
        """Wake whoever waits for the open step."""
        self._settled.set()

    def fail(self, error: ManyhandsError) -> None:
        """End the run at the next opportunity."""
        self._failure = self._failure or error
        self._settled.set()

    @property
    def settled(self) -> asyncio.Event:
        """Set while nobody has to wait for the open step: it is complete, or the run is to end."""
        return self._settled
