"""Rank 0's group: shares each lease among the ranks that are ready, and adds what they send in tree order.

A rank that dies is started again, and what it had in hand is computed here; a rank that is not ready yet is left
out of the lease; one that says nothing for long while rank 0 has nothing left to do (it was stopped, it hangs) loses
its part to rank 0. So a lease waits for nobody, and its bits are the tree's, whoever was there.
"""

from __future__ import annotations

import logging
import queue
from collections import deque
from collections.abc import Iterator, Sequence

import msgspec
import torch

from manyhands.clock import Clock
from manyhands.errors import ProtocolError, UsageError
from manyhands.fleet import messages as m
from manyhands.fleet import tree
from manyhands.pool.engagement import Engagement
from manyhands.pool.lane import Batches, Keep
from manyhands.pool.lending.group.events import Asks, Event, Gone, Said
from manyhands.pool.lending.group.rank import Rank, rank_device
from manyhands.pool.lending.group.shares import remaining, shares
from manyhands.pool.lending.words import Order
from manyhands.pool.program import memory_bytes
from manyhands.pool.work import LeafBroken, LeafReady, Output, SumReady, Work, leaves_of
from manyhands.training.gradients import Partial
from manyhands.wire.transfer import Body

logger = logging.getLogger(__name__)

MOST_DEATHS = 3
LATE_SECONDS = 2.0
TIMES_SLOWEST = 4.0
"""A rank is late that is silent for longer than this many leaves of rank 0's take, and than `LATE_SECONDS`."""
LOOK_SECONDS = 0.02
"""How often whoever waits for a rank looks whether its lease was trimmed."""


class Group:
    """The other ranks of a node, from `start` to `close`; on one thread."""

    def __init__(self, order: Order, device: torch.device, clock: Clock) -> None:
        self._order = order
        self._device = device
        self._clock = clock
        self._slowest_seconds = 0.0
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._ranks: dict[int, Rank] = {}
        self._deaths: dict[int, int] = {}
        self._engagement: Engagement

    def start(self) -> None:
        """Spawn the ranks; they load torch meanwhile. UsageError where there are fewer GPUs than ranks."""
        wanted, num_cuda = self._order.num_ranks, torch.cuda.device_count()
        if self._device.type == "cuda" and wanted > num_cuda:
            raise UsageError(
                f"--nproc {wanted}: each process computes on a GPU of its own, and here are {num_cuda}"
            )
        for number in range(1, wanted):
            self._start(number)

    @property
    def is_alone(self) -> bool:
        """Whether rank 0 is the whole node."""
        return self._order.num_ranks == 1

    def close(self) -> None:
        """End all ranks at once."""
        for rank in self._ranks.values():
            rank.close()
        self._ranks.clear()

    def engage(self, engagement: Engagement) -> None:
        """Rank 0 was let in: so are the others, when they ask."""
        self._engagement = engagement
        for rank in self._ranks.values():
            if rank.is_greeted:
                rank.come_back()

    def run(self, granted: m.Granted, batches: Batches, keep: Keep) -> Iterator[Output]:
        """Compute a lease together; what `Lane.run` would give, as if a leaf took the node a share of its time."""
        lane = self._engagement.lane
        work, mine = lane.begin(granted), deque[int]()
        for event in self._arrived(wait=False):
            yield from self._hear(event, work, mine)
        ranks = [rank for rank in self._ranks.values() if rank.is_ready and not rank.is_late]
        parts = shares(granted.subtrees, granted.depth, granted.num_leaves, 1 + len(ranks))
        mine += leaves_of(parts[0], granted)
        helpers = [(rank, own) for rank, own in zip(ranks, parts[1:], strict=True) if own]
        for rank, own in helpers:
            self._lend(rank, granted, own, work, batches)
        for output in self._together(work, mine, batches, keep):
            yield _as_one(output, 1 + len(helpers))

    # ---- one lease ----

    def _lend(self, rank: Rank, granted: m.Granted, own: Sequence[int], work: Work, batches: Batches) -> None:
        """The step's weights where it lacks them, then a lease a subtree: sums are whole, or units, as they come."""
        rank.hold(granted.step, self._engagement.lane.state_bytes())
        for subtree in own:
            weights = [(leaf, work.weight(leaf)) for leaf in leaves_of([subtree], granted)]
            part = msgspec.structs.replace(granted, subtrees=(subtree,), weights=weights, unit_level=None)
            rank.lease(part, batches)

    def _together(self, work: Work, mine: deque[int], batches: Batches, keep: Keep) -> Iterator[Output]:
        try:
            while work.wanted and (mine or any(rank.parts for rank in self._ranks.values())):
                kept = keep()
                yield from work.keep(kept)
                if kept is not None:
                    self._trim(kept)
                for event in self._arrived(wait=not mine):
                    yield from self._hear(event, work, mine)
                if not mine:
                    mine.extend(self._leaves_of_late_ranks())
                elif work.wants(leaf := mine.popleft()):
                    yield from self._compute(work, leaf, batches)
        finally:
            self._trim(())

    def _compute(self, work: Work, leaf: int, batches: Batches) -> list[Output]:
        """One leaf, here; it tells how long a leaf may take."""
        started = self._clock.monotonic()
        outputs = list(self._engagement.lane.compute(work, leaf, batches))
        self._slowest_seconds = max(self._slowest_seconds, self._clock.monotonic() - started)
        return outputs

    def _leaves_of_late_ranks(self) -> list[int]:
        """What is waited for in vain, to be computed here."""
        now, leaves = self._clock.monotonic(), list[int]()
        for rank in self._ranks.values():
            silent = rank.silent_seconds(now) if rank.parts else 0.0
            if silent > max(LATE_SECONDS, TIMES_SLOWEST * self._slowest_seconds):
                leaves += rank.take_back()
                logger.warning(
                    "rank %d has said nothing for %.1f s: its part is computed by rank 0 until it goes on",
                    rank.number,
                    silent,
                )
        return leaves

    def _trim(self, kept: Sequence[int]) -> None:
        for rank in self._ranks.values():
            for lease, part in list(rank.parts.items()):
                granted = part.granted
                rank.trim(lease, remaining(part.subtree, kept, granted.depth, granted.num_leaves))

    def _arrived(self, *, wait: bool) -> Iterator[Event]:
        """What has come; where there is nothing else to do, the first of it is waited for a moment."""
        try:
            yield self._events.get(wait, LOOK_SECONDS)
            while True:
                yield self._events.get_nowait()
        except queue.Empty:
            return

    # ---- what the ranks say ----

    def _hear(self, event: Event, work: Work, mine: deque[int]) -> Iterator[Output]:
        if isinstance(event, Asks):
            event.rank.greet(self._engagement)
        elif isinstance(event, Gone):
            mine.extend(event.rank.take_back())
            self._replace(event)
        elif isinstance(event.message, m.Probed):
            self._judge(event.rank, event.message)
        else:
            yield from self._answer(event, work, mine)

    def _answer(self, event: Said, work: Work, mine: deque[int]) -> Iterator[Output]:
        rank, message = event.rank, event.message
        if not isinstance(message, m.Computed | m.Delivered | m.NotFinite | m.HandedBack):
            return
        if message.lease not in rank.parts:  # of a lease before, or taken from it meanwhile
            return
        if isinstance(message, m.Computed):
            yield LeafReady(message.done)
        elif isinstance(message, m.NotFinite):
            rank.answered(message.lease, 1 << message.leaf)
            yield LeafBroken(message.leaf, message.digest, message.where)
            yield from work.leave_out(message.leaf)
        elif isinstance(message, m.HandedBack):
            logger.warning("rank %d gave its part back: %s", rank.number, message.reason)
            left = rank.parts[message.lease].left
            mine.extend(tree.bits(left))
            rank.answered(message.lease, left)
        elif event.body is not None:
            rank.answered(message.lease, tree.mask(message.subtree, work.granted.depth))
            sums = list(work.take(message.subtree, self._partial(message, event.body), message.leaves))
            if not sums:
                yield from [LeafReady(done) for done in message.leaves[-1:]]
            yield from sums

    def _partial(self, delivered: m.Delivered, body: Body) -> Partial:
        buffer = self._engagement.lane.sums.buffer()
        if body.num_bytes != len(buffer.bytes):
            raise ProtocolError(
                f"a rank's sum has {body.num_bytes} bytes where this model's has {len(buffer.bytes)}"
            )
        body.copy_to(buffer.bytes)
        return Partial(buffer, int.from_bytes(delivered.present, "little"))

    def _judge(self, rank: Rank, probed: m.Probed) -> None:
        """Let a rank take part that computes the same bits; another kind of device is no part of this node."""
        if not rank.is_greeted:  # what it computed was for the run before
            return
        rank.is_ready = probed.digest == self._engagement.proof.digest
        if rank.is_ready:
            logger.info("rank %d takes part", rank.number)
        else:
            logger.warning(
                "rank %d computes other bits than rank 0 (%s): the group goes on without it",
                rank.number,
                ", ".join(f"{name} {value}" for name, value in sorted(probed.facts.items())),
            )

    # ---- lives and deaths ----

    def _start(self, number: int) -> None:
        order = msgspec.structs.replace(
            self._order,
            name=f"{self._order.name}:{number}",
            device=rank_device(number, self._device),
            num_ranks=1,
        )
        self._ranks[number] = Rank(number, order, memory_bytes() // 8, self._events)
        self._ranks[number].start()

    def _replace(self, gone: Gone) -> None:
        number = gone.rank.number
        gone.rank.close()
        self._deaths[number] = self._deaths.get(number, 0) + 1
        if self._deaths[number] < MOST_DEATHS:
            logger.warning("rank %d: %s; it is started again", number, gone.sentence)
            self._start(number)
        else:
            del self._ranks[number]
            logger.warning("rank %d: %s; the group goes on without it", number, gone.sentence)


def _as_one(output: Output, num_sharing: int) -> Output:
    """An output whose leaves took the node as long as they did, divided by how many computed at the same time."""
    if isinstance(output, LeafReady):
        return LeafReady(_shared(output.done, num_sharing))
    if isinstance(output, SumReady):
        return output._replace(leaves=[_shared(done, num_sharing) for done in output.leaves])
    return output


def _shared(done: m.LeafDone, num_sharing: int) -> m.LeafDone:
    return msgspec.structs.replace(done, seconds=done.seconds / num_sharing)
