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
        self._change: tuple[int, Bulk] | None = None
        self._batches: dict[tuple[int, int], Bulk] = {}

    def transfer(self) -> int:
        """A number for one more body."""
        return next(self._numbers)

    def grant(self, member: Member, lease: e.Lease, data: StepData, unit_level: int | None) -> None:
        """A lease, behind all that it needs."""
        step, num_leaves = data.plan.step, len(data.leaves)
        if member.holds_version != step:
            member.session.post(self._state_for(member, step))
            member.holds_version = step
            member.forget_before(step)
        depth = depth_of(num_leaves)
        leaves = [leaf for subtree in lease.subtrees for leaf in span(subtree, depth) if leaf < num_leaves]
        for leaf in leaves:
            self._leaf(member, data, leaf)
        member.leased_leaves.update((step, leaf) for leaf in leaves)
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
                unit_level,
            )
        )

    def ahead(self, step: int, data: StepData) -> None:
        """Let nodes have large batches of the next step while they compute: most likely the same leaves."""
        self._batches = {key: bulk for key, bulk in self._batches.items() if key[0] >= step}
        if not any(leaf.frame and len(leaf.frame) > m.SMALL_BYTES for leaf in data.leaves):
            return
        for member in self._members.values():
            # Not what it holds: data that came in vain would come again for every step from then on.
            for leased, leaf in member.leased_leaves:
                if leased == step and leaf < len(data.leaves):
                    self._leaf(member, data, leaf)

    def begin_push(self, version: int) -> Push | None:
        """Let the nodes that computed the last step have `version` as it comes; None where it is small."""
        master = self._job.master
        body = master.moving.bytes if master.compression is None else master.compression.weights.change
        if not (master.moving.is_attached and is_worth_it(body)) or version >= self._job.plan.num_steps:
            return None
        members = [member for member in self._members.values() if member.holds_version == version - 1]
        if is_change := master.compression is not None:
            members = [member for member in members if _follows(member, version)]
        return Push(body, m.State(version, self.transfer(), len(body), is_change), members)

    def forget_from(self, step: int) -> None:
        """The leaves of `step` and later ones are cut anew."""
        self._batches.clear()
        for member in self._members.values():
            member.holds_leaves = {key for key in member.holds_leaves if key[0] < step}
            member.leased_leaves = {key for key in member.leased_leaves if key[0] < step}

    def _state_for(self, member: Member, step: int) -> Bulk:
        """The weights of `step` whole, or in a compressed run their change where the node holds those before."""
        compression = self._job.master.compression
        if compression is None:
            self._state = self._packed(self._state, step, self._job.master.moving.bytes)
        elif _follows(member, step):
            self._change = self._packed(self._change, step, compression.weights.change, is_change=True)
            return self._change[1]
        else:
            self._state = self._packed(self._state, step, compression.weights.bytes)
        return self._state[1]

    def _packed(
        self, last: tuple[int, Bulk] | None, step: int, body: memoryview, *, is_change: bool = False
    ) -> tuple[int, Bulk]:
        if last is not None and last[0] == step:
            return last
        transfer = self.transfer()
        message = m.State(step, transfer, len(body), is_change)
        return step, Bulk.of(message, transfer, body, supersedes=not is_change, is_change=is_change)

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


def _follows(member: Member, version: int) -> bool:
    """Whether the change to `version` is enough for a node: it has got the weights before, and wrote to none of them.

    A loop of the caller's own may have written to its model.
    """
    holds = member.holds_version >= 0 and member.holds_version == version - 1
    return holds and not member.manual and not member.session.has_states_waiting
