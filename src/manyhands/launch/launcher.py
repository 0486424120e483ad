"""One command line, from its words to an exit code: the ranks of this machine, and where others join them.

`run_here` is what every machine of a launch does; the machines that `--hosts` names are told to by `conductor`.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousHandler

from manyhands.clock import Clock, SystemClock
from manyhands.errors import RunFailed, Unreachable, UsageError
from manyhands.launch import doors
from manyhands.launch.addresses import interface_of, source_address
from manyhands.launch.agent import Agent, our_environment, our_signals, quiet_agent
from manyhands.launch.assembly import build_agent, build_logs, check_script
from manyhands.launch.blame import Failure, describe, judge
from manyhands.launch.board import Board
from manyhands.launch.meeting import Meeting, Place, place_here
from manyhands.launch.options import Order, parse
from manyhands.launch.plan import INTERRUPTED, USUAL_PORT, bare_address, join_line, processes
from manyhands.launch.telling import Console, Teller

_FAREWELL_SECONDS = 2.0
_QUIET_SECONDS = 1.5
"""Beats of a machine that lives come twice a second."""


@dataclass(frozen=True)
class Site:
    """What `run_here` must know beside the order: which machine this is, and where node 0 listens.

    `address` is None where it is to be found, `port` where it is to be chosen; `host` is the name to show;
    `token` tells one launch from another; `announce` is told the port that node 0 listens on.
    """

    node_rank: int = 0
    num_nodes: int = 1
    address: str | None = None
    port: int | None = None
    host: str = ""
    token: str = ""
    announce: Callable[[int], None] | None = None


def launch(arguments: Sequence[str]) -> int:
    """Run a command line of `manyhands launch`; its exit code: that of the rank that failed first."""
    order = parse(arguments)
    if order.hosts:
        from manyhands.launch.conductor import conduct

        return conduct(order)
    console = Console()
    code = run_here(order, _site(order), console)
    console.close()
    if console.failures:
        sys.stderr.write(describe(judge(console.failures)))
        sys.stderr.flush()
    return code


def _site(order: Order) -> Site:
    given = order.torchrun
    address = bare_address(given.master_addr) if given.master_addr else None
    if order.most_nodes == 1:
        return Site(address=address, port=given.master_port)
    if address is None and given.node_rank != 0:
        raise UsageError(
            f"--node-rank {given.node_rank}: say where node 0 is, with --master-addr and --master-port"
        )
    return Site(given.node_rank, order.most_nodes, address, given.master_port, socket.gethostname())


def run_here(order: Order, site: Site, teller: Teller) -> int:
    """Run this machine's ranks to their end; their failures go to the teller. Exit code as a shell shows it."""
    clock = SystemClock()
    check_script(order)
    num_processes = processes(order.nproc, torch.accelerator.device_count(), os.cpu_count() or 1)
    with (
        our_signals(),
        our_environment(),
        quiet_agent(),
        tempfile.TemporaryDirectory(prefix="manyhands-launch-") as scratch,
    ):
        if num_processes > 1:
            # torchrun's choice: several processes, each with a thread on every core, would only wait.
            os.environ.setdefault("OMP_NUM_THREADS", "1")
        try:
            handler = _handler(order, site, teller, clock)
            logs = build_logs(order, site.host, Path(scratch), teller, clock)
            agent = build_agent(order, num_processes, handler, logs, clock, teller.note)
            return _run(agent, site, teller)
        except SignalException as stopped:
            teller.note(f"stopped by {stopped.sigval.name}: all ranks are gone")
            return 128 + stopped.sigval
        except (DistError, RendezvousError) as error:
            raise Unreachable(
                f"the machines of this launch did not meet, or lost node 0 ({error.__cause__ or error}): is every one "
                "started, and does each reach the first?"
            ) from error
        except KeyboardInterrupt:
            teller.note("interrupted before the ranks were started")
            return INTERRUPTED


def _run(agent: Agent, site: Site, teller: Teller) -> int:
    """Run the agent to its end; on a failure, find out whether it began on another machine."""
    board = agent.board
    try:
        result = agent.run()
        failures = [replace(failure, host=site.host) for failure in agent.failures]
        if result is None or (result.is_failed() and not failures):
            raise RunFailed("torch's agent ended without a failed rank: the machines did not meet in time")
        if board is not None:
            failures += _elsewhere(board, failures, teller)
            board.leave(_FAREWELL_SECONDS)
    finally:
        if board is not None:
            board.close()
    teller.failed(failures)
    return judge(failures).exit_code if failures else 0


def _elsewhere(board: Board, failures: list[Failure], teller: Teller) -> list[Failure]:
    """The failure of another machine that began it, where there is one; else the others are told ours.

    Unreachable where what began it is that a machine was lost.
    """
    root = judge(failures).root if failures else None
    if root is not None and root.exit_code and not root.was_stopped and not root.blames_a_peer:
        board.tell(failure=asdict(root))
        return []
    told = board.failure() if root is None else board.wait_failure(_FAREWELL_SECONDS)
    if told is not None:
        # Clocks of two machines are not comparable: what was told before we fell comes before.
        return [replace(Failure(**told), at=float("-inf"))]
    lost = board.lost()
    if lost is not None and (root is not None or not board.is_gone):
        raise Unreachable(f"{lost}. The ranks here have ended")
    if root is None:
        return []
    ended = [Failure(rank, 0, float("-inf"), host=host) for host, rank in board.ended()]
    board.tell(failure=asdict(judge([*failures, *ended]).root))
    if not ended and root.exit_code:
        teller.note(f"no other machine has told of a failure: {_suspect(board)} was killed, or is cut off")
    return ended


def _suspect(board: Board) -> str:
    quiet = [entry.name for entry in board.quiet(_QUIET_SECONDS)]
    return " or ".join(quiet) or "one"


def _handler(order: Order, site: Site, teller: Teller, clock: Clock) -> RendezvousHandler:
    """Where the ranks meet: our own store for a fixed set of machines, torch's rendezvous for others."""
    if not order.own_rendezvous:
        from manyhands.launch.elastic import torch_handler

        return torch_handler(order)
    place = place_here(site.node_rank, site.num_nodes, site.host or socket.gethostname(), site.token)
    if site.num_nodes == 1:
        return doors.listen(site.address or "127.0.0.1", site.port, place, clock)
    from manyhands.settings import load

    network = load().network
    met = _meet(site, place, clock, network.wait_timeout)
    _name_interface(met.address)
    options = ["-m"] if order.torchrun.module else []
    rest = [*_repeated(order), *options, order.script, *order.script_arguments]

    def line(node_rank: int | str) -> str:
        return join_line(order.torchrun.nnodes, node_rank, met.address, met.port, rest)

    if order.is_elastic:
        from manyhands.launch.elastic import own_handler

        if site.node_rank == 0:
            teller.note(f"on each other machine, now or later, with a node rank of its own: {line(1)}")
        return own_handler(order, met)
    met.enter()
    met.wait_for_all(line, network.timeout, network.wait_timeout)
    return met


def _meet(site: Site, place: Place, clock: Clock, limit: float | None) -> Meeting:
    from manyhands.wire.address import local_addresses

    if site.node_rank != 0:
        assert site.address is not None
        return doors.connect(_resolved(site.address), site.port or USUAL_PORT, place, clock, limit)
    address = _resolved(site.address) if site.address else local_addresses()[0]
    met = doors.listen(address, site.port, place, clock)
    if site.announce is not None:
        site.announce(met.port)
    return met


def _resolved(address: str) -> str:
    """An IP address: ranks on other machines must not depend on what a name means there."""
    from manyhands.wire.address import resolve

    return resolve(address)[0]


def _name_interface(master: str) -> None:
    """Tell Gloo the interface towards node 0; what the user has set stays."""
    address = source_address(master)
    name = interface_of(address) if address else None
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _repeated(order: Order) -> list[str]:
    """The options that the other machines need as well."""
    given = order.torchrun
    repeated = ["--nproc", order.nproc] if order.nproc else []
    return [*repeated, *(["--max-restarts", str(given.max_restarts)] if given.max_restarts else [])]
