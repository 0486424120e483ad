"""``manyhands join --on ray``: nodes as Ray actors, for as long as the run goes on.

::

    this process ── places ──▶ actor on machine A   lend(invite) ═══ mutual TLS ═══ coordinator
         │                     actor on machine A
         └── each second ────▶ actor on machine B   died: Ray starts it again, and it joins anew

With ``count`` nodes Ray chooses the machines, and has its autoscaler make room where there is too little; without
it each machine of the cluster gets the nodes that it has room for, and so does one that the cluster gains later.
An actor that dies is placed again by Ray; one that was bound to a machine which is gone for good is let go.

Actors end with this process. What Ray keeps and logs of an actor (its class, its constructor's arguments) has no
secret in it; the invite goes once over Ray's own connection, which is encrypted where the cluster uses TLS.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any

from manyhands.clock import Clock
from manyhands.clusters.lender import Lender
from manyhands.clusters.plan import Machine, Needs, Order, Wish, check, missing, needs_of
from manyhands.clusters.rayconnect import bound_to, connect, load_ray, machines_of
from manyhands.fleet.signals import Signals
from manyhands.observe.text import clean_line
from manyhands.pool.lending.given import Given
from manyhands.pool.lending.words import Ending, error_of

if TYPE_CHECKING:
    from manyhands.wire.invite import Invite

TICK_SECONDS = 1.0
LOOK_SECONDS = 5.0
"""How often the cluster's machines are looked at."""
END_SECONDS = 5.0


@dataclass(frozen=True)
class Placed:
    """One actor: its handle, the future of its `lend`, and the machine that it is bound to, if it is."""

    actor: Any
    ending: Any
    machine: str | None


class RayJoin:
    """Nodes on one Ray cluster, from `run`'s start to its end."""

    def __init__(
        self,
        order: Order,
        wish: Wish,
        invite: Invite,
        *,
        clock: Clock,
        show: Callable[[Given], None],
        say: Callable[[str], None],
    ) -> None:
        self._order = order
        self._wish = wish
        self._invite = invite
        self._clock = clock
        self._show = show
        self._say = say
        self._stopping = threading.Event()
        self._placed: list[Placed] = []
        self._num_placed = 0
        self._ended: list[Ending] = []
        self._needs: Needs
        self._looked_at = 0.0
        self._given_before = Given()
        self.given = Given()
        """What all nodes have given so far."""

    def run(self) -> None:
        """Place nodes and look after them until all have ended; raises what ended them, where that was an error.

        Unreachable where there is no cluster, UsageError where no node finds room in it.
        """
        ray = load_ray()
        connect(ray, self._order.address)
        try:
            machines = machines_of(ray)
            self._needs = needs_of(self._wish.device, self._order.cpus, self._wish.num_ranks, machines)
            check(machines, self._needs, self._order.count, self._invite.host)
            with Signals(self.stop, "handing back what is leased") as signals:
                self._place(ray, machines)
                while self._placed and not self._stopping.is_set() and not self._is_run_over:
                    self._tick(ray)
                self._end(ray)
            signals.end()
        finally:
            ray.shutdown()
        self._raise()

    def stop(self) -> None:
        """Hand back what is leased and end; from any thread or a signal's handler, at once."""
        self._stopping.set()

    @property
    def _is_run_over(self) -> bool:
        """Whether a node saw the run's end: others see it too, or wait for room that they need no more."""
        return any(ending.error is None for ending in self._ended)

    # ---- placing ----

    def _place(self, ray: Any, machines: list[Machine]) -> None:
        """The nodes that are missing: all of `count` once, else those that machines have room for."""
        if self._order.count is not None:
            where: list[str | None] = [None] * (self._order.count - self._num_placed)
        else:
            bound = Counter(placed.machine for placed in self._placed if placed.machine is not None)
            where = list(missing(machines, self._needs, bound))
        for machine in where:
            self._placed.append(self._start(ray, machine))
        if where:
            places = f"{len(machines)} machine{'s' if len(machines) > 1 else ''}"
            self._say(f"{len(self._placed)} nodes on a Ray cluster of {places}")

    def _start(self, ray: Any, machine: str | None) -> Placed:
        self._num_placed += 1
        actor = (
            ray.remote(Lender)
            .options(
                num_cpus=self._needs.cpus,
                num_gpus=self._needs.gpus,
                max_restarts=-1,
                max_task_retries=-1,
                max_concurrency=3,  # `stop` and `given` beside `lend`
                scheduling_strategy="SPREAD" if machine is None else bound_to(machine),
            )
            .remote()
        )
        named = replace(self._wish, name=f"{self._wish.name}-{self._num_placed}")
        return Placed(actor, actor.lend.remote(str(self._invite), named), machine)

    # ---- looking after ----

    def _tick(self, ray: Any) -> None:
        done, _ = ray.wait([placed.ending for placed in self._placed], timeout=TICK_SECONDS)
        for placed in [placed for placed in self._placed if placed.ending in done]:
            self._placed.remove(placed)
            self._take_ending(ray, placed)
        now = self._clock.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        self._count(ray)
        if self._order.count is None and not self._ended:  # a node that was refused is not tried again
            self._place(ray, machines_of(ray))

    def _take_ending(self, ray: Any, placed: Placed) -> None:
        try:
            error, text = ray.get(placed.ending)
        except ray.exceptions.RayError as lost:
            self._say(f"a node went with its machine: {clean_line(str(lost).splitlines()[0])}")
            return
        self._ended.append(Ending(error, text))
        self._given_before += self._given_of(ray, [placed])

    def _count(self, ray: Any) -> None:
        self.given = self._given_before + self._given_of(ray, self._placed)
        self._show(self.given)

    def _given_of(self, ray: Any, placed: list[Placed]) -> Given:
        asked = [each.actor.given.remote() for each in placed]
        if not asked:
            return Given()
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=TICK_SECONDS)
        told: list[Given] = []
        for answer in done:
            try:
                told.append(Given(**ray.get(answer)))
            except ray.exceptions.RayError:  # it has just died
                continue
        return reduce(lambda total, given: total + given, told, Given())

    # ---- ending ----

    def _end(self, ray: Any) -> None:
        if self._is_run_over:
            self._wait_for_endings(ray)
        for placed in self._placed:
            placed.actor.stop.remote()
        self._wait_for_endings(ray)
        self._count(ray)
        for placed in self._placed:
            ray.kill(placed.actor)

    def _wait_for_endings(self, ray: Any) -> None:
        endings = [placed.ending for placed in self._placed]
        if endings:
            ray.wait(endings, num_returns=len(endings), timeout=END_SECONDS)

    def _raise(self) -> None:
        """The first error, where no node saw the run's end."""
        if self._ended and not self._is_run_over:
            raise error_of(self._ended[0])
