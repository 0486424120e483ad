"""A seeded world around one lease machine: slow, paused, lying and dying nodes, a bad network, a coordinator
that crashes. Time is a number, so an hour of trouble takes a second; after every event the promises of
`manyhands.fleet.leases` are checked against the simulator's own books. A broken one raises `Violation`.

Messages are delayed, reordered and repeated, across reconnects and crashes too, which is harsher than TLS
streams are. A lost one breaks its stream, as it does there.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable

import msgspec

from manyhands.fleet import events as ev
from manyhands.fleet.granting import Policy
from manyhands.fleet.leases import LeaseMachine
from manyhands.fleet.tree import depth_of, is_absent, span

PATIENCE_SECONDS = 400.0
POISON = 666


class Violation(AssertionError):
    """A promise of the lease machine did not hold."""


def digest_of(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


def true_sum(version: int, subtree: int, depth: int, num_leaves: int) -> int | None:
    """What the tree sum of a subtree must be: a number that depends on the order of additions."""
    if is_absent(subtree, depth, num_leaves):
        return None
    if subtree >= 1 << depth:
        return digest_of(version, subtree)
    left, right = (true_sum(version, child, depth, num_leaves) for child in (2 * subtree, 2 * subtree + 1))
    return added(left, right)


def added(left: int | None, right: int | None) -> int | None:
    return left if right is None else right if left is None else digest_of(left, right)


class Trouble(msgspec.Struct, frozen=True):
    """How bad a world is. Rates are per message, or per simulated second."""

    lost: float = 0.01
    repeated: float = 0.05
    delayed: float = 0.1
    node_events: float = 0.3
    coordinator_crashes: float = 0.02
    poisoned: float = 0.0
    broken: float = 0.0
    forged: float = 0.05


class Work:
    """A lease as its node sees it."""

    def __init__(self, lease: ev.Lease, version: int, num_leaves: int) -> None:
        self.lease, self.version, self.num_leaves = lease, version, num_leaves
        self.depth = depth_of(num_leaves)
        self.want = list(lease.subtrees)
        self.done: set[int] = set()
        # A cut sent before the report arrived may still name these; their sums are never answered.
        self.bad: set[int] = set()

    def leaves(self, subtree: int) -> list[int]:
        return [leaf for leaf in span(subtree, self.depth) if leaf < self.num_leaves]

    def next_leaf(self) -> int | None:
        return next((n for s in self.want for n in self.leaves(s) if n not in self.done), None)

    def finished(self) -> list[int]:
        return [
            s for s in self.want if self.done.issuperset(self.leaves(s)) and not self.bad & {*self.leaves(s)}
        ]


class VirtualNode:
    def __init__(self, key: str, seconds: float, manual: bool, steady: bool) -> None:
        self.key, self.seconds, self.manual, self.steady = key, seconds, manual, steady
        self.epoch, self.up, self.paused_until, self.reached_at = 0, False, 0.0, 0.0
        self.broken = False
        self.work: dict[int, Work] = {}
        self.computing = False


class Simulation:
    """One world; `run(num_events)` goes on until that many events were applied."""

    def __init__(
        self,
        seed: int,
        factory: Callable[[int, Policy], LeaseMachine] = LeaseMachine,
        num_nodes: int = 4,
        max_leaves: int = 20,
        trouble: Trouble | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.factory, self.max_leaves, self.trouble = factory, max_leaves, trouble or Trouble()
        self.policy = policy or Policy(on_nonfinite="skip_step")
        self.now, self.queue, self.order = 0.0, [], 0
        self.incarnation, self.version, self.next_step = 1, 0, 0
        self.num_events = self.completed = self.crashes = self.nodes_made = self.skipped = self.benched = 0
        self.machine = factory(1, self.policy)
        self.log: list[tuple[ev.Event, float]] = []
        self.past: list[tuple[ev.Event, int]] = []
        self.nodes: dict[str, VirtualNode] = {}
        self.resting: dict[str, float] = {}
        self.ticks: set[float] = set()
        self.step_is_open = False
        for number in range(num_nodes):
            self.after(0.0, self.arrive, self.new_node(steady=number == 0))
        self.after(0.0, self.open_step)
        self.after(1.0, self.make_trouble)

    # ---- time ----

    def after(self, seconds: float, call: Callable[..., None], *args: object) -> None:
        self.at(self.now + seconds, call, *args)

    def at(self, when: float, call: Callable[..., None], *args: object) -> None:
        self.order += 1
        heapq.heappush(self.queue, (when, self.order, call, args))

    def run(self, num_events: int) -> Simulation:
        while self.num_events < num_events:
            self.now, _, call, args = heapq.heappop(self.queue)
            call(*args)
        return self

    # ---- the coordinator's shell ----

    def open_step(self) -> None:
        self.version += 1
        self.num_leaves = self.random.randint(1, self.max_leaves)
        self.depth = depth_of(self.num_leaves)
        self.store: dict[int, int | None] = {}
        self.credited: set[int] = set()
        self.opened_at, self.step_is_open = self.now, True
        self.poison = {n for n in range(self.num_leaves) if self.random.random() < self.trouble.poisoned}
        delivery = self.random.choice([0.0, 0.0, 0.02])
        self.apply(ev.Open(self.next_step, self.num_leaves, delivery), self.version)

    def apply(self, event: ev.Event, version: int) -> None:
        self.num_events += 1
        self.log.append((event, self.now))
        for instruction in self.machine.apply(event, self.now):
            self.carry_out(instruction, event, version)
        self.check()
        deadline = self.machine.next_deadline()
        if deadline is not None and deadline not in self.ticks:
            self.ticks.add(deadline)
            self.at(max(self.now, deadline), self.tick, deadline)

    def tick(self, deadline: float) -> None:
        self.ticks.discard(deadline)
        self.apply(ev.Tick(), self.version)

    def carry_out(self, instruction: ev.Instruction, event: ev.Event, version: int) -> None:
        if isinstance(instruction, ev.Take):
            self.take(instruction, version)
        elif isinstance(instruction, ev.Complete):
            self.complete()
        elif isinstance(instruction, ev.Bench):
            self.need(self.nodes[instruction.key].broken, f"an honest node is benched: {instruction.reason}")
            self.benched += 1
        elif isinstance(instruction, ev.SkipStep):
            # Three broken nodes in a row cannot be told from a broken leaf.
            self.need(
                bool(self.poison or self.trouble.broken), "a step was skipped whose leaves are all finite"
            )
            self.skipped += 1
            self.end_step()
        elif isinstance(instruction, (ev.Grant, ev.Cut)):
            node = self.nodes.get(instruction.key)
            if node is not None:
                # A stream keeps its order: a cut never overtakes its grant, or an earlier cut.
                node.reached_at = max(node.reached_at, self.now + self.delay())
                about = (node, node.epoch, instruction, self.version, self.num_leaves)
                self.at(node.reached_at, self.reach, *about)

    def take(self, take: ev.Take, version: int) -> None:
        self.need(version == self.version, "an answer computed for an earlier opening was taken")
        self.need(not self.credited & set(take.credits), "a leaf was credited twice")
        self.credited |= set(take.credits)
        for replaced in take.replaces:
            self.need(replaced in self.store, "a sum is to be replaced that is not held")
            del self.store[replaced]
        at, value = take.subtree, true_sum(version, take.subtree, self.depth, self.num_leaves)
        while at > 1:
            if at ^ 1 in self.store:
                other = self.store.pop(at ^ 1)
                value = added(value, other) if at % 2 == 0 else added(other, value)
            elif not is_absent(at ^ 1, self.depth, self.num_leaves):
                break
            at >>= 1
        self.store[at] = value

    def complete(self) -> None:
        self.need(self.credited == set(range(self.num_leaves)), "a step completed without all its leaves")
        wanted = true_sum(self.version, 1, self.depth, self.num_leaves)
        self.need(self.store == {1: wanted}, "the root is not the sum that one process gets")
        self.need(not self.machine.open_leases(), "leases stay open after their step is complete")
        self.completed += 1
        self.end_step()

    def end_step(self) -> None:
        self.step_is_open = False
        self.next_step += 1
        incarnation = self.incarnation
        self.after(0.01, lambda: self.open_step() if incarnation == self.incarnation else None)

    def crash(self) -> None:
        """The coordinator dies: leaf state is lost, some steps are rolled back, nodes come back later."""
        self.crashes += 1
        self.incarnation += 1
        self.machine = self.factory(self.incarnation, self.policy)
        self.log.clear()
        self.step_is_open = False
        self.next_step = max(0, self.next_step - self.random.randint(0, 2))
        for node in self.nodes.values():
            if node.up:
                self.hang_up(node)
                self.after(self.random.uniform(0.01, 2.0), self.arrive, node)
        incarnation = self.incarnation
        self.after(0.02, lambda: self.open_step() if incarnation == self.incarnation else None)

    # ---- checks ----

    def need(self, holds: bool, promise: str) -> None:
        if not holds:
            where = f"event {self.num_events}, second {self.now:.3f}, step {self.next_step}"
            raise Violation(f"{promise} ({where})")

    def check(self) -> None:
        if not self.step_is_open:
            return
        machine = self.machine
        leases = machine.open_leases()
        self.need(set(machine.covered()) == self.credited, "the covered leaves are not the credited ones")
        self.need(set(machine.held()) == set(self.store), "the machine and the shell hold different sums")
        holders = [key for key, _ in leases.values()]
        self.need(len(set(holders)) == len(holders), "a node holds two leases")
        views = {view.key: view for view in machine.nodes()}
        self.need(set(holders) <= set(views), "a node that is gone holds a lease")
        self.need(all(leaves for _, leaves in leases.values()), "a lease with nothing to bring stays open")
        known = len(machine._granter.board.leases)
        self.need(known <= 6 * self.num_leaves + 4 * len(self.nodes), f"{known} leases are remembered")
        out = {leaf for _, leaves in leases.values() for leaf in leaves} | set(machine.waiting())
        loose = set(range(self.num_leaves)) - self.credited - out
        if loose:
            awake = [key for key in views if self.now >= self.resting.get(key, 0.0)]
            idle = [key for key in awake if views[key].state == "standby"]
            self.need(not idle, f"node {idle[:1]} idles while leaves {sorted(loose)} are free")
        waited = self.now - self.opened_at
        self.need(waited < PATIENCE_SECONDS, f"a step takes {waited:.0f} s: {views} {leases}")

    # ---- the network ----

    def delay(self) -> float:
        rare = self.random.random() < self.trouble.delayed
        return self.random.uniform(0.2, 3.0) if rare else self.random.uniform(0.001, 0.03)

    def send(self, node: VirtualNode, event: ev.Event, version: int) -> None:
        if self.random.random() < self.trouble.lost:
            self.after(0.5, self.break_stream, node, node.epoch)
            return
        copies = 2 if self.random.random() < self.trouble.repeated else 1
        for _ in range(copies):
            self.after(self.delay(), self.apply, event, version)
        self.past.append((event, version))
        del self.past[:-200]

    def break_stream(self, node: VirtualNode, epoch: int) -> None:
        if node.up and node.epoch == epoch:
            self.depart(node)
            self.after(self.random.uniform(0.0, 1.0), self.arrive, node)

    # ---- nodes ----

    def new_node(self, steady: bool = False) -> VirtualNode:
        self.nodes_made += 1
        seconds = self.random.choice([0.02, 0.1, 0.1, 0.1, 0.5])
        node = VirtualNode(f"n{self.nodes_made}", seconds, not steady and self.random.random() < 0.2, steady)
        node.broken = not steady and self.random.random() < self.trouble.broken
        self.nodes[node.key] = node
        return node

    def arrive(self, node: VirtualNode) -> None:
        if not node.up and node.key in self.nodes:
            node.up = True
            invite = f"invite-{int(node.key[1:]) % 2}"
            join = ev.Join(node.key, numeric_class="x", invite_id=invite, manual=node.manual)
            self.apply(join, self.version)

    def hang_up(self, node: VirtualNode) -> None:
        node.up, node.computing = False, False
        node.epoch += 1
        node.work.clear()
        self.resting.pop(node.key, None)

    def depart(self, node: VirtualNode) -> None:
        self.hang_up(node)
        self.apply(ev.Leave(node.key, "stream ended"), self.version)

    def reach(
        self, node: VirtualNode, epoch: int, word: ev.Grant | ev.Cut, version: int, num_leaves: int
    ) -> None:
        if not node.up or node.epoch != epoch:
            return
        if self.now < node.paused_until:
            self.at(node.paused_until, self.reach, node, epoch, word, version, num_leaves)
        elif isinstance(word, ev.Grant):
            node.work[word.lease.id] = work = Work(word.lease, version, num_leaves)
            if node.manual:
                self.need(len([n for s in work.want for n in work.leaves(s)]) == 1, "a loop got two leaves")
            self.compute(node)
        elif word.lease_id in node.work:
            node.work[word.lease_id].want = list(word.keep)
            self.deliver(node, node.work[word.lease_id])
            self.compute(node)

    def compute(self, node: VirtualNode) -> None:
        if node.computing:
            return
        for lease_id, work in node.work.items():
            leaf = work.next_leaf()
            if leaf is not None:
                node.computing = True
                seconds = node.seconds * self.random.uniform(0.8, 1.3)
                self.after(seconds, self.computed, node, node.epoch, lease_id, leaf, seconds)
                return

    def computed(self, node: VirtualNode, epoch: int, lease_id: int, leaf: int, seconds: float) -> None:
        if node.epoch != epoch:
            return
        if self.now < node.paused_until:
            self.after(node.paused_until - self.now, self.computed, node, epoch, lease_id, leaf, seconds)
            return
        node.computing = False
        work = node.work.get(lease_id)
        if work is not None:
            self.report(node, work, leaf, seconds)
        self.compute(node)

    def report(self, node: VirtualNode, work: Work, leaf: int, seconds: float) -> None:
        lease = work.lease
        work.done.add(leaf)
        breaks = node.broken and self.random.random() < 0.1
        if breaks or (leaf in self.poison and work.version == self.version):
            work.bad.add(leaf)
            bits = self.random.getrandbits(50) if breaks else POISON
            self.send(node, ev.NonFinite(node.key, lease.incarnation, lease.id, leaf, bits), work.version)
            return
        self.send(node, ev.Receipt(node.key, lease.incarnation, lease.id, leaf, seconds), work.version)
        self.deliver(node, work)

    def deliver(self, node: VirtualNode, work: Work) -> None:
        lease = work.lease
        for subtree in work.finished():
            work.want.remove(subtree)
            bits = true_sum(work.version, subtree, work.depth, work.num_leaves) or 0
            answer = ev.Answer(node.key, lease.incarnation, lease.step, lease.id, subtree, bits)
            self.send(node, answer, work.version)
        if not work.want:
            node.work.pop(lease.id, None)

    # ---- trouble ----

    def make_trouble(self) -> None:
        self.after(self.random.expovariate(4.0), self.make_trouble)
        node = self.random.choice(list(self.nodes.values()))
        if self.random.random() < self.trouble.coordinator_crashes / 4:
            self.crash()
        if self.past and self.random.random() < self.trouble.forged:
            self.forge(node)
        if self.random.random() < self.trouble.node_events and not node.steady and node.up:
            kinds = [self.kill, self.pause, self.drain, self.hand_back, self.ban, self.alive]
            self.random.choice(kinds)(node)

    def forge(self, node: VirtualNode) -> None:
        """Replay an old message, or speak for another node's lease."""
        event, version = self.random.choice(self.past)
        if self.random.random() < 0.5 and node.key != event.key:
            event, version = msgspec.structs.replace(event, key=node.key), -1
        self.apply(event, version)

    def kill(self, node: VirtualNode) -> None:
        self.depart(node)
        self.after(self.random.uniform(0.1, 10.0), self.arrive, node)

    def pause(self, node: VirtualNode) -> None:
        node.paused_until = self.now + self.random.uniform(0.5, 20.0)

    def drain(self, node: VirtualNode) -> None:
        self.apply(ev.Drain(node.key), self.version)
        self.after(0.5, self.break_stream, node, node.epoch)

    def hand_back(self, node: VirtualNode) -> None:
        for lease_id in list(node.work)[:1]:
            del node.work[lease_id]
            self.resting[node.key] = self.now + self.policy.rest_seconds
            self.apply(ev.HandBack(node.key, lease_id, "its dataset is busy"), self.version)

    def ban(self, node: VirtualNode) -> None:
        self.hang_up(node)
        del self.nodes[node.key]
        self.apply(ev.Ban(node.key, "a test"), self.version)
        self.after(self.random.uniform(0.1, 5.0), self.arrive, self.new_node())

    def alive(self, node: VirtualNode) -> None:
        self.apply(ev.Alive(node.key), self.version)
