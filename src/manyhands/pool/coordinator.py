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
import itertools
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from manyhands.clock import Clock
from manyhands.errors import ManyhandsError, NonFinite, ProtocolError, Refused, RunFailed
from manyhands.fleet import events as e
from manyhands.fleet import messages as m
from manyhands.fleet.granting import Policy
from manyhands.fleet.leases import LeaseMachine
from manyhands.fleet.session import Bulk, Session
from manyhands.fleet.tree import depth_of, is_inside, span
from manyhands.pool.data import StepData
from manyhands.pool.handshake import Door
from manyhands.pool.job import Job
from manyhands.pool.master import mean_loss
from manyhands.pool.member import Member
from manyhands.pool.push import Push, is_worth_it
from manyhands.pool.saving import Saver
from manyhands.pool.sums import StepSum
from manyhands.pool.tally import Tally
from manyhands.store.rows import Commit, Credit, Quarantine, Refusal, Roster, Row
from manyhands.tensors.memory import bytes_of
from manyhands.training.gradients import Partial, witness
from manyhands.wire.admission import Peer, Role
from manyhands.wire.link import Link
from manyhands.wire.transfer import Body

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.05


@dataclass
class OpenStep:
    """The step that is being computed."""

    data: StepData
    batches: dict[int, Bulk]
    losses: dict[int, float | None]
    credits: list[tuple[int, str, int]]


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
        numbers = itertools.count(1)
        self._transfers: Callable[[], int] = lambda: next(numbers)
        self._door = Door(job, saver.run, incarnation, self._transfers)
        self._open: OpenStep | None = None
        self._state: tuple[int, Bulk] | None = None
        self._arriving: tuple[Partial, m.Delivered] | None = None
        self._settled = asyncio.Event()
        self._skip: str | None = None
        self._failure: ManyhandsError | None = None
        self._sessions: set[Session] = set()
        self._ending: m.Finished | None = None
        self.is_torn = False
        """Whether the weights are between two steps: an update broke off, and they must not be saved."""

    # ---- steps ----

    async def next_step(self) -> StepData:
        """Lease the next step and return when its sum is complete. RunFailed where it cannot be."""
        self._settled.clear()  # before the wait for data: a stop that comes meanwhile must be seen
        self._skip = None
        coming = self.job.feeder.step(self.step)
        data = coming.result() if coming.done() else await asyncio.wrap_future(coming)
        if self._failure is not None:
            raise self._failure
        self._open = OpenStep(data, {}, {}, [])
        self.quarantined |= set(data.quarantined)
        if data.quarantined:
            self.saver.journal.record(
                [Quarantine(data.plan.epoch, i, why) for i, why in data.quarantined.items()]
            )
        if not data.leaves:
            return data
        self._sums.open(len(data.leaves))
        self._apply(e.Open(self.step, len(data.leaves)))
        await asyncio.sleep(0)  # what was granted goes out first
        self.job.feeder.look_ahead(self.step)
        self._send_ahead()
        await self._settled.wait()
        if self._failure is not None:
            raise self._failure
        return data

    async def commit(self, data: StepData) -> float | None:
        """Apply the complete sum (or skip the step); returns the step's loss."""
        opened = self._open
        assert opened is not None
        weights = {leaf: item.weight for leaf, item in enumerate(data.leaves)}
        if self._skip is not None or not data.leaves:
            self._skip_step(data)
            loss = None
        else:
            divisor = 1.0 if self.job.objective.is_sum else sum(weights.values())
            loss = mean_loss(opened.losses, weights, divisor)
            loss = await self._update(data, opened, loss, divisor)
        self._open = None
        self.step += 1
        self.loss = loss if loss is not None else self.loss
        self.tally.final_loss = self.loss
        return loss

    async def _update(
        self, data: StepData, opened: OpenStep, loss: float | None, divisor: float
    ) -> float | None:
        """One optimizer step; None where its sum overflowed and the run skips such steps."""
        root = self._sums.pop()
        try:
            push = self._begin_push()
            self.is_torn = True
            for final_bytes in self.job.master.commit(root, divisor, len(data.leaves)):
                if push is not None:
                    push.advance(final_bytes)
                    await asyncio.sleep(0)
            self.is_torn = False
            if push is not None:
                push.finish()
        except NonFinite as error:
            self.is_torn = False  # refused before anything was changed
            if self.job.options.on_nonfinite != "skip_step":
                raise
            self._skip = str(error)
            self._skip_step(data)
            return None
        finally:
            self._sums.give_back(root.buffer)
        self._record(data, opened, loss)
        return loss

    def _begin_push(self) -> Push | None:
        """Let the nodes that computed this step have the next one's weights as they come."""
        moving = self.job.master.moving
        if not is_worth_it(moving) or self.step + 1 >= self.job.plan.num_steps:
            return None
        members = [member for member in self.members.values() if member.holds_version == self.step]
        return Push(moving, self.step + 1, self._transfers(), members)

    def _skip_step(self, data: StepData) -> None:
        self.job.master.skip()
        self.tally.skipped += 1
        reason = self._skip or "every sample of the step is quarantined"
        logger.warning("step %d was skipped: %s", data.plan.step, reason)
        self.saver.journal.record([Refusal(f"step {data.plan.step} skipped: {reason}"[:500], "")])

    def _record(self, data: StepData, opened: OpenStep, loss: float | None) -> None:
        """Credit the step's leaves: who computed which samples, once."""
        plan, rows = data.plan, list[Row]()
        starts = list(itertools.accumulate((len(leaf.indices) for leaf in data.leaves), initial=0))
        base = (plan.step % self.job.plan.steps_per_epoch) * self.job.plan.batch_size
        for leaf, key, lease in opened.credits:
            samples = len(data.leaves[leaf].indices)
            rows.append(Credit(plan.step, plan.epoch, leaf, key, lease, samples, base + starts[leaf]))
            member = self.members.get(key)
            self.tally.credit(member.numeric_class if member else "unknown", samples)
            if member is not None:
                member.samples += samples
        rows.append(Commit(plan.step, plan.epoch, plan.num_samples, loss if loss is not None else 0.0))
        self.saver.journal.record(rows)
        self.tally.samples_applied += plan.num_samples

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
                self._grant(key, lease)
            case e.Cut(key, lease_id, keep):
                self._post(key, m.Trimmed(lease_id, keep))
            case e.Take(key, lease_id, subtree, replaces, leaves):
                self._take(key, lease_id, subtree, replaces, leaves)
            case e.Complete() | e.SkipStep():
                self._skip = instruction.reason if isinstance(instruction, e.SkipStep) else None
                self._settled.set()
            case e.Stop(reason):
                self.fail(NonFinite(reason))
            case e.Refuse(key, reason):
                self._note(Refusal(reason[:500], key))
                self._post(key, m.Told(reason))
            case e.Bench(key, reason):
                self._note(Roster(key, self._name(key), "benched"))
                logger.warning("node %s is benched: %s", self._name(key), reason)
                self._post(key, m.Told(reason, benched=True))
            case e.Duplicate() | e.Audit() | e.Verified():
                self._note_opinion(instruction)

    def _note_opinion(self, instruction: e.Duplicate | e.Audit | e.Verified) -> None:
        if isinstance(instruction, e.Duplicate) and instruction.verdict == "differs":
            logger.warning(
                "node %s answered subtree %d of step %d with other bits than were taken",
                self._name(instruction.key),
                instruction.subtree,
                self.step,
            )

    def _grant(self, key: str, lease: e.Lease) -> None:
        member, opened = self.members.get(key), self._open
        if member is None or opened is None:
            return
        if member.holds_version != self.step:
            member.session.post(self._state_bulk())
            member.holds_version = self.step
            member.forget_before(self.step)
        num_leaves = len(opened.data.leaves)
        depth = depth_of(num_leaves)
        leaves = [leaf for subtree in lease.subtrees for leaf in span(subtree, depth) if leaf < num_leaves]
        for leaf in leaves:
            self._send_leaf(member, opened.data, opened.batches, leaf)
        scale = self.job.master.scale.value
        weights = [(leaf, opened.data.leaves[leaf].weight) for leaf in leaves]
        member.session.post(
            m.Granted(
                lease.id, lease.incarnation, lease.step, depth, num_leaves, lease.subtrees, weights, scale
            )
        )

    def _state_bulk(self) -> Bulk:
        if self._state is None or self._state[0] != self.step:
            moving, transfer = self.job.master.moving, self._transfers()
            message = m.State(self.step, transfer, moving.layout.num_bytes)
            self._state = (
                self.step,
                Bulk.of(message, transfer, bytes_of(moving.body), supersedes=True),
            )
        return self._state[1]

    def _send_leaf(self, member: Member, data: StepData, batches: dict[int, Bulk], leaf: int) -> None:
        key, item = (data.plan.step, leaf), data.leaves[leaf]
        if key in member.holds_leaves:
            return
        member.holds_leaves.add(key)
        if item.frame is None:
            member.session.post(m.Indices(data.plan.step, leaf, data.plan.epoch, list(item.indices)))
            return
        if len(item.frame) <= m.SMALL_BYTES:
            member.session.post(m.SmallBatch(data.plan.step, leaf, item.frame))
            return
        if leaf not in batches:
            transfer = self._transfers()
            message = m.Batch(data.plan.step, leaf, transfer, len(item.frame))
            batches[leaf] = Bulk.of(message, transfer, item.frame)
        member.session.post(batches[leaf])

    def _send_ahead(self) -> None:
        """Let nodes have large batches of the next step while they compute: most likely the same leaves."""
        data = self.job.feeder.ready(self.step + 1)
        if data is None or not any(leaf.frame and len(leaf.frame) > m.SMALL_BYTES for leaf in data.leaves):
            return
        batches: dict[int, Bulk] = {}
        for member in self.members.values():
            for step, leaf in list(member.holds_leaves):
                if step == self.step and leaf < len(data.leaves):
                    self._send_leaf(member, data, batches, leaf)

    def _take(
        self, key: str, lease_id: int, subtree: int, replaces: tuple[int, ...], leaves: tuple[int, ...]
    ) -> None:
        assert self._arriving is not None
        assert self._open is not None
        partial, message = self._arriving
        self._arriving = None
        losses = {done.leaf: done.loss for done in message.leaves}
        for leaf in leaves:
            self._open.losses[leaf] = losses.get(leaf, self._open.losses.get(leaf))
            self._open.credits.append((leaf, key, lease_id))
        self._sums.take(subtree, partial, replaces)

    def _post(self, key: str, message: Any) -> None:
        member = self.members.get(key)
        if member is not None:
            member.session.post(message)

    def _name(self, key: str) -> str:
        member = self.members.get(key)
        return member.name if member is not None else key[:8]

    # ---- what nodes say ----

    async def serve(self, peer: Peer, link: Link) -> None:
        """One node's stream, from hello to goodbye."""
        if peer.role not in (Role.NODE, Role.OWNER):
            raise Refused(
                f"an invite for the role {peer.role} does not let compute: `manyhands invite` prints one "
                "that does"
            )
        session = Session(link, max_body_bytes=self.job.master.gradients.layout.num_bytes)
        if self._ending is not None:
            session.post(self._ending)
            session.finish()
        self._sessions.add(session)
        writer = asyncio.create_task(session.write_all())
        reader = asyncio.create_task(self._read(peer, session))
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
            else:
                writer.result()
        finally:
            reader.cancel()
            session.finish()
            self._sessions.discard(session)
            self._leave(peer.key_id, session)
            await asyncio.wait({writer, reader}, timeout=1.0)
            writer.cancel()
            for task in (writer, reader):
                if task.done() and not task.cancelled():
                    task.exception()  # looked at: what is told to the peer was raised above

    async def _read(self, peer: Peer, session: Session) -> None:
        said = session.messages()
        member = await self._door.admit(peer, session, said)
        self.members[peer.key_id] = member
        self.tally.nodes_seen.add(peer.key_id)
        self._note(Roster(peer.key_id, member.name, "joined"))
        self._apply(e.Join(peer.key_id, member.name, member.numeric_class, peer.invite_id, member.manual))
        async for message, body in said:
            if self._hear(member, message, body):
                return

    def _leave(self, key: str, session: Session) -> None:
        member = self.members.get(key)
        if member is not None and member.session is session:
            del self.members[key]
            self._note(Roster(key, member.name, "left"))
            self._apply(e.Leave(key, "its stream ended"))

    def _hear(self, member: Member, message: m.FromNode, body: Body | None) -> bool:
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
            case m.HandedBack(lease, reason):
                logger.warning("node %s handed a lease back: %s", member.name, reason)
                self._apply(e.HandBack(key, lease, reason))
            case m.Leaving(reason):
                logger.info("node %s leaves: %s", member.name, reason)
                return True
            case _:
                raise ProtocolError(f"a node does not say {type(message).__name__} now")
        return False

    def _delivered(self, member: Member, message: m.Delivered, body: Body) -> None:
        gradients = self.job.master.gradients
        if body.num_bytes != gradients.layout.num_bytes:
            raise ProtocolError(
                f"a partial sum of {body.num_bytes} bytes where this run's have {gradients.layout.num_bytes}"
            )
        present = int.from_bytes(message.present, "little")
        if present > gradients.everyone:
            raise ProtocolError(
                f"a partial sum claims more than the model's {len(gradients.parameters)} parameters"
            )
        key, mine = member.peer.key_id, self._sums.buffer()
        body.copy_into(mine.body)
        partial = Partial(mine, present)
        for done in message.leaves[-1:]:
            member.computing_seconds += done.seconds
            self._apply(e.Receipt(key, message.incarnation, message.lease, done.leaf, done.seconds))
        self._arriving = (partial, message)
        number, leaf = witness(partial), self._only_leaf(message.subtree)
        if number is not None or leaf is None:
            # Finite leaves whose sum overflows are nobody's fault: such a sum is taken, and fails at the root.
            digest = body_digest(body) if self.job.options.verify or number is None else number
            self._apply(
                e.Answer(key, message.incarnation, message.step, message.lease, message.subtree, digest)
            )
        else:
            self._apply(e.NonFinite(key, message.incarnation, message.lease, leaf, body_digest(body)))
        if self._arriving is not None:
            self._sums.give_back(self._arriving[0].buffer)
            self._arriving = None

    def _only_leaf(self, subtree: int) -> int | None:
        """The leaf of a subtree that has one only; None for a sum of several, or of another step's tree."""
        num_leaves = len(self._open.data.leaves) if self._open is not None else 1
        depth = depth_of(num_leaves)
        if not is_inside(subtree, depth):
            return None
        leaves = [leaf for leaf in span(subtree, depth)[:2] if leaf < num_leaves]
        return leaves[0] if len(leaves) == 1 else None

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

    async def dismiss(self, message: m.Finished) -> None:
        """Tell every node how it ended, and wait a moment for the words to go out."""
        self._ending = message
        for session in list(self._sessions):
            session.post(message)
            session.finish()
        deadline = self._clock.monotonic() + 3.0
        while self._sessions and self._clock.monotonic() < deadline:
            await asyncio.sleep(0.01)


def body_digest(body: Body) -> int:
    """What stands for a partial sum's bits: a crc32 over its chunks."""
    digest = 0
    for _, chunk in body.chunks:
        digest = zlib.crc32(chunk, digest)
    return digest
