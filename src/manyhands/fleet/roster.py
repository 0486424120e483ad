"""Who is here, how fast each node is, and who may not have leases; bounded, and without a clock.

::

    ready ── step opens ──> computing ── answered ──> standby (nothing left for it in this step)
      suspended  its leases went overdue twice and nothing was heard of it since
      draining   it wants to go
      benched    its numbers were shown wrong; survives a reconnect

Nothing here knows what a lease contains.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from manyhands.fleet.board import OpenLease
from manyhands.fleet.events import Join

State = Literal["ready", "computing", "standby", "suspended", "draining", "benched"]

MAX_NODES = 4096
# Enough to outlast any run's trouble-makers; the admission table on disk is the authority.
MAX_REMEMBERED = 65_536
STRIKES = 2
# A receipt weighs a third: five leaves after a machine got busy, the plan has followed it.
_NEW_WEIGHT = 0.3
# Below this a round costs more than a leaf, and what was measured is mostly noise: such nodes are alike.
_SHORTEST_SECONDS = 2e-3
# Steps that a node stands by before its speed is measured anew; doubled each time, so that a machine that is
# truly slow is asked ever less often.
_FIRST_TRIAL_STEPS = 4
_RAREST_TRIAL_STEPS = 512


class NodeView(msgspec.Struct, frozen=True):
    """One node as `status` shows it; `seconds_per_leaf` is None before its first receipt."""

    key: str
    name: str
    state: State
    numeric_class: str
    invite_id: str
    manual: bool
    leaves_done: int
    seconds_per_leaf: float | None
    lease: int | None
    reason: str


class Node:
    """What the machine remembers of a connected node."""

    __slots__ = (
        "benched",
        "draining",
        "invite_id",
        "key",
        "lease",
        "leased_in",
        "leaves_done",
        "manual",
        "name",
        "numeric_class",
        "on_trial",
        "order",
        "rests_until",
        "seconds_per_leaf",
        "stood_by",
        "strikes",
        "travel_seconds",
        "trial_steps",
    )  # fmt: skip

    def __init__(self, join: Join, order: int, benched: str) -> None:
        self.key = join.key
        self.name = join.name
        self.numeric_class = join.numeric_class
        self.invite_id = join.invite_id
        self.manual = join.manual
        self.order = order
        self.benched = benched
        self.draining = False
        self.strikes = 0
        self.rests_until = 0.0
        self.lease: OpenLease | None = None
        self.seconds_per_leaf: float | None = None
        self.travel_seconds: float | None = None
        self.leaves_done = 0
        # A node that was slow once is given no leaves, and so could never show that it no longer is.
        self.leased_in = -1
        self.stood_by = 0
        self.trial_steps = _FIRST_TRIAL_STEPS
        self.on_trial = False

    @property
    def suspended(self) -> bool:
        """Whether it let two leases pass without a sign of life."""
        return self.strikes >= STRIKES

    @property
    def serves(self) -> bool:
        """Whether it may be given a lease at all, now or when it is free."""
        return not (self.benched or self.draining or self.strikes >= STRIKES)

    def is_free(self, now: float) -> bool:
        """Whether it can be given a lease now."""
        return self.lease is None and self.serves and now >= self.rests_until

    def measure(self, seconds: float) -> None:
        """Blend one leaf's seconds into the moving average; after a trial they replace it."""
        seconds = max(seconds, _SHORTEST_SECONDS)
        old = None if self.on_trial else self.seconds_per_leaf
        self.on_trial = False
        self.seconds_per_leaf = seconds if old is None else old + _NEW_WEIGHT * (seconds - old)
        self.leaves_done += 1

    def measure_travel(self, seconds: float) -> None:
        """Blend in what one lease took beyond its computing: weights and data on their way there, sums back."""
        old = self.travel_seconds
        self.travel_seconds = seconds if old is None else old + _NEW_WEIGHT * (seconds - old)

    def step_ended(self, step: int, mean_seconds: float | None) -> None:
        """A step is over: a node that it left out for long enough is tried with one leaf of the next."""
        if self.leased_in == step or self.seconds_per_leaf is None:
            self.stood_by = 0
            if mean_seconds is not None and (self.seconds_per_leaf or 0.0) <= 2.0 * mean_seconds:
                self.trial_steps = _FIRST_TRIAL_STEPS
            return
        self.stood_by += 1
        if self.stood_by >= self.trial_steps and not self.on_trial:
            self.on_trial, self.stood_by = True, 0
            self.trial_steps = min(2 * self.trial_steps, _RAREST_TRIAL_STEPS)

    def state(self, step_is_open: bool) -> State:
        """The word `status` shows."""
        if self.benched:
            return "benched"
        if self.draining:
            return "draining"
        if self.suspended:
            return "suspended"
        if self.lease is not None:
            return "computing"
        return "standby" if step_is_open else "ready"

    def view(self, step_is_open: bool) -> NodeView:
        """A frozen copy for readers outside the machine."""
        return NodeView(
            key=self.key,
            name=self.name,
            state=self.state(step_is_open),
            numeric_class=self.numeric_class,
            invite_id=self.invite_id,
            manual=self.manual,
            leaves_done=self.leaves_done,
            seconds_per_leaf=self.seconds_per_leaf,
            lease=self.lease.id if self.lease else None,
            reason=self.benched,
        )


class Roster:
    """The connected nodes by key, and the keys that are banned or benched.

    `idle` holds those without a lease, whether or not they may have one.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.idle: dict[str, Node] = {}
        self._joined = 0
        self._banned: dict[str, str] = {}
        self._benched: dict[str, str] = {}

    def refusal(self, join: Join) -> str | None:
        """Why this node may not join, or None."""
        if join.key in self._banned:
            return f"this node was banned: {self._banned[join.key] or 'no reason given'}"
        if join.key not in self.nodes and len(self.nodes) >= MAX_NODES:
            return f"the run has {len(self.nodes)} nodes, and {MAX_NODES} are the most it takes"
        return None

    def add(self, join: Join) -> Node:
        """Enter a node that `refusal` let pass."""
        self._joined += 1
        node = Node(join, self._joined, self._benched.get(join.key, ""))
        self.nodes[join.key] = self.idle[join.key] = node
        return node

    def remove(self, node: Node) -> None:
        """Forget a node that left; bans and benches are remembered."""
        del self.nodes[node.key]
        self.idle.pop(node.key, None)

    def engage(self, node: Node, lease: OpenLease, step: int) -> None:
        """A free node works on this lease now."""
        node.lease = lease
        node.leased_in = step
        del self.idle[node.key]

    def disengage(self, node: Node) -> None:
        """A node has no lease any more."""
        node.lease = None
        self.idle[node.key] = node

    def ban(self, key: str, reason: str) -> None:
        """Remember that this key may not come back."""
        _remember(self._banned, key, reason)

    def bench(self, node: Node, reason: str) -> None:
        """Give this node no more leases, now and after a reconnect."""
        node.benched = reason
        _remember(self._benched, node.key, reason)

    def serving(self) -> Iterator[Node]:
        """The nodes that get leases when they are free."""
        return (node for node in self.nodes.values() if node.serves)

    def step_ended(self, step: int) -> None:
        """Every node's share of `step` is known now."""
        if step >= 0 and len(self.nodes) > 1:
            mean = self.mean_seconds()
            for node in self.nodes.values():
                node.step_ended(step, mean)

    def mean_seconds(self) -> float | None:
        """The mean of the measured nodes' seconds a leaf; None when none is measured."""
        known = [n.seconds_per_leaf for n in self.nodes.values() if n.seconds_per_leaf is not None]
        return sum(known) / len(known) if known else None

    def mean_travel(self) -> float | None:
        """The mean of what the measured nodes' leases take beyond computing; None when none is measured."""
        known = [n.travel_seconds for n in self.nodes.values() if n.travel_seconds is not None]
        return sum(known) / len(known) if known else None


def _remember(table: dict[str, str], key: str, reason: str) -> None:
    table[key] = reason
    if len(table) > MAX_REMEMBERED:
        del table[next(iter(table))]
