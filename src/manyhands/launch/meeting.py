"""Where the machines of a launch meet: a store on node 0, and a roll call in it.

::

    node 0    1 listens on a port        (asked for, else 29500, else any; loopback if it is alone)
    node r    2 connects, with patience  (preflight: whether the address answers, and why not)
    node 0    3 writes the plan          a machine with another number of machines is refused
    all       4 write their own name     a node rank that is taken is refused, naming who has it
    all       5 wait for the others      saying every half minute who is missing, and what to run there
    any       6 tells of the failure that ends it, for those who only see that a peer is gone

From step 5 on they talk over a `Board`, since a store behind a cut cable answers nothing. torch's ranks use the
same store, on the same port. Nothing but names and numbers is in it.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import DistError
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from manyhands.clock import Clock
from manyhands.errors import Mismatch, RunFailed, Unreachable
from manyhands.launch.board import Board, Entry
from manyhands.observe.waiting import Waiting

_RETRY_SECONDS = 0.2
_ROOM, _AGENTS = "manyhands", "manyhands-agents"


@dataclass(frozen=True)
class Place:
    """One machine in the meeting."""

    node_rank: int
    num_nodes: int
    host: str
    pid: int
    token: str = ""


class Meeting(RendezvousHandler):
    """The store, seen from one machine; for torch's agent it is the rendezvous: the ranks are known beforehand."""

    def __init__(self, store: TCPStore, address: str, place: Place, clock: Clock) -> None:
        self._store = store
        self._room = PrefixStore(_ROOM, store)
        self._place = place
        self._clock = clock
        self._round = -1
        self._run_id = ""
        self.address = address
        self.port: int = store.port
        self.board: Board | None = None
        """Where the machines talk to one another once all are there; None for one alone."""

    @property
    def store(self) -> Store:
        """The store itself."""
        return self._store

    # ---- the roll call ----

    def enter(self) -> None:
        """Steps 3 and 4. `Mismatch` where the machines do not agree, naming the other one."""
        mine = json.dumps(asdict(self._place))
        plan = json.loads(
            self._room.compare_set("plan", "", mine) if self._place.node_rank == 0 else self._plan()
        )
        if plan["token"] != self._place.token:
            raise Mismatch(
                f"another launch listens at {self.address} port {self.port} (started on {plan['host']}): choose "
                "another --master-port"
            )
        if plan["num_nodes"] != self._place.num_nodes:
            raise Mismatch(
                f"this machine was started with --nnodes {self._place.num_nodes}, {plan['host']} (node "
                f"{plan['node_rank']}) with --nnodes {plan['num_nodes']}: give all machines the same number"
            )
        holder = self._room.compare_set(f"node/{self._place.node_rank}", "", mine).decode()
        if holder != mine:
            other = json.loads(holder)
            raise Mismatch(
                f"node rank {self._place.node_rank} is taken by {other['host']} (process {other['pid']}): "
                f"give each machine a --node-rank of its own, 0 to {self._place.num_nodes - 1}"
            )

    def _plan(self) -> bytes:
        """What node 0 writes right after it has begun to listen."""
        try:
            self._room.wait(["plan"])
            plan: bytes = self._room.get("plan")
        except DistError as error:
            raise Unreachable(f"node 0 at {self.address} port {self.port} went away") from error
        return plan

    def wait_for_all(
        self, hint: Callable[[int], str], silence_seconds: float, limit_seconds: float | None = None
    ) -> None:
        """Step 5; `hint` says what to run on a missing machine. `Unreachable` after the limit.

        From here on a machine that is silent for `silence_seconds` is lost.
        """
        waiting = Waiting(self._clock)
        while missing := self._missing():
            waiting.say(
                f"waiting for node {missing[0]} of {self._place.num_nodes}; run there: {hint(missing[0])}"
            )
            if limit_seconds is not None and waiting.seconds > limit_seconds:
                raise Unreachable(
                    f"node {missing[0]} did not come within {limit_seconds:g} s (network.wait_timeout)"
                )
            self._clock.sleep(_RETRY_SECONDS / 4)
        own = Entry(self._place.node_rank, self._place.host)
        room = PrefixStore(_ROOM, self._store.clone())  # type: ignore[attr-defined]
        board = Board(room, own, self._place.num_nodes, silence_seconds, self._clock)
        try:
            board.start()
        except DistError as error:
            raise Unreachable(f"node 0 at {self.address} went away") from error
        self.board = board

    def _missing(self) -> list[int]:
        try:
            return [rank for rank in range(self._place.num_nodes) if not self._room.check([f"node/{rank}"])]
        except DistError as error:
            raise Unreachable(f"node 0 at {self.address} is gone before all machines were there") from error

    # ---- what torch's agent asks ----

    def get_backend(self) -> str:
        """A name for torch's events."""
        return "manyhands"

    @property
    def use_agent_store(self) -> bool:
        """The ranks use this store too."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """The same ranks each time. At a restart all machines meet here, and node 0 sweeps the store:

        ranks would find the addresses of those that are gone.
        """
        self._round += 1
        if self._round and self.board is None:
            self._sweep()
        elif self._round and self.board is not None:
            self._meet_again(self.board)
        return RendezvousInfo(
            PrefixStore(_AGENTS, self._store),
            self._place.node_rank,
            self._place.num_nodes,
            RendezvousStoreInfo(self.address, self.port),
        )

    def _meet_again(self, board: Board) -> None:
        """Wait for all machines, then for the sweep. `Unreachable` where one is lost, `RunFailed` where one is done."""

        def done() -> list[Entry]:
            return [entry for entry in board.others if entry.ended and entry.round < self._round]

        board.tell(round=self._round)
        if self._place.node_rank == 0:
            board.wait_until(lambda: all(e.round >= self._round or e.ended for e in board.others))
            self._sweep()
            board.tell(swept=self._round)
        else:
            board.wait_until(lambda: board.entries[0].swept >= self._round or bool(done()))
        if (lost := board.lost()) is not None:
            raise Unreachable(lost)
        if done():
            raise RunFailed(
                f"there is no restart: all ranks on {done()[0].name} had ended well before one failed here, and "
                "cannot start again"
            )

    def _sweep(self) -> None:
        for key in self._store.list_keys():
            if not key.startswith((f"{_ROOM}/", f"{_AGENTS}/")):
                self._store.delete_key(key)

    def is_closed(self) -> bool:
        """Never: nobody may come later."""
        return False

    def set_closed(self) -> None:
        """Nothing to close."""

    def num_nodes_waiting(self) -> int:
        """1 where another machine restarts its ranks and waits for ours."""
        others = [] if self.board is None else self.board.others
        return int(any(entry.round > self._round for entry in others))

    def get_run_id(self) -> str:
        """An id that the ranks of this launch, and of no other, are told (see `group.launch_id`)."""
        if not self._run_id:
            self._run_id = self._room.compare_set("id", "", f"{_ROOM}-{uuid.uuid4().hex}").decode()
        return self._run_id

    def shutdown(self) -> bool:
        """The store ends with this process."""
        return True


def place_here(node_rank: int, num_nodes: int, host: str, token: str = "") -> Place:
    """The place of this process."""
    return Place(node_rank, num_nodes, host, os.getpid(), token)
