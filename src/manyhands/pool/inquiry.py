"""Who is at fault: a node that fails at a micro-batch, and two that answer it with other bits.

A node's word is not enough to end a run, to leave a sample out or to bench another: the coordinator computes the
leaf itself (`trouble`), or has the whole step computed again, each sum by two nodes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from manyhands.errors import BadSample, ManyhandsError
from manyhands.fleet import messages as m
from manyhands.fleet.leases import LeaseMachine
from manyhands.fleet.tree import depth_of, span
from manyhands.pool.job import Job
from manyhands.pool.member import Member
from manyhands.pool.openstep import OpenStep
from manyhands.pool.trouble import SecondTry

logger = logging.getLogger(__name__)


class Court(Protocol):
    """What an inquiry looks at, and what it may ask for."""

    job: Job
    step: int
    machine: LeaseMachine
    members: dict[str, Member]
    model_lock: asyncio.Lock

    @property
    def opened(self) -> OpenStep | None:
        """The step that is being computed; None while none is, or while it is given up."""
        ...

    def name_of(self, key: str) -> str:
        """A node's name, for a person."""
        ...

    def once_more(self, reason: str) -> None:
        """Give the open step's sums up and lease it anew."""
        ...

    def leave_out(self, fault: BadSample) -> None:
        """Leave a sample of the open step out of this epoch, and lease the step anew."""
        ...

    def bench(self, key: str, reason: str) -> None:
        """Send a node away for good."""
        ...

    def fail(self, error: ManyhandsError) -> None:
        """End the run."""
        ...


class Inquiry:
    """All inquiries of one incarnation; they run beside the step that they are about."""

    def __init__(self, court: Court) -> None:
        self._court = court
        self._second_try = SecondTry(court.job)
        self._open: set[asyncio.Task[None]] = set()
        self.last_trouble: str | None = None
        """Why the last node that failed did; for whoever wonders why nothing goes on."""

    def failed(self, member: Member, message: m.HandedBack, leaf: int) -> None:
        """A node failed at a leaf of its own lease of the open step."""
        court, opened = self._court, self._court.opened
        self.last_trouble = (
            f"node {member.name} failed at micro-batch {leaf} of step {court.step}: {message.reason}"
        )
        if opened is not None and self._second_try.claim(court.step, leaf):
            inquiry = asyncio.create_task(self._inquire(member, message, opened, leaf))
            self._open.add(inquiry)
            inquiry.add_done_callback(self._open.discard)

    def contradicted(self, key: str, subtree: int) -> None:
        """A second answer has other bits than the one taken. Between machines of one class, one is wrong: the
        step is computed again, each sum by two nodes, and by a third where they differ.
        """
        court, opened, member = self._court, self._court.opened, self._court.members.get(key)
        if opened is None or member is None:
            return
        takers = opened.credited_to(span(subtree, depth_of(opened.num_leaves)))
        known = {opened.classes[taker] for taker in takers}
        names = ", ".join(sorted(court.name_of(taker) for taker in takers))
        logger.warning(
            "node %s answered subtree %d of step %d with other bits than were taken from %s",
            member.name,
            subtree,
            court.step,
            names,
        )
        is_open = court.machine.is_open and court.machine.step == court.step
        if is_open and known == {member.numeric_class} and not opened.is_audited:
            opened.is_audited = True
            court.once_more(f"nodes {names} and {member.name} differ on the same micro-batches")

    async def _inquire(self, member: Member, message: m.HandedBack, opened: OpenStep, leaf: int) -> None:
        """Find out who is to blame for a leaf that a node failed at, and act on it."""
        court = self._court
        async with court.model_lock:
            fault = await asyncio.to_thread(self._second_try.fault_of, opened.data, leaf)
        if court.opened is not opened:
            return
        if isinstance(fault, BadSample) and court.job.options.on_bad_sample == "quarantine":
            court.leave_out(fault)
        elif fault is not None:
            court.fail(fault)
        elif message.index is not None:
            court.bench(
                member.peer.key_id,
                f"its dataset[{message.index}] cannot be loaded there ({message.reason}), and can be here: its "
                "copy of the data is not the run's",
            )
        else:
            logger.warning(
                "the coordinator computes what node %s failed at: that machine is at fault", member.name
            )
