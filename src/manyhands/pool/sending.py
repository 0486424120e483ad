"""What nodes are sent, and when: weights once a step, batches ahead, leases last.

::

    commit ─▶ Push (large states, chunk by chunk) ─┐
    grant ──▶ State (if not held) ─▶ Batch.. (if not held) ─▶ Granted ──▶ the node's outbox
    ahead ──▶ Batch.. of the next step (large ones), while this one is computed
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from manyhands.fleet import events as e
from manyhands.fleet import messages as m
from manyhands.fleet.session import Bulk
from manyhands.fleet.tree import depth_of, span
from manyhands.pool.data import StepData
from manyhands.pool.job import Job
from manyhands.pool.member import Member
from manyhands.pool.push import Push, is_worth_it


class Sender:
    """Posts to members, each thing once; what several of them need is packed once."""

    def __init__(self, job: Job, members: Mapping[str, Member]) -> None:
        self._job = job
        self._members = members
        self._numbers = itertools.count(1)
        self._state: tuple[int, Bulk] | None = None
        self._batches: dict[tuple[int, int], Bulk] = {}

    def transfer(self) -> int:
        """A number for one more body."""
        return next(self._numbers)

    def grant(self, member: Member, lease: e.Lease, data: StepData) -> None:
        """A lease, behind all that it needs."""
        step, num_leaves = data.plan.step, len(data.leaves)
        if member.holds_version != step:
            member.session.post(self._state_of(step))
            member.holds_version = step
            member.forget_before(step)
        depth = depth_of(num_leaves)
        leaves = [leaf for subtree in lease.subtrees for leaf in span(subtree, depth) if leaf < num_leaves]
        for leaf in leaves:
            self._leaf(member, data, leaf)
        member.session.post(
            m.Granted(
                lease.id,
                lease.incarnation,
                lease.step,
                depth,
                num_leaves,
                lease.subtrees,
                [(leaf, data.leaves[leaf].weight) for leaf in leaves],
                self._job.master.scale.value,
            )
        )

    def ahead(self, step: int, data: StepData) -> None:
        """Let nodes have large batches of the next step while they compute: most likely the same leaves."""
        self._batches = {key: bulk for key, bulk in self._batches.items() if key[0] >= step}
        if not any(leaf.frame and len(leaf.frame) > m.SMALL_BYTES for leaf in data.leaves):
            return
        for member in self._members.values():
            for held, leaf in list(member.holds_leaves):
                if held == step and leaf < len(data.leaves):
                    self._leaf(member, data, leaf)

    def begin_push(self, version: int) -> Push | None:
        """Let the nodes that computed the last step have `version` as it comes; None where it is small."""
        moving = self._job.master.moving
        if not is_worth_it(moving) or version >= self._job.plan.num_steps:
            return None
        members = [member for member in self._members.values() if member.holds_version == version - 1]
        return Push(moving, version, self.transfer(), members)

    def forget_from(self, step: int) -> None:
        """The leaves of `step` and later ones are cut anew."""
        self._batches.clear()
        for member in self._members.values():
            member.holds_leaves = {key for key in member.holds_leaves if key[0] < step}

    def _state_of(self, step: int) -> Bulk:
        if self._state is None or self._state[0] != step:
            moving, transfer = self._job.master.moving, self.transfer()
            message = m.State(step, transfer, moving.layout.num_bytes)
            self._state = step, Bulk.of(message, transfer, moving.bytes, supersedes=True)
        return self._state[1]

    def _leaf(self, member: Member, data: StepData, leaf: int) -> None:
        step, key, item = data.plan.step, (data.plan.step, leaf), data.leaves[leaf]
        if key in member.holds_leaves:
            return
        member.holds_leaves.add(key)
        if item.frame is None:
            member.session.post(m.Indices(step, leaf, data.plan.epoch, list(item.indices)))
        elif len(item.frame) <= m.SMALL_BYTES:
            member.session.post(m.SmallBatch(step, leaf, item.frame))
        else:
            if key not in self._batches:
                transfer = self.transfer()
                message = m.Batch(step, leaf, transfer, len(item.frame))
                self._batches[key] = Bulk.of(message, transfer, item.frame)
            member.session.post(self._batches[key])
